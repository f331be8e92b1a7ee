"""A trace as a capture file that Wireshark reads: pcapng, with the keys inside if that is asked for."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import BinaryIO

from connlib.lab._flights import Flight, by_datagram, fate, flights
from connlib.lab._packets import internet_checksum
from connlib.lab._records import Address, Arrived, Record
from connlib.lab._time import SECOND, UNIX_ORIGIN

# Blocks and options of pcapng, as in draft-ietf-opsawg-pcapng.
_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE = 1
_PACKET = 6
_SECRETS = 10
_WIREGUARD_KEY_LOG = 0x57474B4C
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH_UNKNOWN = 2**64 - 1
_LINKTYPE_RAW = 101
_COMMENT = 1
_USER_APPLICATION = 4
_INTERFACE_NAME = 2
_TIMESTAMP_RESOLUTION = 9
_FLAGS = 2
_OUTBOUND = 2

_UDP = 17
_MAX_UDP_PAYLOAD = 65_507
"""Bytes that fit into one IPv4 packet."""

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def write_pcapng(
    file: BinaryIO,
    hosts: Sequence[str],
    records: Sequence[Record],
    *,
    keys: Sequence[str] | None = None,
    unix_origin: int = UNIX_ORIGIN,
) -> None:
    """Write the datagrams of a trace, each once, when it is sent, on an interface that has its sender's name.

    Timestamps are in nanoseconds. A comment says what was lost, dropped or copied on the way. Addresses are those
    outside of NATs; Wireshark does not follow a session whose address changes.

    keys: lines of a key log (`LabTunn.key_log`), with which Wireshark shows what is inside of the tunnels. They are
        secrets, and whoever gets the file gets them: they are in it only if they are given here.
    unix_origin: when the world begins, in seconds since 1970.
    Raises `ValueError` for a datagram of more than 65,507 bytes, which no UDP packet holds, and for a line of a key log
    that is more than one line.
    """
    file.write(_section_header())
    for host in hosts:
        file.write(_interface(host))
    if keys is not None:
        file.write(_secrets(keys))
    places = {host: place for place, host in enumerate(hosts)}
    for copies in by_datagram(flights(records)).values():
        sent = copies[0].sent
        at = unix_origin * SECOND + sent.at
        frame = udp_frame(sent.source, sent.destination, sent.data)
        comments = [comment for flight in copies if (comment := _comment(flight))]
        options = [(_COMMENT, comment.encode()) for comment in comments]
        options.append((_FLAGS, struct.pack("<I", _OUTBOUND)))
        header = struct.pack("<IIIII", places[sent.host], at >> 32, at & 0xFFFF_FFFF, len(frame), len(frame))
        file.write(_block(_PACKET, header + _padded(frame), options))


def _comment(flight: Flight) -> str:
    end = flight.end
    who = f"{end.host}: " if isinstance(end, Arrived) and end.error else ""
    told = who + fate(flight)
    return f"copy {flight.copy}: {told or 'arrived'}" if flight.copy else told


# --- Blocks -------------------------------------------------------------------------------------------------------


def _section_header() -> bytes:
    body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
    return _block(_SECTION_HEADER, body, [(_USER_APPLICATION, b"connlib.lab")])


def _interface(name: str) -> bytes:
    options = [(_INTERFACE_NAME, name.encode()), (_TIMESTAMP_RESOLUTION, bytes([9]))]
    return _block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_RAW, 0, 0), options)


def _secrets(keys: Sequence[str]) -> bytes:
    if any(len(line.splitlines()) > 1 for line in keys):
        raise ValueError("keys must be a sequence of lines")
    log = "".join(f"{line}\n" for line in keys).encode()
    return _block(_SECRETS, struct.pack("<II", _WIREGUARD_KEY_LOG, len(log)) + _padded(log), [])


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]]) -> bytes:
    tail = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    if options:
        tail += bytes(4)
    length = len(body) + len(tail) + 12
    return struct.pack("<II", kind, length) + body + tail + struct.pack("<I", length)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# --- Frames -------------------------------------------------------------------------------------------------------


def udp_frame(source: Address, destination: Address | None, payload: bytes) -> bytes:
    """An IPv4 or IPv6 packet with a UDP datagram in it, checksums included; without a destination it goes to 0.

    Raises `ValueError` if it is too long.
    """
    if len(payload) > _MAX_UDP_PAYLOAD:
        raise ValueError(f"a datagram of {len(payload):,} bytes does not fit into a UDP packet")
    from_ip = _ip(source)
    nowhere = ("::" if from_ip.version == 6 else "0.0.0.0", 0)
    to_ip, to_port = _ip(destination or nowhere), (destination or nowhere)[1]
    length = 8 + len(payload)
    header = struct.pack(">HHHH", source[1], to_port, length, 0)
    addresses = from_ip.packed + to_ip.packed
    # Zero would say that there is no checksum.
    checksum = internet_checksum(addresses + struct.pack(">II", length, _UDP) + header + payload) or 0xFFFF
    udp = header[:6] + struct.pack(">H", checksum) + payload
    if from_ip.version == 6:
        return struct.pack(">IHBB", 0x6000_0000, length, _UDP, 64) + addresses + udp
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, _UDP, 0) + addresses
    return ip[:10] + struct.pack(">H", internet_checksum(ip)) + ip[12:] + udp


def _ip(address: Address) -> _Ip:
    # A zone is for the machine that it is on.
    return ipaddress.ip_address(address[0].partition("%")[0])
