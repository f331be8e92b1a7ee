"""A trace as a sequence diagram: time downwards, a lane for each host, an arrow for each datagram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot, inf

from connlib.lab._flights import KINDS, Flight, flights, within
from connlib.lab._layout import LOSS_DEPTH, Arrow, Fold, Label, Mark, lay_out
from connlib.lab._png import to_png
from connlib.lab._records import Arrived, Kind, Lost, Record
from connlib.lab._svg import Box, Canvas, Point, text_width

MOST_INSTANTS = 1500
"""How many instants a diagram shows at most, about 100,000 pixels."""

_INK = "#1f2937"
_FAINT = "#6b7280"
_LANE = "#9ca3af"
_ALARM = "#c81e1e"
_COLORS: dict[Kind, str] = {
    "I": "#1d4ed8",
    "R": "#0f766e",
    "C": "#b45309",
    "K": "#64748b",
    "D": "#7e22ce",
}
_MARKS = {
    Mark.APPLICATION: "#7e22ce",
    Mark.DEADLINE: "#b45309",
    Mark.EVENT: "#15803d",
    Mark.CHANGE: _INK,
    Mark.DROP: _ALARM,
}

_SIZE = 12.0
_SMALL = 11.0
_HEAD = 14.0
_MARGIN = 20.0
_TOP = 76.0
"""From the upper edge to the first instant, without a title."""
_TITLE = 30.0
_LEGEND = 58.0
_LANE_GAP = 320.0
_BESIDE = 14.0
"""From a lane to the text beside it."""
_CLEAR = 6.0
"""From the point of an arrow to the lane if there is a mark on it."""
_LOST_AT = 0.6
"""How far a lost datagram comes, as a part of its way."""
_POSITIONS = (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73, 0.2, 0.8)
"""Where on its arrow a label may be, the best place first."""


def draw_svg(
    hosts: Sequence[str],
    records: Sequence[Record],
    *,
    since: float = 0.0,
    until: float = inf,
    title: str = "",
) -> str:
    """The trace as an SVG document; equal traces give equal documents.

    Equal times are not equal distances: long ones are folded, with their length, and what repeats itself is drawn once,
    with a count. A `#` number is a handshake and its session.

    since, until: only what happened at these seconds or between them.
    Raises `ValueError` if what is left is too much for a diagram.
    """
    return _Drawing(hosts, within(records, since, until), flights(records), title).svg()


def draw_png(
    hosts: Sequence[str],
    records: Sequence[Record],
    *,
    since: float = 0.0,
    until: float = inf,
    title: str = "",
    zoom: float = 2.0,
) -> bytes:
    """The same as a PNG. zoom: how many pixels a unit of the SVG becomes.

    Raises `PictureError` where resvg-py (the extra `lab`) is not installed, or no font.
    """
    return to_png(draw_svg(hosts, records, since=since, until=until, title=title), zoom=zoom)


@dataclass(frozen=True, slots=True)
class _Caption:
    """A text that was placed, and where."""

    text: str
    box: Box
    color: str
    anchor: str = "middle"
    bold: bool = False


@dataclass(frozen=True, slots=True)
class _Lane:
    """A host's lane: one line, or two where there are hosts on both sides of it."""

    left: float
    right: float
    side: int
    """On which side of its marks the texts are: -1 left, 1 right."""

    @property
    def marks(self) -> float:
        """Where its marks are."""
        return self.left


@dataclass(frozen=True, slots=True)
class _Line:
    """An arrow with its ends in pixels."""

    arrow: Arrow
    start: Point
    end: Point

    def at(self, part: float) -> Point:
        """A point on it."""
        (x1, y1), (x2, y2) = self.start, self.end
        return x1 + (x2 - x1) * part, y1 + (y2 - y1) * part

    @property
    def is_lost(self) -> bool:
        """Whether it ends in a cross."""
        end = self.arrow.flight.end
        return end is not None and not (isinstance(end, Arrived) and end.error is None)


