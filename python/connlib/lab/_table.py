"""A trace as a text table: a line for each datagram with what became of it, and for everything else that happened."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import inf

from ._flights import KINDS, SECOND, Flight, fate, flights, say
from ._records import Address, Arrived, Changed, Delivered, Happened, Offered, Record, Sent, Woke

LINE_KINDS = (*KINDS, "offered", "delivered", "event", "wake", "change")
"""What a line can be: a datagram of a kind (`Sent.kind`), or anything else."""

_Row = tuple[str, str, str, str]


def format_table(
    hosts: Sequence[str],
    records: Sequence[Record],
    *,
    since: float = 0.0,
    until: float = inf,
    kinds: Collection[str] | None = None,
) -> str:
    """The trace as a table with a header, each line ended by a newline.

    The columns are the time in seconds; the host, for a datagram its sender, an arrow (`->` if it reached somebody,
    `-x` if it was lost, `-?` if it is under way when the trace ends) and its receiver; what it is, for a datagram its
    kind, the number of its handshake and its size; and what became of it.

    since, until: only what began at these seconds or between them.
    kinds: only lines of these kinds, from `LINE_KINDS`; None for all. A packet that came out of a tunnel is told with
        its datagram; `delivered` lines are for those whose datagram is not shown.
    Raises `ValueError` for a kind that there is not.
    """
    wanted = set(LINE_KINDS if kinds is None else kinds)
    if unknown := sorted(wanted.difference(LINE_KINDS)):
        raise ValueError(f"there are no lines of kind {', '.join(unknown)}; kinds: {', '.join(LINE_KINDS)}")
    lines = [(("time", "host", "what", "outcome"))]
    lines += _rows(records, since * SECOND, until * SECOND, wanted, max(map(len, hosts), default=0))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    # Times to the right, so that their points stand below each other.
    return "".join(
        f"{time:>{widths[0]}}  {host:<{widths[1]}}  {what:<{widths[2]}}  {outcome}".rstrip() + "\n"
        for time, host, what, outcome in lines
    )


def _rows(
    records: Sequence[Record], since: float, until: float, wanted: set[str], width: int
) -> Iterator[_Row]:
    copies: dict[int, list[Flight]] = {}
    for flight in flights(records):
        copies.setdefault(flight.sent.datagram, []).append(flight)
    shown = {
        number
        for number, (flight, *_) in copies.items()
        if flight.sent.kind in wanted and since <= flight.sent.at <= until
    }
    told: dict[tuple[str, str], Address] = {}
    for record in records:
        if not since <= record.at <= until:
            continue
        time, host = seconds(record.at), f"{record.host:<{width}}"
        match record:
            case Sent() if record.datagram in shown:
                for flight in copies[record.datagram]:
                    yield time, f"{host} {_arrow(flight, width)}", flight.label, _outcome(flight, told)
            case Offered() if "offered" in wanted:
                error = f"dropped: {record.error.value}" if record.error else ""
                yield time, host, f"packet {record.packet} for {record.peer}, {record.size} B", error
            case Delivered() if "delivered" in wanted and record.datagram not in shown:
                yield time, host, f"packet {record.packet} of {record.peer}, {record.size} B", ""
            case Happened() if "event" in wanted:
                yield time, host, say(record.event), f"with {record.peer}"
            case Woke() if "wake" in wanted:
                yield time, host, f"wake: {record.reason.value}", f"for {record.peer}"
            case Changed() if "change" in wanted:
                where = "" if record.peer is None else f"toward {record.peer}"
                yield time, host, record.what, where


def _arrow(flight: Flight, width: int) -> str:
    match flight.end:
        case Arrived(host=host):
            return f"-> {host:<{width}}"
        case None:
            return f"-? {flight.sent.peer:<{width}}"
        case _:
            return f"-x {flight.sent.peer:<{width}}"


def _outcome(flight: Flight, told: dict[tuple[str, str], Address]) -> str:
    parts = ["copy"] if flight.copy else []
    sent, end = flight.sent, flight.end
    if end is None:
        return ", ".join([*parts, fate(flight)])
    if isinstance(end, Arrived):
        parts.append(f"at {seconds(end.at)}")
        parts += [f"packet {delivered.packet}" for delivered in flight.packets]
        if fate(flight):
            parts.append(fate(flight))
        # Behind a NAT, where it seems to come from: when that is first seen, and when it changes.
        if end.source != told.get((sent.host, end.host), sent.source):
            parts.append(f"from {_address(end.source)}")
        told[sent.host, end.host] = end.source
    else:
        parts.append(fate(flight) + (f" at {seconds(end.at)}" if end.at > sent.at else ""))
    return ", ".join(parts)


def _address(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def seconds(nanoseconds: int) -> str:
    """Seconds with six decimals, without the rounding of floats."""
    microseconds = (nanoseconds + 500) // 1000
    return f"{microseconds // 1_000_000}.{microseconds % 1_000_000:06d}"
