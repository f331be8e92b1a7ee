"""NAT boxes: hosts behind them are seen at an address and port that change."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from connlib.lab._records import Address
from connlib.lab._time import nanoseconds

if TYPE_CHECKING:
    from connlib.lab._world import World

DEFAULT_TIMEOUT = 120.0
_FIRST_PORT = 40_000


@dataclass(slots=True)
class _Mapping:
    inner: Address
    port: int
    remotes: dict[Address, int] = field(default_factory=dict)
    """When something last went to or came from each address outside."""


class Nat:
    """A NAT with one address outside. An inner address and port keeps its outer port; answers come in only from where
    something was sent to, and only until nothing has passed for `timeout` seconds (RFC 4787: endpoint-independent
    mapping, address and port-dependent filtering)."""

    def __init__(self, world: World, name: str, address: str, timeout: float) -> None:
        self._world = world
        self.name = name
        self.address = address
        self._timeout = nanoseconds(timeout, "timeout")
        self._ports = itertools.count(_FIRST_PORT)
        self._by_inner: dict[Address, _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}

    def __repr__(self) -> str:
        return f"<Nat {self.name} at {self.address}>"

    def rebind(self, at: float | None = None) -> None:
        """Forget all mappings, as a NAT that is restarted: what is inside gets other ports with its next datagram."""
        self._world.at(at, self._rebind)

    def _rebind(self) -> None:
        self._by_inner.clear()
        self._by_port.clear()
        self._world.note(self.name, "rebinds")

    def outward(self, now: int, source: Address, destination: Address) -> Address:
        """Where a datagram of a host inside seems to come from."""
        mapping = self._by_inner.get(source)
        if mapping is not None and all(now - used >= self._timeout for used in mapping.remotes.values()):
            self._by_port.pop(mapping.port)
            mapping = None
        if mapping is None:
            mapping = _Mapping(source, next(self._ports))
            self._by_inner[source] = self._by_port[mapping.port] = mapping
        mapping.remotes[destination] = now
        return (self.address, mapping.port)

    def inward(self, now: int, port: int, source: Address) -> Address | None:
        """For whom inside a datagram that reached a port is, if for anybody."""
        mapping = self._by_port.get(port)
        used = mapping.remotes.get(source) if mapping else None
        if mapping is None or used is None or now - used >= self._timeout:
            return None
        mapping.remotes[source] = now
        return mapping.inner

    def behind(self, port: int) -> Address | None:
        """Which address inside has a port, whoever may use it."""
        mapping = self._by_port.get(port)
        return mapping.inner if mapping else None
