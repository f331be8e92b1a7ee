"""Who of the clients of a listening socket makes room for those who come, and who never does."""

from __future__ import annotations

import functools
import socket
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from connlib._clients import Client
from test_clients import Lines, Run, heard, run, served, until

__all__ = ["run"]  # the fixture


async def answered(caller: socket.socket) -> bytes:
    """A line; whoever is silent afterwards may have to make room."""
    return (await heard(caller)).removesuffix(b"no room\n")


def test_a_hundred_who_ask_at_once_are_all_answered_where_there_is_room_for_few(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who has asked makes room: the others wait until the first were answered."""

    async def body() -> None:
        async with served(tmp_path, most=8) as server:
            await anyio.wait_all_tasks_blocked()
            with ExitStack() as stack:
                callers = [stack.enter_context(server.call(b"x\n")) for _ in range(100)]
                assert [await answered(caller) for caller in callers] == [b"X\n"] * 100

    run(body)
    assert caplog.records == []


class Held(Lines):
    """Answers when it may, but `stay` at once: who says so is told things until it says something."""

    def __init__(self, client: Client, may: anyio.Event) -> None:
        super().__init__(client)
        self.may = may

    async def answer(self, request: bytes) -> bool:
        if request == b"stay":
            self.client.stays()
            await self.client.send([b"STAYS\n"])
            await self.client.receive()
            return True
        await self.may.wait()
        return await super().answer(request)


@pytest.mark.parametrize(("first", "answer"), [(b"y\n", b"Y\n"), (b"fail\n", b"")])
def test_who_comes_waits_for_room_while_all_others_wait_for_answers(
    run: Run, tmp_path: Path, first: bytes, answer: bytes
) -> None:
    async def body() -> None:
        may = anyio.Event()
        async with served(tmp_path, functools.partial(Held, may=may), most=2) as server:
            with ExitStack() as stack:
                said = (first, first, b"x\n", b"x\n", b"x\n")
                callers = [stack.enter_context(server.call(each)) for each in said]
                await until(lambda: server.clients._is_full)
                assert len(server.clients._clients) == 2
                # Who has given up by then is in nobody's way.
                callers.pop().close()
                may.set()
                assert [await answered(caller) for caller in callers] == [answer, answer, b"X\n", b"X\n"]

    run(body)


def test_the_silent_make_room_the_oldest_first_and_nobody_who_has_asked(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        may = anyio.Event()
        async with served(tmp_path, functools.partial(Held, may=may), most=4) as server:
            with ExitStack() as stack:
                said = (b"first\n", b"", b"half", b"")
                first, second, third, fourth = [stack.enter_context(server.call(each)) for each in said]
                await until(lambda: len(server.clients._clients) == 4)
                await anyio.wait_all_tasks_blocked()
                fifth = stack.enter_context(server.call(b"fifth\n"))
                assert await heard(second, b"never") == b"no room\n"
                sixth = stack.enter_context(server.call(b"sixth\n"))
                assert await heard(third, b"never") == b"no room\n"
                may.set()
                assert [await heard(each) for each in (first, fifth, sixth)] == [
                    b"FIRST\n",
                    b"FIFTH\n",
                    b"SIXTH\n",
                ]
                fourth.sendall(b"fourth\n")
                assert await heard(fourth) == b"FOURTH\n"

    run(body)


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_request_that_nobody_has_read_yet_counts_as_asked(run: Run, tmp_path: Path, size: int) -> None:
    """It comes in the same moment as those for whom its client would have to go."""

    async def body() -> None:
        may = anyio.Event()
        async with served(tmp_path, functools.partial(Held, may=may), most=3) as server:
            with ExitStack() as stack:
                known = [stack.enter_context(server.call()) for _ in range(3)]
                await until(lambda: len(server.clients._clients) == 3)
                await anyio.wait_all_tasks_blocked()
                # Nobody else has the processor from here on.
                callers = [stack.enter_context(server.call(b"x\n")) for _ in range(5)]
                for caller in known[:2]:
                    caller.sendall(b"k" * size + b"\n")
                await anyio.wait_all_tasks_blocked()
                may.set()
                assert [await answered(caller) for caller in callers] == [b"X\n"] * 5
                assert [await answered(caller) for caller in known[:2]] == [b"K" * size + b"\n"] * 2
                assert await heard(known[2], b"never") == b"no room\n"

    run(body)


def test_nobody_makes_room_for_somebody_who_does_not_come(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path, most=4) as server:
            with ExitStack() as stack:
                callers = [stack.enter_context(server.call()) for _ in range(4)]
                await until(lambda: len(server.clients._clients) == 4)
                await anyio.wait_all_tasks_blocked()
                for caller in callers:
                    caller.sendall(b"x\n")
                assert [await heard(caller) for caller in callers] == [b"X\n"] * 4

    run(body)


def test_who_is_told_things_makes_room_only_where_all_are(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        may = anyio.Event()
        async with served(tmp_path, functools.partial(Held, may=may), most=2) as server:
            with ExitStack() as stack:
                first = stack.enter_context(server.call(b"stay\n"))
                assert await heard(first) == b"STAYS\n"
                asking = stack.enter_context(server.call(b"x\n"))
                await until(lambda: len(server.clients._clients) == 2)
                second = stack.enter_context(server.call(b"stay\n"))
                await until(lambda: server.clients._is_full)
                may.set()
                assert await heard(asking, b"never") == b"X\nno room\n"
                assert await heard(second) == b"STAYS\n"
                third = stack.enter_context(server.call(b"y\n"))
                assert await heard(third) == b"Y\n"
                assert await heard(first, b"never") == b"no room\n"
                # It is one like any other when it has heard enough.
                second.sendall(b"enough\n")
                await until(lambda: not any(client._stays for client in server.clients._clients))
                third.sendall(b"z\n")
                assert await heard(third) == b"Z\n"
                fourth = stack.enter_context(server.call(b"z\n"))
                assert await heard(fourth) == b"Z\n"
                assert await heard(second, b"never") == b"no room\n"

    run(body)
