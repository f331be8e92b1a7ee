"""Answers that cost something, made once for all who ask at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Shared(Generic[T]):
    """An answer of now, whoever asks how often: all who ask while one is being made get the next one, and the same.

    Nobody gets one whose making had begun before the question. What was made is forgotten once nobody waits for it.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._making = anyio.Lock()
        self._begun = 0
        """How many answers were begun so far."""
        self._latest: list[T] = []

    async def get(self) -> T:
        """The answer. Raises what making it raises."""
        asked = self._begun
        async with self._making:
            try:
                if not self._latest or self._begun == asked:
                    self._latest.clear()
                    self._begun += 1
                    self._latest.append(await self._make())
                return self._latest[0]
            finally:
                if self._making.statistics().tasks_waiting == 0:
                    self._latest.clear()
