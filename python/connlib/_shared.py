"""Answers that cost something, made once for all who ask at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


class Shared(Generic[T]):
    """An answer of now, whoever asks how often: all who ask while one is being made get the next one, and the same.

    Nobody gets one whose making had begun before the question. What was made is forgotten once nobody waits for it.
    That it failed is an answer, too: many who ask do not have it fail one after the other.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._making = anyio.Lock()
        self._begun = 0
        """How many answers were begun so far."""
        self._asking = 0
        """How many wait for one, or make it."""
        self._latest: list[T | _Failure] = []
        """One, or none, if it was cancelled or is not needed any more."""

    async def get(self) -> T:
        """The answer. Raises what making it raises."""
        asked = self._begun
        self._asking += 1
        try:
            async with self._making:
                if not self._latest or self._begun == asked:
                    self._latest.clear()
                    self._begun += 1
                    try:
                        self._latest.append(await self._make())
                    except Exception as error:
                        self._latest.append(_Failure(error))
                latest = self._latest[0]
        finally:
            self._asking -= 1
            if self._asking == 0:
                self._latest.clear()
        if isinstance(latest, _Failure):
            raise latest.error
        return latest
