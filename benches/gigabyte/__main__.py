"""`make gigabyte`: sends a gigabyte through each kind of tunnel, compares, and writes its section of docs/datapath.md.

The extension is built with the release profile and installed in a scratch folder, so that the one that the tests use
stays as it is.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gigabyte.cells import Found
    from gigabyte.path import Setting

GIGABYTE = 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gigabyte", description=__doc__)
    parser.add_argument(
        "tunnels", nargs="*", metavar="TUNNEL", help="`8920-1%%-off` say; all, if none is given"
    )
    parser.add_argument("--megabytes", type=int, default=GIGABYTE, help="of each kind; 1000 if not given")
    parser.add_argument("--no-write", action="store_true", help="write nothing")
    parser.add_argument("--built", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.megabytes < 1:
        parser.error("it takes a megabyte at least")
    if options.built:
        return run(options)
    # benches/run.py builds the same for the benchmarks.
    import run as benchmarks

    with tempfile.TemporaryDirectory() as name:
        benchmarks.build_package(Path(name))
        return benchmarks.call_built("gigabyte", Path(name), sys.argv[1:])


def run(options: argparse.Namespace) -> int:
    """Send, show, and (if it was all of it) write. The exit code: 1 if something did not hold."""
    from gigabyte import cells, document
    from reliability.faults import Missing

    # Namespaces have names, and are removed on the way out only.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console()
    known = {str(setting): setting for setting in cells.SETTINGS}
    if unknown := [name for name in options.tunnels if name not in known]:
        console.print(f"there is no tunnel {', '.join(unknown)}; there are {', '.join(known)}", markup=False)
        return 2
    size = options.megabytes * 1_000_000
    found: dict[Setting, list[Found]] = {}
    broken = False
    for name, setting in known.items():
        if options.tunnels and name not in options.tunnels:
            continue
        console.rule(name, align="left")
        found[setting] = []
        try:
            for each in cells.run(setting, tcp=size, udp=size):
                found[setting].append(each)
                console.print(f"{each.kind}: {document.cell(each)}, {each.seconds:.0f} s", highlight=False)
                for what in each.wrong:
                    console.print(Text(f"  {what}", style="red"))
        except Missing as missing:
            console.print(f"not done: {missing}")
            return 2
        except Exception:
            broken = True
            console.print_exception()
    console.print(_table(found))
    if not (broken or options.tunnels or options.no_write) and options.megabytes >= GIGABYTE:
        document.write(found)
    return 1 if broken or any(each.wrong for several in found.values() for each in several) else 0


def _table(found: dict[Setting, list[Found]]) -> Table:
    """A row for each transfer."""
    table = Table(box=None)
    for title in ("tunnel", "kind", "GB", "MB/s", "dropped", "lost", "read as one", "written", ""):
        is_number = title not in ("tunnel", "kind", "")
        table.add_column(title, no_wrap=True, justify="right" if is_number else "left")
    for setting, several in found.items():
        for each in several:
            rate = f"{each.size / each.seconds / 1e6:.0f}"
            counts = (each.dropped, each.lost_datagrams, each.read, each.written)
            verdict = Text("wrong", style="red") if each.wrong else Text("intact", style="green")
            figures = (f"{each.size / 1e9:.2f}", rate, *(f"{count:,}" for count in counts))
            table.add_row(str(setting), each.kind, *figures, verdict)
    return table


if __name__ == "__main__":
    sys.exit(main())
