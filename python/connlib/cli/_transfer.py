"""A transfer over packets that may get lost: numbered pieces one way, cumulative acknowledgements the other way.

The real thing would be TCP. The demonstration has no kernel behind its ends, so it brings the least that works:
go-back-N with a window, and a timeout after which the missing pieces are sent again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

import anyio

from ._packets import IPV4_HEADER, UDP, UDP_HEADER, Datagram, build_datagram

PORT = 5001
PIECE = 1384
"""Bytes in a packet: with the number and the headers 1416, which is within the usual MTU of a tunnel."""
_NUMBER = struct.Struct("!I")
_PAYLOAD = IPV4_HEADER + UDP_HEADER
_WINDOW = 128
"""Pieces on the way at most. More would overrun a socket's usual buffer."""
_PATIENCE = 0.2


class Receiver:
    """The end that gets the data. Call `take` with every UDP packet, and send what `acknowledgement` makes."""

    def __init__(self, source: IPv4Address, destination: IPv4Address) -> None:
        self._source = source
        self._destination = destination
        self._digest = hashlib.sha256()
        self.pieces = 0
        self.size = 0

    def take(self, packet: bytes) -> None:
        """Use the next piece; ignore any other one, which will be sent again."""
        (number,) = _NUMBER.unpack_from(packet, _PAYLOAD)
        if number == self.pieces:
            piece = packet[_PAYLOAD + _NUMBER.size :]
            self._digest.update(piece)
            self.pieces += 1
            self.size += len(piece)

    def acknowledgement(self) -> bytes:
        """A packet that says how many pieces are here."""
        payload = _NUMBER.pack(self.pieces)
        return build_datagram(Datagram(self._destination, self._source, PORT, PORT, payload))

    def digest(self) -> bytes:
        """SHA-256 of what came."""
        return self._digest.digest()


def is_piece(packet: bytes) -> bool:
    """Whether a packet is UDP with a number in it."""
    return len(packet) >= _PAYLOAD + _NUMBER.size and packet[9] == UDP


async def send(
    data: bytes,
    source: IPv4Address,
    destination: IPv4Address,
    *,
    send_nowait: Callable[[bytes], None],
    receive: Callable[[], Awaitable[list[bytes]]],
    report: Callable[[int], None],
) -> int:
    """Send `data` until all of it is acknowledged; how many pieces had to be sent again.

    send_nowait: sends a packet, or raises `anyio.WouldBlock`.
    receive: waits for packets.
    report: called with the number of bytes that have arrived.
    """
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]

    def packet(number: int) -> bytes:
        payload = _NUMBER.pack(number) + pieces[number]
        return build_datagram(Datagram(source, destination, PORT, PORT, payload))

    acknowledged, following, repeated = 0, 0, 0
    while acknowledged < len(pieces):
        try:
            while following < min(acknowledged + _WINDOW, len(pieces)):
                send_nowait(packet(following))
                following += 1
        except anyio.WouldBlock:
            pass
        with anyio.move_on_after(_PATIENCE) as patience:
            numbers = [_NUMBER.unpack_from(each, _PAYLOAD)[0] for each in await receive() if is_piece(each)]
            acknowledged = max(acknowledged, *numbers) if numbers else acknowledged
        if patience.cancelled_caught:
            repeated += following - acknowledged
            following = acknowledged
        report(min(acknowledged * PIECE, len(data)))
    return repeated
