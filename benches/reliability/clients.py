"""Peers of a gateway: each is a `Node` on a real socket. What it sends through the tunnel is ICMP echo requests, which
the gateway's kernel answers. Each has a number, so that it is known exactly which were answered."""

from __future__ import annotations

import functools
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence

from connlib import Node, PublicKey, SessionEstablished
from connlib._native import UdpIo
from reliability import parties

_BUDGET = 64


class Client:
    """One peer.

    made: a socket of the namespace that it lives in, bound or not. endpoint: where the gateway is.
    """

    def __init__(self, number: int, made: socket.socket, endpoint: tuple[str, int]) -> None:
        self.number = number
        self.socket = made
        if made.getsockname()[1] == 0:
            made.bind(("", 0))
        self.node = Node(parties.client_config(number, endpoint), now=time.monotonic(), unix_time=time.time())
        v4 = made.family == socket.AF_INET
        self._io = UdpIo(made.fileno() if v4 else None, None if v4 else made.fileno())
        self._head = _echo_head(parties.address(number), parties.address(parties.GATEWAY))
        self.sent = 0
        self.unanswered: dict[int, float] = {}
        """When each request that has no answer yet was sent."""
        self.answered_at: list[float] = []
        """When answers came, in their order; only if `keep_times`."""
        self.keep_times = False
        self.answered = 0
        self.established = 0

    def send(self, size: int = 64) -> None:
        """Send the next request, of `size` bytes as an IP packet."""
        now = time.monotonic()
        packet = _echo(self._head, self.sent, size)
        self.unanswered[self.sent] = now
        self.sent += 1
        self.node.handle_packets(packet, [len(packet)], now)
        self._io.send(self.node)

    def initiate(self) -> None:
        """Start a session."""
        self.node.initiate_handshake(GATEWAY_KEY, time.monotonic())
        self._io.send(self.node)

    def receive(self) -> None:
        """Take what has come."""
        while self._io.receive(self.node, time.monotonic(), _BUDGET) >= _BUDGET:
            pass
        self.settle()

    def settle(self) -> None:
        """Send what the node has to say, and count what it received."""
        self._io.send(self.node)
        output = self.node.drain()
        for packet in output.packets:
            # An echo reply (type 0) with the number of its request; what else may come is no answer.
            if len(packet) >= 36 and packet[9] == 1 and packet[20] == 0:
                number = int.from_bytes(packet[28:36], "big")
                if self.unanswered.pop(number, None) is not None:
                    self.answered += 1
                    if self.keep_times:
                        self.answered_at.append(time.monotonic())
        self.established += sum(isinstance(event, SessionEstablished) for _, event in output.events)

    def tick(self) -> None:
        """Do what is due."""
        timeout = self.node.next_timeout()
        now = time.monotonic()
        if timeout is not None and timeout.at <= now:
            self.node.handle_timeout(now)
            self.settle()

    @property
    def datagrams_sent(self) -> int:
        """How many the kernel took from it."""
        return self._io.stats()["sent"]

    def close(self) -> None:
        self._io.close()
        self.socket.close()


GATEWAY_KEY: PublicKey = parties.key(parties.GATEWAY).public_key()


class Crowd:
    """Clients that are served by one thread."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients = list(clients)
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Client] = {}
        self.watch()

    def watch(self) -> None:
        """Learn the sockets of the clients, which may have changed."""
        for client in self.clients:
            descriptor = client.socket.fileno()
            if self._by_descriptor.get(descriptor) is not client:
                self._by_descriptor[descriptor] = client
                self._poll.register(descriptor, select.EPOLLIN)

    def serve(self, seconds: float) -> None:
        """Receive for so long (or once, if that is nothing)."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            for descriptor, _ in self._poll.poll(min(left, 0.05)):
                self._by_descriptor[descriptor].receive()
            for client in self.clients:
                client.tick()
            if left <= 0:
                return

    def serve_until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Receive until that holds; whether it did in time."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() >= end:
                return False
            self.serve(0.002)
        return True

    def connect(self, patience: float = 60.0) -> None:
        """A session for everybody, few at a time, so that nobody is asked for a cookie."""
        for start in range(0, len(self.clients), 20):
            some = self.clients[start : start + 20]
            for client in some:
                client.initiate()
            if not self.serve_until(functools.partial(_all_connected, some), patience):
                raise RuntimeError("no session with the gateway")
            # The gateway answers so many handshakes in a second without a cookie.
            self.serve(0.25)

    def stream(self, seconds: float, rate: float, size: int = 64, *, window: int = 1 << 30) -> None:
        """Send `rate` requests a second in all, evenly, the clients in turn.

        window: how many may be unanswered at once. What a starved process has missed does not come all at once then,
        and no queue of the kernel overflows.
        """
        begin = time.monotonic()
        turn = 0
        while (passed := time.monotonic() - begin) < seconds:
            while turn < passed * rate and self.sent - self.answered < window:
                self.clients[turn % len(self.clients)].send(size)
                turn += 1
            self.serve(min(1 / rate, 0.002))

    def settle(self, patience: float = 10.0) -> None:
        """Wait for answers that are on their way."""
        self.serve_until(lambda: not any(client.unanswered for client in self.clients), patience)

    @property
    def sent(self) -> int:
        return sum(client.sent for client in self.clients)

    @property
    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    def close(self) -> None:
        self._poll.close()
        for client in self.clients:
            client.close()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _all_connected(clients: Sequence[Client]) -> bool:
    return all(client.established for client in clients)


def _echo_head(source: str, destination: str) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton(destination)


def _echo(addresses: bytes, number: int, size: int) -> bytes:
    """An echo request: the number is the first eight bytes of its payload, and zeros follow."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 1, 0) + addresses
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    icmp = struct.pack("!BBHHHQ", 8, 0, 0, 0, 0, number)
    icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
    return header + icmp + bytes(size - len(header) - len(icmp))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total) ^ 0xFFFF
