"""Subscriptions to what happens on an interface."""

from __future__ import annotations

from collections import deque

from ._types import InterfaceEvent, PeerEvent
from .memory import Bell


class EventStream:
    """One subscriber's events, from the moment of `Interface.events()` on.

    An asynchronous iterator of `PeerEvent(peer, event)` and, where `peer` is None, `InterfaceEvent(peer, event)`. It
    ends when the interface is closed. A subscriber that falls behind loses the oldest events, and `lost` counts them:
    the interface never waits for it.
    """

    def __init__(self, capacity: int) -> None:
        self._events: deque[PeerEvent | InterfaceEvent] = deque(maxlen=capacity)
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
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            await self._bell.wait()
        return self._events.popleft()

    def publish(self, event: PeerEvent | InterfaceEvent) -> None:
        """Add an event."""
        if len(self._events) == self._events.maxlen:
            self._lost += 1
        self._events.append(event)
        self._bell.ring()

    def end(self) -> None:
        """Let the iteration stop after the events that are there."""
        self._ended = True
        self._bell.ring()
