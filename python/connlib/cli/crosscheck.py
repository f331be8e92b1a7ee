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
from connlib.lab import SCENARIOS, Comparison, Elsewhere, Scenario, compare, load_recording, replays

from ._crosscheck_table import Block, block
from ._crosscheck_table import markdown as markdown_table

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
    scenarios = _chosen(names)
    document = None if markdown is None else _document(markdown)
    folder = None if draw is None else Path(draw)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    blocks = _compare(scenarios, lines=lines, seed=seed, draw=folder)
    if document is not None and markdown is not None:
        before, after = document
        text = f"{before}{MARKS[0]}\n{markdown_table(blocks)}{MARKS[1]}{after}"
        Path(markdown).write_text(text, encoding="utf-8")


def replay(file: str, *, lines: int, seed: int) -> None:
    """Run what `record` wrote on both engines. Raises `ConfigError` for what is no recording."""
    recording = load_recording(file)
    scripts = replays(recording)
    if not scripts:
        raise ConnlibError(f"{file}: nothing came in while this was recorded; nothing to replay")
    if recording.is_cut:
        _console().print("The last line of the recording is incomplete and is missing here.")
    if recording.missed:
        _console().print(
            f"Inputs that came too fast to be recorded and are missing here: {recording.missed:,}."
        )
    _compare(scripts, lines=lines, seed=seed)


def _chosen(names: Sequence[str]) -> list[Scenario | Elsewhere]:
    """The scenarios of these numbers, in the order of `SCENARIOS`; all if there are none."""
    known = {str(scenario.number): scenario for scenario in SCENARIOS}
    wanted = {name.lstrip("0") for name in names}
    if not wanted <= set(known):
        raise ConfigError("a scenario is a number from 1 to 40", hint="try connlib crosscheck 2 24 38")
    return [scenario for number, scenario in known.items() if not wanted or number in wanted]


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


def _compare(
    scenarios: Sequence[Scenario | Elsewhere], *, lines: int, seed: int, draw: Path | None = None
) -> list[Block]:
    console = _console()
    blocks = []
    for scenario in scenarios:
        if isinstance(scenario, Elsewhere):
            console.print(f"{scenario.number:>2}  {scenario.title}: not here, {scenario.why}")
            continue
        with console.status(f"scenario {scenario.number}: {scenario.title}"):
            # Its traces may be large, and are not kept.
            comparison = compare(scenario, seed=seed)
            if lines:
                _show_difference(console, comparison, lines)
            if draw is not None:
                _draw(comparison, draw)
            blocks.append(block(comparison))
    if blocks:
        _show_table(console, blocks)
    return blocks


def _draw(comparison: Comparison, folder: Path) -> None:
    scenario = comparison.scenario
    for engine, trace in (("patched", comparison.patched_trace), ("upstream", comparison.upstream_trace)):
        if trace is not None:
            title = f"{scenario.number}: {scenario.title} ({engine})"
            trace.draw(folder / f"scenario-{scenario.number}-{engine}.svg", title=title)


def _show_difference(console: Console, comparison: Comparison, lines: int) -> None:
    scenario = comparison.scenario
    console.print(Text(f"\n{scenario.number:>2}  {scenario.title}", style="bold cyan"))
    if scenario.needs_patched:
        console.print(f"    connlib's engine only: {scenario.needs_patched}")
        return
    pairs = comparison.side_by_side(most=lines)
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


def _show_table(console: Console, blocks: Sequence[Block]) -> None:
    """A block of lines for each scenario, within 80 columns."""
    widths = (11, 12, 16, 10, 16)
    titles = ("initiations", "keepalives", "lost", "wakes", "no session, s")
    head = "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    console.print(Text(f"\n{'':14}{head}", style="bold"))
    for each in blocks:
        console.print(Text(f"{each.number:>3}  {each.title}", style="cyan"))
        for engine, *cells, _ in (each.upstream, each.patched, each.asked):
            values = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            console.print(Text(f"     {engine:9}{values}".rstrip()))
        if each.misses:
            console.print(Text(f"     not as asked: {', '.join(each.misses)}", style="bold red"))
        if each.interoperates != "yes":
            note = textwrap.fill(
                each.interoperates, 60, initial_indent="     mixed    ", subsequent_indent=" " * 14
            )
            console.print(Text(note, style="yellow"))
