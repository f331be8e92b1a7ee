"""The packets of the laboratory's applications (UDP over IPv4 with a number inside), and what a datagram shows."""

from __future__ import annotations

import struct
from functools import cache

from connlib._pcapng import internet_checksum
from connlib.lab._records import Kind

SMALLEST = 32
"""Bytes: the headers of IPv4 and UDP, and the number."""
LARGEST = 65_472
"""As `Tunn.encapsulate`."""
_PORT = 4000
_KINDS: dict[int, Kind] = {1: "I", 2: "R", 3: "C"}
_KEEPALIVE_BYTES = 32


def packet(number: int, source: str, destination: str, size: int) -> bytes:
    """A packet of `size` bytes that carries `number`."""
    return _headers(source, destination, size) + struct.pack(">I", number) + bytes(size - SMALLEST)


def number_of(data: bytes) -> int:
    """The number in such a packet."""
    number: int = struct.unpack_from(">I", data, SMALLEST - 4)[0]
    return number


@cache
def _headers(source: str, destination: str, size: int) -> bytes:
    def ipv4(checksum: int) -> bytes:
        addresses = [bytes(map(int, address.split("."))) for address in (source, destination)]
        return struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 17, checksum, *addresses)

    return ipv4(internet_checksum(ipv4(0))) + struct.pack(">HHHH", _PORT, _PORT, size - 20, 0)


def kind_of(datagram: bytes) -> Kind:
    """What a datagram of a tunnel is."""
    kind = _KINDS.get(datagram[0])
    return kind or ("K" if len(datagram) == _KEEPALIVE_BYTES else "D")


def index_of(datagram: bytes) -> int:
    """The sender index of an initiation, the receiver index of everything else."""
    offset = 8 if datagram[0] == 2 else 4
    index: int = struct.unpack_from("<I", datagram, offset)[0]
    return index


def sender_index_of(datagram: bytes) -> int:
    """The index on which the sender of an initiation or a response wants to receive."""
    index: int = struct.unpack_from("<I", datagram, 4)[0]
    return index
