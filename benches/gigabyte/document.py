"""The section of docs/datapath.md: what went through, and what came of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import report
import sections
from gigabyte.cells import KINDS, Found
from gigabyte.changes import COUNT
from gigabyte.path import Setting

COMMAND = "make gigabyte"
DOCUMENT = sections.DOCUMENT.parent / "datapath.md"


def cell(found: Found) -> str:
    """What came of one transfer, in a few words."""
    words = [f"{found.size / 1e9:.2f} GB"]
    if found.sent_datagrams:
        words.append(f"{found.lost_datagrams:,} of {found.sent_datagrams:,} lost")
    elif found.setting.loss:
        words.append(f"{found.dropped:,} dropped")
    if found.wrong:
        words.append("**wrong**")
    return ", ".join(words)


def render(found: Mapping[Setting, Sequence[Found]]) -> str:
    """The section."""
    machine = report.machine()
    everything = [each for several in found.values() for each in several]
    lines = [
        f"Measured by `{COMMAND}`: connlib at both ends, and a host between them that forwards, and drops at random",
        f'what the column says, each way. "Changing" is an MTU that changes {COUNT} times between those above while',
        "something goes through, at either end, from outside (`ip link set mtu`) and by `apply`. Of TCP, the table",
        "says how many datagrams the host has dropped on the way there; of UDP, how many of its own were lost, each of",
        "which the host has dropped. Everything else arrived, once, and as it was sent.",
        "",
        f"- date: {datetime.date.today().isoformat()}",
        *(f"- {what}: {value}" for what, value in machine.items()),
        f"- superpackets: {sum(each.read for each in everything):,} read, "
        f"{sum(each.written for each in everything):,} written",
        "",
        f"| MTU | loss | offloads | {' | '.join(KINDS)} |",
        f"|---|---|---|{'---|' * len(KINDS)}",
    ]
    for setting, several in found.items():
        mtu = "changing" if setting.mtu is None else f"{setting.mtu:,}"
        head = [mtu, f"{setting.loss} %", "on" if setting.offload else "off"]
        lines.append(f"| {' | '.join([*head, *map(cell, several)])} |")
    if wrong := [f"- {each.setting}, {each.kind}: {what}" for each in everything for what in each.wrong]:
        lines += ["", "What did not hold:", "", *wrong]
    return "\n".join(lines) + "\n"


def write(found: Mapping[Setting, Sequence[Found]]) -> None:
    """Put it into the document."""
    DOCUMENT.write_text(sections.filled(DOCUMENT.read_text(), COMMAND, render(found)))
