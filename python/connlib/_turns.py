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

_WORTH_JUDGING = 8
_FLOOD_PAUSE = 0.002
"""Where more than half of so many datagrams were in vain, what comes next is left for so many seconds and then taken
together: a wake of the event loop costs more than refusing a hundred of them, and would come every few datagrams."""
_WORTH_A_PAUSE = 32
_UNTIL_THE_NEXT = 1024
"""A pause that gathers less than this costs more than it saves: waking up from a sleep takes longer than going on. The
next one is tried after so many more."""


async def serve(
    wait: Callable[[], Awaitable[None]],
    turn: Callable[[], int],
    refused: Callable[[], int] = lambda: 0,
    pause: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> None:
    """Take turns for as long as there is something.

    turn: moves something, and returns how much; less than `BUDGET`: there is no more for now.
    refused: how much was moved in vain so far. While that is most of it, turns are fewer and larger.
    pause: sleeps for so many seconds between these, or until something comes that is worth a turn.
    """
    futile = moved = in_vain = unpaused = 0
    has_paused = False
    while True:
        # After a pause there is something, or else the next turn finds out; waiting for it would cost as much again.
        if not has_paused:
            await wait()
        while True:
            before = refused()
            count = turn()
            moved += count
            in_vain += refused() - before
            if count < BUDGET:
                break
            futile = 0
            await anyio.lowlevel.checkpoint()
        futile = 0 if count else futile + 1
        if futile >= _FUTILE_WAKES:
            await anyio.sleep(_FUTILE_PAUSE)
        if has_paused and moved < _WORTH_A_PAUSE:
            unpaused = _UNTIL_THE_NEXT
        has_paused = False
        if moved >= _WORTH_JUDGING:
            if unpaused > 0:
                unpaused -= moved
            elif 2 * in_vain > moved:
                await pause(_FLOOD_PAUSE)
                has_paused = True
            moved = in_vain = 0
