"""The clients of a listening socket.

One task hears all who have asked nothing yet, however they dawdle: such a client is a socket, what it has said so far,
and a deadline. Who has sent a whole request has a task for as long as that is answered. Those who come together are all
heard before the first of them is answered: hearing one costs a fraction of a round of the event loop then, and they
share answers (`_shared`).

What clients cost is bounded: in number, and in the time that a request and its answer may take. When there is no room,
the client that has been silent for longest makes it, and those that are told things only if there are no others. Who
has sent a whole request never does: where all wait for answers, who comes waits in the queue of the listening socket.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import select
import socket
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from ._errors import DeviceError
from ._text import bug

_READ_BYTES = 1 << 14
"""What is read of a request before others have their turn: some milliseconds of work."""
_SEND_BYTES = 1 << 16
"""What is sent before others have theirs."""
_HEARD = 16
"""Clients that are heard before others have theirs, a KiB counting as one more: about a millisecond."""
_MOST_HEARD = 256
"""How many, counted like that, before those who have asked are answered."""
_CREDENTIALS = "3i"
"""Process, user and group (struct ucred, unix(7))."""
_PAUSE = 0.1
"""Seconds to wait where no client can be accepted, for want of descriptors say."""
_HINT = "see whether the system lacks memory"
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

R = TypeVar("R")


def went_away(error: BaseException) -> bool:
    """Whether an exception says that the other end of a connection is not there any more."""
    return isinstance(error, OSError) and error.errno in _GONE


def _cost(said: int) -> int:
    """Of hearing so many bytes, in parts of a turn (`_HEARD`)."""
    return 1 + said // 1024


class Conversation(Protocol[R]):
    """What one client asks, and is answered."""

    def feed(self, data: bytes, /) -> Iterator[R]:
        """Take the next bytes (none: no more come); the requests that they complete. To be iterated to its end."""

    async def answer(self, request: R, /) -> bool:
        """Answer one; whether the client may ask more."""


class Client:
    """One connection, non-blocking."""

    __slots__ = (
        "_asks",
        "_clients",
        "_connection",
        "_conversation",
        "_deadline",
        "_is_over",
        "_requests",
        "_scope",
        "_sending",
        "_stays",
    )

    def __init__(self, clients: Clients, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._clients = clients
        self._connection = connection
        self._conversation: Conversation[Any] | None = None
        """From its first word on."""
        self._requests: Iterator[Any] = iter(())
        """What it has asked, and was not answered yet."""
        self._asks = False
        """Whether there is any of that. It does not make room then."""
        self._scope: anyio.CancelScope | None = None
        """That of its task; None while it has none."""
        self._deadline = math.inf
        """While it has no task."""
        self._is_over = False
        """Whether it was told that no more comes. Until it closes its side too, what it says is read and means
        nothing: bytes that nobody read would have the system reset the connection, and the answer be lost."""
        self._stays = False
        self._sending = False

    async def receive(self) -> bytes:
        """Some bytes, while one of its requests is being answered; none at the end."""
        while True:
            await anyio.wait_readable(self._connection)
            try:
                data = self._connection.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            self._clients._heard(self)
            return data

    async def send(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Send all of that. A piece is kept until it is sent, unless the caller keeps it: what many slow clients have
        still to take is all that there is of an answer."""
        self._sending = True
        turn, waiting = _SEND_BYTES, deque(pieces)
        del pieces
        while waiting:
            piece = waiting.popleft()
            if turn >= _SEND_BYTES:
                # Others have their turn, even where the client takes all of it at once.
                await anyio.lowlevel.checkpoint()
                turn = 0
            turn += len(piece)
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[self._connection.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._connection)
        self._sending = False

    def answered(self) -> None:
        """Another request may come, with time of its own."""
        assert self._scope is not None
        self._scope.deadline = anyio.current_time() + self._clients.patience

    def stays(self) -> None:
        """It is told things from now on, for as long as it likes. It makes room only where all do so."""
        assert self._scope is not None
        self._scope.deadline = math.inf
        self._stays = True
        self._clients._accept_if_full()

    def user(self) -> int:
        """The user at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED)."""
        size = struct.calcsize(_CREDENTIALS)
        found = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack(_CREDENTIALS, found)[1])


