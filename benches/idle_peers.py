"""What peers without a session cost: the resident memory of a process, before and after it makes a node with many.

Run as a program, so that nothing that ran before is in the way: prints the growth in bytes, with the configuration,
which its owner may let go of, and without it.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

from connlib import Node, NodeConfig, PeerConfig, PrivateKey

PEERS = 10_000
# What they may cost, in bytes.
GOAL = 40_000_000


def measure(peers: int = PEERS) -> tuple[int, int]:
    """Bytes that a node with so many idle peers adds to a process: with its configuration, and without."""
    done = subprocess.run(
        [sys.executable, __file__, str(peers)], capture_output=True, text=True, check=True, timeout=300
    )
    with_config, without = done.stdout.split()
    return int(with_config), int(without)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _config(peers: int) -> NodeConfig:
    """Peers with an address of each family and an endpoint."""
    return NodeConfig(
        private_key=PrivateKey.from_bytes(bytes([1] * 32)),
        peers=tuple(
            PeerConfig(
                public_key=PrivateKey.from_bytes((number << 8).to_bytes(32, "big")).public_key(),
                allowed_ips=(
                    ipaddress.IPv4Network((0x0A00_0000 | number, 32)),
                    ipaddress.IPv6Network(((0xFD << 120) | number, 128)),
                ),
                endpoint=("192.0.2.1", number),
            )
            for number in range(1, peers + 1)
        ),
    )


def _main(peers: int) -> None:
    # What the first node of a process costs in any case is none of the peers'.
    Node(_config(1), now=0.0, unix_time=1.7e9)
    before = _resident()
    config = _config(peers)
    node = Node(config, now=0.0, unix_time=1.7e9)
    with_config = _resident() - before
    del config
    gc.collect()
    without = _resident() - before
    assert len(node.stats(0.0).peers) == peers
    print(with_config, without)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
