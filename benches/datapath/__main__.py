"""`make bench-datapath`: measures the data path beside others, and writes its section of docs/benchmarks.md.

The extension is built with the release profile and installed in a scratch folder, so that the one that the tests use
stays as it is.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datapath import NAMES
from datapath.needs import lacking
from interop.build import PEERS

ENOUGH = 5
"""Pairs of runs, for a figure in the document."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-datapath", description=__doc__)
    known = ", ".join(NAMES)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"{known}; all, if none is given")
    parser.add_argument("--quick", action="store_true", help="a moment of each, and write nothing")
    parser.add_argument(
        "--pairs", type=int, help="of runs for each figure; 5 if not given, and no fewer in the document"
    )
    parser.add_argument("--seconds", type=int, help="of each run; 5 if not given")
    parser.add_argument(
        "--against", action="append", choices=PEERS.sections(), help="whom to compare with; may be repeated"
    )
    parser.add_argument("--offload", help="what connlib's configuration says of offloads, `false` say")
    parser.add_argument("--no-write", action="store_true", help="write nothing")
    parser.add_argument("--built", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.cells if name not in NAMES]:
        parser.error(f"there is no cell {', '.join(unknown)}; there are {known}")
    options.no_write |= options.quick
    options.against = options.against or PEERS.sections()
    options.pairs = options.pairs if options.pairs is not None else 1 if options.quick else ENOUGH
    options.seconds = options.seconds if options.seconds is not None else 1 if options.quick else 5
    if min(options.pairs, options.seconds) < 1:
        parser.error("there must be one pair, and a second, at least")
    if options.pairs < ENOUGH and not options.no_write:
        parser.error(f"fewer than {ENOUGH} pairs are written nowhere: add --no-write")
    if reason := lacking(options.against):
        print(f"make bench-datapath: {reason}", file=sys.stderr)
        return 2
    if options.quick or options.built:
        try:
            return run(options)
        except KeyboardInterrupt:
            return 130
    # benches/run.py builds the same for the benchmarks of the engine.
    import run as benchmarks

    with tempfile.TemporaryDirectory() as name:
        program = benchmarks.build(Path(name))
        return benchmarks.call_built("datapath", Path(name), ["--program", str(program), *sys.argv[1:]])


def run(options: argparse.Namespace) -> int:
    """Measure, show, and write after each cell. The exit code: 1 if something failed."""
    from datapath import document
    from datapath.cells import CELLS
    from datapath.ends import Bench

    # Namespaces have names, and are removed on the way out only.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console()
    bench = Bench(
        quick=options.quick,
        pairs=options.pairs,
        seconds=options.seconds,
        against=tuple(options.against),
        offload=options.offload,
        program=options.program,
        say=lambda what: console.print(what, style="dim", highlight=False),
    )
    titles = [(cell.name, cell.title, cell.remark) for cell in CELLS]
    broken = False
    for cell in CELLS:
        if options.cells and cell.name not in options.cells:
            continue
        console.rule(f"{cell.name}: {cell.title}", align="left")
        start = time.monotonic()
        try:
            found = cell.measure(bench)
        except AssertionError as error:
            # Of what brings tunnels up, in its own words, and with those of the program that would not.
            broken = True
            console.print(Text(f"not measured: {error}"))
            continue
        except Exception:
            broken = True
            console.print_exception()
            continue
        _show(console, document.table(found), time.monotonic() - start)
        broken |= any(series.failed for series in found.series)
        if not options.no_write:
            kept = document.load()
            document.keep(kept, cell.name, bench, found)
            document.save(kept, titles)
    return 1 if broken else 0


def _show(console: Console, rows: list[str], seconds: float) -> None:
    """Tables of Markdown, as tables of a terminal."""
    table: Table | None = None
    for row in [*rows, ""]:
        if not row:
            if table is not None:
                console.print(table)
            table = None
            continue
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if table is None:
            table = Table(*cells, title=f"{seconds:.0f} s", title_justify="left")
        elif set(row) - set("|-"):
            # As text: brackets mean something to the console.
            table.add_row(*(Text(cell.replace("**", "").strip("`")) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
