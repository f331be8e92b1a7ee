"""`make bench-datapath`: measures the data path beside others, and writes its section of docs/benchmarks.md.

The extension is built with the release profile and installed in a scratch folder, so that the one that the tests use
stays as it is.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datapath import NAMES
from interop.build import PEERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-datapath", description=__doc__)
    known = ", ".join(NAMES)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"{known}; all, if none is given")
    parser.add_argument("--quick", action="store_true", help="a moment of each, and write nothing")
    parser.add_argument("--pairs", type=int, help="of runs for each figure; 5 or more")
    parser.add_argument("--seconds", type=float, help="of each run; 5 if not given")
    parser.add_argument(
        "--against", action="append", choices=PEERS.sections(), help="whom to compare with; may be repeated"
    )
    parser.add_argument("--offload", help="what connlib's configuration says of offloads, `off` say")
    parser.add_argument("--no-write", action="store_true", help="write nothing")
    parser.add_argument("--built", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.cells if name not in NAMES]:
        parser.error(f"there is no cell {', '.join(unknown)}; there are {known}")
    if options.pairs is not None and options.pairs < 1:
        parser.error("--pairs must be at least 1")
    if options.quick or options.built:
        return run(options)
    # benches/run.py builds the same for the benchmarks of the engine.
    import run as benchmarks

    with tempfile.TemporaryDirectory() as name:
        program = benchmarks.build(Path(name))
        path = os.pathsep.join([name, *(str(benchmarks.ROOT / folder) for folder in ("benches", "tests"))])
        command = [sys.executable, "-m", "datapath", "--built", "--program", str(program), *sys.argv[1:]]
        return subprocess.call(command, env={**os.environ, "PYTHONPATH": path})


def run(options: argparse.Namespace) -> int:
    """Measure, show, and write after each cell. The exit code: 1 if something failed, 2 if nothing can be measured."""
    from datapath import document
    from datapath.cells import CELLS
    from datapath.ends import Bench

    # Namespaces have names, and are removed on the way out only.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    bench = Bench(
        quick=options.quick,
        pairs=options.pairs or (1 if options.quick else 5),
        seconds=options.seconds or (1.0 if options.quick else 5.0),
        against=tuple(options.against or PEERS.sections()),
        offload=options.offload,
        program=options.program,
    )
    if reason := bench.lacks():
        print(f"make bench-datapath: {reason}", file=sys.stderr)
        return 2
    writes = not (options.quick or options.no_write)
    titles = [(cell.name, cell.title, cell.remark) for cell in CELLS]
    console = Console()
    broken = False
    for cell in CELLS:
        if options.cells and cell.name not in options.cells:
            continue
        console.rule(f"{cell.name}: {cell.title}", align="left")
        start = time.monotonic()
        try:
            found = cell.measure(bench)
        except Exception:
            broken = True
            console.print_exception()
            continue
        _show(console, document.table(found), time.monotonic() - start)
        broken |= any(series.failed for series in found.series)
        if writes:
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