class _Drawing:
    def __init__(
        self, hosts: Sequence[str], records: Sequence[Record], flying: Sequence[Flight], title: str
    ) -> None:
        self._hosts = hosts
        self._title = title
        self._top = _TOP + (_TITLE if title else 0.0)
        self._layout = lay_out(hosts, records, flying)
        if len(self._layout.tops) > MOST_INSTANTS:
            raise ValueError(
                f"{len(self._layout.tops):,} instants are too many for a diagram: narrow it with since and until"
            )
        self._lanes = self._place_lanes()
        self._marked = {label.spot for label in self._layout.labels if label.mark is not Mark.DROP}
        self._lines = [self._line(arrow) for arrow in self._layout.arrows]
        self._captions = [self._beside(label) for label in self._layout.labels]
        self._captions += [self._fold_caption(fold) for fold in self._layout.folds]
        self._gaps = [self._caption_arrow(line) for line in self._lines]

    def svg(self) -> str:
        canvas = Canvas()
        width = self._right + _MARGIN
        bottom = self._y(self._layout.bottom)
        self._draw_shades(canvas)
        self._draw_times(canvas)
        self._draw_lanes(canvas, bottom)
        for line, gap in zip(self._lines, self._gaps, strict=True):
            _draw_line(canvas, line, gap)
        for label in self._layout.labels:
            y = self._y(self._layout.height(label.spot))
            _draw_mark(canvas, label.mark, (self._lanes[label.spot.lane].marks, y))
        for fold in self._layout.folds:
            self._draw_fold(canvas, fold)
        for caption in self._captions:
            _draw_caption(canvas, caption)
        if self._title:
            canvas.text((_MARGIN, 26), self._title, _INK, size=15, bold=True)
        height = bottom + self._draw_legend(canvas, bottom + 34, width)
        return canvas.svg(width, height, self._title or " and ".join(self._hosts))

    # Places.

    def _place_lanes(self) -> list[_Lane]:
        """The lanes from left to right, with room for the texts beside them."""
        widest = [0.0] * len(self._hosts)
        for label in self._layout.labels:
            lane = label.spot.lane
            widest[lane] = max(widest[lane], text_width(label.text, _SIZE) + _BESIDE)
        self._times = _MARGIN + max(text_width(_clock(at), _SMALL) for at in (*self._layout.tops, 0))
        heads = [_head_width(host) for host in self._hosts]
        lanes: list[_Lane] = []
        x = self._times + 16
        for place, head in enumerate(heads):
            is_last = place == len(heads) - 1
            if place == 0:
                x += max(widest[0], head / 2)
                lanes.append(_Lane(x, x, -1))
            elif is_last:
                lanes.append(_Lane(x, x, 1))
                x += max(widest[place], head / 2)
            else:
                # Two lines with the texts between them, so that no arrow runs through these.
                lanes.append(_Lane(x, x + max(widest[place] + _BESIDE, head - 28), 1))
                x = lanes[-1].right
            x += 0 if is_last else _LANE_GAP
        self._right = x if len(heads) > 1 else x + max(heads, default=0) / 2
        return lanes

    def _y(self, height: float) -> float:
        return self._top + height

    def _line(self, arrow: Arrow) -> _Line:
        first, last = arrow.start.lane, arrow.to_lane
        y1 = self._y(self._layout.height(arrow.start))
        if arrow.end is None:
            # Between its lane and the next one, where no other texts are.
            x1, x2 = self._ends(first, first + (1 if last > first else -1))
            return _Line(arrow, (x1, y1), (x1 + (x2 - x1) * _LOST_AT, y1 + LOSS_DEPTH))
        x1, x2 = self._ends(first, last)
        # The point of an arrow is not under a mark.
        if arrow.end in self._marked and x2 == self._lanes[arrow.to_lane].marks:
            x2 += -_CLEAR if x2 > x1 else _CLEAR
        return _Line(arrow, (x1, y1), (x2, self._y(self._layout.height(arrow.end))))

    def _ends(self, from_lane: int, to_lane: int) -> tuple[float, float]:
        """Where an arrow leaves one lane and comes to another."""
        first, last = self._lanes[from_lane], self._lanes[to_lane]
        return (first.right, last.left) if from_lane < to_lane else (first.left, last.right)

    def _beside(self, label: Label) -> _Caption:
        lane, y = self._lanes[label.spot.lane], self._y(self._layout.height(label.spot))
        width = text_width(label.text, _SIZE)
        is_left = lane.side < 0
        left = lane.marks - _BESIDE - width if is_left else lane.marks + _BESIDE
        anchor = "end" if is_left else "start"
        return _Caption(label.text, _text_box(left, y, width), _MARKS[label.mark], anchor)

    def _fold_caption(self, fold: Fold) -> _Caption:
        middle = (self._lanes[0].left + self._lanes[-1].right) / 2
        width = text_width(fold.text, _SIZE)
        y = self._y((fold.top + fold.bottom) / 2)
        return _Caption(fold.text, _text_box(middle - width / 2, y, width), _INK if fold.repeats else _FAINT)

    def _caption_arrow(self, line: _Line) -> tuple[float, float]:
        """Place the label of an arrow, and the reason if it is lost. Which part of the arrow the label hides."""
        arrow, flight = line.arrow, line.arrow.flight
        if arrow.end is None:
            why = flight.end.why if isinstance(flight.end, Lost) else "under way"
            color = _FAINT if flight.end is None else _ALARM
            box = self._choose([*self._around_the_end(line, why)], line)
            self._captions.append(_Caption(why, box, color))
        is_next = abs(arrow.start.lane - arrow.to_lane) == 1
        text = flight.label + ("" if is_next else f" to {self._hosts[arrow.to_lane]}")
        text += ", copy" if flight.copy else ""
        width = text_width(text, _SIZE, bold=True)
        points = [line.at(part) for part in _POSITIONS]
        box = self._choose([_text_box(x - width / 2, y, width) for x, y in points], line)
        self._captions.append(_Caption(text, box, _COLORS[flight.sent.kind], bold=True))
        return box.wider(3).cuts(line.start, line.end) or (1.0, 1.0)

    def _around_the_end(self, line: _Line, text: str) -> Iterator[Box]:
        """Where the reason may be: beside the cross, best on the side that the arrow points to, below or above it."""
        (x, y), width = line.end, text_width(text, _SIZE)
        lefts = [x + 10, x - 10 - width] if line.end[0] > line.start[0] else [x - 10 - width, x + 10]
        for left, down in ((lefts[0], 0), (x - width / 2, 14), (x - width / 2, -14), (lefts[1], 0)):
            yield _text_box(left, y + down, width)
        for down in (14, -14):
            for left in lefts:
                yield _text_box(left, y + down, width)

    def _choose(self, places: Sequence[Box], line: _Line) -> Box:
        """The first place that is free of texts and of other arrows, or of texts at least."""
        free = [box for box in places if not any(box.overlaps(other.box) for other in self._captions)]
        for box in free:
            others = (other for other in self._lines if other is not line and other.start != line.start)
            if not any(box.cuts(other.start, other.end) for other in others):
                return box
        return (free or places)[0]

    # Strokes.

    def _draw_lanes(self, canvas: Canvas, bottom: float) -> None:
        for lane, host in zip(self._lanes, self._hosts, strict=True):
            for x in sorted({lane.left, lane.right}):
                self._draw_lane(canvas, x, bottom)
            middle = (lane.left + lane.right) / 2
            half = max(_head_width(host), lane.right - lane.left + 28) / 2
            box = Box(middle - half, self._top - 54, middle + half, self._top - 26)
            canvas.rect(box, "#f3f4f6", stroke=_LANE, radius=6)
            canvas.text((middle, self._top - 40), host, _INK, size=_HEAD, anchor="middle", bold=True)

    def _draw_lane(self, canvas: Canvas, x: float, bottom: float) -> None:
        """A line from the host's name to the end, dotted where time is left out."""
        y = self._top - 26
        for fold in self._layout.folds:
            top, end = self._y(fold.top), self._y(fold.bottom)
            quarter = (end - top) / 4
            canvas.line([(x, y), (x, top + quarter)], _LANE, width=1.5)
            y = end - quarter
            canvas.line([(x, top + quarter), (x, y)], _LANE, width=1.5, dash="1.5 4")
        canvas.line([(x, y), (x, bottom)], _LANE, width=1.5)

    def _draw_times(self, canvas: Canvas) -> None:
        canvas.text((self._times, self._top - 40), "seconds", _FAINT, size=_SMALL, anchor="end")
        for at, height in self._layout.tops.items():
            y = self._y(height)
            canvas.text((self._times, y), _clock(at), _FAINT, size=_SMALL, anchor="end")

    def _draw_shades(self, canvas: Canvas) -> None:
        canvas.define(
            '<pattern id="cut" width="8" height="8" patternUnits="userSpaceOnUse">'
            '<path d="M-2 10L10 -2M-2 2L2 -2M6 10L10 6" stroke="#f9d5d5" stroke-width="1.5"/></pattern>'
        )
        for shade in self._layout.shades:
            top = self._y(self._layout.height_at(shade.start))
            bottom = self._y(self._layout.bottom if shade.end is None else self._layout.height_at(shade.end))
            if len(shade.lanes) == 1:
                lane = self._lanes[shade.lanes[0]]
                canvas.rect(Box(lane.left - 9, top, lane.right + 9, bottom), "#d5ddff", radius=4)
            else:
                left, right = self._ends(*shade.lanes)
                canvas.rect(Box(left, top, right, bottom), "#fef2f2")
                canvas.rect(Box(left, top, right, bottom), "url(#cut)")

    def _draw_fold(self, canvas: Canvas, fold: Fold) -> None:
        """A wavy line through the time that is left out, on both sides of its length."""
        y = self._y((fold.top + fold.bottom) / 2)
        half = text_width(fold.text, _SIZE) / 2 + 14
        left, right = self._lanes[0].left - 24, self._lanes[-1].right + 24
        middle = (left + right) / 2
        box = Box(middle - half, y - 12, middle + half, y + 12)
        canvas.line(_wave(left, right, y), "#d1d5db", width=1.2)
        fill, stroke = ("#fef9c3", "#eab308") if fold.repeats else ("#ffffff", "#d1d5db")
        canvas.rect(box, fill, stroke=stroke, radius=12)

    def _draw_legend(self, canvas: Canvas, y: float, width: float) -> float:
        """What the colours and signs mean, of those that occur; how high it is with the space around it."""
        x, top = _MARGIN, y
        kinds = {line.arrow.flight.sent.kind for line in self._lines}
        marks = {label.mark for label in self._layout.labels}
        entries: list[tuple[str, Kind | Mark]] = [
            (f"{kind} {words}", kind) for kind, words in KINDS.items() if kind in kinds
        ]
        words = {Mark.DEADLINE: "deadline", Mark.EVENT: "event", Mark.APPLICATION: "application"}
        entries += [(text, mark) for mark, text in words.items() if mark in marks]
        if any(line.is_lost for line in self._lines):
            entries.append(("lost or dropped", Mark.DROP))
        canvas.line([(_MARGIN, y - 18), (width - _MARGIN, y - 18)], "#e5e7eb")
        for text, sign in entries:
            needed = 28 + text_width(text, _SMALL) + 18
            if x > _MARGIN and x + needed > width - _MARGIN:
                x, y = _MARGIN, y + 20
            if isinstance(sign, Mark):
                center = (x + 12, y)
                if sign is Mark.DROP:
                    _cross(canvas, center)
                else:
                    _draw_mark(canvas, sign, center)
            else:
                canvas.line([(x, y), (x + 14, y)], _COLORS[sign], width=1.8)
                _head(canvas, (x, y), (x + 22, y), _COLORS[sign])
            canvas.text((x + 28, y), text, _FAINT, size=_SMALL)
            x += needed
        return y - top + _LEGEND


