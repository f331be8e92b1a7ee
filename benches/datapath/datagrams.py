"""An end of a flood of datagrams: `python -m datapath.datagrams OPTIONS`.

Options: role (send or receive), address and port of the receiver. On its standard input, `send` with a size, seconds
and a rate (None: as fast as it goes), which it answers with how many the kernel took; or `receive`, and then `stop`,
which it answers with how many came.

sendmmsg and recvmmsg carry a batch in one call, so that what is measured is the tunnel, and not these two.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import select
import socket
import sys
from typing import Any

from reliability.gateway import say
from reliability.generator import BATCH, Cannon, Message, Vector

_RECEIVE_BUFFER = 64 << 20
_SO_RCVBUFFORCE = 33


class Counter:
    """Reads datagrams, and counts them."""

    def __init__(self, made: socket.socket) -> None:
        made.setblocking(False)
        # Larger than the machine lets everybody have: none may be lost behind the tunnel.
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket = made
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._buffers = [ctypes.create_string_buffer(2048) for _ in range(BATCH)]
        self._vectors = (Vector * BATCH)()
        self._messages = (Message * BATCH)()
        for vector, message, buffer in zip(self._vectors, self._messages, self._buffers, strict=True):
            vector.base, vector.length = ctypes.addressof(buffer), len(buffer)
            message.vectors, message.vector_count = ctypes.pointer(vector), 1

    def read(self) -> int:
        """How many there were, until there are none."""
        total = 0
        while True:
            came = self._libc.recvmmsg(self._socket.fileno(), self._messages, BATCH, 0, None)
            if came < 0:
                number = ctypes.get_errno()
                if number == errno.EAGAIN:
                    return total
                raise OSError(number, os.strerror(number))
            total += came

    def count(self) -> int:
        """How many come until there is another line on standard input."""
        total = 0
        while True:
            ready, _, _ = select.select([self._socket, sys.stdin], [], [])
            total += self.read()
            if sys.stdin in ready:
                sys.stdin.readline()
                return total


def main(options: dict[str, Any]) -> None:
    place = (options["address"], options["port"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        if options["role"] == "receive":
            made.bind(place)
            counter = Counter(made)
            say("ready")
            # Not by iterating, which reads ahead of what `count` waits for.
            while sys.stdin.readline():
                say(counter.count())
        else:
            say("ready")
            while line := sys.stdin.readline():
                asked = json.loads(line)
                rate = math.inf if asked["rate"] is None else asked["rate"]
                say(Cannon(made, place, [os.urandom(asked["size"])]).flood(asked["seconds"], rate))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
