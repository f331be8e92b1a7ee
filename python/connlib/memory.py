"""Ends of an interface inside the process: no root, no socket, no system call.

`MemoryTun` stands for the TUN device: the application sends and receives IP packets itself. `MemoryUdp` stands for the
network between interfaces. Both work under a simulated clock, and each can be combined with the other's real
counterpart. They are for one event loop and not safe to share between threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

from ._errors import ClosedError, DeviceError
from ._native import Node
from ._types import Transmit

T = TypeVar("T")
Address = tuple[str, int]

MAX_PACKET = 65_535
MAX_DATAGRAM = 65_507
"""Bytes that UDP over IPv4 carries."""


class Bell:
    """Wakes every task that waits for it when something may have changed."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Wake those who wait now."""
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Sleep until the next `ring()`."""
        await self._event.wait()


class _Queue(Generic[T]):
    """A bounded queue; who puts into a full one decides what that means."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self.changed = Bell()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self._capacity

    def put(self, item: T) -> None:
        self._items.append(item)
        if len(self._items) == 1:
            self.changed.ring()

    def get(self) -> T:
        was_full = self.full
        item = self._items.popleft()
        if was_full:
            self.changed.ring()
        return item

    def take(self, count: int) -> list[T]:
        """Up to `count` items."""
        return [self.get() for _ in range(min(count, len(self._items)))]

    def clear(self) -> None:
        """Forget what is in it."""
        self._items.clear()
        self.changed.ring()

    async def readable(self) -> None:
        await anyio.lowlevel.checkpoint()
        while not self._items:
            await self.changed.wait()


class MemoryTun:
    """The application's side of an interface without a device.

    capacity: how many packets wait in each direction. Towards the tunnel, `send` waits when there are as many; towards
    the application, further packets are lost, as they are when a device's queue overflows.

    What is sent before an interface is open waits for it. One interface after another may use it, which starts empty.
    """

    def __init__(self, capacity: int = 1024) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._to_tunnel: _Queue[bytes] = _Queue(capacity)
        self._to_application: _Queue[bytes] = _Queue(capacity)
        self._attached = False
        self._closed = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """How many packets the application did not receive in time."""
        return self._lost

    def send_nowait(self, packet: bytes) -> None:
        """Send an IP packet into the tunnel.

        Raises `anyio.WouldBlock` if there is no room, `ClosedError` after the interface was closed, and `ValueError`
        for an empty packet or one of more than 65,535 bytes.
        """
        if not 0 < len(packet) <= MAX_PACKET:
            raise ValueError(f"a packet of {len(packet)} bytes: it must be 1 to {MAX_PACKET}")
        self._check_open()
        if self._to_tunnel.full:
            raise anyio.WouldBlock
        self._to_tunnel.put(bytes(packet))

    async def send(self, packet: bytes) -> None:
        """Like `send_nowait`, but wait for room."""
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return self.send_nowait(packet)
            except anyio.WouldBlock:
                await self._to_tunnel.changed.wait()

    def receive_nowait(self) -> bytes:
        """The next IP packet from the tunnel.

        Raises `anyio.WouldBlock` if there is none, and `ClosedError` if there will be none any more.
        """
        if not self._to_application:
            self._check_open()
            raise anyio.WouldBlock
        return self._to_application.get()

    async def receive(self) -> bytes:
        """Like `receive_nowait`, but wait for a packet."""
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except anyio.WouldBlock:
                await self._to_application.changed.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the interface of this MemoryTun is closed")


class MemoryTunEnd:
    """The interface's side of a `MemoryTun`."""

    name = "memory"

    def __init__(self, tun: MemoryTun) -> None:
        if tun._attached:
            raise DeviceError(
                "this MemoryTun is in use by another interface", hint="make one for each interface"
            )
        if tun._closed:
            # What an earlier interface left is not this one's.
            tun._to_tunnel.clear()
            tun._to_application.clear()
        tun._attached, tun._closed = True, False
        self._tun = tun
        self._stats = {
            "packets_read": 0,
            "bytes_read": 0,
            "packets_written": 0,
            "bytes_written": 0,
            "lost": 0,
        }

    async def wait_readable(self) -> None:
        """Until the application has sent something."""
        await self._tun._to_tunnel.readable()

    def read(self, node: Node, now: float, budget: int) -> int:
        """Hand up to `budget` packets to the node; how many they were."""
        packets = self._tun._to_tunnel.take(budget)
        lengths = [len(packet) for packet in packets]
        node.handle_packets(b"".join(packets), lengths, now)
        self._stats["packets_read"] += len(packets)
        self._stats["bytes_read"] += sum(lengths)
        return len(packets)

    def write(self, node: Node) -> None:
        """Nothing: packets come as `bytes`, by `deliver`."""

    def deliver(self, packets: list[bytes]) -> None:
        """Hand packets to the application."""
        for packet in packets:
            if self._tun._to_application.full:
                self._tun._lost += 1
                self._stats["lost"] += 1
            else:
                self._tun._to_application.put(packet)
                self._stats["packets_written"] += 1
                self._stats["bytes_written"] += len(packet)

    def check(self) -> None:
        """Nothing can happen to it."""

    def blocked(self) -> tuple[int, ...]:
        """Never."""
        return ()

    def stats(self) -> dict[str, int]:
        """Packets and bytes; `lost`: those that the application did not receive in time."""
        return dict(self._stats)

    def set_offload(self, offload: bool | tuple[str, ...]) -> None:
        """Nothing: its packets are what they are."""

    def close(self) -> None:
        """The application's calls raise `ClosedError` from now on, once it has received everything."""
        self._tun._attached, self._tun._closed = False, True
        self._tun._to_tunnel.changed.ring()
        self._tun._to_application.changed.ring()


