"""Ratios as a picture: a dot for each median, a line between its quartiles, a tick where the goal is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import report
from connlib.lab._svg import Box, Canvas, text_width
from datapath.series import Series

_COLOURS = ("#1f5fa8", "#b3541e", "#2e7d4f", "#7a4a9e")
_INK, _FAINT, _ONE = "#222222", "#e2e2e2", "#777777"
_SIZE = 12.0
_ROW, _GAP = 16.0, 10.0
_TOP, _WIDTH, _RIGHT, _BOTTOM = 64.0, 520.0, 24.0, 34.0


def draw(series: Sequence[Series]) -> str | None:
    """SVG; None if there is nothing to compare."""
    shown = [each for each in series if each.ratios()]
    if not shown:
        return None
    others = list(dict.fromkeys(each.against for each in shown))
    groups = list(dict.fromkeys(each.what for each in shown))
    left = 16 + max(text_width(group, _SIZE) for group in groups) + 12
    values = [1.0]
    for each in shown:
        values += report.quartiles(each.ratios())
        values += [each.goal.bound] if each.goal else []
    # Whole powers of two: equal factors have equal lengths.
    low, high = (
        math.floor(math.log2(max(min(values), 1e-3))),
        math.ceil(math.log2(max(values))),
    )
    high = max(high, low + 1)

    def x(ratio: float) -> float:
        return left + (math.log2(max(ratio, 1e-3)) - low) / (high - low) * _WIDTH

    canvas = Canvas()
    rows = sum(1 for _ in shown)
    bottom = _TOP + rows * _ROW + len(groups) * _GAP
    for power in range(low, high + 1):
        at = x(2.0**power)
        canvas.line([(at, _TOP - 6), (at, bottom)], _ONE if power == 0 else _FAINT)
        canvas.text((at, bottom + 14), f"{2.0**power:g}", _INK, size=_SIZE, anchor="middle")
    canvas.text((16, 18), "TCP: connlib's rate over the other's", _INK, size=_SIZE + 1, bold=True)
    at = 16.0
    for number, other in enumerate(others):
        canvas.circle((at + 5, 40), 4.5, _COLOURS[number % len(_COLOURS)])
        canvas.text((at + 14, 40), other, _INK, size=_SIZE)
        at += 14 + text_width(other, _SIZE) + 20
    canvas.text((at, 40), "line: quartiles; tick: goal", _ONE, size=_SIZE)
    y = _TOP
    for group in groups:
        members = [each for each in shown if each.what == group]
        canvas.text((left - 12, y + len(members) * _ROW / 2), group, _INK, size=_SIZE, anchor="end")
        for each in members:
            _dot(canvas, each, x, y + _ROW / 2, _COLOURS[others.index(each.against) % len(_COLOURS)])
            y += _ROW
        y += _GAP
        canvas.line([(16, y - _GAP / 2), (left + _WIDTH, y - _GAP / 2)], _FAINT)
    return canvas.svg(left + _WIDTH + _RIGHT, bottom + _BOTTOM, "Rates of TCP as ratios")


def _dot(canvas: Canvas, series: Series, x: object, y: float, colour: str) -> None:
    assert callable(x)
    median, low, high = report.quartiles(series.ratios())
    canvas.line([(x(low), y), (x(high), y)], colour, width=2)
    canvas.circle((x(median), y), 4.5, colour)
    if series.goal is not None:
        at = x(series.goal.bound)
        canvas.rect(Box(at - 1, y - 6, at + 1, y + 6), colour)
