"""The few IPv4 packets that the demonstration sends and answers: ICMP echo (RFC 792) and UDP (RFC 768)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

from connlib._pcapng import internet_checksum

ICMP = 1
UDP = 17
IPV4_HEADER = 20
ICMP_HEADER = 8
UDP_HEADER = 8
ECHO_REPLY = 0
ECHO_REQUEST = 8


class Echo(NamedTuple):
    """An ICMP echo request or reply."""

    source: IPv4Address
    destination: IPv4Address
    kind: int
    identifier: int
    sequence: int
    payload: bytes


class Datagram(NamedTuple):
    """A UDP datagram."""

    source: IPv4Address
    destination: IPv4Address
    source_port: int
    destination_port: int
    payload: bytes


def build_echo(echo: Echo) -> bytes:
    head = struct.pack("!BBHHH", echo.kind, 0, 0, echo.identifier, echo.sequence)
    total = internet_checksum(head + echo.payload)
    body = struct.pack("!BBHHH", echo.kind, 0, total, echo.identifier, echo.sequence) + echo.payload
    return ipv4_header(echo.source, echo.destination, ICMP, len(body)) + body


def build_datagram(datagram: Datagram) -> bytes:
    """The packet, without a UDP checksum: the tunnel authenticates every byte."""
    length = UDP_HEADER + len(datagram.payload)
    head = struct.pack("!HHHH", datagram.source_port, datagram.destination_port, length, 0)
    return ipv4_header(datagram.source, datagram.destination, UDP, length) + head + datagram.payload


def ipv4_header(source: IPv4Address, destination: IPv4Address, protocol: int, body: int) -> bytes:
    """A header of 20 bytes (RFC 791) for a body of `body` bytes, which is not to be fragmented."""
    fields = (0x45, 0, IPV4_HEADER + body, 0, 0x4000, 64, protocol)
    head = struct.pack("!BBHHHBBH4s4s", *fields, 0, source.packed, destination.packed)
    return struct.pack("!BBHHHBBH4s4s", *fields, internet_checksum(head), source.packed, destination.packed)


def parse(packet: bytes) -> Echo | Datagram | None:
    """What a packet is; None if it is neither an echo nor UDP, or its lengths do not agree."""
    if len(packet) < IPV4_HEADER + 8 or packet[0] != 0x45:
        return None
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    body = packet[IPV4_HEADER : int.from_bytes(packet[2:4], "big")]
    if len(body) < 8:
        return None
    if packet[9] == ICMP and body[0] in (ECHO_REQUEST, ECHO_REPLY) and internet_checksum(body) == 0:
        identifier, sequence = struct.unpack("!HH", body[4:8])
        return Echo(source, destination, body[0], identifier, sequence, body[ICMP_HEADER:])
    if packet[9] == UDP:
        source_port, destination_port, length = struct.unpack("!HHH", body[:6])
        return Datagram(source, destination, source_port, destination_port, body[UDP_HEADER:length])
    return None
