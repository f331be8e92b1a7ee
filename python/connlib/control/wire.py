"""Configurations on their way from one program to another: a `Gateway` with all its keys, in JSON."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any

import msgspec

from connlib._errors import ConfigError
from connlib._gatewayrules import GatewayRule
from connlib._gatewayvalues import address, prefix
from connlib._native import PresharedKey, PrivateKey, PublicKey
from connlib._policy import Action, Protocol, Rule
from connlib._text import host_and_port
from connlib._types import Limits, PeerConfig, Timers
from connlib._wgvalues import BadValue
from connlib.config import Address, InterfaceConfig, Prefix, describe_peer, shown
from connlib.gateway import Gateway, GatewayInterface, GatewayPeer

from .. import _wgvalues as values


def as_gateway(config: InterfaceConfig) -> Gateway:
    """The same configuration as a gateway's file would say it, keys included.

    Raises `ConfigError` for what such a file has no words for: a keepalive of half a second, two peers of one name.
    """
    return Gateway(
        interface=GatewayInterface(
            private_key=config.private_key,
            name=config.name,
            listen_port=config.listen_port,
            addresses=config.addresses,
            mtu=config.mtu,
            fwmark=config.fwmark,
            routes=config.routes,
            role=config.role,
            timers=config.timers,
            limits=config.limits,
            masquerade=config.masquerade,
            protect_addresses=config.protect_addresses,
            dns=config.dns,
            offload=config.offload,
            encryption=config.encryption,
            threads=config.threads,
            worker=config.worker,
            queues=config.queues,
        ),
        peers=tuple(_peer(peer) for peer in config.peers),
    )


def _peer(peer: PeerConfig) -> GatewayPeer:
    policy = peer.policy
    return GatewayPeer(
        public_key=peer.public_key,
        name=peer.name,
        preshared_key=peer.preshared_key,
        allowed_ips=peer.allowed_ips,
        endpoint=None if peer.endpoint is None else host_and_port(*peer.endpoint),
        persistent_keepalive=_whole_seconds(peer),
        role=peer.role,
        rules=None if policy is None else tuple(_rule(rule) for rule in policy.rules),
        default=None if policy is None else policy.default,
        outbound=None if policy is None else policy.outbound,
    )


def _whole_seconds(peer: PeerConfig) -> int | None:
    seconds = peer.persistent_keepalive
    if seconds is None:
        return None
    if seconds != int(seconds):
        raise ConfigError(
            f"the persistent keepalive of {describe_peer(peer)} is {seconds:g} seconds",
            hint="use whole seconds",
        )
    return int(seconds)


def _rule(rule: Rule) -> GatewayRule:
    protocol = rule.protocol
    return GatewayRule(
        allow="ask" if rule.action is Action.ASK else rule.action is Action.ALLOW,
        name=rule.name,
        protocol=protocol
        if isinstance(protocol, int)
        else None
        if protocol is Protocol.ANY
        else protocol.value,
        to=rule.destinations or None,
        ports=_ranges(rule.ports),
        icmp_types=_ranges(rule.icmp_types),
    )


def _ranges(ranges: tuple[int | tuple[int, int], ...]) -> tuple[str | int, ...] | None:
    return tuple(each if isinstance(each, int) else f"{each[0]}-{each[1]}" for each in ranges) or None


def encode_hook(value: object) -> object:
    """What `msgspec` makes of the values that it does not know. Secret keys are written out: this is for the socket."""
    if isinstance(value, PublicKey | PrivateKey | PresharedKey):
        return value.to_base64()
    if isinstance(
        value, IPv4Network | IPv6Network | IPv4Interface | IPv6Interface | IPv4Address | IPv6Address
    ):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    raise NotImplementedError(f"a {type(value).__name__} has no form in JSON")


def decode_hook(kind: type, value: Any) -> Any:
    """The other way round. Raises `ValueError` without quoting the value: it may be a key."""
    if not isinstance(value, str):
        raise ValueError("what should be text is not")
    if kind in _KEYS:
        try:
            return values.key(_KEYS[kind], "what should be a key", value)
        except BadValue as bad:
            raise ValueError(bad.problem) from None
    if kind in _ADDRESSES:
        try:
            return _ADDRESSES[kind]("", value)
        except BadValue:
            raise ValueError("an address or a prefix is malformed") from None
    raise NotImplementedError(f"a {kind.__name__} has no form in JSON")


_KEYS: dict[type, Any] = {key: key for key in (PublicKey, PrivateKey, PresharedKey)}
# Each name stands for two classes, and msgspec gives it back.
_ADDRESSES: dict[Any, Callable[[str, str], object]] = {Prefix: prefix, Address: address}


class _Settings(msgspec.Struct):
    timers: dict[str, msgspec.Raw] = {}
    limits: dict[str, msgspec.Raw] = {}


class _GatewaySettings(msgspec.Struct):
    interface: _Settings


class _Settled(msgspec.Struct):
    gateway: _GatewaySettings


_settled = msgspec.json.Decoder(_Settled)
_SETTINGS = {"timers": Timers, "limits": Limits}


def unknown_settings(line: bytes) -> Iterator[str]:
    """Which timers and limits there are not, of a request with a gateway that has been decoded: of dataclasses, msgspec
    ignores what it does not know.
    """
    interface = _settled.decode(line).gateway.interface
    for place, kind in _SETTINGS.items():
        known = {field.name for field in dataclasses.fields(kind)}
        for name in getattr(interface, place):
            if name not in known:
                yield f"{place}: there is no {shown(name)}"


encoder = msgspec.json.Encoder(enc_hook=encode_hook)
