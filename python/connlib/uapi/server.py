"""The clients of a control socket: a task for each, so that one that dawdles is in nobody's way.

What they cost is bounded: in number, in bytes of a request (`protocol`), and in the time that a request and its answer
may take. When there is no room, the client that has been silent for longest makes it.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import OrderedDict
from collections.abc import Iterable

import anyio
import anyio.lowlevel

from .device import Device
from .protocol import Refused, RequestParser

_log = logging.getLogger("connlib.uapi")

MOST_CLIENTS = 256
PATIENCE = 60.0
"""Seconds from a client's coming, or its last answer, to the end of the next answer."""

_READ_BYTES = 1 << 14
"""What is read of a request before others have their turn: some milliseconds of work."""
_PAUSE = 0.1
"""Seconds to wait where no client can be accepted, for want of descriptors say."""


async def serve(device: Device, listener: socket.socket) -> None:
    """Answer whoever connects to a listening, non-blocking Unix socket, until this is cancelled."""
    clients = _Clients()
    try:
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(listener)
                try:
                    connection, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                except OSError as error:
                    _log.warning("a client of the control socket cannot be accepted: %s", error.strerror)
                    await anyio.sleep(_PAUSE)
                    continue
                tasks.start_soon(_serve_client, device, clients.admit(connection), clients)
    finally:
        clients.close()


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.scope = anyio.CancelScope()

    async def receive(self) -> bytes:
        await anyio.wait_readable(self.connection)
        try:
            return self.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return await self.receive()

    async def send(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            # Others have their turn after each piece, even where the client takes all of them at once.
            await anyio.lowlevel.checkpoint()
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[self.connection.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.connection)


class _Clients:
    """Those that are connected; the one that was silent for longest first."""

    def __init__(self) -> None:
        self._clients: OrderedDict[_Client, None] = OrderedDict()

    def admit(self, connection: socket.socket) -> _Client:
        if len(self._clients) >= MOST_CLIENTS:
            oldest, _ = self._clients.popitem(last=False)
            oldest.scope.cancel()
        client = _Client(connection)
        self._clients[client] = None
        return client

    def heard(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.move_to_end(client)

    def gone(self, client: _Client) -> None:
        self._clients.pop(client, None)
        client.connection.close()

    def close(self) -> None:
        for client in list(self._clients):
            self.gone(client)


async def _serve_client(device: Device, client: _Client, clients: _Clients) -> None:
    try:
        with client.scope, anyio.move_on_after(PATIENCE) as limit:
            parser = RequestParser()
            while data := await client.receive():
                clients.heard(client)
                for request in parser.feed(data):
                    await client.send(await device.answer(request))
                    if isinstance(request, Refused) and request.final:
                        return
                    limit.deadline = anyio.current_time() + PATIENCE
    except OSError as error:
        # The client went away. Anything else is no news either: there is nobody to tell.
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            _log.warning("a client of the control socket is lost: %s", error.strerror)
    finally:
        clients.gone(client)
