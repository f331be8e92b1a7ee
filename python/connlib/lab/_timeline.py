"""Virtual time, and the trace of what happens in it: what the parts of a world share."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from enum import IntEnum

from connlib.lab._errors import LabError
from connlib.lab._records import Changed
from connlib.lab._time import SECOND, nanoseconds
from connlib.lab._trace import Trace


class Rank(IntEnum):
    """The order within an instant."""

    MORNING = 0
    """Machines wake up."""
    ACTION = 1
    """What users and links do."""
    WAKE = 2
    """Deadlines."""
    POLL = 3
    """Calls beside the announced ones."""


class Timeline:
    """The clock of a world, what is to happen when, and what has happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trace = Trace()
        self.now = 0
        """Nanoseconds since the start of the world."""
        self.packets = itertools.count()
        self.datagrams = itertools.count()
        self._queue: list[tuple[int, int, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._is_running = False

    def instant(self, seconds: float, what: str) -> int:
        """An instant in nanoseconds. Raises `LabError` that names `what` for none, and for one that has passed."""
        at = nanoseconds(seconds, what)
        if at < self.now:
            raise LabError(f"it is {self.now / SECOND} s already, which is later than {seconds} s")
        return at

    def push(self, at: int, rank: Rank, action: Callable[[], object]) -> None:
        """Do something at an instant in nanoseconds."""
        heapq.heappush(self._queue, (at, rank, next(self._order), action))

    def at(self, when: float | None, action: Callable[[], object]) -> None:
        """Do something at an instant in seconds, or, for None, now."""
        if when is None:
            action()
        else:
            self.push(self.instant(when, "at"), Rank.ACTION, action)

    def run(self, until: float) -> None:
        """Let time pass up to and including an instant in seconds."""
        end = self.instant(until, "until")
        if self._is_running:
            raise LabError("the world runs already: what happens in it cannot run it")
        self._is_running = True
        queue = self._queue
        try:
            while queue and queue[0][0] <= end:
                self.now, _, _, action = heapq.heappop(queue)
                action()
        finally:
            self._is_running = False
        self.now = end

    def note(self, where: str, what: str) -> None:
        """Write a change of the world into the trace."""
        self.trace.records.append(Changed(self.now, where, what))
