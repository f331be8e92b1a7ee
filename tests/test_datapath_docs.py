"""docs/datapath.md names what there is: every offload, every counter, and the bounds of rust/net."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

import sections
from connlib import _pump, _turns
from connlib._native import TunIo, UdpIo
from connlib.config import OFFLOADS
from connlib.links import packets_at_once

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "datapath.md").read_text()


def named() -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", TEXT))


def test_every_offload_is_named() -> None:
    assert set(OFFLOADS) <= named()


def test_every_counter_is_named() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tun_io, udp_io = TunIo(one.fileno()), UdpIo(udp.fileno(), None)
        assert {*tun_io.stats(), *udp_io.stats()} - named() == set()


@pytest.mark.parametrize("command", ["make bench-datapath", "make gigabyte"])
def test_there_is_a_place_for_what_is_measured(command: str) -> None:
    assert "\n\nhere\n\n" in sections.filled(TEXT, command, "here")


@pytest.mark.parametrize(
    ("file", "constant", "written"),
    [
        ("send/plan.rs", "MAX_SEGMENTS: usize = 64", "64 datagrams, 65,507 bytes"),
        ("send/plan.rs", "MAX_BYTES: usize = 65_507", "64 datagrams, 65,507 bytes"),
        ("send.rs", "RETRY_AFTER: u32 = 10_000", "those of this size and larger, for the next 10,000"),
        ("send.rs", "BACKLOG_DATAGRAMS: usize = 1_024", "up to 1,024 packets or 2 MiB"),
        (
            "send/linux.rs",
            "MAX_MESSAGES: usize = 32",
            "one call for many destinations | 32 messages, of 256 pieces",
        ),
        ("send/linux.rs", "MAX_PARTS: usize = 256", "32 messages, of 256 pieces"),
        ("udp.rs", "BUFFERS: usize = 8", "8 buffers of 64 KiB"),
        ("socket.rs", "RECEIVE_BUFFER: libc::c_int = 8 << 20", "8 MiB to receive"),
        ("socket.rs", "SEND_BUFFER: libc::c_int = 4 << 20", "4 MiB to send"),
        ("tun/write.rs", "BACKLOG_PACKETS: usize = 1_024", "up to 1,024 packets or 2 MiB"),
        ("tun/write.rs", "RETRY_AFTER: usize = 10_000", "for the next 10,000 packets"),
        ("tun/read.rs", "WHOLE: usize = 128", "a superpacket of up to 128 more is cut to its end"),
        ("offload/coalesce.rs", "WINDOW: usize = 512", "512 packets are looked at together, 64 flows"),
        ("offload/coalesce.rs", "SLOTS: usize = 64", "64 flows at a time"),
        ("offload/coalesce.rs", "MAX_PACKETS: usize = 64", "64 packets, 65,535 bytes"),
    ],
)
def test_the_bounds_are_those_of_the_code(file: str, constant: str, written: str) -> None:
    assert f"{constant};" in (ROOT / "rust" / "net" / "src" / file).read_text()
    assert written in " ".join(TEXT.split())


def test_the_bounds_of_rounds_and_turns_are_those_of_the_code() -> None:
    assert "const ROUND: usize = 64;" in (ROOT / "rust" / "src" / "turn.rs").read_text()
    assert (_pump._BUDGET, _turns.BUDGET, _turns._FLOOD_PAUSE) == (1024, 64, 0.002)
    assert "1,024 packets, or a round of less than 64" in TEXT


def test_the_number_of_packets_at_once_is_right() -> None:
    assert (packets_at_once(1420), packets_at_once(576)) == (45, 64)
    assert "65,507 / (MTU + 32), 64 at most: 45 with 1,420" in TEXT
