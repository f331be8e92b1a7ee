"""Both ways in one call: `connlib._native.Pump`, and how the driver waits for what it moves."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
import trio

from connlib import ClosedError, DeviceError, Node, NodeConfig
from connlib._mover import WorkerMover
from connlib._native import LabNode, Pump, TunIo, UdpIo
from connlib._pump import DescriptorPump
from connlib.driver import Interface, MemoryTun, open_interface
from connlib.tun import make_device
from helpers_driver import (
    CLIENT,
    GATEWAY,
    client_config,
    gateway_config,
    in_real_time,
    loopback_socket,
    packet,
)
from helpers_netns import in_namespace, ip, run_body
from interop.machine import own_namespace
from interop.netns import Namespace
from test_native_io import Machine, machines, receive
from two_tunnels import ALICE, BOB, START, UNIX_TIME, ipv4

__all__ = ["machines"]  # the fixture

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
BACK = {"source": "10.0.0.2", "destination": "10.0.0.1"}


def pump(machine: Machine) -> Pump:
    return Pump(machine.tun, machine.udp, machine.node)


def connect(alice: Machine, bob: Machine) -> None:
    """A session, which both have heard of."""
    alice.application.send(ipv4(b"first"))
    alice.tun.read(alice.node, START, 64)
    for one, other in ((alice, bob), (bob, alice), (alice, bob)):
        one.udp.send(one.node)
        receive(other)
    bob.tun.write(bob.node)
    assert bob.application.recv(2000) == ipv4(b"first")
    for each in (alice, bob):
        each.node.drain()


def readable(one: socket.socket) -> None:
    assert select.select([one], [], [], 10)[0]


def test_one_turn_moves_what_there_is_both_ways(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    connect(alice, bob)
    bob.application.send(ipv4(b"back", **BACK))
    bob.tun.read(bob.node, START, 64)
    bob.udp.send(bob.node)
    readable(alice.socket)
    alice.application.send(ipv4(b"there"))
    moved, refused, deadline, is_notable = pump(alice).turn(START, 1024)
    assert (moved, refused, is_notable) == (2, 0, False)
    assert alice.application.recv(2000) == ipv4(b"back", **BACK)
    timeout = alice.node.next_timeout()
    assert timeout is not None and deadline == timeout.at
    readable(bob.socket)
    assert pump(bob).turn(START, 1024)[0] == 1
    assert bob.application.recv(2000) == ipv4(b"there")


def test_a_turn_says_whether_there_is_something_to_see_to(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    first, second = pump(alice), pump(bob)
    assert first.turn(START, 64) == (0, 0, None, False)
    alice.application.send(ipv4())
    assert first.turn(START, 64)[3], "a handshake has started"
    assert [event.event for event in alice.node.drain().events]
    assert not first.turn(START, 64)[3], "it was told"
    readable(bob.socket)
    assert second.turn(START, 64)[3], "the timestamp of an initiation is to be kept"
    bob.node.drain()
    assert not second.turn(START, 64)[3]


def test_a_turn_ends_when_its_budget_is_used_up(machines: tuple[Machine, Machine]) -> None:
    _, bob = machines
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for number in range(300):
            # Of different sizes, so that the kernel does not coalesce them.
            stranger.sendto(b"\x07" * (1 + number % 7), bob.socket.getsockname())
    turns: list[int] = []
    while sum(turns) < 300:
        readable(bob.socket)
        moved, refused, _, _ = pump(bob).turn(START, 100)
        assert refused == moved
        turns.append(moved)
    assert max(turns) < 200, "a round is not cut short, and no other one begins"


def test_a_device_that_is_gone_is_something_to_see_to() -> None:
    device, application = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    machine = Machine(ALICE, BOB, "10.0.0.2/32")
    with contextlib.closing(machine), device:
        machine.tun = type(machine.tun)(device.fileno())
        assert not pump(machine).turn(START, 64)[3]
        application.close()
        assert pump(machine).turn(START, 64)[3] and machine.tun.state == "gone"


def test_neither_a_closed_end_nor_a_node_with_predictable_keys_is_served(
    machines: tuple[Machine, Machine],
) -> None:
    alice, bob = machines
    lab = LabNode(NodeConfig(private_key=ALICE), now=START, unix_time=UNIX_TIME, seed=1)
    with pytest.raises(TypeError, match="LabNode"):
        Pump(alice.tun, alice.udp, lab)
    ends = pump(alice), pump(bob)
    alice.tun.close()
    bob.udp.close()
    for each in ends:
        with pytest.raises(ClosedError):
            each.turn(START, 64)


@pytest.fixture
def slow_wire() -> Iterator[Namespace]:
    """A namespace whose loopback takes a megabit a second: what is to be sent waits in the sockets' buffers."""
    with own_namespace("pump") as namespace:
        namespace.run("ip", "link", "set", "lo", "up")
        set_rate(namespace, "add", "1mbit")
        yield namespace


