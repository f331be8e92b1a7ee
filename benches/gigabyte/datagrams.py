"""Datagrams, each with its number, a checksum, and contents of random length; and an account of all of them."""

from __future__ import annotations

import array
import errno
import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gigabyte.progress import Progress
from gigabyte.streams import PATIENCE

_HEAD = struct.Struct("!Q8s")
"""The number, and the checksum of that and of what follows."""
_LAST = (1 << 64) - 1
"""Stands in the place of a number: there are no more."""
_UDP_SEGMENT = 103
_MAX_SEGMENTS, _MAX_BYTES = 64, 60_000
WINDOW = 200
"""Packets that are under way at most: fewer than the shortest queue on the way holds (256, of the cables), so that
nothing is lost but what the cables lose on purpose."""
_GONE = 5.0
"""Seconds after which what is under way counts as lost. Only where all of it is does anybody wait so long."""
_QUIET = 0.3
"""Seconds of silence after the last one, in which what is late or comes twice would come."""


@dataclass(frozen=True)
class Sent:
    """What left."""

    datagrams: int
    size: int
    """Bytes of them all."""
    largest: int
    ends: int
    """Datagrams that said that there are no more."""
    refused: int
    """Calls that sent several datagrams and were refused, so that these went one by one."""


@dataclass(frozen=True)
class Received:
    """What came."""

    datagrams: int
    """Different ones, unchanged."""
    size: int
    corrupted: int
    duplicated: int
    unknown: int
    """With a number that was never sent."""
    reordered: int
    """That came after a later one."""
    ends: int


class Window:
    """What is under way: it keeps the sender from getting ahead of the receiver."""

    def __init__(self, packets: int = WINDOW) -> None:
        self._packets = packets
        self._before = array.array("Q", [0])
        """How many packets there were before each number."""
        self._heard = 0
        self._room = threading.Event()
        self.last_heard = threading.Event()

    @property
    def numbers(self) -> int:
        """How many numbers were given."""
        return len(self._before) - 1

    def admit(self, sizes: Sequence[int]) -> int:
        """Wait until there is room for datagrams of these sizes; the number of the first."""
        packets = [1 + size // 1200 for size in sizes]
        while self._before[-1] - self._before[self._heard] + sum(packets) > self._packets:
            self._room.clear()
            if self._before[-1] - self._before[self._heard] + sum(packets) <= self._packets:
                break
            if not self._room.wait(_GONE):
                self._heard = self.numbers
        first = self.numbers
        for each in packets:
            self._before.append(self._before[-1] + each)
        return first

    def hear(self, number: int) -> None:
        """This one has come, and what was sent before it is not under way any more."""
        if number >= self._heard:
            self._heard = number + 1
            if not self._room.is_set():
                self._room.set()


def checksum(number: int, content: bytes | memoryview) -> bytes:
    """Of one datagram."""
    digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8)
    digest.update(content)
    return digest.digest()


def send(
    made: socket.socket,
    place: tuple[str, int],
    sizes: Sequence[int],
    size: int,
    window: Window,
    progress: Progress,
) -> Sent:
    """Send until `size` bytes have left and it is enough, some one by one, some as many of the same size in one call.

    sizes: the largest datagrams, as UDP payload; each call keeps to one of them.
    """
    numbers = random.Random(size)
    content = memoryview(numbers.randbytes(1 << 20))
    sent = largest = refused = 0
    with made:
        made.settimeout(PATIENCE)
        made.connect(place)
        while sent < size or not progress.is_enough():
            lengths = _lengths(numbers, numbers.choice(sizes))
            first = window.admit(lengths)
            datagrams = []
            for number, length in enumerate(lengths, first):
                start = numbers.randrange(len(content) - length)
                payload = content[start : start + length - _HEAD.size]
                datagrams.append(_HEAD.pack(number, checksum(number, payload)) + payload)
            if len(datagrams) == 1 or not _send_together(made, datagrams):
                refused += len(datagrams) > 1
                for datagram in datagrams:
                    _send_one(made, datagram)
            sent += sum(lengths)
            largest = max(largest, lengths[0])
        ends = 0
        end = time.monotonic() + PATIENCE
        while not window.last_heard.is_set():
            if time.monotonic() > end:
                raise TimeoutError("no end of the datagrams has arrived")
            _send_one(made, _HEAD.pack(_LAST, checksum(_LAST, b"")))
            ends += 1
            window.last_heard.wait(0.05)
    return Sent(window.numbers, sent, largest, ends, refused)


def _lengths(numbers: random.Random, most: int) -> list[int]:
    """Of the datagrams of one call: all of the same, but for the last one."""
    length = most if numbers.random() < 0.5 else numbers.randint(_HEAD.size, most)
    count = numbers.choice((1, 1, 2, 8, 45, _MAX_SEGMENTS))
    count = max(1, min(count, _MAX_BYTES // length))
    return [length] * (count - 1) + [numbers.randint(_HEAD.size, length)]


def _send_together(made: socket.socket, datagrams: Sequence[bytes]) -> bool:
    """False: the system would not cut them, because one is larger than the MTU by now."""
    segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))
    try:
        made.sendmsg(datagrams, [segment])
    except OSError as error:
        if error.errno not in (errno.EMSGSIZE, errno.EINVAL):
            raise
        return False
    return True


def _send_one(made: socket.socket, datagram: bytes) -> None:
    """Send one; where it was to be as large as the MTU, and that has just changed, once more."""
    for _ in range(10):
        try:
            made.send(datagram)
            return
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
    raise TimeoutError(f"a datagram of {len(datagram)} bytes is refused as too long")


def receive(made: socket.socket, window: Window, progress: Progress) -> Received:
    """Check what comes, until the sender says that there is no more, and it is quiet."""
    seen = bytearray()
    buffer = memoryview(bytearray(1 << 16))
    size = corrupted = duplicated = unknown = reordered = ends = 0
    newest = -1
    with made:
        made.settimeout(PATIENCE)
        while True:
            try:
                length = made.recv_into(buffer)
            except TimeoutError:
                if not ends:
                    raise
                break
            number, expected = _HEAD.unpack_from(buffer) if length >= _HEAD.size else (0, b"")
            if checksum(number, buffer[_HEAD.size : length]) != expected:
                corrupted += 1
            elif number == _LAST:
                if not ends:
                    made.settimeout(_QUIET)
                    window.last_heard.set()
                ends += 1
            elif number >= window.numbers:
                unknown += 1
            else:
                if number >= len(seen):
                    seen.extend(bytes(number + 65_536 - len(seen)))
                duplicated += seen[number]
                reordered += number < newest
                newest = max(newest, number)
                if not seen[number]:
                    seen[number] = 1
                    size += length
                    progress.arrived = size
                window.hear(number)
    return Received(sum(seen), size, corrupted, duplicated, unknown, reordered, ends)
