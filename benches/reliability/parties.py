"""Who is there: the gateway and its numbered peers, with keys and addresses that every process can work out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from connlib import InterfaceConfig, NodeConfig, PeerConfig, PrivateKey, Role

PORT = 51820
_BASE = int(IPv4Address("10.64.0.0"))
GATEWAY = 1
"""The number of the gateway; those of the peers begin at 2."""


def key(number: int) -> PrivateKey:
    """The private key of a party."""
    return PrivateKey.from_bytes(hashlib.sha256(f"a party of the benchmark, {number}".encode()).digest())


def address(number: int) -> str:
    """Its inner address."""
    return str(IPv4Address(_BASE + number))


def alone(number: int) -> IPv4Interface:
    """Its inner address, in a network without any other."""
    return IPv4Interface((_BASE + number, 32))


def peer(number: int, **changes: Any) -> PeerConfig:
    """A peer of the gateway's."""
    prefix = IPv4Network((_BASE + number, 32))
    return PeerConfig(
        public_key=key(number).public_key(), allowed_ips=(prefix,), name=f"peer {number}", **changes
    )


def gateway_config(numbers: Iterable[int], **changes: Any) -> InterfaceConfig:
    """The gateway's interface with these peers."""
    return InterfaceConfig(
        **{
            "private_key": key(GATEWAY),
            "listen_port": PORT,
            # All peers are in its network, so that none needs a route of its own.
            "addresses": (IPv4Interface((_BASE + GATEWAY, 10)),),
            "role": Role.RESPONDER,
            "peers": tuple(peer(number) for number in numbers),
            "name": "wg0",
            **changes,
        }
    )


def client_config(number: int, endpoint: tuple[str, int]) -> NodeConfig:
    """A client whose only peer is the gateway."""
    return NodeConfig(private_key=key(number), peers=(_gateway(endpoint),))


def interface_of(number: int, endpoint: tuple[str, int]) -> InterfaceConfig:
    """The same as an interface."""
    return InterfaceConfig(
        private_key=key(number),
        addresses=(alone(number),),
        peers=(_gateway(endpoint),),
        name="wg0",
    )


def _gateway(endpoint: tuple[str, int]) -> PeerConfig:
    return PeerConfig(
        public_key=key(GATEWAY).public_key(),
        allowed_ips=(IPv4Network((_BASE + GATEWAY, 32)),),
        endpoint=endpoint,
        role=Role.INITIATOR,
    )
