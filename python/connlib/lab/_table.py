"""A trace as a text table: a line for each datagram with what became of it, and for everything else that happened."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import inf

from connlib.lab._flights import KINDS, Flight, by_datagram, fate, flights, say
from connlib.lab._records import (
    Arrived,
    Changed,
    Delivered,
    Discarded,
    Happened,
    Lost,
    Offered,
    Record,
    Sent,
    Woke,
)
from connlib.lab._time import SECOND

LINE_KINDS = (*KINDS, "offered", "discarded", "delivered", "event", "wake", "change")
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
    copies = by_datagram(flights(records))
    shown = {
        number
        for number, (flight, *_) in copies.items()
        if flight.sent.kind in wanted and since <= flight.sent.at <= until
    }
    told = {packet for number in shown for flight in copies[number] for packet in flight.packets}
    for record in records:
        if not since <= record.at <= until:
            continue
        time = seconds(record.at)
        if isinstance(record, Changed):
            if "change" in wanted:
                yield time, record.where, record.what, ""
            continue
        host = f"{record.host:<{width}}"
        match record:
            case Sent() if record.datagram in shown:
                for flight in copies[record.datagram]:
                    yield time, f"{host} {_arrow(flight, width)}", flight.label, _outcome(flight)
            case Offered() if "offered" in wanted:
                yield time, host, f"packet {record.packet} for {record.peer}, {record.size} B", ""
            case Discarded() if "discarded" in wanted:
                what = f"packet {record.packet} for {record.peer}"
                yield time, host, what, f"dropped: {record.reason.value}"
            case Delivered() if "delivered" in wanted and record not in told:
                yield time, host, f"packet {record.packet} of {record.peer}, {record.size} B", ""
            case Happened() if "event" in wanted:
                yield time, host, say(record.event), f"with {record.peer}"
            case Woke() if "wake" in wanted:
                yield time, host, f"wake: {record.reason.value}", f"for {record.peer}"
            case _:
                pass


def _arrow(flight: Flight, width: int) -> str:
    match flight.end:
        case Arrived(host=host):
            return f"-> {host:<{width}}"
        case None:
            return f"-? {flight.sent.peer:<{width}}"
        case _:
            return f"-x {flight.sent.peer:<{width}}"


def _outcome(flight: Flight) -> str:
    parts = ["copy"] if flight.copy else []
    end = flight.end
    if isinstance(end, Arrived):
        parts.append(f"at {seconds(end.at)}")
        parts += [f"packet {delivered.packet}" for delivered in flight.packets]
    if what := fate(flight):
        late = f" at {seconds(end.at)}" if isinstance(end, Lost) and end.at > flight.sent.at else ""
        parts.append(what + late)
    return ", ".join(parts)


def seconds(nanoseconds: int) -> str:
    """Seconds with six decimals, without the rounding of floats."""
    microseconds = (nanoseconds + 500) // 1000
    return f"{microseconds // 1_000_000}.{microseconds % 1_000_000:06d}"
