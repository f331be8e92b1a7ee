"""The flow log of a node: what begins, what is denied and what ends; and the question whether one may begin.
docs/policy.md tells what a flow is.

The extension module imports this module and builds instances of these classes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from connlib._native import PublicKey
from connlib._policy import Protocol, Verdict


class Direction(enum.Enum):
    """Which way the first packet of a flow goes."""

    FROM_PEER = "from peer"
    """Out of the tunnel: the peer starts it."""
    TO_PEER = "to peer"
    """Into the tunnel: it starts on this side."""


class EndReason(enum.Enum):
    """Why a flow ended."""

    CLOSED = "closed"
    """TCP was reset or finished by both sides, and four minutes passed, or the connection begins anew."""
    EXPIRED = "expired"
    """Nothing was seen of it for its time."""
    EVICTED = "evicted"
    """It gave way to a newer one."""
    REVOKED = "revoked"
    """A changed policy forbids it, the policy or the peer was removed, or the hook is asked again (`ask_again`)."""


class FlowEnd(NamedTuple):
    """What there was of a flow: IP packets that the policy let pass, without later fragments and ICMP errors."""

    why: EndReason
    start: float
    """Seconds since 1970."""
    seconds: float
    """From the first packet to the last."""
    packets_from_peer: int
    bytes_from_peer: int
    packets_to_peer: int
    bytes_to_peer: int


class FlowRecord(NamedTuple):
    """A flow began (it has an `id`, and no `end`), ended (both), or was denied (neither)."""

    time: float
    """When that was, in seconds since 1970 by the node's wall clock."""
    peer: PublicKey
    direction: Direction
    protocol: Protocol | int | None
    """None for a packet that does not say, or could not be read."""
    source: IPv4Address | IPv6Address
    """Of the first packet; the unspecified address if it could not be read, and so with `destination`."""
    source_port: int | None
    """Of TCP and UDP."""
    destination: IPv4Address | IPv6Address
    destination_port: int | None
    """Of TCP and UDP."""
    icmp_type: int | None
    verdict: Verdict
    """What let it pass, or not. Where a changed policy let a flow go on, `end` has what that one says."""
    id: int | None
    """Given once by one log; None if it was denied."""
    refused: int
    """How many refused packets of this peer a denied one stands for, since the last one; 0 for others."""
    end: FlowEnd | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowQuestion:
    """May a flow begin? What its first packet says, and which rule asks. docs/policy.md tells when there is one."""

    id: int
    """Given once by one node, and what `Node.decide` takes."""
    peer: PublicKey
    name: str | None = None
    """What the peer is called in the configuration of the interface; a `Node` knows no names."""
    direction: Direction
    protocol: Protocol | int
    source: IPv4Address | IPv6Address
    """Whoever sent the packet: the peer, if `direction` is `FROM_PEER`."""
    source_port: int | None = None
    """Of TCP and UDP."""
    destination: IPv4Address | IPv6Address
    destination_port: int | None = None
    """Of TCP and UDP."""
    icmp_type: int | None = None
    rule: int | None = None
    """Which rule asks, counted from 1; None: it is the policy's `default` or `outbound`."""
    rule_name: str | None = None
