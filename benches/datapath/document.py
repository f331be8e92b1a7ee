"""The section of docs/benchmarks.md about the data path, from the runs that docs/benchmarks-datapath.json keeps."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import sections
from datapath import picture
from datapath.ends import FOREIGN, Bench, version
from datapath.series import Found, Series, as_json, from_json

COMMAND = "make bench-datapath"
DOCS = sections.DOCUMENT.parent
RUNS = DOCS / "benchmarks-datapath.json"
DATAPATH = DOCS / "datapath.md"
TECHNIQUES = "parts"
"""The cell that docs/datapath.md has a place for, too."""
PICTURE = DOCS / "pictures" / "datapath.svg"

# name, title, remark
Titles = Sequence[tuple[str, str, str]]
Kept = dict[str, Any]
"""By the name of a cell, and what connlib's offloads were set to: when and how it was taken, and what was found."""


def taken(bench: Bench) -> dict[str, str]:
    """What the figures depend on."""
    machine = report.machine()
    iperf3 = subprocess.run(["iperf3", "--version"], capture_output=True, text=True).stdout.split()
    others = ", ".join(f"{name} {version(name)}" for name in FOREIGN)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": machine["processor"],
        "system": machine["system"],
        "versions": f"{machine['versions']}, iperf3 {iperf3[1] if len(iperf3) > 1 else 'unknown'}",
        "others": others,
        "runs": f"{bench.pairs} pairs of {bench.seconds:g} s",
    }


def key(cell: str, offload: str | None) -> str:
    """Under which name the runs of a cell are kept."""
    return cell if offload is None else f"{cell}, offload = {offload}"


def load(path: Path = RUNS) -> Kept:
    """What was kept so far."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(kept: Kept, name: str, bench: Bench, found: Found) -> None:
    """Put what a cell found in the place of what it had found before."""
    kept[key(name, bench.offload)] = {**taken(bench), **as_json(found)}


def save(kept: Kept, titles: Titles, path: Path = RUNS) -> None:
    """Write the runs, the picture and the section."""
    path.write_text(_readable(kept))
    PICTURE.parent.mkdir(exist_ok=True)
    found = {name: from_json(each) for name, each in kept.items()}
    drawn = picture.draw(found["tcp"].series) if "tcp" in found else None
    if drawn is not None:
        PICTURE.write_text(drawn, encoding="utf-8")
    sections.write(COMMAND, render(kept, titles))
    remarks = {name: remark for name, _, remark in titles}
    if TECHNIQUES in found and TECHNIQUES in remarks:
        machine = _machine(_strings(kept[TECHNIQUES]), None)
        lines = [*textwrap.wrap(remarks[TECHNIQUES], 118), "", *machine, "", *table(found[TECHNIQUES])]
        DATAPATH.write_text(sections.filled(DATAPATH.read_text(), COMMAND, "\n".join(lines)))


def _readable(kept: Kept) -> str:
    """JSON with a line for each series."""
    lines = []
    for name, each in kept.items():
        head = [
            f"    {json.dumps(what)}: {json.dumps(value)}"
            for what, value in each.items()
            if isinstance(value, str)
        ]
        for what in ("series", "profile"):
            rows = ",\n".join(f"      {json.dumps(row)}" for row in each[what])
            head.append(f'    "{what}": [\n{rows}\n    ]' if rows else f'    "{what}": []')
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(head) + "\n  }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def render(kept: Kept, titles: Titles) -> str:
    """The section."""
    lines = [
        "## The data path",
        "",
        f"Measured by `{COMMAND}`: two network namespaces joined by a veth cable, in each an implementation of",
        "WireGuard in a process of its own with a TUN device of MTU 1420, connlib as `connlib up`. Sender, both ends",
        "and receiver share the processors, and a machine is faster at one moment than at another: so connlib and the",
        "other run in turns, and a ratio compares neighbours in time, what connlib has over what the other has. Shown",
        f"are medians, and the quartiles of the ratios; every run is in [{RUNS.name}]({RUNS.name}).",
        "",
    ]
    first: Mapping[str, str] | None = None
    if "tcp" in kept:
        lines += [f"![Rates of TCP as ratios](pictures/{PICTURE.name})", ""]
    for name, title, remark in titles:
        for each in sorted(kept):
            cell, _, setting = each.partition(", ")
            if cell != name:
                continue
            machine = _strings(kept[each])
            heading = f"### {title}{f' ({setting})' if setting else ''}"
            lines += [heading, "", *textwrap.wrap(remark, 118), ""]
            lines += _machine(machine, first)
            first = first or machine
            lines += ["", *table(from_json(kept[each]))]
    return "\n".join(lines) + "\n"


def _strings(taken: Mapping[str, Any]) -> dict[str, str]:
    return {what: value for what, value in taken.items() if isinstance(value, str)}


def _machine(machine: Mapping[str, str], first: Mapping[str, str] | None) -> list[str]:
    """What the figures depend on; only what is not as it was for the first table."""
    return [
        f"- {what}: {value}"
        for what, value in machine.items()
        if first is None or value != first.get(what) or what == "date"
    ]


def table(found: Found) -> list[str]:
    """A row for each series, and what the processor did."""
    lines = []
    compares = any(series.against for series in found.series)
    if compares:
        lines += ["| | connlib | other | | ratio (quartiles) | goal |", "|---|---|---|---|---|---|"]
    else:
        lines += ["| | median (quartiles) | goal |", "|---|---|---|"]
    lines += [(_compared if compares else _alone)(series) for series in found.series]
    if found.profile:
        lines += ["", "| part | function | % |", "|---|---|---|"]
        lines += [
            f"| {part} | `{_in_a_cell(name)}` | {percent:.1f} |" for part, name, percent in found.profile
        ]
    return [*lines, ""]


def _compared(series: Series) -> str:
    ours, theirs = (_median(values, series.unit) for values in (series.ours, series.theirs))
    # What is to be nothing has no ratio that says anything.
    ratios = series.ratios() if series.goal is None or series.goal.ratio else []
    cells = [
        series.what,
        ours,
        theirs,
        series.against,
        _quartiles(ratios) if ratios else "-",
        verdict(series),
    ]
    return f"| {' | '.join(cells)} |"


def _alone(series: Series) -> str:
    value = f"{_quartiles(series.ours)} {series.unit}" if series.ours else "-"
    return f"| {series.what} | {value} | {verdict(series)} |"


def _median(values: Sequence[float], unit: str) -> str:
    return f"{figure(statistics.median(values))} {unit}" if values else "-"


def _quartiles(values: Sequence[float]) -> str:
    median, low, high = report.quartiles(values)
    return f"{figure(median)} ({figure(low)}-{figure(high)})"


def verdict(series: Series) -> str:
    """The goal and whether it is met; what went wrong, if anything did."""
    words = []
    if series.goal is not None:
        words.append(f"{series.goal}: {'met' if series.met() else '**missed**'}")
    if series.failed:
        words.append(f"broken off: {_in_a_cell(series.failed)}")
    return "; ".join(words) or "-"


def _in_a_cell(text: str) -> str:
    """Without what ends a column, or a row."""
    return " ".join(text.replace("|", "/").split())


def figure(value: float) -> str:
    """Three digits that count, thousands in groups."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
