"""What an interface says of itself, in a form that goes over the socket."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Collection, Iterator
from typing import Any

import anyio.lowlevel
import msgspec

from connlib._describe import describe_event
from connlib._explain import Explanation, PeerState
from connlib._interfacestats import InterfaceStats, is_errno
from connlib._text import counted, host_and_port
from connlib._types import PeerConfig, PeerStats
from connlib.driver import Interface
from connlib.events import Happened

from .protocol import ControlError

_SLICE = 64
"""Peers that are put into words before others have their turn, some milliseconds."""


class PeerExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a peer is up or down, as `connlib.explain` says it."""

    peer: str
    """Its public key."""
    name: str | None
    state: str
    """`up`, `connecting`, `waiting`, `idle` or `down`: `connlib.PeerState`."""
    why: str
    next: str
    """What happens next."""
    next_in: float | None
    """In how many seconds; None if that depends on something else."""

    def __str__(self) -> str:
        return str(Explanation(PeerState(self.state), self.why, self.next, self.next_in))


class PeerStatus(PeerExplanation, frozen=True, kw_only=True):
    """A peer: what it is configured as, how it is, and what was counted."""

    role: str
    endpoint: str | None
    """Where its datagrams are sent."""
    allowed_ips: tuple[str, ...]
    persistent_keepalive: float | None
    has_preshared_key: bool
    last_handshake: float | None
    """Seconds since its last session was established."""
    session_age: float | None
    """Seconds."""
    last_heard: float | None
    """Seconds."""
    rtt: float | None
    """Seconds that the last handshake took."""
    loss: float
    """Share of the session's datagrams that did not arrive."""
    tx_bytes: int
    rx_bytes: int
    """Bytes as UDP payload."""
    tx_packets: int
    rx_packets: int
    """IP packets."""
    initiations_sent: int
    queued: int
    """IP packets that wait for a session."""
    flows: int | None
    """Flows that its policy knows; None without a policy."""
    drops: dict[str, int]
    """By reason: `connlib.DropReason`."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """An interface and its peers."""

    name: str
    public_key: str
    listen_port: int
    fwmark: int
    addresses: tuple[str, ...]
    mtu: int | None
    version: str
    """Of connlib."""
    pid: int
    up_for: float
    """Seconds since the control socket is there."""
    unix_time: float
    """When this was counted, in seconds since 1970."""
    peers: tuple[PeerStatus, ...]
    """In the order of the configuration."""
    drops: dict[str, int]
    """Of no known peer, by reason."""
    errors: dict[str, int]
    """Of the device and the sockets, by what was done and the name of the errno: `udp send_ENETUNREACH`."""
    timer_wakes: int
    lookups: dict[str, int] = {}
    """Of host names of peers: `asked`, `failed`, and `moved` for those that gave a silent peer another address."""


class ReportedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that has happened."""

    time: float
    """When it happened, in seconds since 1970."""
    peer: str | None
    """The public key; None for what concerns the interface."""
    name: str | None
    """What the peer was called then."""
    event: str
    """The name of the class, `SessionEstablished` say; `Lost` for `count` events missing before the next one."""
    fields: dict[str, Any]
    """What the class holds."""
    text: str
    """For people."""


@functools.cache
def installed_version() -> str:
    """The version of connlib. Asked for the first time, it reads files, modules of Python's among them."""
    return importlib.metadata.version("connlib")


async def report_status(interface: Interface, up_for: float) -> Status:
    """How an interface is now. Of many peers, others have their turn while it is put into words."""
    stats = interface.stats()
    config = interface.config
    peers = []
    for peer, told in _told(stats, config.peers):
        peers.append(_peer_status(interface, peer, told, stats.now))
        if len(peers) % _SLICE == 0:
            await anyio.lowlevel.checkpoint()
    return Status(
        name=interface.name,
        public_key=interface.public_key.to_base64(),
        listen_port=interface.listen_port,
        fwmark=config.fwmark,
        addresses=tuple(str(address) for address in config.addresses),
        mtu=config.mtu,
        version=installed_version(),
        pid=os.getpid(),
        up_for=up_for,
        unix_time=stats.unix_time,
        peers=tuple(peers),
        drops={reason.value: count for reason, count in stats.drops.items()},
        errors={
            f"{end} {name}": count
            for end, counters in (("tun", stats.tun), ("udp", stats.udp))
            for name, count in counters.items()
            if is_errno(name) and count
        },
        timer_wakes=stats.timer_wakes,
        lookups=dict(stats.lookups),
    )