class Clients:
    """Those of one socket; the one that was silent for longest first.

    begin: makes the conversation of a client that has said something.

    Raises `DeviceError` where the system has no descriptor or memory left to wait for them with, as `serve` does.
    """

    def __init__(
        self,
        what: str,
        log: logging.Logger,
        begin: Callable[[Client], Conversation[Any]],
        *,
        most: int,
        patience: float,
        farewell: bytes = b"",
    ) -> None:
        self._what = what
        """Of what the clients are, for the log."""
        self._log = log
        self._begin = begin
        self._most = most
        self.patience = patience
        """Seconds from a client's coming, or its last answer, to the end of the next answer."""
        self._farewell = farewell
        """What one that makes room is told."""
        self._clients: OrderedDict[Client, None] = OrderedDict()
        self._waiting: dict[int, Client] = {}
        """Those without a task, by their descriptors."""
        self._accept_again = math.inf
        """When who comes is accepted again, after it could not be."""
        self._is_full = False
        """Whether who comes waits, because all clients wait for answers."""
        self._alarm = anyio.CancelScope()
        """Ends the wait for all of them when something is due."""
        try:
            self._poll = select.epoll()
        except OSError as error:
            raise DeviceError.from_os(f"cannot wait for clients of {what}", error, hint=_HINT) from error

    async def serve(self, listener: socket.socket) -> None:
        """Have whoever connects to a listening, non-blocking socket answered, until this is cancelled."""
        try:
            self._watch(listener)
            async with anyio.create_task_group() as tasks:
                while True:
                    with anyio.CancelScope(deadline=self._next_due()) as self._alarm:
                        await anyio.wait_readable(self._poll)
                    self._do_what_is_due()
                    for client in await self._hear():
                        tasks.start_soon(self._serve_client, client)
        finally:
            for client in list(self._clients):
                self._gone(client)
            self._poll.close()

    def _next_due(self) -> float:
        return min([self._accept_again, *(client._deadline for client in self._waiting.values())])

    def _do_what_is_due(self) -> None:
        now = anyio.current_time()
        for client in [client for client in self._waiting.values() if client._deadline <= now]:
            self._gone(client)
        if self._accept_again <= now:
            self._accept_again = math.inf
            self._accept(True)

    def _watch(self, listener: socket.socket) -> None:
        self._listener = listener
        try:
            self._poll.register(listener, select.EPOLLIN)
        except OSError as error:
            raise DeviceError.from_os(
                f"cannot wait for clients of {self._what}", error, hint=_HINT
            ) from error

    def _accept(self, accepts: bool) -> None:
        """Whether who comes is accepted. The socket keeps its place among those that are waited for, however few there
        are: another one might not be had."""
        self._poll.modify(self._listener, select.EPOLLIN if accepts else 0)

    def _accept_if_full(self) -> None:
        """Accept who comes, now that somebody is gone or could make room."""
        if self._is_full:
            self._is_full = False
            self._accept(True)

    async def _hear(self) -> list[Client]:
        """Accept who comes and read what was said, until nobody has more to say; those who have asked something."""
        asked: list[Client] = []
        heard = turn = 0
        while heard < _MOST_HEARD and (events := self._poll.poll(0, _HEARD)):
            for descriptor, _ in events:
                for cost in self._hear_from(descriptor, asked):
                    turn += cost
                    if turn >= _HEARD:
                        heard, turn = heard + turn, 0
                        await anyio.lowlevel.checkpoint()
            if len(events) == 1 and descriptor != self._listener.fileno():
                break  # somebody known, alone
            # Who comes with the others may need this turn to do so.
            heard, turn = heard + turn + 1, 0
            await anyio.lowlevel.checkpoint()
        return asked

    def _hear_from(self, descriptor: int, asked: list[Client]) -> Iterator[int]:
        """Hear the client with that descriptor, or those who come where it is that of the listening socket: what each
        has cost."""
        if descriptor == self._listener.fileno():
            yield from self._hear_who_comes(asked)
        # It may be somebody else's by now, who has not said anything.
        elif (client := self._waiting.get(descriptor)) is not None:
            yield _cost(self._read(client, asked))

    def _hear_who_comes(self, asked: list[Client]) -> Iterator[int]:
        for _ in range(_HEARD):
            if len(self._clients) >= self._most:
                if not self._comes():
                    return
                if (last := self._who_makes_room()) is None:
                    self._is_full = True
                    self._accept(False)
                    return
                yield self._make_room(last, asked)
                continue
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._log.warning("a client of %s cannot be accepted: %s", self._what, error.strerror)
                self._accept(False)
                self._accept_again = anyio.current_time() + _PAUSE
                return
            client = self._admit(connection)
            if client in self._clients:
                yield _cost(self._read(client, asked))

    def _comes(self) -> bool:
        """Whether there is somebody to accept. Nobody has to make room for somebody who is not there."""
        door = select.poll()
        door.register(self._listener, select.POLLIN)
        return bool(door.poll(0))

    def _admit(self, connection: socket.socket) -> Client:
        client = Client(self, connection)
        self._clients[client] = None
        with self._unless_lost(client):
            self._wait_for(client, anyio.current_time() + self.patience)
        return client

    def _who_makes_room(self) -> Client | None:
        """Who was silent for longest; of those that are told things only if there are no others, and none of those that
        wait for an answer."""
        for client in self._clients:
            if not client._asks:
                return client
        return next(iter(self._clients)) if all(client._stays for client in self._clients) else None

    def _make_room(self, client: Client, asked: list[Client]) -> int:
        """Send a client away, unless it has asked by now or says more than is read at once; what that has cost."""
        if client._stays:
            assert client._scope is not None
            self._say_farewell(client)
            del self._clients[client]
            client._scope.cancel()
            return 1
        said = self._read(client, asked)
        if client in self._clients and not client._asks and said < _READ_BYTES:
            self._say_farewell(client)
            self._gone(client)
        return _cost(said)

    def _say_farewell(self, client: Client) -> None:
        # What is half sent would not be understood with that in it.
        if not client._sending:
            with suppress(OSError):
                client._connection.send(self._farewell)

    def _wait_for(self, client: Client, deadline: float) -> None:
        """Wait until it says something, or that has passed."""
        self._poll.register(client._connection, select.EPOLLIN)
        self._waiting[client._connection.fileno()] = client
        client._asks = client._stays = False
        client._scope, client._deadline = None, deadline
        self._alarm.deadline = min(self._alarm.deadline, deadline)
        self._accept_if_full()

    def _wait_no_more(self, client: Client) -> None:
        if self._waiting.pop(client._connection.fileno(), None) is not None:
            self._poll.unregister(client._connection)

    def _read(self, client: Client, asked: list[Client]) -> int:
        """Read what it has said, so many bytes; those who have asked something are added to `asked`."""
        with self._unless_lost(client):
            try:
                data = client._connection.recv(_READ_BYTES)
            except BlockingIOError:
                return 0
            self._heard(client)
            if not client._is_over and (data or client._conversation is not None):
                client._conversation = client._conversation or self._begin(client)
                requests = iter(client._conversation.feed(data))
                for first in requests:
                    # The others are made one by one, when this one was answered.
                    client._requests, client._asks = itertools.chain((first,), requests), True
                    self._wait_no_more(client)
                    asked.append(client)
                    return len(data)
            if not data:
                self._gone(client)
            return len(data)
        return 0

    async def _serve_client(self, client: Client) -> None:
        """Answer what it has asked."""
        try:
            with self._unless_lost(client), anyio.CancelScope(deadline=client._deadline) as client._scope:
                await self._answer(client)
                if client in self._clients:
                    latest = anyio.current_time() + self.patience
                    self._wait_for(client, min(client._scope.deadline, latest))
        finally:
            if client._scope is not None:
                self._gone(client)

    async def _answer(self, client: Client) -> None:
        assert client._conversation is not None
        for request in client._requests:
            if not await client._conversation.answer(request):
                client._connection.shutdown(socket.SHUT_WR)
                client._is_over, client._conversation, client._requests = True, None, iter(())
                return
            client.answered()

    @contextmanager
    def _unless_lost(self, client: Client) -> Iterator[None]:
        """What goes wrong with one client ends its connection, and nothing else."""
        try:
            yield
        except OSError as error:
            # Anything else is no news either: there is nobody to tell.
            if not went_away(error):
                self._log.warning("a client of %s is lost: %s", self._what, error.strerror)
            self._gone(client)
        except Exception as error:
            # A bug, but none that the interface and the other clients have to go down with.
            self._log.error("a client of %s is lost: %s", self._what, bug(error))
            self._gone(client)

    def _heard(self, client: Client) -> None:
        if client in self._clients:
            self._clients.move_to_end(client)

    def _gone(self, client: Client) -> None:
        self._clients.pop(client, None)
        self._wait_no_more(client)
        client._connection.close()
        self._accept_if_full()
        # Each refers to the other, and neither should have to wait for the search for garbage.
        client._conversation, client._requests = None, iter(())
