"""Floods of datagrams: `python -m reliability.generator OPTIONS`.

Options: kind, destination, port, rate (datagrams a second), public_key (of the gateway, in hexadecimal), and for some
kinds more. On its standard input, `flood` with a number of seconds; it answers how many datagrams the kernel took.

sendmmsg hands the kernel a batch of datagrams in one call, without a Python object for each.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import socket
import struct
import sys
import time
from ipaddress import IPv4Address
from typing import Any

from reliability.clients import checksum
from reliability.gateway import say

BATCH = 64
POOL = 4096
"""Different datagrams, sent in turn."""
SPOOFED = int(IPv4Address("198.18.0.0"))
"""Where the invented addresses begin: a /15 that is set aside for benchmarks (RFC 2544)."""


class Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Message(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
        ("padding", ctypes.c_uint),
    )


class Cannon:
    """Sends datagrams of a pool in turn, at a rate."""

    def __init__(self, made: socket.socket, destination: tuple[str, int], pool: list[bytes]) -> None:
        self._socket = made
        self._libc = ctypes.CDLL(None, use_errno=True)
        # A batch may begin at any datagram of the pool and never wraps around.
        pool = pool * -(-BATCH // len(pool))
        self._size = len(pool)
        self._pool = pool + pool[:BATCH]
        name = struct.pack("=H", socket.AF_INET) + struct.pack("!H", destination[1])
        self._name = ctypes.create_string_buffer(name + socket.inet_aton(destination[0]) + bytes(8), 16)
        self._bytes = [ctypes.create_string_buffer(datagram, len(datagram)) for datagram in self._pool]
        self._vectors = (Vector * len(self._pool))()
        self._messages = (Message * len(self._pool))()
        for vector, message, data in zip(self._vectors, self._messages, self._bytes, strict=True):
            vector.base, vector.length = ctypes.addressof(data), len(data)
            message.name, message.name_length = ctypes.addressof(self._name), 16
            message.vectors, message.vector_count = ctypes.pointer(vector), 1
        self._next = 0

    def flood(self, seconds: float, rate: float) -> int:
        """How many datagrams the kernel took."""
        begin = time.monotonic()
        sent = 0
        size = ctypes.sizeof(Message)
        start = ctypes.addressof(self._messages)
        while (passed := time.monotonic() - begin) < seconds:
            if sent > passed * rate:
                time.sleep(0.0005)
                continue
            taken = self._libc.sendmmsg(
                self._socket.fileno(), ctypes.c_void_p(start + self._next * size), BATCH, 0
            )
            if taken < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            sent += taken
            self._next = (self._next + taken) % self._size
        return sent


def initiation(public_key: bytes, sender: int, rng: random.Random) -> bytes:
    """An initiation of which only MAC1 is right (paper, sections 5.4.2 and 5.4.4); that takes no secret."""
    body = struct.pack("<II", 1, sender) + rng.randbytes(108)
    return body + mac1(public_key, body) + bytes(16)


def mac1(public_key: bytes, body: bytes) -> bytes:
    """Keyed with what everybody knows of the gateway."""
    mac_key = hashlib.blake2s(b"mac1----" + public_key).digest()
    return hashlib.blake2s(body, key=mac_key, digest_size=16).digest()


def spoofed(source: int, destination: tuple[str, int], payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram in it, from an address that is not ours."""
    udp = struct.pack("!HHHH", 1024 + source % 60_000, destination[1], 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBHI", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, SPOOFED + source)
    header += socket.inet_aton(destination[0])
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + udp


def garbage(rng: random.Random, number: int) -> bytes:
    """A datagram that no key made: of any length and kind, most with a header that looks like one of ours."""
    length = rng.choice((32, 64, 92, 148, 576, 1452))
    kind = (1, 2, 3, 4, 4, 4, rng.randrange(256))[number % 7]
    return struct.pack("<I", kind) + rng.randbytes(length - 4)


def main(options: dict[str, Any]) -> None:
    rng = random.Random(7)
    destination = (options["destination"], options["port"])
    public_key = bytes.fromhex(options["public_key"])
    if options["kind"] == "garbage":
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        pool = [garbage(rng, number) for number in range(POOL)]
    elif options["kind"] == "spoofed initiations":
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        messages = (initiation(public_key, number, rng) for number in range(POOL))
        pool = [spoofed(number, destination, message) for number, message in enumerate(messages)]
        # The address is in the header; a port in the name would be one too many.
        destination = (destination[0], 0)
    elif options["kind"] == "given":
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", options["source_port"]))
        pool = [bytes.fromhex(each) for each in options["datagrams"]]
    else:
        raise ValueError(options["kind"])
    with made:
        cannon = Cannon(made, destination, pool)
        say("ready")
        for line in sys.stdin:
            asked = json.loads(line)
            say(cannon.flood(asked["seconds"], options["rate"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
