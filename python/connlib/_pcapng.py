"""The blocks of a capture file for Wireshark (pcapng, draft-ietf-opsawg-pcapng), and datagrams as UDP packets."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE = 1
_STATISTICS = 5
_PACKET = 6
_SECRETS = 10
_WIREGUARD_KEY_LOG = 0x57474B4C
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH_UNKNOWN = 2**64 - 1
_LINKTYPE_RAW = 101
"""A packet begins with its IP header."""

_COMMENT = 1
_USER_APPLICATION = 4
_INTERFACE_NAME = 2
_TIMESTAMP_RESOLUTION = 9
_FLAGS = 2
_RECEIVED = 4
_DROPPED = 5
_INBOUND, _OUTBOUND = 1, 2

_UDP = 17
MAX_UDP_PAYLOAD = 65_507
"""Bytes that fit into one IPv4 packet."""
UDP_HEADERS = 48
"""Bytes that `udp_frame` puts before a datagram, at most."""


# --- Blocks -------------------------------------------------------------------------------------------------------


def section_header(application: str) -> bytes:
    """What a file begins with."""
    body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
    return _block(_SECTION_HEADER, body, [(_USER_APPLICATION, application.encode())])


def interface(name: str, snaplen: int = 0) -> bytes:
    """An interface for IP packets, numbered from 0 in the order in the file.

    snaplen: the most bytes that there are of a packet; 0: no limit.
    """
    options = [(_INTERFACE_NAME, name.encode()), (_TIMESTAMP_RESOLUTION, bytes([9]))]
    return _block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_RAW, 0, snaplen), options)


def packet(number: int, at: int, frame: bytes, *, size: int, options: bytes) -> bytes:
    """A packet on interface `number`, at nanoseconds since 1970: its first bytes, and how many it had.

    options: as `packet_options` makes them.
    """
    length = 32 + len(frame) + -len(frame) % 4 + len(options)
    header = (_PACKET, length, number, at >> 32, at & 0xFFFF_FFFF, len(frame), size)
    parts = (struct.pack("<7I", *header), frame, bytes(-len(frame) % 4), options, struct.pack("<I", length))
    return b"".join(parts)


def packet_options(*, outbound: bool, comments: Iterable[str] = ()) -> bytes:
    """What is said about a packet."""
    options = [(_COMMENT, comment.encode()) for comment in comments]
    options.append((_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND)))
    return _options(options)


def secrets(keys: Sequence[str]) -> bytes:
    """The lines of a key log, for the packets behind it. Raises `ValueError` for one that is more than one line."""
    if any(len(line.splitlines()) > 1 for line in keys):
        raise ValueError("keys must be a sequence of lines")
    log = "".join(f"{line}\n" for line in keys).encode()
    return _block(_SECRETS, struct.pack("<II", _WIREGUARD_KEY_LOG, len(log)) + _padded(log), [])


def statistics(number: int, at: int, *, received: int, dropped: int) -> bytes:
    """How many packets came by on interface `number`, and how many of them are not in the file."""
    options = [(_RECEIVED, struct.pack("<Q", received)), (_DROPPED, struct.pack("<Q", dropped))]
    return _block(_STATISTICS, struct.pack("<III", number, at >> 32, at & 0xFFFF_FFFF), options)


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]]) -> bytes:
    tail = _options(options)
    length = len(body) + len(tail) + 12
    return struct.pack("<II", kind, length) + body + tail + struct.pack("<I", length)


def _options(options: Sequence[tuple[int, bytes]]) -> bytes:
    packed = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(packed) + bytes(4) if packed else b""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# --- Frames -------------------------------------------------------------------------------------------------------


def udp_frame(
    source: tuple[str, int], destination: tuple[str, int], payload: bytes, size: int | None = None
) -> bytes:
    """An IPv4 or IPv6 packet with a UDP datagram in it, checksums included.

    size: how many bytes the datagram had, if `payload` is only its beginning; then it has no checksum.
    Raises `ValueError` if it is too long.
    """
    size = len(payload) if size is None else size
    if size > MAX_UDP_PAYLOAD:
        raise ValueError(f"a datagram of {size:,} bytes does not fit into a UDP packet")
    addresses, words = _between(source, destination)
    length = 8 + size
    checksum = 0
    if size == len(payload):
        # Zero would say that there is no checksum. The length is in the pseudo-header too.
        checksum = internet_checksum(payload, words + _UDP + 2 * length) or 0xFFFF
    udp = struct.pack(">HHHH", source[1], destination[1], length, checksum)
    if len(addresses) == 32:
        ip = struct.pack(">IHBB", 0x6000_0000, length, _UDP, 64)
    else:
        header = (0x4500, 20 + length, 0, 0x4000, 64 << 8 | _UDP)
        ip = struct.pack(">6H", *header, internet_checksum(addresses, sum(header)))
    return b"".join((ip, addresses, udp, payload))


def nowhere(address: str) -> str:
    """The unspecified address of the same version."""
    return "::" if ":" in address else "0.0.0.0"


def internet_checksum(data: bytes, words: int = 0) -> int:
    """As RFC 1071 has it, of the data and of words that add up to `words`."""
    # A sum with end-around carry is a remainder, for which Python has a fast way; only 0 can stand for 0xFFFF.
    total = words + int.from_bytes(data + bytes(len(data) % 2), "big")
    folded = total % 0xFFFF
    return ~(folded or (0xFFFF if total else 0)) & 0xFFFF


@lru_cache(maxsize=1024)
def _between(source: tuple[str, int], destination: tuple[str, int]) -> tuple[bytes, int]:
    """The addresses as they are in a packet, and the sum of their words and the ports."""
    # A zone is for the machine that it is on.
    ends = [ip_address(address.partition("%")[0]).packed for address, _ in (source, destination)]
    addresses = b"".join(ends)
    return addresses, int.from_bytes(addresses, "big") % 0xFFFF + source[1] + destination[1]
