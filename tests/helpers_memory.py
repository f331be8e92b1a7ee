"""Looking into the memory of another process, and finding the keys of its sessions there."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

_TESTS = Path(__file__).resolve().parent

_QUARTERS = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
_QUARTERS += [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]


def memory_of(pid: int) -> bytes:
    """Everything that a process can write to."""
    return b"\0".join(_writable(pid))


def keys_in(memory: bytes, datagram: bytes, start: bytes) -> set[bytes]:
    """The keys in this memory under which a data message (WireGuard, section 5.4.6) holds a packet that starts so.

    Only what could be a key is tried: 32 bytes at a multiple of 8, hardly any of them equal.
    """
    size = min(len(start), 64)
    keystream = bytes(a ^ b for a, b in zip(datagram[16 : 16 + size], start, strict=False))
    counter = datagram[8:16]
    tried = set()
    for offset in range(0, len(memory) - 31, 8):
        window = memory[offset : offset + 32]
        if len(set(window)) >= 24:
            tried.add(window)
    return {key for key in tried if chacha20(key, counter)[:size] == keystream}


def require_no_key_left(script: str, starts: list[bytes], end: str) -> None:
    """Of two ends of a session in a process of their own.

    script: prints a datagram of each end, in hexadecimal; then "made", and `end` when there is to be no key left, and
    waits for a line after each.
    starts: how the packets in the datagrams begin.
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), *sys.path])},
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        datagrams = [bytes.fromhex(child.stdout.readline()) for _ in range(2)]
        memories = []
        for state in ("made\n", f"{end}\n"):
            assert child.stdout.readline() == state
            memories.append(memory_of(child.pid))
            child.stdin.write("\n")
            child.stdin.flush()
    made, ended = memories
    found = [keys_in(made, datagram, start) for datagram, start in zip(datagrams, starts, strict=True)]
    keys = [key for each in found for key in each]
    # One for each direction; each end had both.
    assert len(keys) == 2
    assert all(made.count(key) >= 2 for key in keys)
    assert [ended.count(key) for key in keys] == [0, 0]


def chacha20(key: bytes, counter: bytes) -> bytes:
    """The keystream of the second block, with which AEAD_CHACHA20_POLY1305 begins to encrypt (RFC 8439)."""
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + struct.pack("<II", 1, 0) + counter))
    words = state.copy()
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                words[x] = (words[x] + words[y]) & 0xFFFFFFFF
                mixed = words[z] ^ words[x]
                words[z] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF
    return struct.pack(
        "<16I", *((word + first) & 0xFFFFFFFF for word, first in zip(words, state, strict=True))
    )


def _writable(pid: int) -> Iterator[bytes]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match is None or "[vvar" in line:
                continue
            start, end = (int(bound, 16) for bound in match.groups())
            memory.seek(start)
            try:
                region = memory.read(end - start)
            except OSError:  # device memory
                continue
            # Pages are kept aligned, also behind the byte that joins them.
            yield region + bytes(7)
