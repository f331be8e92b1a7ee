"""What a `Node` is told of an interface's configuration, what of it is made ahead, and what changes it does not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread

from ._errors import ConfigError
from ._native import Tunnels
from ._types import ConfigDiff, NodeConfig, PeerChange, PeerConfig
from .clock import BootClock, Clock
from .config import InterfaceConfig, without_common
from .links import DEFAULT_MTU
from .resolver import is_literal


def node_config(config: InterfaceConfig) -> NodeConfig:
    """What the node is told of a configuration: everything but the host names, which are looked up later."""
    return NodeConfig(
        private_key=config.private_key,
        peers=tuple(
            peer
            if peer.endpoint is None or is_literal(peer.endpoint[0])
            else dataclasses.replace(peer, endpoint=None)
            for peer in config.peers
        ),
        mtu=config.mtu or DEFAULT_MTU,
        timers=config.timers,
        limits=config.limits,
        encryption=config.encryption,
        threads=config.threads,
    )


async def make_ahead(config: NodeConfig, clock: Clock) -> Tunnels:
    """The tunnels of a configuration's peers. Raises `ConfigError` for every way in which it is wrong.

    Those of many take a while, and are made in a thread, so that packets move meanwhile; unless time is simulated,
    which would not wait for it.
    """

    def make() -> Tunnels:
        return Tunnels(config, now=clock.now(), unix_time=clock.unix_time())

    with config_errors():
        if len(config.peers) <= _SOON or not isinstance(clock, BootClock):
            return make()
        # With a limiter of its own: the application's worker threads may all be waiting for this interface.
        return await anyio.to_thread.run_sync(make, limiter=anyio.CapacityLimiter(1))


@contextmanager
def config_errors() -> Iterator[None]:
    """`ConfigError` for every way in which a node's configuration is wrong."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


_SOON = 16
"""Tunnels that are made sooner than a thread has begun, under load: a millisecond."""

_PEER_FIELDS = tuple(field.name for field in dataclasses.fields(PeerConfig))
_DEVICE_FIELDS = (
    "listen_port",
    "fwmark",
    "addresses",
    "routes",
    "masquerade",
    "protect_addresses",
    "dns",
    "offload",
    "encryption",
    "threads",
    "worker",
)


def with_what_the_node_does_not_see(
    diff: ConfigDiff, old: InterfaceConfig, new: InterfaceConfig
) -> ConfigDiff:
    """Add what changed of names, of host names that endpoints have, and of the device."""
    gone, come = without_common(old.peers, new.peers)
    before = {peer.public_key: peer for peer in gone}
    fields = {change.public_key: set(change.fields) for change in diff.changed}
    for peer in come:
        was = before.get(peer.public_key, peer)
        for field in ("endpoint", "name"):
            if getattr(was, field) != getattr(peer, field):
                fields.setdefault(peer.public_key, set()).add(field)
    changed = tuple(
        PeerChange(peer.public_key, tuple(sorted(fields[peer.public_key], key=_PEER_FIELDS.index)))
        for peer in come
        if peer.public_key in fields
    )
    device = tuple(
        field
        for field in _DEVICE_FIELDS
        if getattr(old, field) != getattr(new, field) and field not in diff.node
    )
    return dataclasses.replace(diff, changed=changed, node=diff.node + device)