async def report_explanations(interface: Interface, names: Collection[str]) -> list[PeerExplanation]:
    """Why those peers are up or down; all, if there is no name. Raises `ControlError` for one that is none's."""
    if names:
        # Nobody else is asked about.
        wanted = _named(interface.config.peers, names)
        return [_explanation(peer, interface.explain(peer.public_key)) for peer in wanted]
    stats = interface.stats()
    explanations = []
    for peer, told in _told(stats, interface.config.peers):
        explanations.append(_explanation(peer, interface._explained(peer, told, stats.now)))
        if len(explanations) % _SLICE == 0:
            await anyio.lowlevel.checkpoint()
    return explanations


def report_event(happened: Happened) -> ReportedEvent:
    """An event, as it was when it happened."""
    peer, event = happened.event
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    return ReportedEvent(
        time=happened.unix_time,
        peer=None if peer is None else peer.to_base64(),
        name=happened.name,
        event=type(event).__name__,
        fields=fields,
        text=describe_event(event)[1],
    )


def report_loss(count: int, unix_time: float) -> ReportedEvent:
    """So many events, up to then, found no room."""
    text = f"{counted(count, 'event')} before this {'was' if count == 1 else 'were'} lost: the reader is too slow"
    return ReportedEvent(
        time=unix_time, peer=None, name=None, event="Lost", fields={"count": count}, text=text
    )


def _named(peers: tuple[PeerConfig, ...], names: Collection[str]) -> list[PeerConfig]:
    known = {peer.public_key.to_base64(): peer for peer in peers}
    known.update((peer.name, peer) for peer in peers if peer.name is not None)
    for name in names:
        if name not in known:
            raise ControlError("request", [f"there is no peer {name!r}"])
    return [known[name] for name in names]


def _told(stats: InterfaceStats, peers: tuple[PeerConfig, ...]) -> Iterator[tuple[PeerConfig, PeerStats]]:
    by_key = {each.public_key: each for each in stats.peers}
    for peer in peers:
        yield peer, by_key[peer.public_key]


def _explanation(peer: PeerConfig, said: Explanation) -> PeerExplanation:
    return PeerExplanation(**_said_of(peer, said))


def _said_of(peer: PeerConfig, said: Explanation) -> dict[str, Any]:
    """The fields of a `PeerExplanation`."""
    return {
        "peer": peer.public_key.to_base64(),
        "name": peer.name,
        "state": said.state.value,
        "why": said.why,
        "next": said.then,
        "next_in": said.at,
    }


def _peer_status(interface: Interface, peer: PeerConfig, told: PeerStats, now: float) -> PeerStatus:
    tunnel = told.tunnel
    return PeerStatus(
        **_said_of(peer, interface._explained(peer, told, now)),
        role=peer.role.value,
        endpoint=None if told.endpoint is None else host_and_port(*told.endpoint),
        allowed_ips=tuple(str(prefix) for prefix in peer.allowed_ips),
        persistent_keepalive=peer.persistent_keepalive,
        has_preshared_key=peer.preshared_key is not None,
        last_handshake=tunnel.last_handshake,
        session_age=tunnel.session_age,
        last_heard=told.last_heard,
        rtt=tunnel.rtt,
        loss=tunnel.loss,
        tx_bytes=tunnel.tx_bytes,
        rx_bytes=tunnel.rx_bytes,
        tx_packets=tunnel.tx_packets,
        rx_packets=tunnel.rx_packets,
        initiations_sent=tunnel.initiations_sent,
        queued=tunnel.queued,
        flows=None if told.policy is None else told.policy.flows,
        drops={reason.value: count for reason, count in tunnel.drops.items()},
    )