def set_rate(namespace: Namespace, verb: str, rate: str) -> None:
    bucket = ("tbf", "rate", rate, "burst", "10k", "limit", "100mb")
    namespace.run("tc", "qdisc", verb, "dev", "lo", "root", *bucket)


def on_slow_wire(wire: Namespace, stack: contextlib.ExitStack) -> tuple[Machine, Machine]:
    """Alice and Bob, connected; her socket is soon full."""
    with wire.entered():
        bob = Machine(BOB, ALICE, "10.0.0.1/32")
        stack.callback(bob.close)
        alice = Machine(ALICE, BOB, "10.0.0.2/32", bob.socket.getsockname())
        stack.callback(alice.close)
    connect(alice, bob)
    alice.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    return alice, bob


@linux_only
def test_a_socket_that_is_filled_between_turns_holds_back_only_for_as_long_as_it_is_full(
    slow_wire: Namespace,
) -> None:
    with contextlib.ExitStack() as stack:
        alice, _ = on_slow_wire(slow_wire, stack)
        end = pump(alice)
        one = ipv4(bytes(1000))
        while not alice.udp.blocked(socket.AF_INET):
            alice.node.handle_packets(one, [len(one)], START)
            alice.udp.send(alice.node)
        end.watch()
        set_rate(slow_wire, "change", "20mbit")
        while alice.udp.blocked(socket.AF_INET):
            assert select.select([end], [], [], 10)[0]
            end.turn(START, 64)
        assert not select.select([end], [], [], 0)[0], "nothing to do"
        alice.application.send(one)
        assert select.select([end], [], [], 10)[0]
        end.turn(START, 64)
        assert alice.tun.stats()["packets_read"] == 2  # the first was that of the session


@linux_only
def test_while_a_socket_is_full_the_device_is_not_read_and_nothing_is_lost(slow_wire: Namespace) -> None:
    with contextlib.ExitStack() as stack:
        alice, bob = on_slow_wire(slow_wire, stack)
        sent: list[bytes] = []
        turn = pump(alice).turn

        def fill() -> None:
            with contextlib.suppress(BlockingIOError):
                while len(sent) < 400:
                    one = ipv4(len(sent).to_bytes(4, "big") * 250)
                    alice.application.send(one)
                    sent.append(one)

        def read() -> int:
            return alice.tun.stats()["packets_read"]

        fill()
        while not alice.tun.stats()["held_back"]:
            turn(START, 1024)
            fill()
        before = read()
        assert turn(START, 1024)[:2] == (0, 0) and read() == before, "the device is left alone"
        assert alice.udp.blocked(socket.AF_INET)
        assert before - (alice.udp.stats()["sent"] - 3) <= 192, "and what was read by then is not much"
        set_rate(slow_wire, "change", "20mbit")
        got: list[bytes] = []
        end = time.monotonic() + 30
        while len(got) < 400:
            assert time.monotonic() < end
            turn(START, 1024)
            fill()
            if select.select([bob.socket], [], [], 0.1)[0]:
                pump(bob).turn(START, 1024)
            with contextlib.suppress(BlockingIOError):
                while True:
                    got.append(bob.application.recv(2000))
        assert got == sent
        assert alice.udp.stats()["backlog_dropped"] == 0


@linux_only
def test_how_often_the_device_was_held_back_is_counted_and_a_device_that_is_gone_is_noticed(
    slow_wire: Namespace,
) -> None:
    device, application = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        alice, _ = on_slow_wire(slow_wire, stack)
        stack.enter_context(device)
        alice.tun = TunIo(device.fileno())
        end = pump(alice)
        one = ipv4(bytes(1000))
        set_rate(slow_wire, "change", "8kbit")
        while not alice.udp.blocked(socket.AF_INET):
            alice.node.handle_packets(one, [len(one)], START)
            end.turn(START, 64)
        for _ in range(5):
            application.send(one)
            end.turn(START, 64)
        counts = alice.tun.stats()
        assert (counts["held_back"], counts["packets_read"]) == (1, 0)
        application.close()
        assert select.select([end], [], [], 10)[0]
        _, _, _, is_notable = end.turn(START, 64)
        assert is_notable and alice.tun.state == "gone"
        assert alice.udp.blocked(socket.AF_INET)


