"""Who asks a running interface, and is answered."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
import anyio.to_thread

from connlib._clients import Client, Clients, went_away
from connlib._errors import CaptureError, ClosedError, ConfigError, ConnlibError, DeviceError
from connlib._groups import WithoutGroup
from connlib._shared import Shared
from connlib._text import bug
from connlib.capture import Capture as RunningCapture
from connlib.capture import capture_interface
from connlib.config import InterfaceConfig
from connlib.diff import Applier, Change, compute_diff, count_changes, describe_diff
from connlib.driver import Interface
from connlib.socketfile import SocketFile

from .protocol import (
    Apply,
    Capture,
    CaptureNews,
    ControlError,
    Difference,
    Events,
    Explain,
    Lines,
    Show,
    dump_error,
    dump_line,
    dump_result,
    parse_request,
)
from .status import installed_version, report_event, report_explanations, report_loss, report_status

_log = logging.getLogger("connlib.control")

DIRECTORY = "/run/connlib"
MOST_CLIENTS = 64
PATIENCE = 60.0
"""Seconds for a request and its answer, other than a stream."""
_CAPTURE_PAUSE = 0.1
"""Seconds between two times at which a capture is sent."""


class ControlServer:
    """The server of `serve_control`."""

    def __init__(self, interface: Interface, applier: Applier, path: str) -> None:
        self._interface = interface
        self._applier = applier
        # While its files can be read: who answers may be another user by then.
        installed_version()
        # On the clock that goes on while the machine sleeps.
        self._since = interface._clock.now()
        # What takes long for many peers.
        self._statuses = Shared(self._status)
        self._explanations = Shared(self._explain_all)
        self._owner = os.geteuid()
        self.path = path
        """The socket's file."""

    def _refusal_of(self, user: int) -> ControlError | None:
        """Why a user is not answered; None if that one is."""
        if user in (0, self._owner):
            return None
        return ControlError("permission", [f"user {user} may not control {self._interface.name}"])

    async def _answer(self, client: Client, line: bytes, user: int) -> bool:
        """Answer a request; whether the client may ask more."""
        try:
            return await self._answer_line(client, line, user)
        except Exception as error:
            if went_away(error):
                raise
            # Whatever a request does, the tunnel is worth more. Its text could quote a key.
            _log.error("%s: a request has failed: %s", self._interface.name, bug(error))
            refusal = ControlError("internal", [f"{self._interface.name}: {bug(error)}"])
        await client.send([dump_error(refusal)])
        return False

    async def _answer_line(self, client: Client, line: bytes, user: int) -> bool:
        try:
            if len(line) <= _SHORT:
                request = parse_request(line)
            else:
                # A large configuration takes a while to read, and the packets of the tunnel do not wait.
                request = await anyio.to_thread.run_sync(parse_request, line)
            if isinstance(request, Events):
                await self._stream_events(client)
                return False
            if isinstance(request, Capture):
                await self._stream_capture(client, request, user)
                return False
            await client.send(await self._done(request, user))
        except ControlError as error:
            await client.send([dump_error(error)])
        return True

    async def _done(self, request: Show | Explain | Apply, user: int) -> list[bytes]:
        """The answer to a request that was done, in pieces."""
        match request:
            case Show():
                return await self._statuses.get()
            case Explain(peers=()):
                return await self._explanations.get()
            case Explain(peers=peers):
                return [dump_result(await report_explanations(self._interface, peers))]
            case Apply():
                changes = await self._apply(request, user)
                return [dump_result([Difference(*change) for change in changes])]

    async def _status(self) -> list[bytes]:
        interface = self._interface
        return _pieces(dump_result(await report_status(interface, interface._clock.now() - self._since)))

    async def _explain_all(self) -> list[bytes]:
        return _pieces(dump_result(await report_explanations(self._interface, ())))

    async def _apply(self, request: Apply, user: int) -> list[Change]:
        interface = self._interface
        try:
            # Neither opens a file: `parse_request` has seen to that.
            config = await anyio.to_thread.run_sync(request.gateway.to_interface_config)
            if request.dry_run:
                before = interface.config
                return await anyio.to_thread.run_sync(_difference, before, config)
            changes = await self._applier.apply(config)
        except ConnlibError as error:
            raise _refused(error) from None
        _log.info("%s: changed by user %d: %s", interface.name, user, count_changes(changes))
        for change in changes:
            _log.info("  %s", change)
        return changes

    async def _stream_events(self, client: Client) -> None:
        try:
            events = self._interface.events()
        except ClosedError as error:
            raise _refused(error) from None
        async with _streaming(client) as left:
            with WithoutGroup():
                async with anyio.create_task_group() as tasks:

                    async def leave() -> None:
                        await left.wait()
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(leave)
                    lost = 0
                    while (happened := await events._next()) is not None:
                        if events.lost > lost:
                            loss = report_loss(events.lost - lost, happened.unix_time)
                            lost = events.lost
                            await client.send([dump_line(loss)])
                        await client.send([dump_line(report_event(happened))])
                    tasks.cancel_scope.cancel()

    async def _stream_capture(self, client: Client, request: Capture, user: int) -> None:
        interface = self._interface
        if request.keys and user != 0:
            raise ControlError(
                "permission",
                [f"keys are for root: they are those of {interface.name}, its private key among them"],
            )
        file = _CaptureFile(interface)
        try:
            with (
                capture_interface(
                    interface,
                    file,
                    outer=request.outer,
                    inner=request.inner,
                    keys=request.keys,
                    snaplen=request.snaplen,
                ) as capture,
                self._told_of_capture(user, request.keys),
            ):
                async with _streaming(client) as left:
                    # Not cancelled when the client leaves: what is being sent then would lack its end.
                    while interface.is_open and not left.is_set():
                        # What is not taken by the client in time is missed, and never held here.
                        with anyio.move_on_after(_CAPTURE_PAUSE):
                            await capture.follow()
                        await client.send(file.news(capture))
                    await capture.finish()
        except (CaptureError, ClosedError) as error:
            raise _refused(error) from None
        except ValueError as error:
            raise ControlError("request", [str(error)]) from None
        # It has said that it wants no more, and may not read the rest.
        client.answered()
        await client.send(file.news(capture))

    @contextmanager
    def _told_of_capture(self, user: int, keys: bool) -> Iterator[None]:
        """Who captures, and that it is over, however it ends: of one with keys, both are to be known."""
        name = self._interface.name
        _log.info("%s: captured by user %d%s", name, user, ", with keys" if keys else "")
        try:
            yield
        finally:
            _log.info("%s: the capture has ended", name)


