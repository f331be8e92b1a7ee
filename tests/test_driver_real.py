"""The driver on real sockets, with a socket pair or memory for the device: no root needed."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import anyio
import pytest
import trio

from connlib import DeviceError, HandshakeStarted, NodeConfig, PeerConfig, PrivateKey
from connlib._native import BootTimer, LabNode, Node, TunIo, UdpIo
from connlib.clock import BootClock, alarm_for
from connlib.driver import Interface, MemoryTun, open_interface
from connlib.tun import make_device, open_tun
from connlib.udp import bind_pair, open_udp
from helpers_driver import (
    CLIENT,
    GATEWAY,
    GATEWAY_KEY,
    client_config,
    gateway_config,
    in_real_time,
    loopback_socket,
    packet,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What stands for a TUN device: its descriptor, and the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@asynccontextmanager
async def open_real_pair(
    tun: MemoryTun | int, client_tun: MemoryTun | int
) -> AsyncIterator[tuple[Interface, Interface]]:
    with loopback_socket() as gateway_socket, loopback_socket() as client_socket:
        async with (
            open_interface(gateway_config(), tun=tun, udp=gateway_socket) as gateway,
            open_interface(
                client_config(gateway_socket.getsockname()), tun=client_tun, udp=client_socket
            ) as client,
        ):
            yield gateway, client


@in_real_time
async def test_real_sockets_and_memory_for_the_device() -> None:
    tun, client_tun = MemoryTun(), MemoryTun()
    async with open_real_pair(tun, client_tun) as (gateway, client):
        there, back = packet(CLIENT, GATEWAY), packet(GATEWAY, CLIENT)
        await client_tun.send(there)
        assert await tun.receive() == there
        await tun.send(back)
        assert await client_tun.receive() == back
        assert client.stats().udp["sent"] == 2
        assert gateway.stats().udp["receive_buffer_ipv4"] >= 200_000
        assert gateway.stats().timer_wakes < 10


@in_real_time
async def test_a_burst_crosses_real_sockets_in_order() -> None:
    tun, client_tun = MemoryTun(capacity=4096), MemoryTun()
    packets = [packet(CLIENT, GATEWAY, number.to_bytes(4, "big") * 300) for number in range(2000)]
    async with open_real_pair(tun, client_tun) as (gateway, client), trio.open_nursery() as nursery:
        await client_tun.send(packets[0])
        assert await tun.receive() == packets[0]

        async def send() -> None:
            for one in packets:
                try:
                    client_tun.send_nowait(one)
                except anyio.WouldBlock:
                    await client_tun.send(one)

        nursery.start_soon(send)
        assert [await tun.receive() for _ in packets] == packets
        if sys.platform == "linux":
            sent, received = client.stats().udp, gateway.stats().udp
            assert sent["send_calls"] < sent["sent"] / 4, "datagrams were not sent in batches"
            assert received["receive_calls"] < received["received"] / 4, (
                "datagrams were not received in batches"
            )


@in_real_time
async def test_a_descriptor_for_the_device_stays_open_and_the_callers(
    device: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = device
    tun = MemoryTun()
    async with open_real_pair(tun, ours.fileno()) as (_, client):
        there, back = packet(CLIENT, GATEWAY), packet(GATEWAY, CLIENT)
        theirs.send(there)
        assert await tun.receive() == there
        await tun.send(back)
        await anyio.wait_readable(theirs)
        assert theirs.recv(2000) == back
        assert client.name == f"descriptor {ours.fileno()}"
    ours.send(b"still open")
    assert theirs.recv(2000) == b"still open"
    assert client.stats().tun["packets_read"] == 1


@in_real_time
async def test_what_the_device_does_not_take_at_once_is_written_later(
    device: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = device
    tun = MemoryTun()
    packets = [packet(GATEWAY, CLIENT, number.to_bytes(4, "big") * 300) for number in range(900)]
    async with open_real_pair(tun, ours.fileno()) as (_, client):
        theirs.send(packet(CLIENT, GATEWAY))
        await tun.receive()
        for one in packets:
            await tun.send(one)
        while client.stats().peers[0].tunnel.rx_packets < len(packets):
            await trio.sleep(0.01)
        assert client.stats().tun["packets_written"] < len(packets), "the pair holds more than expected"
        received: list[bytes] = []
        while len(received) < len(packets):
            await anyio.wait_readable(theirs)
            received.append(theirs.recv(2000))
        assert received == packets


@in_real_time
async def test_a_device_that_goes_away_is_one_clear_error(
    device: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = device

    async def run_until_it_is_gone() -> None:
        with loopback_socket() as udp:
            async with open_interface(gateway_config(name="wg7"), tun=ours.fileno(), udp=udp) as interface:
                events = interface.events()
                theirs.close()
                async for _ in events:
                    pass
                raise AssertionError("the body should have been cancelled")

    with pytest.raises(DeviceError) as raised:
        await run_until_it_is_gone()
    assert str(raised.value) == "the TUN device wg7 was deleted; start the interface again to make it anew"


@in_real_time
async def test_network_errors_are_counted_and_not_raised() -> None:
    tun = MemoryTun()
    # A socket without SO_BROADCAST may not send there.
    config = client_config(("255.255.255.255", 9))
    with loopback_socket() as udp:
        async with open_interface(config, tun=tun, udp=udp) as interface:
            await tun.send(packet(CLIENT, GATEWAY))
            while "send_EACCES" not in interface.stats().udp:
                await trio.sleep(0.01)
            await tun.send(b"neither IPv4 nor IPv6")
            await trio.sleep(0.05)
            assert interface.stats().udp["send_EACCES"] == 1


@in_real_time
async def test_garbage_of_every_length_is_counted_and_answered_by_nothing() -> None:
    with loopback_socket() as udp, loopback_socket() as stranger:
        async with open_interface(gateway_config(), tun=MemoryTun(), udp=udp) as interface:
            lengths = (*range(2049), 65_507)
            with trio.fail_after(60):
                for count, length in enumerate(lengths, 1):
                    for kind in (b"\x01\0\0\0", b"\x04\0\0\0", b"\xff" * 4):
                        datagram = (kind + os.urandom(max(0, length - 4)))[:length]
                        stranger.sendto(datagram, udp.getsockname())
                    if count % 8 == 0 or count == len(lengths):
                        # So that a small buffer of the system does not overflow.
                        while interface.stats().udp["received"] < 3 * count:
                            await trio.sleep(0)
            stats = interface.stats()
            assert sum(stats.drops.values()) == 3 * len(lengths)
            assert stats.udp["sent"] == 0
            assert stats.tun["packets_written"] == 0


def lab_node() -> LabNode:
    config = NodeConfig(private_key=GATEWAY_KEY, peers=gateway_config().peers)
    return LabNode(config, now=0.0, unix_time=0.0, seed=1)


def test_a_lab_node_does_not_get_near_a_real_device(device: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = device
    io = TunIo(ours.fileno())
    theirs.send(packet(GATEWAY, CLIENT))
    with pytest.raises(TypeError, match="LabNode"):
        io.read(lab_node(), 0.0, 64)
    with pytest.raises(TypeError, match="LabNode"):
        io.write(lab_node())
    assert ours.recv(2000) == packet(GATEWAY, CLIENT)


def test_a_lab_node_does_not_get_near_a_real_socket() -> None:
    with loopback_socket() as ours, loopback_socket() as stranger:
        io = UdpIo(ours.fileno(), None)
        node = lab_node()
        with pytest.raises(TypeError, match="LabNode"):
            io.receive(node, 0.0, 64)
        with pytest.raises(TypeError, match="LabNode"):
            io.send(node)
        with pytest.raises(BlockingIOError):
            ours.recv(2000)
        assert stranger.getsockname()


def test_a_node_of_the_real_kind_is_served() -> None:
    with loopback_socket() as ours, loopback_socket() as stranger:
        io = UdpIo(ours.fileno(), None)
        node = Node(NodeConfig(private_key=GATEWAY_KEY, peers=gateway_config().peers), now=0.0, unix_time=0.0)
        stranger.sendto(b"garbage", ours.getsockname())
        assert io.receive(node, 0.0, 64) == 1
        assert sum(node.stats(0.0).drops.values()) == 1


def test_one_port_is_bound_on_both_families() -> None:
    sockets = bind_pair(0)
    ports = {made.getsockname()[1] for made in sockets.values()}
    assert len(ports) == 1 and 0 not in ports
    for made in sockets.values():
        made.close()


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family, socket.SOCK_DGRAM) as taken:
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind((address, 0))
            port = taken.getsockname()[1]
            before = open_descriptors()
            with pytest.raises(DeviceError, match=f"^UDP port {port} is in use; ") as raised:
                open_udp(None, port)
            assert "\n" not in str(raised.value)
            assert open_descriptors() == before


def test_a_random_port_that_is_half_taken_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0
    real = socket.socket.bind

    class Stubborn(socket.socket):
        def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            nonlocal attempts
            if self.family == socket.AF_INET6:
                attempts += 1
                if attempts <= 3:
                    raise OSError(errno.EADDRINUSE, "in use")
            real(self, address)

    monkeypatch.setattr("connlib.udp.socket.socket", Stubborn)
    before = open_descriptors()
    sockets = bind_pair(0)
    assert attempts == 4
    for made in sockets.values():
        made.close()
    attempts = -1_000_000
    with pytest.raises(DeviceError, match=r"^a UDP port is in use; "):
        bind_pair(0)
    assert open_descriptors() == before


def test_a_system_without_ipv6_gets_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr("connlib.udp.socket.socket", without_ipv6)
    sockets = bind_pair(0)
    assert list(sockets) == [socket.AF_INET]
    sockets[socket.AF_INET].close()


def test_sockets_that_cannot_serve_are_refused() -> None:
    with socket.socket() as stream, pytest.raises(DeviceError, match="not a UDP socket"):
        open_udp(stream, 0)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound,
        pytest.raises(DeviceError, match="not bound"),
    ):
        open_udp(unbound, 0)
    with (
        loopback_socket() as one,
        loopback_socket() as two,
        pytest.raises(DeviceError, match="of one family"),
    ):
        open_udp((one, two), 0)
    closed = loopback_socket()
    closed.close()
    with pytest.raises(DeviceError, match=r"^cannot use the UDP socket: .*; is it closed\?$"):
        open_udp(closed, 0)
    with pytest.raises(TypeError, match=r"^udp must be .*, not an empty tuple$"):
        open_udp((), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "x" * 16, "%d", "wg%d", "", ".", "..", "a b", "wg:0", "wg\n", "é"]
)
def test_bad_names_never_reach_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError("the device was touched")

    monkeypatch.setattr("connlib.tun.os.open", refuse)
    with pytest.raises(DeviceError, match="cannot name a network device; ") as raised:
        make_device(name)
    assert "\n" not in str(raised.value)


def test_a_machine_without_tun_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("connlib.tun._CLONE_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(DeviceError, match=r"there is no .*tun; load it"):
        make_device("wg0")


def test_a_descriptor_that_is_not_open_is_one_clear_error() -> None:
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(spare)
    with pytest.raises(DeviceError, match="not an open descriptor"):
        open_tun(spare, None)
    with pytest.raises(DeviceError, match="not an open descriptor"):
        open_tun(2**40, None)


def test_a_descriptor_of_something_else_is_one_clear_error(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file, pytest.raises(DeviceError, match="not a TUN device"):
        open_tun(file.fileno(), None)


@linux_only
@in_real_time
async def test_the_alarm_rings_when_the_clock_says_so_and_not_before() -> None:
    clock = BootClock()
    alarm = alarm_for(clock)
    for delay in (0.05, 0.0, -1.0):
        at = clock.now() + delay
        alarm.set(at)
        await alarm.wait()
        assert at <= clock.now() < at + 1 + max(-delay, 0)
    # Moved away, it does not ring; moved back while somebody waits, it does.
    alarm.set(clock.now() + 0.01)
    alarm.set(clock.now() + 1e6)
    with trio.move_on_after(0.1) as scope:
        await alarm.wait()
    assert scope.cancelled_caught
    alarm.set(None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.wait)
        await trio.sleep(0.02)
        alarm.set(clock.now() + 0.02)
    alarm.close()


@linux_only
@in_real_time
async def test_a_deadline_that_moves_away_sets_no_timer_and_is_kept_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As most do with each packet; setting a timer of the kernel is a good part of what a wake costs."""
    clock = BootClock()
    alarm = alarm_for(clock)
    timer: BootTimer = alarm._timer  # type: ignore[attr-defined]
    calls: list[float | None] = []

    class Spy:
        def set(self, at: float | None) -> None:
            calls.append(at)
            timer.set(at)

        def __getattr__(self, name: str) -> object:
            return getattr(timer, name)

    monkeypatch.setattr(alarm, "_timer", Spy())
    first = clock.now() + 0.02
    for step in range(100):
        alarm.set(first + step / 1000)
    assert calls == [first]
    last = first + 0.099
    await alarm.wait()
    assert clock.now() >= last
    assert calls == [first, last]
    alarm.set(last + 100)
    alarm.set(last + 50)
    assert calls[2:] == [last + 100, last + 50], "what is nearer does set it"
    alarm.close()