def _draw_caption(canvas: Canvas, caption: _Caption) -> None:
    box = caption.box
    x = {"start": box.left, "middle": (box.left + box.right) / 2, "end": box.right}[caption.anchor]
    at = (x, (box.top + box.bottom) / 2)
    if caption.bold:
        # On an arrow, which may lie on something else.
        canvas.rect(box, "#ffffff", radius=4)
    canvas.text(at, caption.text, caption.color, size=_SIZE, anchor=caption.anchor, bold=caption.bold)


def _text_box(left: float, middle: float, width: float) -> Box:
    return Box(left, middle - 0.55 * _SIZE, left + width, middle + 0.55 * _SIZE)


def _head_width(host: str) -> float:
    return text_width(host, _HEAD, bold=True) + 28


def _clock(at: int) -> str:
    """Seconds with milliseconds."""
    milliseconds = (at + 500_000) // 1_000_000
    return f"{milliseconds // 1000:,}.{milliseconds % 1000:03d}"


def _wave(left: float, right: float, y: float) -> list[Point]:
    steps = int((right - left) // 6)
    return [(left + 6 * step, y + (2.5 if step % 2 else -2.5)) for step in range(steps + 1)]


def _draw_line(canvas: Canvas, line: _Line, gap: tuple[float, float]) -> None:
    flight = line.arrow.flight
    color = _COLORS[flight.sent.kind]
    dash = "2 3" if flight.copy else "6 4" if line.is_lost or flight.end is None else ""
    shows_end = line.is_lost or flight.end is None
    length = hypot(line.end[0] - line.start[0], line.end[1] - line.start[1])
    last = 1.0 if shows_end else 1 - 7 / length
    for first, end in ((0.0, gap[0]), (gap[1], last)):
        if end > first:
            canvas.line([line.at(first), line.at(end)], color, width=1.6, dash=dash)
    if line.is_lost:
        _cross(canvas, line.end)
    elif not shows_end:
        _head(canvas, line.start, line.end, color)


def _head(canvas: Canvas, start: Point, end: Point, color: str) -> None:
    """The point of an arrow."""
    length = hypot(end[0] - start[0], end[1] - start[1])
    dx, dy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x, y = end[0] - 9 * dx, end[1] - 9 * dy
    canvas.polygon([end, (x - 4 * dy, y + 4 * dx), (x + 4 * dy, y - 4 * dx)], color)


def _cross(canvas: Canvas, center: Point) -> None:
    x, y = center
    for sign in (-1, 1):
        canvas.line([(x - 4.5, y - 4.5 * sign), (x + 4.5, y + 4.5 * sign)], _ALARM, width=2.2)


def _draw_mark(canvas: Canvas, mark: Mark, center: Point) -> None:
    x, y = center
    color = _MARKS[mark]
    match mark:
        case Mark.DEADLINE:
            # A clock.
            canvas.circle(center, 5.5, "#fff7ed", stroke=color, width=1.5)
            canvas.line([(x, y - 3.5), (x, y), (x + 2.5, y + 1.2)], color, width=1.2)
        case Mark.EVENT:
            canvas.circle(center, 4, color)
        case Mark.APPLICATION:
            canvas.polygon([(x - 4.5, y - 4.5), (x + 4.5, y - 4.5), (x, y + 4.5)], color)
        case Mark.CHANGE:
            canvas.line([(x - 7, y), (x + 7, y)], color, width=2)
        case Mark.DROP:
            pass
