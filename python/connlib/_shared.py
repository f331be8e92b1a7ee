"""Answers that cost something, made once for all who ask at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception
    made: TracebackType | None
    """Its traceback, as far as it is that of the making. The rest is of one of those who asked, and refers to all that
    he had at hand."""

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        trace = error.__traceback__
        return cls(error, trace and trace.tb_next)


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
                        self._latest.append(_Failure.of(error))
                latest = self._latest[0]
        finally:
            self._asking -= 1
            if self._asking == 0:
                self._latest.clear()
        if isinstance(latest, _Failure):
            try:
                raise latest.error.with_traceback(latest.made)
            finally:
                # It refers to this frame from now on.
                del latest
        return latest
