"""What the tests of the driver share: packets, a gateway and a client, and running under a simulated clock."""

from __future__ import annotations

import functools
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any, ParamSpec

import anyio
import anyio.lowlevel
import trio
from trio.testing import MockClock

from connlib import InterfaceConfig, Node, PeerConfig, PrivateKey, Role, Timeout
from connlib.driver import Clock, Interface, MemoryTun, MemoryUdp, open_interface

P = ParamSpec("P")

GATEWAY_KEY, CLIENT_KEY = PrivateKey.generate(), PrivateKey.generate()
GATEWAY, CLIENT = "10.0.0.1", "10.0.0.2"
GATEWAY_HOST, CLIENT_HOST, PORT = "192.0.2.1", "192.0.2.2", 51820


def in_virtual_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test under trio with a clock that jumps whenever everybody sleeps, so that no test waits.

    One that waits for what never comes fails, when the clock jumps to the end of the month.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            with trio.fail_after(30 * 86_400):
                await test(*args, **kwargs)

        trio.run(bounded, clock=MockClock(autojump_threshold=0))

    return run


def in_real_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test under trio; one that hangs fails."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            with trio.fail_after(60):
                await test(*args, **kwargs)

        trio.run(bounded)

    return run


def packet(source: str, destination: str, payload: bytes = b"payload") -> bytes:
    """An IPv4 or IPv6 packet of a protocol that is reserved for experiments (253)."""
    source_ip, destination_ip = ip_address(source), ip_address(destination)
    if source_ip.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(payload), 253, 64)
        return header + source_ip.packed + destination_ip.packed + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 253, 0)
    return header + source_ip.packed + destination_ip.packed + payload


def gateway_config(**changes: Any) -> InterfaceConfig:
    peer = PeerConfig(
        public_key=CLIENT_KEY.public_key(), allowed_ips=(ip_network(f"{CLIENT}/32"),), name="client"
    )
    config = InterfaceConfig(private_key=GATEWAY_KEY, listen_port=PORT, role=Role.RESPONDER, peers=(peer,))
    return replace(config, **changes)


def client_config(endpoint: tuple[str, int] | None = (GATEWAY_HOST, PORT), **changes: Any) -> InterfaceConfig:
    """`changes` are those of the client's peer, the gateway."""
    peer = PeerConfig(
        public_key=GATEWAY_KEY.public_key(),
        allowed_ips=(ip_network(f"{GATEWAY}/32"),),
        endpoint=endpoint,
        name="gateway",
    )
    return InterfaceConfig(private_key=CLIENT_KEY, role=Role.INITIATOR, peers=(replace(peer, **changes),))


@dataclass
class Pair:
    """A gateway and a client in memory."""

    network: MemoryUdp
    gateway: Interface
    client: Interface
    gateway_tun: MemoryTun
    client_tun: MemoryTun

    async def exchange(self) -> None:
        """A packet each way, which establishes a session if there is none."""
        there, back = packet(CLIENT, GATEWAY, b"there"), packet(GATEWAY, CLIENT, b"back")
        await self.client_tun.send(there)
        assert await self.gateway_tun.receive() == there
        await self.gateway_tun.send(back)
        assert await self.client_tun.receive() == back


@asynccontextmanager
async def open_pair(client: InterfaceConfig | None = None, clock: Clock | None = None) -> AsyncIterator[Pair]:
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    async with (
        open_interface(
            gateway_config(), tun=gateway_tun, udp=network.host(GATEWAY_HOST), clock=clock
        ) as gateway,
        open_interface(
            client or client_config(), tun=client_tun, udp=network.host(CLIENT_HOST), clock=clock
        ) as client_interface,
    ):
        yield Pair(network, gateway, client_interface, gateway_tun, client_tun)


class SpyNode:
    """Stands in front of a node (with ends in memory) and writes down what the driver asks it about time."""

    def __init__(self, interface: Interface) -> None:
        self._node: Node = interface._node
        self.deadline: Timeout | None = None
        self.timeouts: list[tuple[float, Timeout | None]] = []
        """The time of each `handle_timeout`, and the deadline that had been announced last."""
        self.unix_times: list[float] = []
        interface._node = self  # type: ignore[assignment]
        interface._mover._ends = interface._mover._ends._replace(node=self)  # type: ignore[arg-type]
        interface._settle()

    def next_timeout(self) -> Timeout | None:
        self.deadline = self._node.next_timeout()
        return self.deadline

    def handle_timeout(self, now: float) -> None:
        self.timeouts.append((now, self.deadline))
        self._node.handle_timeout(now)

    def set_unix_time(self, unix_time: float, now: float) -> None:
        self.unix_times.append(unix_time)
        self._node.set_unix_time(unix_time, now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


def loopback_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    return made


class Counted:
    """Stands in front of a node and counts the calls of its methods."""

    def __init__(self, interface: Interface) -> None:
        self._node: Node = interface._node
        self.calls: Counter[str] = Counter()
        interface._node = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._node, name)


class Turns:
    """How many turns another task has had."""

    count = 0


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Turns]:
    """Count those of a task that does nothing else, for as long as the block runs."""
    turns = Turns()

    async def others() -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            turns.count += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        yield turns
        tasks.cancel_scope.cancel()