class _Conversation:
    """What one client asks, and is answered."""

    __slots__ = ("_client", "_lines", "_refusal", "_server", "_user")

    def __init__(self, server: ControlServer, client: Client) -> None:
        self._server = server
        self._client = client
        self._lines = Lines()
        self._user = client.user()
        self._refusal = server._refusal_of(self._user)

    def feed(self, data: bytes) -> Iterator[bytes | ControlError]:
        if self._refusal is not None:
            yield self._refusal
            return
        try:
            yield from self._lines.feed(data)
        except ControlError as error:
            yield error

    async def answer(self, request: bytes | ControlError) -> bool:
        if isinstance(request, bytes):
            return await self._server._answer(self._client, request, self._user)
        await self._client.send([dump_error(request)])
        return False


class _CaptureFile:
    """What a capture writes, until it is sent."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._pieces: list[bytes] = []
        self._told = 0

    def write(self, data: bytes) -> int:
        self._pieces.append(data)
        return len(data)

    def news(self, capture: RunningCapture) -> list[bytes]:
        """What has come since the last call; empty if there is nothing new."""
        pieces, self._pieces = self._pieces, []
        new = capture.readable[self._told :]
        self._told += len(new)
        if not pieces and not new:
            return []
        peers = self._interface.config.peers if new else ()
        names = {peer.public_key: peer.name for peer in peers}
        news = CaptureNews(
            size=sum(map(len, pieces)),
            packets=capture.packets,
            missed=capture.missed,
            readable=tuple(names.get(peer) or peer.to_base64() for peer in new),
        )
        return [dump_line(news), *pieces]


@asynccontextmanager
async def _streaming(client: Client) -> AsyncIterator[anyio.Event]:
    """A client that is told things from now on; set once it closes its side."""
    left = anyio.Event()

    async def watch() -> None:
        with suppress(OSError):
            while await client.receive():
                pass
        left.set()
        client.answered()

    client.stays()
    await client.send([dump_result(None)])
    # What goes wrong with one client is caught where its task began, by its kind.
    with WithoutGroup():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield left
            tasks.cancel_scope.cancel()


def _difference(before: InterfaceConfig, after: InterfaceConfig) -> list[Change]:
    return list(describe_diff(compute_diff(before, after), before, after))


def _refused(error: ConnlibError) -> ControlError:
    kind = {ConfigError: "config", DeviceError: "device", ClosedError: "closed", CaptureError: "capture"}
    problems = [str(problem) for problem in getattr(error, "problems", (error,))]
    return ControlError(
        next((name for each, name in kind.items() if isinstance(error, each)), "internal"), problems
    )


_PIECE = 1 << 16
_SHORT = 1 << 12
"""Bytes of a request that is read in less time than a thread takes to start."""


def _pieces(data: bytes) -> list[bytes]:
    """Parts that can be forgotten one by one."""
    return [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]


@asynccontextmanager
async def serve_control(
    interface: Interface, *, directory: str = DIRECTORY, applier: Applier | None = None
) -> AsyncIterator[ControlServer]:
    """Answer what `ControlClient` asks at `directory/NAME.sock`, for as long as the block runs.

    The file has mode 0600, and only root and the user of this process now, whomever it becomes later, are answered
    (SO_PEERCRED). Linux only.
    applier: who changes the interface, if others do so as well.

    Raises `DeviceError` if the socket cannot be had, because another process has it, say.
    """
    with SocketFile(interface.name, directory) as file:
        server = ControlServer(interface, applier or Applier(interface), file.path)
        room = f"{interface.name} has more than {MOST_CLIENTS} clients at once, and this one made room"
        farewell = dump_error(ControlError("busy", [room]))
        clients = Clients(
            "the control socket",
            _log,
            functools.partial(_Conversation, server),
            most=MOST_CLIENTS,
            patience=PATIENCE,
            farewell=farewell,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clients.serve, file.socket)
            try:
                yield server
            finally:
                tasks.cancel_scope.cancel()
