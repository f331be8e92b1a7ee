"""`connlib._pcapng`: datagrams as UDP packets, and the blocks of a capture file that no trace of the laboratory has."""

from __future__ import annotations

import struct

import pytest

from connlib._pcapng import internet_checksum, nowhere, packet, packet_options, statistics, udp_frame
from helpers_pcapng import PACKET, STATISTICS, blocks, options

V4, V6 = ("192.0.2.1", 51820), ("2001:db8::1", 51820)


def carried_around(data: bytes) -> int:
    """The sum of RFC 1071, word by word."""
    total = 0
    for n in range(0, len(data), 2):
        total += int.from_bytes(data[n : n + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize(
    "data",
    [b"", bytes(8), b"\xff\xff", b"\xff\xff\xff\xff", b"\x80\x00\x7f\xff", b"odd", bytes(range(256)) * 5],
    ids=["empty", "zeros", "ones", "twice ones", "a sum of ones", "odd", "long"],
)
def test_the_checksum_is_that_of_a_sum_with_the_carry_added(data: bytes) -> None:
    assert internet_checksum(data) == 0xFFFF - carried_around(data)


def test_the_checksum_of_the_example_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_a_frame_has_the_addresses_the_ports_and_checksums_that_add_up() -> None:
    frame = udp_frame(V4, ("192.0.2.2", 4000), b"datagram")
    assert len(frame) == 28 + 8 and frame[0] == 0x45 and frame[9] == 17
    assert struct.unpack(">H", frame[2:4]) == (36,)
    assert frame[12:20] == bytes([192, 0, 2, 1, 192, 0, 2, 2])
    assert struct.unpack(">HHH", frame[20:26]) == (51820, 4000, 16)
    assert carried_around(frame[:20]) == 0xFFFF
    assert carried_around(frame[12:20] + struct.pack(">HH", 17, 16) + frame[20:]) == 0xFFFF
    frame = udp_frame(V6, ("2001:db8::2%eth0", 4000), b"datagram")
    assert len(frame) == 48 + 8 and frame[0] == 0x60 and frame[6] == 17
    assert frame[36:40] == b"\0\0\0\2"
    assert carried_around(frame[8:40] + struct.pack(">HH", 17, 16) + frame[40:]) == 0xFFFF


def test_a_frame_with_the_beginning_of_a_datagram_tells_its_length_and_has_no_checksum() -> None:
    whole = udp_frame(V4, V4, b"datagram")
    part = udp_frame(V4, V4, b"data", 8)
    assert part[:26] == whole[:26]
    assert part[26:] == b"\0\0data"


def test_nowhere_is_the_unspecified_address_of_the_same_version() -> None:
    assert (nowhere("2001:db8::1"), nowhere("192.0.2.1")) == ("::", "0.0.0.0")
    assert udp_frame(V6, (nowhere(V6[0]), 0), b"x")[24:40] == bytes(16)
    assert udp_frame(V4, (nowhere(V4[0]), 0), b"x")[16:20] == bytes(4)


def test_a_datagram_that_no_udp_packet_holds_is_refused() -> None:
    assert len(udp_frame(V4, V4, bytes(65_507))) == 65_535
    with pytest.raises(ValueError, match="65,508 bytes"):
        udp_frame(V4, V4, bytes(65_508))
    with pytest.raises(ValueError, match="65,508 bytes"):
        udp_frame(V4, V4, b"", 65_508)


@pytest.mark.parametrize(("outbound", "flag"), [(True, 2), (False, 1)])
def test_a_packet_tells_its_time_its_direction_and_how_much_is_missing_of_it(
    outbound: bool, flag: int
) -> None:
    told = packet_options(outbound=outbound, comments=["why"])
    ((kind, body),) = blocks(packet(3, 5 << 32 | 7, b"frame", size=9, options=told))
    assert kind == PACKET
    assert struct.unpack("<5I", body[:20]) == (3, 5, 7, 5, 9)
    assert body[20:28] == b"frame\0\0\0"
    assert options(body[28:]) == {1: b"why", 2: struct.pack("<I", flag)}


def test_statistics_tell_what_came_by_and_what_is_missing() -> None:
    ((kind, body),) = blocks(statistics(1, 5 << 32 | 7, received=10, dropped=3))
    assert kind == STATISTICS
    assert struct.unpack("<3I", body[:12]) == (1, 5, 7)
    assert options(body[12:]) == {4: struct.pack("<Q", 10), 5: struct.pack("<Q", 3)}
