"""`make reliability`: causes the faults, prints what was found, and writes docs/reliability.md.

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

from reliability.places import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="make reliability", description=__doc__)
    parser.add_argument("faults", nargs="*", help="numbers of faults, or `load`; all, if none is given")
    parser.add_argument("--quick", action="store_true", help="a moment of each, and write nothing")
    parser.add_argument("--built", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick or options.built:
        return run(options.faults, options.quick)
    # benches/run.py builds the same for the benchmarks.
    import run as benchmarks

    with tempfile.TemporaryDirectory() as name:
        benchmarks.build_package(Path(name))
        return benchmarks.call_built("reliability", Path(name), options.faults)


def run(chosen: list[str], quick: bool) -> int:
    """Measure, show, and (if all was measured at length) write the document. The exit code: 1 if something failed."""
    from reliability import document
    from reliability.catalogue import FAULTS
    from reliability.faults import Missing, Run

    # Namespaces have names, and are removed on the way out only.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    console = Console()
    if unknown := set(chosen) - {fault.number for fault in FAULTS}:
        console.print(f"there is no fault {', '.join(sorted(unknown))}")
        return 2
    found: dict[str, document.Found] = {}
    broken = False
    begin = time.monotonic()
    for fault in FAULTS:
        if fault.measure is None or (chosen and fault.number not in chosen):
            continue
        console.rule(f"{fault.number}: {fault.what}", align="left")
        start = time.monotonic()
        try:
            found[fault.number] = fault.measure(Run(quick))
        except Missing as missing:
            found[fault.number] = str(missing)
        except Exception as error:
            broken = True
            console.print_exception()
            found[fault.number] = f"it failed ({type(error).__name__})"
        _show(console, found[fault.number], time.monotonic() - start)
    if not quick and not chosen:
        text = document.render(FAULTS, found, (time.monotonic() - begin) / 60)
        (ROOT / "docs" / "reliability.md").write_text(text)
    return 1 if broken else 0


def _show(console: Console, found: object, seconds: float) -> None:
    table = Table("", "measured", "", title=f"{seconds:.0f} s", title_justify="left")
    if isinstance(found, str):
        console.print(f"not measured: {found}")
        return
    assert isinstance(found, list)
    for check in found:
        table.add_row(check.what, check.measured, "" if check.held else "[red]missed[/red]")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
