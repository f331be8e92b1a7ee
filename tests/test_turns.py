"""Turns on a descriptor: `connlib._turns.serve`, with a descriptor that is made up and a clock that jumps."""

from __future__ import annotations

import pytest
import trio

from connlib._turns import serve
from helpers_driver import in_virtual_time


class Source:
    """Something to read that so much comes from in each millisecond, of which a share is refused."""

    def __init__(self, per_millisecond: int, refused_of_ten: int) -> None:
        self._rate, self._refused_of_ten = per_millisecond, refused_of_ten
        self._taken = 0
        self.turns: list[int] = []
        self.waits = 0

    def _waiting(self) -> int:
        return int(trio.current_time() * 1000 + 1e-6) * self._rate - self._taken

    async def wait(self) -> None:
        self.waits += 1
        while self._waiting() == 0:
            await trio.sleep(0.0001)
        await trio.lowlevel.checkpoint()

    def turn(self) -> int:
        count = min(self._waiting(), 64)
        self._taken += count
        self.turns.append(count)
        return count

    def refused(self) -> int:
        return self._taken * self._refused_of_ten // 10


async def serve_for(seconds: float, source: Source) -> None:
    with trio.move_on_after(seconds):
        await serve(source.wait, source.turn, source.refused)


@in_virtual_time
async def test_while_most_of_what_comes_is_refused_turns_are_fewer_and_larger() -> None:
    source = Source(per_millisecond=30, refused_of_ten=6)
    await serve_for(1, source)
    assert sum(source.turns) >= 29_900
    assert len(source.turns) <= 520, "after each, two milliseconds' worth is left to come together"
    assert source.waits <= 2, "and is not waited for besides"


@in_virtual_time
async def test_a_pause_that_gathers_little_is_not_made_again_for_a_while() -> None:
    source = Source(per_millisecond=10, refused_of_ten=10)
    await serve_for(1, source)
    assert sum(source.turns) >= 9_950
    paused = sum(count > 10 for count in source.turns)
    assert 8 <= paused <= 11, "once in a thousand"


@pytest.mark.parametrize("refused_of_ten", [0, 5])
@in_virtual_time
async def test_while_as_much_is_taken_as_is_refused_nothing_waits(refused_of_ten: int) -> None:
    source = Source(per_millisecond=10, refused_of_ten=refused_of_ten)
    await serve_for(1, source)
    assert len(source.turns) >= 990


@in_virtual_time
async def test_a_refused_datagram_now_and_then_delays_nothing() -> None:
    source = Source(per_millisecond=1, refused_of_ten=10)
    await serve_for(0.007, source)
    assert source.turns == [1] * 6


@in_virtual_time
async def test_a_full_turn_is_followed_by_the_next_whatever_it_brought() -> None:
    source = Source(per_millisecond=1_000, refused_of_ten=10)
    await trio.sleep(0.001)
    await serve_for(0.0005, source)
    assert source.turns == [64] * 15 + [40]


@in_virtual_time
async def test_what_says_that_it_is_ready_and_is_not_is_left_alone_for_a_while() -> None:
    turns = 0

    def turn() -> int:
        nonlocal turns
        turns += 1
        return 0

    with trio.move_on_after(1):
        await serve(trio.lowlevel.checkpoint, turn)
    assert turns <= 25
