"""What a trace consists of: one record for each thing that happened, in the order in which it happened.

Times are integer nanoseconds since the start of the world, so that equal runs are equal to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from connlib._types import DropReason, Event, TimeoutReason

Address: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Offered:
    """An application handed a packet to its tunnel."""

    at: int
    host: str
    peer: str
    packet: int
    """A number that is this packet's in the whole world."""
    size: int
    error: DropReason | None = None
    """Why it was dropped at once."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A packet came out of the tunnel at the other end."""

    at: int
    host: str
    peer: str
    packet: int
    size: int
    datagram: int | None = None
    """What brought it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A host sent a datagram."""

    at: int
    host: str
    peer: str
    """For whom it is meant, whatever its address leads to."""
    datagram: int
    """A number that is this datagram's in the whole world; its copies share it."""
    kind: str
    """I, R, C, D or K: initiation, response, cookie reply, data, keepalive; ? for anything else."""
    index: int
    """The sender index of an I, the receiver index of everything else: which handshake or session it belongs to."""
    source: Address
    """The host's own address, also behind a NAT."""
    destination: Address
    data: bytes
    copies: int = 1
    """How often the link carries it. Each copy ends as a `Lost` or an `Arrived`."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A datagram, or one copy of it, reaches nobody."""

    at: int
    host: str
    """Who had sent it."""
    datagram: int
    why: str
    """`loss`, `partition`, `full`, `nat`, `asleep` or `nobody`."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A datagram reached a host, which took it or dropped it."""

    at: int
    host: str
    """Whom it reached."""
    datagram: int
    source: Address
    """Where it seems to come from, behind a NAT that of the NAT."""
    error: DropReason | None
    """Why the host dropped it."""


@dataclass(frozen=True, slots=True)
class Happened:
    """The engine reported an event."""

    at: int
    host: str
    peer: str
    event: Event


@dataclass(frozen=True, slots=True)
class Woke:
    """A deadline that the engine had announced was reached, and the engine was called.

    Ticks of an engine that wants to be polled are written down only where they did something.
    """

    at: int
    host: str
    peer: str
    reason: TimeoutReason


@dataclass(frozen=True, slots=True)
class Changed:
    """The world itself changed: a machine fell asleep, a clock was set, a link was cut."""

    at: int
    host: str
    """Whose machine, NAT or link."""
    what: str
    """`asleep`, `awake`, `cut`, `healed`, or a setting: `clock -10 s`, `address 192.0.2.7:51820`, `loss=0.2`."""
    peer: str | None = None
    """Where the link leads, or which peer's endpoint it is."""


Record: TypeAlias = Offered | Delivered | Sent | Lost | Arrived | Happened | Woke | Changed
