"""The clients of a listening socket: who is heard, who has a task, and what is kept for those that dawdle."""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import os
import select
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import TaskGroup
from trio.testing import MockClock

from connlib import DeviceError
from connlib._clients import Client, Clients, Conversation
from connlib._groups import WithoutGroup
from connlib._shared import Shared

EPOLL = select.epoll

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's body on both event loops, for a bounded time."""

    def run(body: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            with anyio.fail_after(60):
                await body()

        anyio.run(bounded, backend=request.param)

    return run


class Lines:
    """Answers each line by what it says, in capitals; `last` is the last one, `fail` and `break` go wrong."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if b"break" in lines:
            raise RuntimeError("private")
        yield from lines

    async def answer(self, request: bytes) -> bool:
        if request == b"fail":
            raise RuntimeError("private")
        await self.client.send([request.upper() + b"\n"])
        return request != b"last"


class Served:
    def __init__(self, tasks: TaskGroup, listener: socket.socket, clients: Clients) -> None:
        self.tasks = tasks
        self.listener = listener
        self.clients = clients

    def call(self, said: bytes = b"") -> socket.socket:
        """Connect, say that, and wait for nothing."""
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        caller.connect(self.listener.getsockname())
        caller.setblocking(False)
        if said:
            caller.sendall(said)
        return caller


@asynccontextmanager
async def served(
    folder: Path,
    begin: Callable[[Client], Conversation[bytes]] = Lines,
    *,
    most: int = 1000,
    patience: float = 60.0,
) -> AsyncIterator[Served]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "sock"))
        listener.listen(128)
        listener.setblocking(False)
        log = logging.getLogger("connlib.test")
        clients = Clients("a test", log, begin, most=most, patience=patience, farewell=b"no room\n")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clients.serve, listener)
            yield Served(tasks, listener, clients)
            tasks.cancel_scope.cancel()


async def heard(caller: socket.socket, ending: bytes = b"\n") -> bytes:
    """What comes until that ending, or the end."""
    said = b""
    while not said.endswith(ending):
        await anyio.wait_readable(caller)
        more = caller.recv(1 << 16)
        if not more:
            break
        said += more
    return said


async def until(holds: Callable[[], bool]) -> None:
    """Wait for that; the test's own time is the bound."""
    while not holds():
        await anyio.sleep(0.001)


def living(kept: list[weakref.ref[memoryview]]) -> int:
    gc.collect()
    return sum(each() is not None for each in kept)


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def test_a_client_that_has_not_sent_a_whole_request_has_no_task(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path) as server:
            await trio.testing.wait_all_tasks_blocked()
            before = tasks_living()
            with ExitStack() as stack:
                for number in range(100):
                    stack.enter_context(server.call((b"", b"half of a li")[number % 2]))
                other = stack.enter_context(server.call(b"hello\n"))
                assert await heard(other) == b"HELLO\n"
                await trio.testing.wait_all_tasks_blocked()
                assert len(server.clients._clients) == 101
                assert tasks_living() == before, "neither have those that were answered"

    trio.run(body)


def test_a_request_that_comes_in_pieces_is_answered_and_so_are_those_behind_it(
    run: Run, tmp_path: Path
) -> None:
    async def body() -> None:
        async with served(tmp_path) as server:
            with server.call() as caller:
                answers = (b"", b"AB\nC\n", b"D\n\n")
                for piece, answer in zip((b"a", b"b\nc\nd", b"\n\ne"), answers, strict=True):
                    caller.sendall(piece)
                    assert await heard(caller, answer) == answer
                caller.sendall(b"\nlast\nnobody hears this\n")
                assert await heard(caller, b"never") == b"E\nLAST\n"

    run(body)


def test_those_who_ask_together_are_answered_by_one_answer(run: Run, tmp_path: Path) -> None:
    """As many as come while nobody else has the processor: none of them is heard in a round of its own."""
    made = 0

    async def make() -> bytes:
        nonlocal made
        made += 1
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        return b"%d\n" % made

    shared = Shared(make)

    class Asking(Lines):
        async def answer(self, request: bytes) -> bool:
            await self.client.send([await shared.get()])
            return True

    async def body() -> None:
        async with served(tmp_path, Asking) as server:
            await anyio.wait_all_tasks_blocked()
            with ExitStack() as stack:
                callers = [stack.enter_context(server.call(b"\n")) for _ in range(100)]
                assert [await heard(caller) for caller in callers] == [b"1\n"] * 100

    run(body)


def test_others_have_their_turn_while_many_are_heard(run: Run, tmp_path: Path) -> None:
    turns: list[int] = []
    begun: list[Client] = []

    def begin(client: Client) -> Lines:
        begun.append(client)
        return Lines(client)

    async def watch() -> None:
        while True:
            turns.append(len(begun))
            await anyio.lowlevel.checkpoint()

    async def body() -> None:
        async with served(tmp_path, begin) as server:
            server.tasks.start_soon(watch)
            with ExitStack() as stack:
                callers = [stack.enter_context(server.call(b"x\n")) for _ in range(100)]
                assert [await heard(caller) for caller in callers] == [b"X\n"] * 100
        assert max(after - before for before, after in itertools.pairwise(turns)) <= 16

    run(body)


def test_who_talks_without_end_keeps_nobody_from_being_answered(run: Run, tmp_path: Path) -> None:
    async def talk(caller: socket.socket) -> None:
        while True:
            await anyio.wait_writable(caller)
            with suppress(BlockingIOError):
                caller.send(b"x" * 100_000)

    class Deaf(Lines):
        def feed(self, data: bytes) -> Iterator[bytes]:
            yield from super().feed(data)
            self.rest = b""

    async def body() -> None:
        async with served(tmp_path, Deaf) as server:
            with ExitStack() as stack:
                for _ in range(3):
                    server.tasks.start_soon(talk, stack.enter_context(server.call()))
                for _ in range(10):
                    with server.call(b"hello\n") as other:
                        assert await heard(other) == b"HELLO\n"

    run(body)


def test_a_piece_that_was_sent_is_kept_for_nobody(run: Run, tmp_path: Path) -> None:
    size, number = 1 << 16, 64
    pieces: list[memoryview] = []
    kept: list[weakref.ref[memoryview]] = []
    taken: list[Client] = []

    class Long(Lines):
        async def answer(self, request: bytes) -> bool:
            taken.append(self.client)
            if len(taken) == 2:
                # What both have still to take is all that is kept.
                mine, theirs = list(pieces), list(pieces)
                pieces.clear()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(taken[0].send, theirs)
                    tasks.start_soon(taken[1].send, mine)
                    theirs, mine = [], []
            else:
                await anyio.sleep_forever()
            return True

    async def body() -> None:
        pieces.extend(memoryview(bytes(size)) for _ in range(number))
        kept.extend(map(weakref.ref, pieces))
        async with served(tmp_path, Long) as server:
            with server.call(b"\n") as first:
                await until(lambda: len(taken) == 1)
                with server.call(b"\n") as second:
                    await until(lambda: 0 < living(kept) < number)
                    for caller in (first, second):
                        rest = size * number
                        while rest:
                            await anyio.wait_readable(caller)
                            rest -= len(caller.recv(1 << 20))
                    await until(lambda: living(kept) == 0)

    run(body)


def test_who_is_told_that_no_more_comes_and_stays_is_sent_away(tmp_path: Path) -> None:
    clock = MockClock()

    async def body() -> None:
        async with served(tmp_path, patience=60.0) as server:
            with server.call(b"last\n") as caller:
                assert await heard(caller, b"never") == b"LAST\n"
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(59)
                caller.sendall(b"more\n")
                await trio.testing.wait_all_tasks_blocked()
                assert len(server.clients._clients) == 1
                clock.jump(2)
                await trio.testing.wait_all_tasks_blocked()
                assert len(server.clients._clients) == 0
                with pytest.raises(BrokenPipeError):
                    caller.sendall(b"more\n")

    trio.run(body, clock=clock)


def test_each_has_time_of_its_own(tmp_path: Path) -> None:
    clock = MockClock()

    async def body() -> None:
        async with served(tmp_path, patience=60.0) as server:
            with server.call(b"half") as first:
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(30)
                with server.call(b"whole\n") as second:
                    assert await heard(second) == b"WHOLE\n"
                    # Half a request does not count as one.
                    first.sendall(b"half")
                    await trio.testing.wait_all_tasks_blocked()
                    clock.jump(31)
                    assert await heard(first) == b""
                    clock.jump(28)
                    await trio.testing.wait_all_tasks_blocked()
                    assert len(server.clients._clients) == 1
                    clock.jump(2)
                    assert await heard(second) == b""

    trio.run(body, clock=clock)


def test_who_was_answered_and_says_nothing_more_is_sent_away(tmp_path: Path) -> None:
    clock = MockClock()

    async def body() -> None:
        async with served(tmp_path, patience=60.0) as server:
            with server.call(b"hello\n") as caller:
                assert await heard(caller) == b"HELLO\n"
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(59)
                await trio.testing.wait_all_tasks_blocked()
                assert len(server.clients._clients) == 1
                clock.jump(2)
                await trio.testing.wait_all_tasks_blocked()
                assert len(server.clients._clients) == 0

    trio.run(body, clock=clock)


@pytest.mark.parametrize("said", [b"fail\n", b"break\n"])
def test_what_goes_wrong_with_a_client_is_logged_and_is_nobody_elses_loss(
    run: Run, tmp_path: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with served(tmp_path) as server:
            with server.call(b"hello\n") as other, server.call(said) as caller:
                assert await heard(caller) == b""
                assert await heard(other) == b"HELLO\n"
                other.sendall(b"again\n")
                assert await heard(other) == b"AGAIN\n"

    run(body)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("a client of a test is lost: internal error (RuntimeError, test_clients.py line ")


class Poll:
    """An epoll in which the first entry gets no second place."""

    def __init__(self) -> None:
        self._poll = EPOLL()
        self._first = -1
        self.fileno, self.poll, self.close = self._poll.fileno, self._poll.poll, self._poll.close
        self.modify, self.unregister = self._poll.modify, self._poll.unregister

    def register(self, entry: socket.socket, events: int) -> None:
        if self._first == entry.fileno():
            raise OSError(errno.ENOSPC, "No space left on device")
        self._poll.register(entry, events)
        if self._first < 0:
            self._first = entry.fileno()


def test_who_cannot_be_accepted_is_accepted_later_and_others_are_answered_meanwhile(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = True
    tries = 0

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal tries
            tries += 1
            if lacking and tries > 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(socket, "socket", Listener)
    caplog.set_level(logging.WARNING)

    async def body() -> None:
        nonlocal lacking
        # By now the event loop has one of its own.
        monkeypatch.setattr("connlib._clients.select.epoll", Poll)
        async with served(tmp_path) as server:
            with server.call(b"one\n") as first:
                assert await heard(first) == b"ONE\n"
                with server.call(b"two\n") as second:
                    while tries < 4:
                        first.sendall(b"more\n")
                        assert await heard(first) == b"MORE\n"
                        await anyio.sleep(0.001)
                    # There is a pause between two tries.
                    assert tries < 100
                    lacking = False
                    assert await heard(second) == b"TWO\n"

    run(body)
    assert {record.getMessage() for record in caplog.records} == {
        "a client of a test cannot be accepted: Too many open files"
    }


def test_without_a_descriptor_left_to_wait_with_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    async def body() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("connlib._clients.select.epoll", lacking)
            async with served(tmp_path):
                pass

    with pytest.raises(DeviceError) as caught:
        trio.run(body)
    assert str(caught.value) == (
        "cannot wait for clients of a test: Too many open files; raise the limit of open files: ulimit -n"
    )


def test_without_memory_left_to_wait_with_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Poll):
        def register(self, entry: socket.socket, events: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def body() -> None:
        with monkeypatch.context() as patch, WithoutGroup():
            patch.setattr("connlib._clients.select.epoll", Full)
            async with served(tmp_path):
                await anyio.sleep_forever()

    with pytest.raises(DeviceError) as caught:
        trio.run(body)
    assert str(caught.value) == (
        "cannot wait for clients of a test: No space left on device; see whether the system lacks memory"
    )


def test_at_the_end_everybody_is_sent_away_and_no_descriptor_stays(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        await anyio.lowlevel.checkpoint()
        before = len(os.listdir("/proc/self/fd"))
        with ExitStack() as stack:
            async with served(tmp_path) as server:
                callers = [
                    stack.enter_context(server.call(said)) for said in (b"", b"half", b"x\n", b"last\n")
                ]
                assert [await heard(caller) for caller in callers[2:]] == [b"X\n", b"LAST\n"]
            assert [await heard(caller, b"never") for caller in callers] == [b""] * 4
        assert len(os.listdir("/proc/self/fd")) <= before

    run(body)
