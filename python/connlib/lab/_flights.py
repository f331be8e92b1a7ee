"""Records put together for people: datagrams with what became of them, handshakes numbered, events in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from connlib._text import counted
from connlib._types import (
    Dropped,
    Event,
    GaveUp,
    HandshakeStarted,
    PeerSilent,
    Poisoned,
    SessionEstablished,
    SessionExpired,
)
from connlib.lab._packets import sender_index_of
from connlib.lab._records import Arrived, Copied, Delivered, Kind, Lost, Record, Sent
from connlib.lab._time import SECOND

KINDS: dict[Kind, str] = {
    "I": "initiation",
    "R": "response",
    "C": "cookie reply",
    "K": "keepalive",
    "D": "data",
}
"""What the letters of `Sent.kind` stand for, in the order of a handshake."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A datagram, or one copy of it, from its sender to wherever it ends."""

    sent: Sent
    session: int | None
    """The handshake that it belongs to, or whose session; handshakes count from 1 in the order of their initiations."""
    end: Arrived | Lost | None
    """None: still under way when the trace ends."""
    packets: tuple[Delivered, ...] = ()
    """What came out of it at the receiver."""
    copy: int = 0
    """0 for the first to end; the others are copies that the link made."""

    @property
    def label(self) -> str:
        """Kind, session and size, as "D #1 96 B"."""
        session = "" if self.session is None else f" #{self.session}"
        return f"{self.sent.kind}{session} {len(self.sent.data)} B"


def flights(records: Sequence[Record]) -> list[Flight]:
    """The datagrams of a trace in the order in which they were sent, copies in the order in which they end."""
    ends: dict[int, list[Arrived | Lost]] = defaultdict(list)
    packets: dict[int, list[Delivered]] = defaultdict(list)
    came: dict[str, Arrived] = {}
    copies: Counter[int] = Counter()
    for record in records:
        match record:
            case Copied():
                copies[record.datagram] += 1
            case Arrived():
                came[record.host] = record
                ends[record.datagram].append(record)
            case Lost():
                ends[record.datagram].append(record)
            case Delivered():
                # What comes out of a tunnel was in the datagram that has just come.
                if record.host in came:
                    packets[id(came[record.host])].append(record)
            case _:
                pass
    sent = [record for record in records if isinstance(record, Sent)]
    sessions = number_sessions(sent)
    flying: list[Flight] = []
    for record in sent:
        ended = ends[record.datagram]
        still = [None] * (1 + copies[record.datagram] - len(ended))
        for copy, end in enumerate([*ended, *still]):
            flying.append(Flight(record, sessions[record.datagram], end, tuple(packets[id(end)]), copy))
    return flying


def by_datagram(flying: Iterable[Flight]) -> dict[int, list[Flight]]:
    """The copies of each datagram, by its number."""
    copies: dict[int, list[Flight]] = defaultdict(list)
    for flight in flying:
        copies[flight.sent.datagram].append(flight)
    return copies


def number_sessions(datagrams: Iterable[Sent]) -> dict[int, int | None]:
    """Which handshake each datagram belongs to, by the datagram's number; None where that cannot be told.

    A handshake and its session are known by two indices, one of either side: the initiator's is in the initiation, the
    responder's in the response. Each initiation begins another handshake, a retry too, whose keys and index are new;
    upstream comes back to an index after 256 of them, by when the last session of that index is over.
    """
    numbers: dict[tuple[str, int], int] = {}
    found: dict[int, int | None] = {}
    count = 0
    for sent in datagrams:
        number: int | None
        if sent.kind == "I":
            count += 1
            number = numbers[sent.host, sent.index] = count
        else:
            number = numbers.get((sent.peer, sent.index))
        if sent.kind == "R" and number is not None:
            numbers[sent.host, sender_index_of(sent.data)] = number
        found[sent.datagram] = number
    return found


def say(event: Event) -> str:
    """An event in a few words."""
    match event:
        case HandshakeStarted():
            return "handshake started"
        case SessionEstablished():
            return f"session established, as {'initiator' if event.initiator else 'responder'}"
        case SessionExpired():
            return "session expired"
        case GaveUp():
            return "gave up" + (f", {counted(event.dropped, 'packet')} dropped" if event.dropped else "")
        case PeerSilent():
            return "peer silent"
        case Dropped():
            return f"{counted(event.count, 'packet')} dropped: {event.reason.value}"
        case Poisoned():
            return "poisoned by an internal error"


def fate(flight: Flight) -> str:
    """What became of a datagram, without when; empty if the receiver took it."""
    match flight.end:
        case None:
            return "under way"
        case Lost(why=why):
            return f"lost: {why}"
        case Arrived(error=error):
            return f"dropped: {error.value}" if error else ""


def within(records: Iterable[Record], since: float, until: float) -> list[Record]:
    """The records from `since` to `until`, in seconds, both included."""
    return [record for record in records if since * SECOND <= record.at <= until * SECOND]
