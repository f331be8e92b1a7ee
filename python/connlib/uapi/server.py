"""Who asks at a control socket, and is answered."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

from connlib._clients import Client, Clients

from .device import Device
from .protocol import Refused, Request, RequestParser

_log = logging.getLogger("connlib.uapi")

MOST_CLIENTS = 256
PATIENCE = 60.0
"""Seconds for a request and its answer."""


async def serve(device: Device, listener: socket.socket) -> None:
    """Answer whoever connects to a listening, non-blocking Unix socket, until this is cancelled.

    Raises `DeviceError` where no descriptor is left to wait for them with.
    """

    def begin(client: Client) -> _Conversation:
        return _Conversation(device, client)

    await Clients("the control socket", _log, begin, most=MOST_CLIENTS, patience=PATIENCE).serve(listener)


class _Conversation:
    """What one client asks, and is answered."""

    __slots__ = ("_client", "_device", "_parser")

    def __init__(self, device: Device, client: Client) -> None:
        self._device = device
        self._client = client
        # Bounded by itself: `protocol` refuses what is too long.
        self._parser = RequestParser()

    def feed(self, data: bytes) -> Iterator[Request]:
        return self._parser.feed(data)

    async def answer(self, request: Request) -> bool:
        await self._client.send(await self._device.answer(request))
        return not (isinstance(request, Refused) and request.final)
