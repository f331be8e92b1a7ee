"""The classes around descriptors: batches between the kernel and a node, counters, and what happens after the end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from connlib import ClosedError, DropReason, Node, NodeConfig, PeerConfig
from connlib._native import BootTimer, TunIo, UdpIo
from two_tunnels import ALICE, BOB, START, UNIX_TIME, ipv4

LOOPBACK = "127.0.0.1"


def node(own: Any, other: Any, allowed: str, endpoint: tuple[str, int] | None = None) -> Node:
    peer = PeerConfig(public_key=other.public_key(), allowed_ips=(ip_network(allowed),), endpoint=endpoint)
    return Node(NodeConfig(private_key=own, peers=(peer,)), now=START, unix_time=UNIX_TIME)


class Machine:
    """A node with a socket pair for its TUN device and a real socket."""

    def __init__(
        self,
        own: Any,
        other: Any,
        allowed: str,
        endpoint: tuple[str, int] | None = None,
        bound: str = LOOPBACK,
    ) -> None:
        self.device, self.application = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.application.setblocking(False)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((bound, 0))
        self.node = node(own, other, allowed, endpoint)
        self.tun = TunIo(self.device.fileno())
        self.udp = UdpIo(self.socket.fileno(), None)

    def close(self) -> None:
        self.tun.close()
        self.udp.close()
        for each in (self.device, self.application, self.socket):
            each.close()


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    with contextlib.ExitStack() as stack:
        bob = Machine(BOB, ALICE, "10.0.0.1/32")
        stack.callback(bob.close)
        alice = Machine(ALICE, BOB, "10.0.0.2/32", bob.socket.getsockname())
        stack.callback(alice.close)
        yield alice, bob


def receive(machine: Machine, at_least: int = 1) -> int:
    """Loopback delivers at once, yet not within the sending call."""
    received = 0
    deadline = time.monotonic() + 10
    while received < at_least:
        assert time.monotonic() < deadline
        select.select([machine.socket], [], [], 1)
        received += machine.udp.receive(machine.node, START, 64)
    return received


def test_packets_go_from_device_to_device(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    sent = [ipv4(bytes([n]) * n) for n in range(100)]
    for packet in sent:
        alice.application.send(packet)
    assert alice.tun.read(alice.node, START, 64) == 64
    assert alice.tun.read(alice.node, START, 64) == 36
    assert alice.tun.read(alice.node, START, 64) == 0
    # The packets wait for the session that this initiation asks for.
    assert alice.udp.send(alice.node) == 1
    assert receive(bob) == 1 and bob.udp.send(bob.node) == 1
    assert receive(alice) == 1 and alice.udp.send(alice.node) == 100
    assert receive(bob, 100) == 100
    assert bob.tun.write(bob.node) == 100
    assert [bob.application.recv(2000) for _ in sent] == sent
    assert alice.node.pending()[:2] == bob.node.pending()[:2] == (0, 0)
    assert not alice.udp.blocked(socket.AF_INET) and not bob.tun.blocked
    counts = alice.tun.stats()
    assert (counts["packets_read"], counts["bytes_read"]) == (100, sum(map(len, sent)))
    assert bob.tun.stats()["packets_written"] == 100
    assert alice.udp.stats()["sent"] == 101 and bob.udp.stats()["received"] == 101


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere, 127.0.0.1 is the only address that every machine has"
)
def test_a_peer_is_sent_to_from_the_address_that_it_has_reached_until_that_is_forgotten() -> None:
    with contextlib.ExitStack() as stack:
        bob = Machine(BOB, ALICE, "10.0.0.1/32", bound="0.0.0.0")
        stack.callback(bob.close)
        port = bob.socket.getsockname()[1]
        alice = Machine(ALICE, BOB, "10.0.0.2/32", ("127.0.0.5", port))
        stack.callback(alice.close)

        def seen_after_packets(*pairs: tuple[Machine, Machine]) -> str | None:
            """Where Alice sees Bob."""
            for one, other in pairs:
                one.udp.send(one.node)
                receive(other)
            (peer,) = alice.node.stats(START).peers
            return peer.endpoint and peer.endpoint[0]

        def say(machine: Machine, packet: bytes) -> None:
            machine.node.handle_packets(packet, [len(packet)], START)

        say(alice, ipv4(b"hello"))
        assert seen_after_packets((alice, bob), (bob, alice), (alice, bob)) == "127.0.0.5"
        back = ipv4(b"back", source="10.0.0.2", destination="10.0.0.1")
        say(bob, back)
        assert seen_after_packets((bob, alice)) == "127.0.0.5"
        bob.node.forget_sources()
        say(bob, back)
        assert seen_after_packets((bob, alice)) == "127.0.0.1"
        assert bob.udp.stats()["source_refused"] == 0


def test_what_a_device_does_not_take_yet_waits(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    bob.device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    alice.node.initiate_handshake(BOB.public_key(), START)
    for one, other in ((alice, bob), (bob, alice), (alice, bob)):
        one.udp.send(one.node)
        receive(other)
    packets = [ipv4(bytes([n]) * 1000) for n in range(50)]
    alice.node.handle_packets(b"".join(packets), [1020] * 50, START)
    assert alice.udp.send(alice.node) == 50
    receive(bob, 50)
    taken = bob.tun.write(bob.node)
    assert 0 < taken < 50 and bob.tun.blocked
    got: list[bytes] = []
    while len(got) < 50:
        with contextlib.suppress(BlockingIOError):
            while True:
                got.append(bob.application.recv(2000))
        bob.tun.write(bob.node)
    assert got == packets
    assert not bob.tun.blocked and bob.tun.stats()["backlog_dropped"] == 0


def test_a_device_whose_other_end_is_gone_says_so() -> None:
    device, application = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    alice = node(ALICE, BOB, "10.0.0.2/32")
    with device, application:
        tun = TunIo(device.fileno())
        states = [tun.state]
        application.close()
        assert tun.read(alice, START, 64) == 0
        states.append(tun.state)
        tun.close()
    assert states == ["up", "gone"]


def test_datagrams_of_every_size_are_received_and_refused(machines: tuple[Machine, Machine]) -> None:
    """Fault 8, over a real socket; what the kernel coalesces included."""
    _, bob = machines
    sizes = [*range(0, 2049, 16), 9000, 40_000, 65_507]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in sizes:
            sender.sendto(b"\x04" * size, bob.socket.getsockname())
            receive(bob)
    assert bob.udp.stats()["received"] == len(sizes)
    assert bob.node.stats(START).drops == {DropReason.INVALID_PACKET: len(sizes)}
    assert bob.node.pending() == (0, 0, 0)


def test_only_the_family_that_is_asked_for_is_read(machines: tuple[Machine, Machine]) -> None:
    _, bob = machines
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", bob.socket.getsockname())
        select.select([bob.socket], [], [], 10)
        assert bob.udp.receive(bob.node, START, 64, socket.AF_INET6) == 0
        assert bob.udp.receive(bob.node, START, 64, socket.AF_INET) == 1
    sizes = bob.udp.buffer_sizes(socket.AF_INET)
    assert sizes is not None and min(sizes) > 0
    assert bob.udp.buffer_sizes(socket.AF_INET6) is None
    for call in (bob.udp.blocked, bob.udp.buffer_sizes):
        with pytest.raises(ValueError, match="family"):
            call(99)


def test_errors_of_the_network_are_counted_by_name(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    # There is no IPv6 socket.
    alice.node.set_endpoint(BOB.public_key(), ("::1", 9), START)
    alice.node.initiate_handshake(BOB.public_key(), START)
    assert alice.udp.send(alice.node) == 0
    assert alice.udp.stats()["send_EAFNOSUPPORT"] == 1
    assert alice.node.pending()[0] == 0


def test_after_closing_calls_raise_and_counters_stay(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    alice.application.send(ipv4())
    alice.tun.read(alice.node, START, 1)
    before = alice.tun.stats(), alice.udp.stats()
    for _ in range(2):
        alice.tun.close()
        alice.udp.close()
    assert (alice.tun.stats(), alice.udp.stats()) == before
    calls: list[Any] = [
        lambda: alice.tun.read(alice.node, START, 1),
        lambda: alice.tun.write(alice.node),
        lambda: alice.tun.state,
        lambda: alice.tun.blocked,
        lambda: alice.udp.receive(alice.node, START, 1),
        lambda: alice.udp.send(alice.node),
        lambda: alice.udp.blocked(socket.AF_INET),
        lambda: alice.udp.buffer_sizes(socket.AF_INET),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_closing_gives_the_descriptors_back() -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    before = descriptors()
    for _ in range(20):
        machine = Machine(ALICE, BOB, "10.0.0.2/32")
        machine.close()
    assert descriptors() == before


def test_descriptors_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="descriptor"):
        TunIo(-1)
    with pytest.raises(ValueError, match="fd4 or fd6"):
        UdpIo(None, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        TunIo(1_000_000)
    with pytest.raises(OSError, match="Bad file descriptor"):
        UdpIo(1_000_000, None)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        pytest.raises(OSError, match="Address family"),
    ):
        UdpIo(None, udp.fileno())


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
def test_the_timer_becomes_readable_at_its_instant_of_the_boot_clock() -> None:
    timer = BootTimer()
    assert not select.select([timer], [], [], 0)[0]
    at = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.05
    timer.set(at)
    assert select.select([timer], [], [], 10)[0]
    assert time.clock_gettime(time.CLOCK_BOOTTIME) >= at
    assert timer.fired() and not timer.fired()
    timer.set(0.0)
    assert timer.fired()
    timer.set(at + 1000)
    timer.set(None)
    assert not timer.fired()
    with pytest.raises(ValueError, match="a time must be"):
        timer.set(-1.0)
    timer.close()
    timer.close()
    for call in (timer.fileno, timer.fired, lambda: timer.set(None)):
        with pytest.raises(ClosedError):
            call()


@pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")
def test_the_kernel_puts_no_time_on_datagrams_that_nobody_reads(machines: tuple[Machine, Machine]) -> None:
    so_timestampns = 35
    for machine in machines:
        assert machine.socket.getsockopt(socket.SOL_SOCKET, so_timestampns) == 0


def marked(ecn: int) -> bytes:
    """A packet with this ECN field and a right checksum."""
    packet = bytearray(ipv4(b"payload"))
    packet[1] = ecn
    words = sum(int.from_bytes(packet[at : at + 2], "big") for at in range(0, 20, 2))
    packet[10:12] = (0xFFFF - words % 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def test_marks_of_congestion_pass_through_real_sockets(machines: tuple[Machine, Machine]) -> None:
    """RFC 6040: the outer header has the packet's ECN field, and the packet gets what was marked on the way."""
    alice, bob = machines
    not_ect, ect_0, ce = 0, 2, 3
    alice.application.send(ipv4())
    for first, second in ((alice, bob), (bob, alice)):
        first.tun.read(first.node, START, 64)
        first.udp.send(first.node)
        receive(second)
    alice.udp.send(alice.node)
    for ecn in (ect_0, not_ect):
        alice.node.handle_packets(marked(ecn), [len(marked(ecn))], START)
        alice.udp.send(alice.node)
    outer: list[int] = []
    while len(outer) < 3:  # the first packet, which waited, comes before these
        select.select([bob.socket], [], [], 10)
        _, ancillary, _, _ = bob.socket.recvmsg(2000, 200)
        outer += [
            value[0]
            for level, kind, value in ancillary
            if (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS)
        ]
    assert outer == [not_ect, ect_0, not_ect]

    for ecn in (ect_0, not_ect):
        alice.node.handle_packets(marked(ecn), [len(marked(ecn))], START)
    for transmit in alice.node.drain().transmits:
        alice.socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ce)
        alice.socket.sendto(transmit.datagram, transmit.destination)
    receive(bob, 2)
    assert bob.node.drain().packets == [marked(ce)]
    (peer,) = bob.node.stats(START).peers
    assert peer.tunnel.drops == {DropReason.CONGESTION_MARK: 1}
    assert peer.trouble.congestion_marks == 1
