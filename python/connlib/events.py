"""Subscriptions to what happens on an interface."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakSet

from ._native import PublicKey
from ._types import InterfaceEvent, PeerEvent
from .config import InterfaceConfig
from .memory import Bell


class Happened(NamedTuple):
    """An event, with what was so when it happened, however late it is read."""

    event: PeerEvent | InterfaceEvent
    unix_time: float
    """Seconds since 1970."""
    name: str | None
    """What its peer was called."""


class EventStream:
    """One subscriber's events, from the moment of `Interface.events()` on.

    An asynchronous iterator of `PeerEvent(peer, event)` and, where `peer` is None, `InterfaceEvent(peer, event)`. It
    ends when the interface is closed. A subscriber that falls behind loses the oldest events, and `lost` counts them:
    the interface never waits for it.
    """

    def __init__(self, capacity: int) -> None:
        self._events: deque[Happened] = deque(maxlen=capacity)
        self._bell = Bell()
        self._ended = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """How many events this subscriber was too slow for."""
        return self._lost

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> PeerEvent | InterfaceEvent:
        happened = await self._next()
        if happened is None:
            raise StopAsyncIteration
        return happened.event

    async def _next(self) -> Happened | None:
        """The next one; None at the end. What was `lost` by then happened before it."""
        while not self._events:
            if self._ended:
                return None
            await self._bell.wait()
        return self._events.popleft()

    def publish(self, happened: Happened) -> None:
        """Add an event."""
        if len(self._events) == self._events.maxlen:
            self._lost += 1
        self._events.append(happened)
        self._bell.ring()

    def end(self) -> None:
        """Let the iteration stop after the events that are there."""
        self._ended = True
        self._bell.ring()


class Subscribers:
    """The streams of an interface; one that nobody holds any more is gone.

    unix_time: the wall clock, in seconds.
    """

    def __init__(self, unix_time: Callable[[], float]) -> None:
        self._unix_time = unix_time
        self._streams: WeakSet[EventStream] = WeakSet()
        # The configuration that the names are of: there may be ten thousand, and events of all of them at once.
        self._named: InterfaceConfig | None = None
        self._names: dict[PublicKey, str | None] = {}

    def add(self, capacity: int) -> EventStream:
        """Another one, which is `capacity` events behind at most."""
        stream = EventStream(capacity)
        self._streams.add(stream)
        return stream

    def publish(self, event: PeerEvent | InterfaceEvent, config: InterfaceConfig) -> None:
        """Tell all of them; peers are called what `config` calls them."""
        if not self._streams:
            return
        if config is not self._named:
            self._named = config
            self._names = {peer.public_key: peer.name for peer in config.peers}
        name = None if event.peer is None else self._names.get(event.peer)
        happened = Happened(event, self._unix_time(), name)
        for stream in self._streams:
            stream.publish(happened)

    def end(self) -> None:
        """No more will happen."""
        for stream in self._streams:
            stream.end()
