"""Who asks a running interface, and is answered."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from connlib._clients import Client, Clients
from connlib._errors import ClosedError, ConfigError, ConnlibError, DeviceError
from connlib.config import InterfaceConfig
from connlib.diff import Applier, Change, compute_diff, count_changes, describe_diff
from connlib.driver import Interface
from connlib.socketfile import SocketFile

from .protocol import (
    Apply,
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
from .status import report_event, report_explanations, report_status

_log = logging.getLogger("connlib.control")

DIRECTORY = "/run/connlib"
MOST_CLIENTS = 64
PATIENCE = 60.0
"""Seconds for a request and its answer, other than a stream."""


class ControlServer:
    """The server of `serve_control`."""

    def __init__(self, interface: Interface, applier: Applier, path: str) -> None:
        self._interface = interface
        self._applier = applier
        self._since = anyio.current_time()
        self._owner = os.geteuid()
        self.path = path
        """The socket's file."""

    async def _answer(self, client: Client) -> None:
        """Answer one client, for as long as it asks."""
        user = client.user()
        lines = Lines()
        try:
            if user not in (0, self._owner):
                raise ControlError("permission", [f"user {user} may not control {self._interface.name}"])
            while data := await client.receive():
                for line in lines.feed(data):
                    if await self._answer_line(client, line, user):
                        return
                    client.answered()
        except ControlError as error:
            await client.send([dump_error(error)])
            await client.finish()

    async def _answer_line(self, client: Client, line: bytes, user: int) -> bool:
        """Answer a request; whether it was the last one."""
        try:
            # In a thread: a large configuration takes a while to read, and the packets of the tunnel do not wait.
            request = await anyio.to_thread.run_sync(parse_request, line)
            if isinstance(request, Events):
                await self._stream_events(client)
                return True
            result = await self._done(request, user)
        except ControlError as error:
            await client.send([dump_error(error)])
            return False
        await client.send(_pieces(dump_result(result)))
        return False

    async def _done(self, request: Show | Explain | Apply, user: int) -> object:
        interface = self._interface
        match request:
            case Show():
                return report_status(interface, anyio.current_time() - self._since)
            case Explain(peers=peers):
                return report_explanations(interface, peers)
            case Apply():
                return [Difference(*change) for change in await self._apply(request, user)]

    async def _apply(self, request: Apply, user: int) -> list[Change]:
        interface = self._interface
        try:
            config = request.gateway.to_interface_config()
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
        client.stays()
        await client.send([dump_result(None)])
        async with anyio.create_task_group() as tasks:

            async def until_it_leaves() -> None:
                while await client.receive():
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_it_leaves)
            async for peer, event in events:
                await client.send([dump_line(report_event(self._interface, peer, event))])
            tasks.cancel_scope.cancel()


def _difference(before: InterfaceConfig, after: InterfaceConfig) -> list[Change]:
    return list(describe_diff(compute_diff(before, after), before, after))


def _refused(error: ConnlibError) -> ControlError:
    kind = {ConfigError: "config", DeviceError: "device", ClosedError: "closed"}
    problems = [str(problem) for problem in getattr(error, "problems", (error,))]
    return ControlError(
        next((name for each, name in kind.items() if isinstance(error, each)), "internal"), problems
    )


_PIECE = 1 << 16


def _pieces(data: bytes) -> Iterator[bytes]:
    """Parts between which others have their turn."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


@asynccontextmanager
async def serve_control(
    interface: Interface, *, directory: str = DIRECTORY, applier: Applier | None = None
) -> AsyncIterator[ControlServer]:
    """Answer what `ControlClient` asks at `directory/NAME.sock`, for as long as the block runs.

    The file has mode 0600, and only root and the user of this process are answered (SO_PEERCRED). Linux only.
    applier: who changes the interface, if others do so as well.

    Raises `DeviceError` if the socket cannot be had, because another process has it, say.
    """
    with SocketFile(interface.name, directory) as file:
        server = ControlServer(interface, applier or Applier(interface), file.path)
        clients = Clients("the control socket", _log, most=MOST_CLIENTS, patience=PATIENCE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clients.serve, file.socket, server._answer)
            try:
                yield server
            finally:
                tasks.cancel_scope.cancel()
