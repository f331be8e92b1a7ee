"""Asks a running interface, from another program."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from connlib.config import InterfaceConfig, check_interface_name
from connlib.gateway import Gateway
from connlib.socketfile import answers

from .protocol import (
    Apply,
    Capture,
    CaptureNews,
    ControlError,
    Difference,
    Events,
    Explain,
    Request,
    Show,
    dump_request,
    parse_answer,
    parse_line,
)
from .server import DIRECTORY
from .server import PATIENCE as SERVER_PATIENCE
from .status import PeerExplanation, ReportedEvent, Status
from .wire import as_gateway

PATIENCE = 5.0


class ControlClient:
    """The interface NAME of a process on this machine, `connlib up` say, which serves `directory/NAME.sock`.

    Each call has a connection of its own, and raises `ControlError` if nobody answers there, if this user may not ask
    (root and the user that started that process may), or if the request is refused.

    patience: seconds that the interface has for an answer; a process that is stopped would never give one. Changing it
        takes longer, and has a minute at least. What comes after the answer, of events and of a capture, has no bound.

    Raises `ConfigError` for what names no interface.
    """

    def __init__(self, name: str, *, directory: str = DIRECTORY, patience: float = PATIENCE) -> None:
        self.name = check_interface_name(name)
        self._path = os.path.join(directory, f"{self.name}.sock")
        self._patience = patience

    async def show(self) -> Status:
        """How the interface and its peers are."""
        status: Status = await self._ask(Show(), Status)
        return status

    async def explain(self, peers: Collection[str] = ()) -> list[PeerExplanation]:
        """Why peers, by name or public key, are up or down; all of them if none is given."""
        said: list[PeerExplanation] = await self._ask(Explain(peers=tuple(peers)), list[PeerExplanation])
        return said

    async def apply(self, config: Gateway | InterfaceConfig, *, dry_run: bool = False) -> list[Difference]:
        """Have it change to another configuration, all of it or nothing; what has changed, or would change.

        Where no answer comes in time, it may still change once its process goes on.

        Key files that a `Gateway` names are read here. Also raises `ConfigError` for those, and for what a gateway's
        file has no words for.
        """
        if isinstance(config, Gateway):
            config = config.to_interface_config()
        request = Apply(gateway=as_gateway(config), dry_run=dry_run)
        done: list[Difference] = await self._ask(
            request, list[Difference], max(self._patience, SERVER_PATIENCE)
        )
        return done

    @asynccontextmanager
    async def events(self) -> AsyncIterator[ReportedEvents]:
        """What happens from now on, for as long as the block runs."""
        async with self._stream(Events()) as (_, incoming):
            yield ReportedEvents(incoming)

    @asynccontextmanager
    async def capture(
        self, *, outer: bool = True, inner: bool = False, keys: bool = False, snaplen: int = 65_535
    ) -> AsyncIterator[CapturedFile]:
        """Capture its packets from now on, for as long as the block runs, as `connlib.capture_interface` does.

        keys: for root only; the file then holds the interface's private key.
        """
        request = Capture(outer=outer, inner=inner, keys=keys, snaplen=snaplen)
        async with self._stream(request) as (connection, incoming):
            yield CapturedFile(self.name, connection, incoming)

    async def _ask(self, request: Request, kind: Any, patience: float | None = None) -> Any:
        async with self._connection() as connection:
            with _patiently(self.name, patience or self._patience):
                await connection.send(dump_request(request))
                return await _Incoming(connection).answer(kind)

    @asynccontextmanager
    async def _stream(self, request: Request) -> AsyncIterator[tuple[SocketStream, _Incoming]]:
        async with self._connection() as connection:
            incoming = _Incoming(connection)
            with _patiently(self.name, self._patience):
                await connection.send(dump_request(request))
                await incoming.answer(None)
            yield connection, incoming

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[SocketStream]:
        try:
            connection = await anyio.connect_unix(self._path)
        except OSError as error:
            raise ControlError("connection", [self._why_not(error)]) from None
        async with connection:
            try:
                yield connection
            except anyio.BrokenResourceError:
                raise ControlError("connection", [f"{self.name} went away"]) from None

    def _why_not(self, error: OSError) -> str:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return (
                f"{self.name} is not running: nobody listens at {self._path}; `connlib show` lists what runs"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"no permission to ask {self.name}; run as root, or as the user that started it"
        return f"cannot ask {self.name} at {self._path}: {error.strerror or error}"


@contextmanager
def _patiently(name: str, seconds: float) -> Iterator[None]:
    """Raises `ControlError` if that takes longer."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        problem = (
            f"{name} does not answer: its process is stopped, or has had no time for {seconds:g} seconds"
        )
        raise ControlError("connection", [problem])


