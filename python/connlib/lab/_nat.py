"""NAT boxes: hosts behind them are seen at an address and port that change."""

from __future__ import annotations

from dataclasses import dataclass, field

from connlib.lab._errors import LabError
from connlib.lab._records import Address
from connlib.lab._time import nanoseconds
from connlib.lab._timeline import Timeline

DEFAULT_TIMEOUT = 120.0
_PORTS = range(40_000, 65_536)
"""More than a world has hosts to use them at the same time."""


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

    def __init__(self, timeline: Timeline, name: str, address: str, timeout: float) -> None:
        self._timeline = timeline
        self.name = name
        self.address = address
        self._timeout = nanoseconds(timeout, "timeout")
        if self._timeout == 0:
            raise LabError("timeout must be more than 0 seconds: no answer would come in")
        self._used = 0
        self._by_inner: dict[Address, _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}

    def __repr__(self) -> str:
        return f"<Nat {self.name} at {self.address}>"

    def rebind(self, at: float | None = None) -> None:
        """Forget all mappings, as a NAT that is restarted: what is inside gets other ports with its next datagram."""
        self._timeline.at(at, self._rebind)

    def _rebind(self) -> None:
        self._by_inner.clear()
        self._by_port.clear()
        self._timeline.note(self.name, "rebinds")

    def outward(self, source: Address, destination: Address) -> Address:
        """Where a datagram of a host inside seems to come from."""
        now = self._timeline.now
        mapping = self._by_inner.get(source)
        if mapping is not None and all(now - used >= self._timeout for used in mapping.remotes.values()):
            self._by_port.pop(mapping.port)
            mapping = None
        if mapping is None:
            mapping = _Mapping(source, self._free_port())
            self._by_inner[source] = self._by_port[mapping.port] = mapping
        mapping.remotes[destination] = now
        return (self.address, mapping.port)

    def _free_port(self) -> int:
        """The next one that nobody has, from the first again after the last."""
        while True:
            port = _PORTS[self._used % len(_PORTS)]
            self._used += 1
            if port not in self._by_port:
                return port

    def inward(self, port: int, source: Address) -> Address | None:
        """For whom inside a datagram that reached a port is, if for anybody."""
        now = self._timeline.now
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