@linux_only
def test_the_boot_clock_is_the_kernels() -> None:
    assert abs(BootClock().now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1
    assert abs(BootClock().unix_time() - time.time()) < 1


@in_real_time
async def test_an_idle_interface_on_real_clocks_does_not_wake() -> None:
    tun, client_tun = MemoryTun(), MemoryTun()
    async with open_real_pair(tun, client_tun) as (gateway, client):
        await client_tun.send(packet(CLIENT, GATEWAY))
        await tun.receive()
        await trio.sleep(0.1)
        before = gateway.stats().timer_wakes, client.stats().timer_wakes
        await trio.sleep(1)
        assert (gateway.stats().timer_wakes, client.stats().timer_wakes) == before


# Cancellation

CANCELLATIONS = 10_000


def open_descriptors() -> dict[str, str]:
    """Number -> what it is, of every descriptor of this process.

    Without the files that the C library reads while it looks up a name: that happens in a thread, which cannot be
    interrupted, so a look-up that was abandoned may go on for a moment.
    """
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the one that listed them
        if not target.startswith("/etc/"):
            found[number] = target
    return found


def assert_nothing_left(before: dict[str, str], when: str) -> None:
    # For sockets of such a look-up.
    deadline = time.monotonic() + 10
    while (now := open_descriptors()).keys() != before.keys():
        assert time.monotonic() < deadline, f"{when}: {now} instead of {before}"
        time.sleep(0.001)


async def everything() -> None:
    """Opens what can be opened without root, and uses it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tun = MemoryTun()
    with ours, theirs:
        async with open_interface(gateway_config(listen_port=0), tun=tun) as gateway:
            config = client_config(("127.0.0.1", gateway.listen_port), persistent_keepalive=25.0)
            async with open_interface(config, tun=ours.fileno()) as client:
                events = client.events()
                theirs.send(packet(CLIENT, GATEWAY))
                assert (await anext(events)).event == HandshakeStarted()
                await tun.receive()
                other = PeerConfig(
                    public_key=PrivateKey.generate().public_key(),
                    allowed_ips=(ip_network("10.9.0.0/16"),),
                    endpoint=("localhost", 9),
                )
                await client.apply(client_config(config.peers[0].endpoint))
                await gateway.apply(gateway_config(listen_port=0, peers=(*gateway_config().peers, other)))
                await tun.send(packet(GATEWAY, CLIENT))
                await anyio.wait_readable(theirs)
                assert theirs.recv(2000) == packet(GATEWAY, CLIENT)


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task, that is, at the n-th await."""

    def __init__(self, step: int) -> None:
        self.steps_left = step
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            self.scope.cancel()


def cancelled_at(step: int, function: Callable[[], Awaitable[None]]) -> bool:
    """Whether there was such a step."""
    instrument = CancelAt(step)

    async def main() -> None:
        with trio.fail_after(60), instrument.scope:
            await function()

    trio.run(main, instruments=[instrument])
    return instrument.scope.cancelled_caught


@linux_only
def test_cancellation_at_any_await_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    trio.run(everything)
    before = open_descriptors()
    step = cancelled = 0
    longest = 0
    while cancelled < CANCELLATIONS:
        step += 1
        if cancelled_at(step, everything):
            cancelled += 1
            longest = max(longest, step)
        elif step > longest + 5:
            # The number of steps differs a little from run to run.
            step = 0
        assert_nothing_left(before, f"cancelled at step {step}")
    assert longest > 30
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@linux_only
def test_cancellation_at_any_time_leaves_nothing_on_asyncio() -> None:
    async def main(delay: float) -> None:
        with anyio.move_on_after(delay):
            await everything()

    anyio.run(functools.partial(main, 10.0), backend="asyncio")
    before = open_descriptors()
    for tenth_of_ms in range(0, 200, 2):
        anyio.run(functools.partial(main, tenth_of_ms / 10_000), backend="asyncio")
        assert_nothing_left(before, f"cancelled after {tenth_of_ms / 10} ms")
