"""Reading capture files: by hand, and by Wireshark."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

INTERFACE, STATISTICS, PACKET, SECRETS = 1, 5, 6, 10

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each block."""
    while data:
        kind, length = struct.unpack("<II", data[:8])
        assert length % 4 == 0 and struct.unpack("<I", data[length - 4 : length])[0] == length
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        code, length = struct.unpack("<HH", data[:4])
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]
    assert found.pop(0) == b""
    return found


def packets(data: bytes) -> Iterator[tuple[int, int, bytes, dict[int, bytes]]]:
    """Interface, nanoseconds since 1970, frame and options of each packet."""
    for kind, body in blocks(data):
        if kind == PACKET:
            interface, high, low, length, _ = struct.unpack("<5I", body[:20])
            end = 20 + length + -length % 4
            yield interface, high << 32 | low, body[20 : 20 + length], options(body[end:])


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """Some fields of each packet, as Wireshark sees them, with checksums checked."""
    command = ["tshark", "-r", str(path), "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    command += ["-T", "fields", "-E", "separator=/t"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split("\t") for line in done.stdout.splitlines()]
