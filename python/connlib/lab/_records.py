"""What a trace consists of: one record for each thing that happened, in the order in which it happened.

Times are integer nanoseconds since the start of the world, so that equal runs are equal to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from connlib._types import DropReason, Event, TimeoutReason

Address: TypeAlias = tuple[str, int]
Kind: TypeAlias = Literal["I", "R", "C", "D", "K"]
"""Initiation, response, cookie reply, data, keepalive."""
LossReason: TypeAlias = Literal["loss", "cut", "full", "nat", "asleep", "nobody"]
"""A link's chance or filter, a cut link, a full queue, no mapping in a NAT, a sleeping host, nobody at the address."""


@dataclass(frozen=True, slots=True)
class Offered:
    """An application handed a packet to its tunnel."""

    at: int
    host: str
    peer: str
    packet: int
    """A number that is this packet's in the whole world."""
    size: int
    """Bytes of the IP packet."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """A tunnel dropped a packet that it had been offered."""

    at: int
    host: str
    peer: str
    packet: int
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Delivered:
    """A packet came out of the tunnel at the other end."""

    at: int
    host: str
    peer: str
    packet: int
    size: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A host sent a datagram."""

    at: int
    host: str
    peer: str
    """For whom it is meant, whatever its address leads to."""
    datagram: int
    """A number that is this datagram's in the whole world; its copies share it."""
    kind: Kind
    index: int
    """The sender index of an I, the receiver index of everything else: which handshake or session it belongs to."""
    packet: int | None
    """Which packet a D carries, if the engine keeps the order of packets, as the patched one does."""
    source: Address
    destination: Address | None
    """None: the peer's address is not known, and the datagram is lost."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Copied:
    """The link made a second one of a datagram, which ends on its own."""

    at: int
    host: str
    """Who had sent it."""
    datagram: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A datagram, or one copy of it, reaches nobody."""

    at: int
    host: str
    """Who had sent it."""
    datagram: int
    why: LossReason


@dataclass(frozen=True, slots=True)
class Arrived:
    """A datagram reached a host, which took it or dropped it."""

    at: int
    host: str
    """Whom it reached."""
    datagram: int
    source: Address
    """Where it seems to come from: behind a NAT that of the NAT."""
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
    """A deadline that the engine had announced was reached, and the engine was called."""

    at: int
    host: str
    peer: str
    reason: TimeoutReason


@dataclass(frozen=True, slots=True)
class Changed:
    """The world itself changed: a machine fell asleep, a clock was set, a link was cut."""

    at: int
    where: str
    """Whose machine, NAT or link: a name, or two with a hyphen."""
    what: str


Record: TypeAlias = (
    Offered | Discarded | Delivered | Sent | Copied | Lost | Arrived | Happened | Woke | Changed
)
