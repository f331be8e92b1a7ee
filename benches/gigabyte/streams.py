"""A stream of TCP that is the same every time, and SHA-256 at both ends."""

from __future__ import annotations

import hashlib
import random
import socket
from dataclasses import dataclass

from gigabyte.progress import Progress

PATIENCE = 120.0
"""Seconds without any progress."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Passed:
    """What one end has seen of a stream."""

    size: int
    digest: str


def send(made: socket.socket, place: tuple[str, int], size: int, progress: Progress) -> Passed:
    """Send `size` bytes, and more until it is enough, and close."""
    digest = hashlib.sha256()
    numbers = random.Random(size)
    sent = 0
    with made:
        made.settimeout(PATIENCE)
        made.connect(place)
        while sent < size or not progress.is_enough():
            chunk = numbers.randbytes(min(_CHUNK, size - sent) if sent < size else _CHUNK)
            digest.update(chunk)
            made.sendall(chunk)
            sent += len(chunk)
        made.shutdown(socket.SHUT_WR)
        # The other end closes when it has everything.
        made.recv(1)
    return Passed(sent, digest.hexdigest())


def receive(listener: socket.socket, progress: Progress) -> Passed:
    """Take one connection to its end."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with listener:
        listener.settimeout(PATIENCE)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        while length := connection.recv_into(buffer):
            digest.update(buffer[:length])
            progress.arrived += length
    return Passed(progress.arrived, digest.hexdigest())
