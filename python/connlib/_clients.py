"""The clients of a listening socket: a task for each, so that one that dawdles is in nobody's way.

What they cost is bounded: in number, and in the time that a request and its answer may take. When there is no room, the
client that has been silent for longest makes it, and those that are told things only if there are no others.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import anyio
import anyio.lowlevel

from ._text import bug

_READ_BYTES = 1 << 14
"""What is read of a request before others have their turn: some milliseconds of work."""
_CREDENTIALS = "3i"
"""Process, user and group (struct ucred, unix(7))."""
_PAUSE = 0.1
"""Seconds to wait where no client can be accepted, for want of descriptors say."""
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


def went_away(error: BaseException) -> bool:
    """Whether an exception says that the other end of a connection is not there any more."""
    return isinstance(error, OSError) and error.errno in _GONE


class Client:
    """One connection, non-blocking."""

    def __init__(self, clients: Clients, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._clients = clients
        self._connection = connection
        self._scope = anyio.CancelScope()
        self._stays = False
        self._sending = False

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""
        while True:
            await anyio.wait_readable(self._connection)
            try:
                data = self._connection.recv(_READ_BYTES)
            except BlockingIOError:
                continue
            self._clients._heard(self)
            return data

    async def send(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Send all of that."""
        self._sending = True
        for piece in pieces:
            # Others have their turn after each piece, even where the client takes all of them at once.
            await anyio.lowlevel.checkpoint()
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[self._connection.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._connection)
        self._sending = False

    async def finish(self) -> None:
        """Say that no more comes, and wait for the other end to do so: bytes of it that nobody read would have the
        system reset the connection, and the answer be lost."""
        self._connection.shutdown(socket.SHUT_WR)
        while await self.receive():
            pass

    def answered(self) -> None:
        """Another request may come, with time of its own."""
        self._scope.deadline = anyio.current_time() + self._clients.patience

    def stays(self) -> None:
        """It is told things from now on, for as long as it likes. It makes room only where all do so."""
        self._scope.deadline = math.inf
        self._stays = True

    def _make_room(self) -> None:
        # What is half sent would not be understood with that in it.
        if not self._sending:
            with suppress(OSError):
                self._connection.send(self._clients.farewell)
        self._scope.cancel()

    def user(self) -> int:
        """The user at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED)."""
        size = struct.calcsize(_CREDENTIALS)
        found = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack(_CREDENTIALS, found)[1])


class Clients:
    """Those of one socket; the one that was silent for longest first."""

    def __init__(
        self, what: str, log: logging.Logger, *, most: int, patience: float, farewell: bytes = b""
    ) -> None:
        self._what = what
        """Of what the clients are, for the log."""
        self._log = log
        self._most = most
        self.patience = patience
        """Seconds from a client's coming, or its last answer, to the end of the next answer."""
        self.farewell = farewell
        """What one that makes room is told."""
        self._clients: OrderedDict[Client, None] = OrderedDict()

    async def serve(self, listener: socket.socket, answer: Callable[[Client], Awaitable[None]]) -> None:
        """Have whoever connects to a listening, non-blocking socket answered, until this is cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                while True:
                    await anyio.wait_readable(listener)
                    try:
                        connection, _ = listener.accept()
                    except (BlockingIOError, ConnectionAbortedError):
                        continue
                    except OSError as error:
                        self._log.warning("a client of %s cannot be accepted: %s", self._what, error.strerror)
                        await anyio.sleep(_PAUSE)
                        continue
                    tasks.start_soon(self._serve_client, self._admit(connection), answer)
        finally:
            for client in list(self._clients):
                self._gone(client)

    async def _serve_client(self, client: Client, answer: Callable[[Client], Awaitable[None]]) -> None:
        try:
            with client._scope:
                client.answered()
                await answer(client)
        except OSError as error:
            # Anything else is no news either: there is nobody to tell.
            if not went_away(error):
                self._log.warning("a client of %s is lost: %s", self._what, error.strerror)
        except Exception as error:
            # A bug, but none that the interface and the other clients have to go down with.
            self._log.error("a client of %s is lost: %s", self._what, bug(error))
        finally:
            self._gone(client)

    def _admit(self, connection: socket.socket) -> Client:
        if len(self._clients) >= self._most:
            ready = (client for client in self._clients if not client._stays)
            oldest = next(ready, next(iter(self._clients)))
            del self._clients[oldest]
            oldest._make_room()
        client = Client(self, connection)
        self._clients[client] = None
        return client

    def _heard(self, client: Client) -> None:
        if client in self._clients:
            self._clients.move_to_end(client)

    def _gone(self, client: Client) -> None:
        self._clients.pop(client, None)
        client._connection.close()
