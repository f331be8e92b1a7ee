"""What a `Node` is told of an interface's configuration, and what changes of one it does not see."""

from __future__ import annotations

import dataclasses

from ._types import ConfigDiff, NodeConfig, PeerChange, PeerConfig
from .config import InterfaceConfig
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
    )


_PEER_FIELDS = tuple(field.name for field in dataclasses.fields(PeerConfig))
_DEVICE_FIELDS = (
    "listen_port",
    "fwmark",
    "addresses",
    "routes",
    "masquerade",
    "protect_addresses",
    "dns",
)


def with_what_the_node_does_not_see(
    diff: ConfigDiff, old: InterfaceConfig, new: InterfaceConfig
) -> ConfigDiff:
    """Add what changed of names, of host names that endpoints have, and of the device."""
    before = {peer.public_key: peer for peer in old.peers}
    fields = {change.public_key: set(change.fields) for change in diff.changed}
    for peer in new.peers:
        was = before.get(peer.public_key, peer)
        for field in ("endpoint", "name"):
            if getattr(was, field) != getattr(peer, field):
                fields.setdefault(peer.public_key, set()).add(field)
    changed = tuple(
        PeerChange(peer.public_key, tuple(sorted(fields[peer.public_key], key=_PEER_FIELDS.index)))
        for peer in new.peers
        if peer.public_key in fields
    )
    device = tuple(field for field in _DEVICE_FIELDS if getattr(old, field) != getattr(new, field))
    return dataclasses.replace(diff, changed=changed, node=diff.node + device)
