"""What the tests of policies share: packets that are written without connlib, and a gateway with its peer, in virtual
time."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_network
from typing import Any

from connlib import (
    Action,
    DropReason,
    Node,
    NodeConfig,
    PeerConfig,
    Policy,
    PolicyStats,
    Protocol,
    Role,
    Rule,
)
from two_tunnels import ALICE, BOB, START, UNIX_TIME

PEER_AT, GATEWAY_AT = ("192.0.2.1", 51820), ("198.51.100.2", 51820)

FIN, SYN, RST, ACK = 1, 2, 4, 16


def ip(protocol: int, payload: bytes, source: str = "10.0.0.1", destination: str = "10.9.9.9") -> bytes:
    """By default, from the peer to a server behind the gateway."""
    if ":" in source:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        addresses = [socket.inet_pton(socket.AF_INET6, text) for text in (source, destination)]
    else:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0)
        addresses = [socket.inet_aton(text) for text in (source, destination)]
    return header + b"".join(addresses) + payload


def udp(source: int, destination: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def tcp(source: int, destination: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 2, 5 << 4, flags, 65_535, 0, 0)


def icmp(kind: int) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 77, 1)


def there(payload: bytes, protocol: int = 17) -> bytes:
    """From the peer to a server behind the gateway."""
    return ip(protocol, payload)


def back(payload: bytes, protocol: int = 17) -> bytes:
    return ip(protocol, payload, "10.9.9.9", "10.0.0.1")


def allow(protocol: Protocol | int = Protocol.ANY, *ports: int | tuple[int, int], **options: Any) -> Rule:
    return Rule(action=Action.ALLOW, protocol=protocol, ports=ports, **options)


class Gated:
    """A peer, and its gateway to 10.9.0.0/16 and fd09::/16, which has a policy for it; with a session."""

    def __init__(self, policy: Policy | None, *, asks: bool = False) -> None:
        everything = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
        gateway = PeerConfig(public_key=BOB.public_key(), allowed_ips=everything, endpoint=GATEWAY_AT)
        self.now = START
        self.peer = Node(NodeConfig(private_key=ALICE, peers=(gateway,)), now=START, unix_time=UNIX_TIME)
        self.gateway = Node(self.config(policy), now=START, unix_time=UNIX_TIME)
        self.connect()
        self.gateway.ask(asks, START)

    def config(self, policy: Policy | None) -> NodeConfig:
        peer = PeerConfig(
            public_key=ALICE.public_key(),
            allowed_ips=(ip_network("10.0.0.1/32"), ip_network("fd00::1/128")),
            role=Role.RESPONDER,
            policy=policy,
        )
        return NodeConfig(private_key=BOB, peers=(peer,))

    def connect(self) -> None:
        self.peer.initiate_handshake(BOB.public_key(), self.now)
        self.exchange()

    def wait(self, seconds: float) -> None:
        """Let time pass, and have a fresh session, if the old one is over."""
        self.now += seconds
        for node in (self.peer, self.gateway):
            node.handle_timeout(self.now)
        if seconds > 100:
            self.connect()

    def exchange(self) -> tuple[list[bytes], list[bytes]]:
        """What comes out at the peer's, and at the gateway's, once everything on the way has arrived."""
        came: tuple[list[bytes], list[bytes]] = ([], [])
        quiet = False
        while not quiet:
            quiet = True
            for sender, receiver, source, packets in (
                (self.peer, self.gateway, PEER_AT, came[0]),
                (self.gateway, self.peer, GATEWAY_AT, came[1]),
            ):
                output = sender.drain()
                packets += output.packets
                for _, datagram in output.transmits:
                    quiet = False
                    receiver.handle_datagrams(datagram, [len(datagram)], [source], self.now)
        return came

    def send(self, *packets: bytes) -> tuple[list[bytes], list[bytes]]:
        """The peer sends: what comes back to it, and what gets through, in one batch."""
        self.peer.handle_packets(b"".join(packets), [len(packet) for packet in packets], self.now)
        return self.exchange()

    def reply(self, *packets: bytes) -> tuple[list[bytes], list[bytes]]:
        """The network behind the gateway sends: what gets through to the peer, and what comes back."""
        self.gateway.handle_packets(b"".join(packets), [len(packet) for packet in packets], self.now)
        return self.exchange()

    def passes(self, packet: bytes) -> bool:
        return self.send(packet)[1] == [packet]

    def returns(self, packet: bytes) -> bool:
        return self.reply(packet)[0] == [packet]

    @property
    def drops(self) -> dict[DropReason, int]:
        return dict(self.gateway.stats(self.now).peers[0].tunnel.drops)

    @property
    def denied(self) -> int:
        return self.drops.get(DropReason.DENIED, 0)

    @property
    def stats(self) -> PolicyStats:
        stats = self.gateway.stats(self.now).peers[0].policy
        assert stats is not None
        return stats