Drop = Callable[[Address, Address, bytes], bool]


class MemoryUdp:
    """A network in memory that joins interfaces: give the same object to several of them as `udp`.

    Each interface becomes a host of its own, 192.0.2.1 and so on in the order in which they open; `host()` names
    another address. Datagrams arrive at once and in order, and none is lost unless `drop` says so, the receiver is
    1,024 behind, or it has more than 65,507 bytes.

    drop: called with source, destination and datagram; True loses it. Can be replaced at any time.
    """

    def __init__(self, drop: Drop | None = None) -> None:
        self.drop = drop
        self._sockets: dict[Address, MemoryUdpEnd] = {}
        self._hosts = 0

    def host(self, address: str) -> MemoryHost:
        """The host with this literal address, to give to `open_interface` as `udp`.

        Raises `ValueError` for what is not a literal address.
        """
        return MemoryHost(self, str(ip_address(address)))

    def next_host(self) -> MemoryHost:
        """A host whose address is not in use."""
        while True:
            self._hosts += 1
            address = str(IPv4Address("192.0.2.0") + self._hosts)
            if not any(host == address for host, _ in self._sockets):
                return MemoryHost(self, address)

    def _send(self, source: Address, transmit: Transmit) -> bool:
        receiver = self._sockets.get(transmit.destination)
        if len(transmit.datagram) > MAX_DATAGRAM:
            return False
        if receiver is None or (self.drop is not None and self.drop(source, *transmit)):
            return False
        receiver.arrive(source, transmit.datagram)
        return True


class MemoryHost:
    """A host of a `MemoryUdp` network."""

    def __init__(self, network: MemoryUdp, address: str) -> None:
        self.network = network
        self.address = address
        """Its literal address."""

    def open(self, port: int) -> MemoryUdpEnd:
        """Open a port; 0 chooses one. Raises `DeviceError` if it is in use."""
        taken = self.network._sockets
        if port == 0:
            port = next(port for port in range(51_820, 65_536) if (self.address, port) not in taken)
        elif (self.address, port) in taken:
            raise DeviceError(
                f"UDP port {port} of {self.address} is in use", hint="choose another port, or 0 for any"
            )
        end = taken[self.address, port] = MemoryUdpEnd(self, port)
        return end


class MemoryUdpEnd:
    """An open port of a `MemoryHost`."""

    CAPACITY = 1024

    def __init__(self, host: MemoryHost, port: int) -> None:
        self.port = port
        self._host = host
        self._queue: _Queue[tuple[Address, bytes]] = _Queue(self.CAPACITY)
        self._stats = {
            "received": 0,
            "received_bytes": 0,
            "sent": 0,
            "sent_bytes": 0,
            "lost": 0,
            "overflow": 0,
        }

    @property
    def families(self) -> tuple[int, ...]:
        """One, whatever it is: a memory host has one address."""
        return (0,)

    def arrive(self, source: Address, datagram: bytes) -> None:
        """Take a datagram from the network."""
        if self._queue.full:
            self._stats["overflow"] += 1
        else:
            self._queue.put((source, datagram))

    async def wait_readable(self, family: int) -> None:
        """Until a datagram is there."""
        await self._queue.readable()

    def receive(self, node: Node, now: float, budget: int, family: int) -> int:
        """Hand up to `budget` datagrams to the node; how many they were."""
        batch = self._queue.take(budget)
        datagrams = [datagram for _, datagram in batch]
        lengths = [len(datagram) for datagram in datagrams]
        node.handle_datagrams(b"".join(datagrams), lengths, [source for source, _ in batch], now)
        self._stats["received"] += len(batch)
        self._stats["received_bytes"] += sum(lengths)
        return len(batch)

    def send(self, node: Node) -> None:
        """Nothing: datagrams come as `bytes`, by `deliver`."""

    def deliver(self, transmits: list[Transmit]) -> None:
        """Send datagrams into the network."""
        source = (self._host.address, self.port)
        for transmit in transmits:
            if self._host.network._send(source, transmit):
                self._stats["sent"] += 1
                self._stats["sent_bytes"] += len(transmit.datagram)
            else:
                self._stats["lost"] += 1

    def can_reach(self, address: str) -> bool:
        """Any address may belong to a host of the network."""
        return True

    def blocked(self) -> tuple[int, ...]:
        """Never."""
        return ()

    def obstacle(self, remote: Address) -> None:
        """Nothing: everybody can be reached."""

    async def follow_routes(self, node: Node) -> None:
        """Nothing: there are none here."""

    def set_mark(self, mark: int) -> None:
        """Nothing: there is no firewall here."""

    def reopened(self, port: int, mark: int) -> MemoryUdpEnd:
        """Another port of the same host; 0 chooses one. Raises `DeviceError` if it is in use."""
        return self._host.open(port)

    def take_over(self, counters: dict[str, int]) -> None:
        """Count on from what another port had counted."""
        for name, count in counters.items():
            self._stats[name] += count

    def stats(self) -> dict[str, int]:
        """Datagrams and bytes; `lost`: nobody there, or lost on purpose; `overflow`: came faster than read."""
        return dict(self._stats)

    def close(self) -> None:
        """Free the port."""
        taken, address = self._host.network._sockets, (self._host.address, self.port)
        # Closed before, the port may be another's by now.
        if taken.get(address) is self:
            del taken[address]
