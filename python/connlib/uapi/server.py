"""Who asks at a control socket, and is answered."""

from __future__ import annotations

import logging
import socket

from connlib._clients import Client, Clients

from .device import Device
from .protocol import Refused, RequestParser

_log = logging.getLogger("connlib.uapi")

MOST_CLIENTS = 256
PATIENCE = 60.0
"""Seconds for a request and its answer."""


async def serve(device: Device, listener: socket.socket) -> None:
    """Answer whoever connects to a listening, non-blocking Unix socket, until this is cancelled."""

    async def answer(client: Client) -> None:
        # Bounded by itself: `protocol` refuses what is too long.
        parser = RequestParser()
        while data := await client.receive():
            for request in parser.feed(data):
                await client.send(await device.answer(request))
                if isinstance(request, Refused) and request.final:
                    return
                client.answered()

    clients = Clients("the control socket", _log, most=MOST_CLIENTS, patience=PATIENCE)
    await clients.serve(listener, answer)
