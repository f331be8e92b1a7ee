"""A `Node` with one peer in the place of a `Tunn`, for the scenarios that name a node or an address."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from typing import Any

from connlib import (
    Denied,
    DropReason,
    NodeConfig,
    Output,
    PeerConfig,
    PeerRoamed,
    PresharedKey,
    PrivateKey,
    PublicKey,
    Role,
    Timeout,
    TunnStats,
)
from connlib._native import LabNode
from spec.pair import NOTHING, Address


class Addressed(bytes):
    """A datagram that a node sent, and where to."""

    destination: Address


class NodeEnd:
    """One end of a `Pair`: what it can do of `LabTunn`'s interface, by the means of a node.

    endpoint: where the peer is; None: it is heard of first. Other options are the node's.
    """

    def __init__(
        self,
        private_key: PrivateKey,
        peer_public_key: PublicKey,
        *,
        now: float,
        unix_time: float,
        seed: int,
        role: Role,
        preshared_key: PresharedKey | None,
        persistent_keepalive: float | None,
        endpoint: Address | None = None,
        **options: Any,
    ) -> None:
        self._peer = PeerConfig(
            public_key=peer_public_key,
            role=role,
            preshared_key=preshared_key,
            persistent_keepalive=persistent_keepalive,
            endpoint=endpoint,
            allowed_ips=(ip_network("0.0.0.0/0"),),
        )
        config = NodeConfig(private_key=private_key, peers=(self._peer,), **options)
        self._node = LabNode(config, now=now, unix_time=unix_time, seed=seed)
        self._drops: Counter[DropReason] = Counter()

    def encapsulate(self, packet: bytes, now: float) -> Output:
        """The node's device delivered a packet."""
        self._node.handle_packets(packet, [len(packet)], now)
        return self._drain(now)

    def decapsulate(self, datagram: bytes, now: float, source: Address) -> Output:
        """The node's socket received a datagram."""
        self._node.handle_datagrams(datagram, [len(datagram)], [source], now)
        return self._drain(now)

    def handle_timeout(self, now: float) -> Output:
        """As `Tunn.handle_timeout`."""
        self._node.handle_timeout(now)
        return self._drain(now) if any(self._node.pending()) else NOTHING

    def initiate_handshake(self, now: float) -> Output:
        """As `Tunn.initiate_handshake`."""
        self._node.initiate_handshake(self._peer.public_key, now)
        return self._drain(now)

    def next_timeout(self) -> Timeout | None:
        """As `Tunn.next_timeout`."""
        return self._node.next_timeout()

    def stats(self, now: float) -> TunnStats:
        """Those of the peer's tunnel."""
        return self._node.stats(now).peers[0].tunnel

    def endpoint(self) -> Address | None:
        """Where the node sends what is for the peer."""
        return self._node.stats(0).peers[0].endpoint

    def _drain(self, now: float) -> Output:
        output = self._node.drain()
        datagrams: list[bytes] = []
        for transmit in output.transmits:
            datagram = Addressed(transmit.datagram)
            datagram.destination = transmit.destination
            datagrams.append(datagram)
        stats = self._node.stats(now)
        drops = Counter(stats.drops) + Counter(stats.peers[0].tunnel.drops)
        new, self._drops = drops - self._drops, drops
        # Of a tunnel by itself there is no more to say.
        events = [event for _, event in output.events if not isinstance(event, PeerRoamed | Denied)]
        return Output(datagrams, output.packets, events, next(iter(new), None))