class _Incoming:
    """What comes over a connection, in lines and in counted bytes."""

    def __init__(self, connection: SocketStream) -> None:
        self._stream = BufferedByteReceiveStream(connection)

    async def line(self) -> bytes | None:
        """The next one; None at the end."""
        try:
            # Answers come from a process that may do more than this one: no bound on their length.
            return await self._stream.receive_until(b"\n", sys.maxsize)
        except anyio.IncompleteRead:
            if self._stream.buffer:
                raise ControlError(
                    "connection", ["the interface went away in the middle of a line"]
                ) from None
            return None

    async def exactly(self, size: int) -> bytes:
        """So many bytes. Raises `ControlError` at the end."""
        try:
            return await self._stream.receive_exactly(size)
        except anyio.IncompleteRead:
            raise ControlError("connection", ["the interface went away in the middle of an answer"]) from None

    async def answer(self, kind: Any) -> Any:
        """The answer to a request. Raises `ControlError`."""
        line = await self.line()
        if line is None:
            raise ControlError("connection", ["the interface went away before it had answered"])
        return parse_answer(line, kind)


class ReportedEvents:
    """What happens: an asynchronous iterator of `ReportedEvent`, which ends with the interface.

    Raises `ControlError` if it ends before, because the interface has too many other clients, say.
    """

    def __init__(self, incoming: _Incoming) -> None:
        self._incoming = incoming

    def __aiter__(self) -> ReportedEvents:
        return self

    async def __anext__(self) -> ReportedEvent:
        line = await self._incoming.line()
        if line is None:
            raise StopAsyncIteration
        event: ReportedEvent = parse_line(line, ReportedEvent)
        return event


class CapturedFile:
    """A pcapng file on its way: an asynchronous iterator of `CaptureNews` with the bytes that belong to each.

    It ends with the interface, or some time after `stop`.
    """

    def __init__(self, name: str, connection: SocketStream, incoming: _Incoming) -> None:
        self._name = name
        self._connection = connection
        self._incoming = incoming
        self._patience = math.inf

    async def stop(self) -> None:
        """End the capture. The rest of the file comes, and without it there is no end to it: whoever reads it waits for
        a minute from one piece to the next at most.
        """
        self._patience = SERVER_PATIENCE
        await self._connection.send_eof()

    def __aiter__(self) -> CapturedFile:
        return self

    async def __anext__(self) -> tuple[CaptureNews, bytes]:
        with _patiently(self._name, self._patience):
            line = await self._incoming.line()
            if line is None:
                raise StopAsyncIteration
            news: CaptureNews = parse_line(line, CaptureNews)
            return news, await self._incoming.exactly(news.size)


def running(directory: str = DIRECTORY) -> list[str]:
    """The names of the interfaces behind whose control sockets somebody listens; a process that was killed leaves its
    file. Raises `ControlError` for a directory that is closed.
    """
    try:
        sockets = [name for name in os.listdir(directory) if name.endswith(".sock")]
        found = [name for name in sockets if answers(os.path.join(directory, name))]
    except FileNotFoundError:
        return []
    except OSError as error:
        hint = "; run as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise ControlError(
            "connection", [f"cannot look into {directory}: {error.strerror or error}{hint}"]
        ) from None
    return sorted(name.removesuffix(".sock") for name in found)
