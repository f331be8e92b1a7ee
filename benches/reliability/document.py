"""docs/reliability.md: fault, expected, measured."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import report
from reliability.faults import Check, Fault

Found = list[Check] | str
"""What was measured, or why nothing was."""


def verdict(fault: Fault, found: Found | None) -> str:
    """In one word."""
    if found is None:
        return "by its tests" if fault.tests else "does not apply"
    if isinstance(found, str):
        return "not measured"
    missed = [check for check in found if not check.held]
    return f"missed ({len(missed)} of {len(found)})" if missed else "held"


def render(faults: Sequence[Fault], found: Mapping[str, Found], minutes: float) -> str:
    """The whole document."""
    lines = [
        "# Reliability",
        "",
        "Written by `make reliability`; do not edit. Faults 4, 6, 14 and 33 are done in memory, to a `Node`, and 37 to",
        "`connlib check`; the others are caused for real: in network namespaces with veth cables between them, a TUN",
        "device, and `connlib.Interface` in a process of its own. The generator of a flood",
        "and the peers share the processors with it, so that a flood is measured as processor time for each datagram,",
        "beside the share of the tunnel's packets that arrive meanwhile (1,000 echo requests a second of 1,400 bytes,",
        "and their replies). Where the generator could not make the rate of a fault, its row says what it made, and is",
        "missed: the others hold for that rate only. The tests named make a short run of the same, or show it",
        "otherwise; they assert counts and no times.",
        "",
        f"- date: {datetime.date.today().isoformat()}, {minutes:.0f} minutes",
        *(f"- {key}: {value}" for key, value in report.machine().items()),
        "",
        "| | fault | expected | verdict | tests |",
        "|---|---|---|---|---|",
    ]
    for fault in faults:
        tests = ", ".join(f"`{test}`" for test in fault.tests)
        word = verdict(fault, found.get(fault.number))
        lines.append(f"| {fault.number} | {fault.what} | {fault.expected} | {word} | {tests} |")
    lines += ["", "## Measured, and remarks"]
    for fault in faults:
        what = found.get(fault.number)
        if what is None and not fault.remark:
            continue
        lines += ["", f"### {_title(fault)}"]
        if fault.remark:
            lines += ["", fault.remark]
        if what is None:
            continue
        lines.append("")
        if isinstance(what, str):
            lines.append(f"Not measured: {what}.")
            continue
        lines += ["| | measured | |", "|---|---|---|"]
        lines += [f"| {check.what} | {check.measured} | {_word(check)} |" for check in what]
    return "\n".join(lines) + "\n"


def _title(fault: Fault) -> str:
    return fault.what if fault.number == "load" else f"{fault.number}. {fault.what}"


def _word(check: Check) -> str:
    return "" if check.held else "**missed**"
