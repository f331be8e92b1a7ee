"""A tunnel's end as `connlib up` runs it, without some of what makes it fast: to see what each brings.

    python -m datapath.without FILE gso,gro trio

The offloads of the device have names in the configuration. What there is no switch for is taken away from outside.
"""

from __future__ import annotations

import dataclasses
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import anyio

from connlib import load_config, open_interface
from connlib.udp import bind_pair

UDP_GRO = 104
"""linux/udp.h."""
SO_NO_CHECK = 11
"""asm-generic/socket.h. Without checksums, which IPv4 allows, the kernel cuts no buffers: EINVAL (net/ipv4/udp.c)."""


def _no_gro(sockets: tuple[socket.socket, socket.socket]) -> None:
    for each in sockets:
        each.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 0)


def _no_gso(sockets: tuple[socket.socket, socket.socket]) -> None:
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)


OF_THE_SOCKETS: dict[str, Callable[[tuple[socket.socket, socket.socket]], None]] = {
    "gro": _no_gro,
    "gso": _no_gso,
}


async def run(path: Path, names: list[str]) -> None:
    """Bring the interface up, until a signal comes."""
    config = dataclasses.replace(load_config(path), name=path.stem)
    with ExitStack() as stack:
        sockets: tuple[socket.socket, socket.socket] | None = None
        if names:
            first, second = bind_pair(config.listen_port).values()
            sockets = stack.enter_context(first), stack.enter_context(second)
        async with open_interface(config, udp=sockets):
            for name in names:
                assert sockets is not None
                OF_THE_SOCKETS[name](sockets)
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    return


def main() -> int:
    path, names, backend = sys.argv[1:]
    anyio.run(run, Path(path), [name for name in names.split(",") if name], backend=backend)
    return 0


if __name__ == "__main__":
    sys.exit(main())
