"""What a `set` request makes of the settings of an interface: pure, in the order and with the meaning of the kernel's.

- A peer with the interface's own public key is not made, and goes when the interface gets that key.
- A private key is shown as it is used.
- A prefix belongs to one peer: where it is added, it is taken from whoever had it.
- `replace_peers`, and `remove` followed by the same peer again, make a peer anew: without session, counters, address.
- A peer without a session to be had (no private key, a public key of low order) is a setting like others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from connlib._native import PrivateKey, PublicKey
from connlib._types import PeerConfig

from .protocol import UNCHANGED, Network, PeerSection, SetRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set of an interface. Its dictionary is not changed, but replaced."""

    private_key: PrivateKey | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: Mapping[PublicKey, PeerConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """From one state of the settings to the next."""

    settings: Settings
    anew: frozenset[PublicKey]
    """Peers that stay and yet were removed in between."""
    relocate: frozenset[PublicKey]
    """Peers that were given an endpoint."""


def change(old: Settings, request: SetRequest) -> Change:
    """What a request makes of `old`, which stays as it is."""
    private_key = old.private_key if request.private_key is UNCHANGED else _as_used(request.private_key)
    peers = _Peers(old.peers, None if private_key is None else private_key.public_key())
    if request.replace_peers:
        peers.remove(list(old.peers))
    if peers.own is not None:
        peers.remove([peers.own])
    for section in request.peers:
        peers.change(section)
    return Change(
        Settings(
            private_key=private_key,
            listen_port=old.listen_port if request.listen_port is None else request.listen_port,
            fwmark=old.fwmark if request.fwmark is None else request.fwmark,
            peers=peers.result(),
        ),
        frozenset(key for key in peers.removed if key in peers.peers),
        frozenset(key for key in peers.relocated if key in peers.peers and key not in peers.removed),
    )


def _as_used(key: PrivateKey | None) -> PrivateKey | None:
    """A private key without the bits that have no say: five of them are the same in each (RFC 7748, section 5)."""
    if key is None:
        return None
    first, *middle, last = key.to_bytes()
    return PrivateKey.from_bytes(bytes([first & 248, *middle, last & 127 | 64]))


class _Peers:
    """Peers while they change. Who owns which prefix is only found out where that matters."""

    def __init__(self, peers: Mapping[PublicKey, PeerConfig], own: PublicKey | None) -> None:
        self.own = own
        self.peers = dict(peers)
        self.removed: set[PublicKey] = set()
        """Those of the old settings that were."""
        self.relocated: set[PublicKey] = set()
        self._old = peers
        self._owners: dict[Network, PublicKey] | None = None
        # Of the peers whose prefixes changed. A dictionary is a set that keeps its order.
        self._prefixes: dict[PublicKey, dict[Network, None]] = {}

    def result(self) -> dict[PublicKey, PeerConfig]:
        for key, prefixes in self._prefixes.items():
            if key in self.peers:
                self.peers[key] = replace(self.peers[key], allowed_ips=tuple(prefixes))
        return self.peers

    def remove(self, keys: Iterable[PublicKey]) -> None:
        for key in keys:
            if key not in self.peers:
                continue
            if self._owners is not None:
                for prefix in self._prefixes_of(key):
                    del self._owners[prefix]
            self._prefixes.pop(key, None)
            del self.peers[key]
            if key in self._old:
                self.removed.add(key)

    def change(self, section: PeerSection) -> None:
        key = section.public_key
        if section.remove:
            self.remove([key])
            return
        peer = self.peers.get(key)
        if peer is None:
            if section.update_only or key == self.own:
                return
            peer = PeerConfig(public_key=key)
        if section.preshared_key is not UNCHANGED:
            peer = replace(peer, preshared_key=section.preshared_key)
        if section.endpoint is not None:
            peer = replace(peer, endpoint=section.endpoint)
            self.relocated.add(key)
        if section.persistent_keepalive is not None:
            peer = replace(peer, persistent_keepalive=float(section.persistent_keepalive) or None)
        self.peers[key] = peer
        if section.replace_allowed_ips or section.allowed_ips:
            self._change_prefixes(section)

    def _change_prefixes(self, section: PeerSection) -> None:
        key = section.public_key
        owners = self._find_owners()
        mine = self._prefixes_of(key)
        if section.replace_allowed_ips:
            for prefix in mine:
                del owners[prefix]
            mine.clear()
        for prefix, added in section.allowed_ips:
            owner = owners.get(prefix)
            if owner is not None and (owner == key) is not added:
                # Another's, that becomes ours, or ours, that is taken away.
                del owners[prefix]
                del self._prefixes_of(owner)[prefix]
            if added:
                owners[prefix] = key
                mine[prefix] = None

    def _find_owners(self) -> dict[Network, PublicKey]:
        if self._owners is None:
            self._owners = {prefix: key for key, peer in self.peers.items() for prefix in peer.allowed_ips}
        return self._owners

    def _prefixes_of(self, key: PublicKey) -> dict[Network, None]:
        if key not in self._prefixes:
            self._prefixes[key] = dict.fromkeys(self.peers[key].allowed_ips)
        return self._prefixes[key]