@in_namespace
def test_a_superpacket_of_very_many_packets_is_read_to_its_end() -> None:
    """Of 128 packets or more, what is left of it is in our memory, of which no descriptor tells."""
    fd, name = make_device(None, headers=True)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        tun = TunIo(fd)
        assert "tso4" in tun.set_offloads(["tso4"])
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip("link", "set", name, "up")
        udp = stack.enter_context(loopback_socket())
        node = Node(NodeConfig(private_key=ALICE), now=START, unix_time=UNIX_TIME)
        end = Pump(tun, UdpIo(udp.fileno(), None), node)
        # Into the device from the kernel's side, with the header that says how it is to be cut.
        raw = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x800)))
        raw.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        raw.bind((name, 0x800))
        for _ in range(2):
            raw.send(superpacket(600))
        moved = 64
        while moved >= 64:  # as the driver does
            moved, _, _, _ = end.turn(START, 1024)
        assert tun.stats()["packets_read"] == 1200
        assert tun.stats()["superpackets_read"] == 2


def superpacket(segments: int) -> bytes:
    """TCP over IPv4 with so many times 100 bytes, behind its `struct virtio_net_hdr`."""
    addresses = bytes([10, 9, 0, 1, 10, 9, 0, 2])
    length = 20 + 100 * segments
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0x4000, 64, 6, 0) + addresses
    header = header[:10] + struct.pack("!H", ~ones_sum(header) & 0xFFFF) + header[12:]
    pseudo = ones_sum(addresses + struct.pack("!HH", 6, length))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 1, 1, 0x50, 0x10, 1000, pseudo, 0)
    return struct.pack("<BBHHHH", 1, 1, 40, 100, 20, 16) + header + tcp + bytes(100 * segments)


def ones_sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@linux_only
@pytest.mark.parametrize("worker", [False, pytest.param(True, marks=pytest.mark.offloads)])
def test_who_waits_for_a_full_socket_does_not_spin(
    slow_wire: Namespace, monkeypatch: pytest.MonkeyPatch, worker: bool
) -> None:
    turns: list[int] = []
    original = DescriptorPump.turn

    def turn(self: DescriptorPump, now: float) -> tuple[int, float | None, bool]:
        told = original(self, now)
        turns.append(told[0])
        return told

    monkeypatch.setattr(DescriptorPump, "turn", turn)

    def count(client: Interface) -> int:
        mover = client._mover
        if isinstance(mover, WorkerMover):
            return mover._worker._worker.turns
        return len(turns)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets = [packet(CLIENT, GATEWAY, number.to_bytes(4, "big") * 250) for number in range(400)]

    async def main() -> None:
        tun = MemoryTun()
        async with (
            open_interface(gateway_config(), tun=tun, udp=theirs_udp) as gateway,
            open_interface(
                replace(client_config(theirs_udp.getsockname()), worker=worker),
                tun=ours.fileno(),
                udp=ours_udp,
            ) as client,
            anyio.create_task_group() as tasks,
        ):
            theirs.send(packets[0])
            assert await tun.receive() == packets[0]
            ours_udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            tasks.start_soon(anyio.to_thread.run_sync, lambda: [theirs.send(one) for one in packets[1:]])
            while not client.stats().tun["held_back"]:
                await anyio.sleep(0.01)
            before, enough = count(client), client.stats().udp["sent"] + 100
            while client.stats().udp["sent"] < enough:
                await anyio.sleep(0.01)
            assert before > 0
            assert count(client) - before <= 150, "it waits for the socket, and not for the device"
            set_rate(slow_wire, "change", "20mbit")
            assert [await tun.receive() for _ in packets[1:]] == packets[1:]
            assert gateway.is_open
            assert client.stats().udp["backlog_dropped"] == 0

    with ours, theirs:
        with slow_wire.entered():
            ours_udp, theirs_udp = loopback_socket(), loopback_socket()
        with ours_udp, theirs_udp:

            async def bounded() -> None:
                with trio.fail_after(60):
                    await main()

            trio.run(bounded)


@linux_only
@in_real_time
async def test_a_descriptor_that_nobody_can_wait_for_is_one_clear_error() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with loopback_socket() as udp, pytest.raises(DeviceError) as raised:
            async with open_interface(gateway_config(), tun=null, udp=udp):
                await trio.sleep_forever()
    finally:
        os.close(null)
    assert str(raised.value) == (
        f"cannot wait for packets of descriptor {null}: Operation not permitted; see whether the descriptors are a"
        " device's and sockets', and whether the system lacks memory"
    )


run_body(globals())
