"""Answers that are made once for many who ask."""

from __future__ import annotations

import gc
import traceback
import weakref
from pathlib import Path

import anyio
import pytest

from connlib import ControlClient, serve_metrics
from connlib._shared import Shared
from connlib.uapi.device import Device
from connlib.uapi.protocol import GetRequest
from helpers_driver import Counted, in_real_time, in_virtual_time
from test_control import served
from test_metrics import get


class Counter:
    """Makes numbers, each in a second; some fail."""

    def __init__(self, *failing: int) -> None:
        self.made = 0
        self._failing = failing

    async def __call__(self) -> int:
        self.made += 1
        number = self.made
        await anyio.sleep(1)
        if number in self._failing:
            raise RuntimeError(str(number))
        return number


async def ask(shared: Shared[int], answers: list[int | str], after: float = 0.0) -> None:
    await anyio.sleep(after)
    try:
        answers.append(await shared.get())
    except RuntimeError as error:
        answers.append(f"failed {error}")


@in_virtual_time
async def test_of_a_hundred_who_ask_while_one_is_made_all_share_the_next() -> None:
    counter, answers = Counter(), list[int | str]()
    shared = Shared(counter)
    async with anyio.create_task_group() as tasks:
        for after in (0.0, *(100 * [0.5])):
            tasks.start_soon(ask, shared, answers, after)
    assert counter.made == 2
    assert answers == [1] + 100 * [2]
    assert not shared._latest


@in_virtual_time
async def test_nobody_gets_an_answer_that_was_begun_before_the_question() -> None:
    counter, answers = Counter(), list[int | str]()
    shared = Shared(counter)
    async with anyio.create_task_group() as tasks:
        for after in (0.0, 0.5, 0.9, 1.5):
            tasks.start_soon(ask, shared, answers, after)
    # The last one came while the second was being made.
    assert answers == [1, 2, 2, 3]


@in_virtual_time
async def test_one_after_the_other_each_has_it_made() -> None:
    counter = Counter()
    shared = Shared(counter)
    assert [await shared.get(), await shared.get()] == [1, 2]


@in_virtual_time
async def test_one_that_is_cancelled_is_made_again_for_the_next() -> None:
    counter, answers = Counter(), list[int | str]()
    shared = Shared(counter)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask, shared, answers, 0.25)
        with anyio.move_on_after(0.5):
            await shared.get()
    assert counter.made == 2
    assert answers == [2, 2, 2]


@in_virtual_time
async def test_a_failure_is_shared_like_an_answer_and_the_next_to_ask_has_it_made_again() -> None:
    counter, answers = Counter(2), list[int | str]()
    shared = Shared(counter)
    async with anyio.create_task_group() as tasks:
        for after in (0.0, *(50 * [0.5]), 1.5):
            tasks.start_soon(ask, shared, answers, after)
    assert answers == [1] + 50 * ["failed 2"] + [3]
    with pytest.raises(RuntimeError, match=r"^1$"):
        await Shared(Counter(1)).get()


@in_virtual_time
async def test_a_shared_failure_says_where_it_was_made_and_nothing_of_who_else_waits() -> None:
    traces: list[list[str]] = []
    asking: list[weakref.ref[Asking]] = []
    shared = Shared(Counter(1, 2))

    class Asking:
        """What somebody who waits has at hand."""

    async def ask_and_fail() -> None:
        mine = Asking()
        asking.append(weakref.ref(mine))
        try:
            await shared.get()
        except RuntimeError as error:
            traces.append([frame.name for frame in traceback.extract_tb(error.__traceback__)])

    gc.disable()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(ask_and_fail)
    finally:
        gc.enable()
    assert traces == [["ask_and_fail", "get", "__call__"]] * 6
    assert [each() for each in asking] == [None] * 6, "not even until garbage is searched for"


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_an_answer_is_forgotten_whose_last_waiter_gives_up_as_it_is_made(backend: str) -> None:
    async def main() -> None:
        making, made = anyio.Event(), anyio.Event()

        async def make() -> int:
            making.set()
            await made.wait()
            # On asyncio, who is cancelled is told in the next turn, and waits until then.
            waiting.cancel()
            return 1

        shared = Shared(make)
        waiting = anyio.CancelScope()

        async def second() -> None:
            with waiting:
                await shared.get()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shared.get)
            await making.wait()
            tasks.start_soon(second)
            await anyio.wait_all_tasks_blocked()
            made.set()
        assert not shared._latest

    anyio.run(main, backend=backend)


def test_of_fifty_who_ask_how_an_interface_is_at_once_not_all_have_the_node_asked(tmp_path: Path) -> None:
    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (pair, client, _), serve_metrics(pair.gateway, port=0) as metrics:
            device = Device(pair.gateway)
            node = Counted(pair.gateway)
            answers = 0

            async def show(_: ControlClient) -> None:
                nonlocal answers
                assert (await client.show()).peers
                assert await client.explain()
                assert (await get(metrics.port, "/metrics"))[0] == 200
                assert b"errno=0" in b"".join(await device.answer(GetRequest()))
                answers += 1

            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(show, client)
            assert answers == 50
            # Four answers for each; how many were shared is a matter of who came when.
            assert node.calls["stats"] < 200

    run()
