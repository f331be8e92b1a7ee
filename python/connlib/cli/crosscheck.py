"""`connlib crosscheck`: the same scenarios on pristine boringtun and on connlib's engine, and what differs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from connlib._errors import ConfigError, ConnlibError
from connlib.lab import (
    ENGINES,
    Comparison,
    Elsewhere,
    Scenario,
    chosen,
    compare,
    load_recording,
    replays,
    side_by_side,
    steps,
)
from connlib.lab import markdown as markdown_table
from connlib.lab import rows as table_rows

MARKS = ("<!-- crosscheck: begin -->", "<!-- crosscheck: end -->")
"""The lines of a document between which the table stands."""


def run(
    names: Sequence[str], *, lines: int, seed: int, markdown: str | None = None, draw: str | None = None
) -> None:
    """Compare the scenarios of these numbers, or all forty.

    lines: of the two traces side by side, at most, from the first difference on. markdown: a file in which the table
    between two marks is written anew. draw: a folder for a sequence diagram of each run.

    Raises `ConfigError` for what is no number of a scenario, and `ConnlibError` if the file has no marks.
    """
    scenarios = chosen(_numbers(names))
    document = None if markdown is None else _document(markdown)
    compared = _compare(scenarios, lines=lines, seed=seed)
    if draw is not None:
        _draw(scenarios, Path(draw), seed)
    if document is not None and markdown is not None:
        before, after = document
        text = f"{before}{MARKS[0]}\n{markdown_table(compared)}{MARKS[1]}{after}"
        Path(markdown).write_text(text, encoding="utf-8")


def replay(file: str, *, lines: int, seed: int) -> None:
    """Run what `record` wrote on both engines. Raises `ConfigError` for what is no recording."""
    recording = load_recording(file)
    scripts = replays(recording)
    if not scripts:
        raise ConnlibError(f"{file}: nothing came in while this was recorded; nothing to replay")
    if recording.missed:
        _console().print(f"{recording.missed:,} inputs came too fast to be recorded and are missing here.")
    _compare(scripts, lines=lines, seed=seed)


def _numbers(names: Sequence[str]) -> list[int]:
    numbers = []
    for name in names:
        number = int(name) if name.isascii() and name.isdigit() and len(name) < 4 else 0
        if not chosen([number]) or not number:
            raise ConfigError("a scenario is a number from 1 to 40", hint="try connlib crosscheck 2 24 38")
        numbers.append(number)
    return numbers


def _document(path: str) -> tuple[str, str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConnlibError(f"cannot read {path}: {reason}") from None
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise ConnlibError(
            f"{path} has no place for the table; put the lines {MARKS[0]} and {MARKS[1]} there"
        )
    return before, after


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def _compare(scenarios: Sequence[Scenario | Elsewhere], *, lines: int, seed: int) -> list[Comparison]:
    console = _console()
    compared = []
    for scenario in scenarios:
        if isinstance(scenario, Elsewhere):
            console.print(f"{scenario.number:>2}  {scenario.title}: not here, {scenario.why}")
            continue
        with console.status(f"scenario {scenario.number}: {scenario.title}"):
            compared.append(compare(scenario, seed=seed))
            if lines:
                _show_difference(console, scenario, lines, seed)
    if compared:
        _show_table(console, compared)
    return compared


def _draw(scenarios: Sequence[Scenario | Elsewhere], folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in scenarios:
        for engine in ENGINES:
            if isinstance(scenario, Scenario) and not (engine == "upstream" and scenario.needs_patched):
                trace = scenario.run((engine, engine), seed=seed).trace
                title = f"{scenario.number}: {scenario.title} ({engine})"
                trace.draw(folder / f"scenario-{scenario.number}-{engine}.svg", title=title)


def _show_difference(console: Console, scenario: Scenario, lines: int, seed: int) -> None:
    console.print(Text(f"\n{scenario.number:>2}  {scenario.title}", style="bold cyan"))
    if scenario.needs_patched:
        console.print(f"    connlib's engine only: {scenario.needs_patched}")
        return
    upstream = steps(scenario.run(("upstream", "upstream"), seed=seed).trace)
    patched = steps(scenario.run(seed=seed).trace)
    pairs = side_by_side(upstream, patched, most=lines)
    if not pairs:
        console.print("    both engines did the same")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("upstream")
    table.add_column("patched")
    for left, right in pairs:
        style = "" if left == right else "yellow"
        table.add_row(Text(left, style=style), Text(right, style=style))
    console.print(table)


def _show_table(console: Console, compared: Sequence[Comparison]) -> None:
    """A block of lines for each scenario, within 80 columns."""
    widths = (11, 12, 16, 10, 12)
    titles = ("initiations", "keepalives", "lost", "wakes", "no session")
    head = "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    console.print(Text(f"\n{'':14}{head}", style="bold"))
    for comparison in compared:
        lines = table_rows(comparison)
        number, title = lines[0][:2]
        console.print(Text(f"{number:>3}  {title}", style="cyan"))
        for _, _, engine, *cells, _ in lines:
            values = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            console.print(Text(f"     {engine:9}{values}".rstrip()))
        mixed = lines[1][-1]
        if mixed != "yes":
            note = textwrap.fill(mixed, 60, initial_indent="     mixed    ", subsequent_indent=" " * 14)
            console.print(Text(note, style="yellow"))
