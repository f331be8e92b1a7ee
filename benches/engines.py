"""What is measured: two peers with a session between them, in batches of 64 equal packets.

Each engine here has `measure(seconds)`, which returns the nanoseconds a packet that sealing and opening took. The
engines of the Rust program are asked through a pipe, so that all engines can take turns on one core.
"""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from connlib import Node, NodeConfig, Output, PeerConfig, PrivateKey, Tunn

BATCH = 64
NOW = 1.0
UNIX_TIME = 1.7e9
INNER = ("10.0.0.1", "10.0.0.2")


class Engine(Protocol):
    """Something that seals and opens."""

    def measure(self, seconds: float) -> tuple[float, float]:
        """Nanoseconds a packet of sealing and of opening."""
        ...


class RustEngines:
    """The program of benches/rust; it ends when its standard input is closed."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name: str, size: int, seconds: float) -> tuple[float, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {size} {seconds * 1000:.0f}\n")
        self._process.stdin.flush()
        seal, open_ = self._process.stdout.readline().split()
        return float(seal), float(open_)

    def close(self) -> None:
        self._process.communicate()


class RustEngine:
    """One engine of the Rust program."""

    def __init__(self, engines: RustEngines, name: str, size: int) -> None:
        self._engines, self._name, self._size = engines, name, size

    def measure(self, seconds: float) -> tuple[float, float]:
        return self._engines.ask(self._name, self._size, seconds)


class _Timed:
    """Alternates the two phases and times each."""

    def seal(self) -> None:
        raise NotImplementedError

    def open(self) -> None:
        raise NotImplementedError

    def measure(self, seconds: float) -> tuple[float, float]:
        sealing = opening = packets = 0
        clock = time.perf_counter_ns
        end = clock() + int(seconds * 1e9)
        while True:
            start = clock()
            self.seal()
            between = clock()
            self.open()
            last = clock()
            sealing += between - start
            opening += last - between
            packets += BATCH
            if last >= end:
                return sealing / packets, opening / packets


class _Tunnels(_Timed):
    def __init__(self, size: int) -> None:
        self.size = size
        self.packet = ipv4_packet(size)
        keys = [PrivateKey.from_bytes(bytes([n] * 32)) for n in (1, 2)]
        mtu = max(size, 1420)
        self.one, self.other = (
            Tunn(own, peer.public_key(), now=NOW, unix_time=UNIX_TIME, mtu=mtu)
            for own, peer in (keys, reversed(keys))
        )
        out = self.one.initiate_handshake(NOW)
        for receiver in (self.other, self.one, self.other):
            out = _deliver(receiver, out.datagrams)


def _deliver(receiver: Tunn, datagrams: Sequence[bytes]) -> Output:
    (datagram,) = datagrams
    out = receiver.decapsulate(datagram, NOW)
    assert out.error is None, out.error
    return out


class OnePacketACall(_Tunnels):
    """`Tunn.encapsulate` and `Tunn.decapsulate`."""

    def seal(self) -> None:
        call, packet = self.one.encapsulate, self.packet
        self.sealed = [call(packet, NOW).datagrams[0] for _ in range(BATCH)]

    def open(self) -> None:
        call = self.other.decapsulate
        opened = [call(datagram, NOW).packets[0] for datagram in self.sealed]
        assert len(opened) == BATCH


class ContiguousBatches(_Tunnels):
    """`Tunn.encapsulate_batch` and `Tunn.decapsulate_batch`."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.packets = self.packet * BATCH
        self.lengths = [size] * BATCH

    def seal(self) -> None:
        self.sealed = self.one.encapsulate_batch(self.packets, self.lengths, NOW)

    def open(self) -> None:
        opened = self.other.decapsulate_batch(self.sealed.data, self.sealed.lengths, NOW)
        assert len(opened.data) == BATCH * self.size


class NodeBatches(_Timed):
    """`Node.handle_packets` or `Node.handle_datagrams`, and `Node.drain`."""

    def __init__(self, size: int) -> None:
        keys = [PrivateKey.from_bytes(bytes([n] * 32)) for n in (1, 2)]
        self.addresses = [("127.0.0.1", 1), ("127.0.0.1", 2)]
        self.nodes = [
            Node(
                NodeConfig(
                    private_key=keys[own],
                    peers=(
                        PeerConfig(
                            public_key=keys[1 - own].public_key(),
                            allowed_ips=(ipaddress.IPv4Network(INNER[1 - own]),),
                            endpoint=self.addresses[1 - own],
                        ),
                    ),
                    mtu=max(size, 1420),
                ),
                now=NOW,
                unix_time=UNIX_TIME,
            )
            for own in (0, 1)
        ]
        self.size = size
        self.packets = ipv4_packet(size) * BATCH
        self.lengths = [size] * BATCH
        self.sources = [self.addresses[0]] * BATCH
        one, other = self.nodes
        one.handle_packets(self.packets[:size], [size], NOW)
        for sender, receiver, source in ((one, other, 0), (other, one, 1), (one, other, 0)):
            for transmit in sender.drain().transmits:
                datagram = transmit.datagram
                receiver.handle_datagrams(datagram, [len(datagram)], [self.addresses[source]], NOW)
        other.drain()

    def seal(self) -> None:
        self.nodes[0].handle_packets(self.packets, self.lengths, NOW)
        self.sealed = self.nodes[0].drain().transmits

    def measure(self, seconds: float) -> tuple[float, float]:
        # The datagrams come contiguous from a socket, so that joining them here is not part of opening.
        clock = time.perf_counter_ns
        sealing = opening = packets = 0
        end = clock() + int(seconds * 1e9)
        while True:
            start = clock()
            self.seal()
            sealing += clock() - start
            lengths = [len(transmit.datagram) for transmit in self.sealed]
            datagrams = b"".join(transmit.datagram for transmit in self.sealed)
            start = clock()
            self.nodes[1].handle_datagrams(datagrams, lengths, self.sources, NOW)
            opened = self.nodes[1].drain().packets
            last = clock()
            assert len(opened) == BATCH
            opening += last - start
            packets += BATCH
            if last >= end:
                return sealing / packets, opening / packets


def ipv4_packet(size: int) -> bytes:
    """An IPv4 packet of `size` bytes between the two inner addresses."""
    packet = bytearray(n & 255 for n in range(size))
    packet[:12] = bytes([0x45, 0, size >> 8, size & 255, 0, 0, 0, 0, 64, 17, 0, 0])
    packet[12:20] = b"".join(ipaddress.IPv4Address(address).packed for address in INNER)
    return bytes(packet)
