"""Taking turns on a descriptor: for as long as there is something, and never at the cost of all others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

BUDGET = 64
"""Packets or datagrams that one turn of a task moves before others have theirs."""

_FUTILE_WAKES = 4
_FUTILE_PAUSE = 0.05
"""A descriptor that says it is ready and is not, so many times in a row, is left alone for so many seconds: some errors
never go away, and must not cost a core."""


async def serve(wait: Callable[[], Awaitable[None]], turn: Callable[[], int]) -> None:
    """Take turns for as long as there is something: `turn` returns how much it moved, at most about `BUDGET`."""
    futile = 0
    while True:
        await wait()
        while (count := turn()) >= BUDGET:
            futile = 0
            await anyio.lowlevel.checkpoint()
        futile = 0 if count else futile + 1
        if futile >= _FUTILE_WAKES:
            await anyio.sleep(_FUTILE_PAUSE)
