"""Interfaces with a thread that moves packets (`InterfaceConfig.worker`)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import anyio
import pytest
import trio

from connlib import DeviceError, InterfaceConfig, PeerConfig, PrivateKey
from connlib._mover import PumpMover, WorkerMover
from connlib.clock import BootClock
from connlib.driver import open_interface
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
from helpers_worker import expect_threads, threads

pytestmark = [
    pytest.mark.offloads,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]


@contextlib.contextmanager
def devices() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """Two devices, and the applications behind them."""
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        for each in (*pairs[0], *pairs[1]):
            stack.enter_context(each)
        for _, application in pairs:
            application.settimeout(10)
        yield (*pairs[0], *pairs[1])


async def exchanged(client: socket.socket, gateway: socket.socket, content: bytes) -> None:
    """A packet each way, while the event loop does other things."""
    there, back = packet(CLIENT, GATEWAY, content), packet(GATEWAY, CLIENT, content)
    client.send(there)
    assert await anyio.to_thread.run_sync(gateway.recv, 2000) == there
    gateway.send(back)
    assert await anyio.to_thread.run_sync(client.recv, 2000) == back


def without(config: InterfaceConfig) -> InterfaceConfig:
    return replace(config, worker=False)


@in_real_time
async def test_a_busy_event_loop_holds_no_packet_up() -> None:
    with (
        devices() as (device, client_app, other, gateway_app),
        loopback_socket() as a,
        loopback_socket() as b,
    ):
        async with (
            open_interface(gateway_config(), tun=other.fileno(), udp=b),
            open_interface(client_config(b.getsockname()), tun=device.fileno(), udp=a) as client,
        ):
            await exchanged(client_app, gateway_app, b"first")
            for number in range(50):
                there = packet(CLIENT, GATEWAY, number.to_bytes(4, "big"))
                client_app.send(there)
                # The whole event loop waits here.
                assert gateway_app.recv(2000) == there
            assert client.stats().tun["packets_read"] == 51


@in_real_time
async def test_events_and_counters_are_those_of_an_interface_without_a_thread() -> None:
    seen: list[list[str]] = []
    for change in (lambda config: config, without):
        with (
            devices() as (device, client_app, other, gateway_app),
            loopback_socket() as a,
            loopback_socket() as b,
        ):
            async with (
                open_interface(change(gateway_config()), tun=other.fileno(), udp=b),
                open_interface(change(client_config(b.getsockname())), tun=device.fileno(), udp=a) as client,
            ):
                events = client.events()
                await exchanged(client_app, gateway_app, b"one")
                names = [type((await anext(events)).event).__name__ for _ in range(2)]
                stats = client.stats()
                assert (stats.tun["packets_read"], stats.tun["packets_written"]) == (1, 1)
                seen.append(names)
    assert seen[0] == seen[1]


@in_real_time
async def test_it_can_be_switched_while_packets_move_and_counts_go_on() -> None:
    with (
        devices() as (device, client_app, other, gateway_app),
        loopback_socket() as a,
        loopback_socket() as b,
    ):
        async with (
            open_interface(without(gateway_config()), tun=other.fileno(), udp=b),
            open_interface(client_config(b.getsockname()), tun=device.fileno(), udp=a) as client,
        ):
            await exchanged(client_app, gateway_app, b"first")
            expect_threads(1)
            for number, worker in enumerate((False, True, False, True)):
                diff = await client.apply(replace(client.config, worker=worker))
                assert diff.node == ("worker",)
                await exchanged(client_app, gateway_app, number.to_bytes(4, "big"))
                await has_threads(int(worker))
            stats = client.stats()
            (peer,) = stats.peers
            assert peer.tunnel.initiations_sent == 1, "the session went on"
            assert stats.tun["packets_read"] == 5
    expect_threads(0)


async def has_threads(count: int) -> None:
    with trio.fail_after(10):
        while len(threads()) != count:
            await trio.sleep(0.001)


@in_real_time
async def test_an_interface_that_is_closed_or_cancelled_leaves_no_thread() -> None:
    with devices() as (device, *_), loopback_socket() as udp:
        config = gateway_config()
        async with open_interface(config, tun=device.fileno(), udp=udp) as interface:
            await has_threads(1)
        expect_threads(0)
        assert interface.stats().timer_wakes == 0
        with trio.move_on_after(10) as scope:
            async with open_interface(config, tun=device.fileno(), udp=udp):
                await has_threads(1)
                scope.cancel()
                await trio.sleep_forever()
        expect_threads(0)


@in_real_time
async def test_commands_are_carried_out_by_the_thread_at_once() -> None:
    with devices() as (device, *_), loopback_socket() as a, loopback_socket() as b:
        async with open_interface(client_config(b.getsockname()), tun=device.fileno(), udp=a) as client:
            await has_threads(1)
            (peer,) = client.config.peers
            client.initiate_handshake(peer.public_key)
            await anyio.wait_readable(b)
            assert len(b.recv(2000)) == 148


@in_real_time
async def test_a_clock_of_the_callers_is_kept_by_the_event_loop() -> None:
    class Own(BootClock):
        pass

    with devices() as (device, *_), loopback_socket() as udp:
        async with open_interface(gateway_config(), tun=device.fileno(), udp=udp, clock=Own()) as interface:
            assert isinstance(interface._mover, PumpMover)
            expect_threads(0)


@in_real_time
async def test_nothing_moves_before_who_has_opened_the_interface_waits_for_something() -> None:
    """It may have a recording begin, or a log of flows, which is to miss nothing."""
    with devices() as (device, app, *_), loopback_socket() as theirs:
        app.send(packet(CLIENT, GATEWAY))
        config = client_config(theirs.getsockname(), persistent_keepalive=25.0)
        async with open_interface(config, tun=device.fileno()) as client:
            expect_threads(1)
            assert not select.select([theirs], [], [], 0.05)[0]
            client.record(10)
            await anyio.wait_readable(theirs)
            inputs, missed = client.take_recorded()
            assert inputs and missed == 0
            assert client.stats().peers[0].tunnel.initiations_sent == 1


@in_real_time
async def test_changes_that_follow_each_other_leave_one_thread_or_none() -> None:
    for last in (False, True):
        with devices() as (device, client_app, other, gateway_app), loopback_socket() as b:
            async with (
                open_interface(without(gateway_config()), tun=other.fileno(), udp=b),
                open_interface(client_config(b.getsockname()), tun=device.fileno()) as client,
            ):
                await exchanged(client_app, gateway_app, b"first")
                # Without a moment for the tasks to begin, and with sockets that are replaced meanwhile.
                for worker in (False, True, False, True, False, last):
                    port = free_port()
                    await client.apply(replace(client.config, worker=worker, listen_port=port))
                    assert client.listen_port == port
                await has_threads(int(last))
                await exchanged(client_app, gateway_app, b"second")
                await client.apply(replace(client.config, worker=not last))
                await client.apply(replace(client.config, worker=last))
                await has_threads(int(last))
                await exchanged(client_app, gateway_app, b"third")
        expect_threads(0)


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


@in_real_time
async def test_after_another_port_nothing_is_sent_from_the_old_one() -> None:
    with devices() as (device, app, *_), loopback_socket() as theirs:
        async with open_interface(client_config(theirs.getsockname()), tun=device.fileno()) as client:
            await client.apply(replace(client.config, listen_port=free_port()))
            # The event loop has had no turn yet.
            app.send(packet(CLIENT, GATEWAY))
            assert select.select([theirs], [], [], 10)[0] == [theirs]
            _, (_, port) = theirs.recvfrom(2000)
            assert port == client.listen_port


@in_real_time
async def test_a_thread_that_cannot_be_had_leaves_everything_as_it_was() -> None:
    import resource

    with (
        devices() as (device, client_app, other, gateway_app),
        loopback_socket() as a,
        loopback_socket() as b,
    ):
        async with (
            open_interface(without(gateway_config()), tun=other.fileno(), udp=b),
            open_interface(without(client_config(b.getsockname())), tun=device.fileno(), udp=a) as client,
        ):
            await exchanged(client_app, gateway_app, b"first")
            before = client.config
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = max(map(int, os.listdir("/proc/self/fd")))
            with contextlib.ExitStack() as stack:
                # The numbers below the limit are all taken.
                while (fd := os.dup(0)) <= used:
                    stack.callback(os.close, fd)
                os.close(fd)
                stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limits[1]))
                with pytest.raises(DeviceError, match="Too many open files"):
                    await client.apply(replace(before, worker=True))
            assert client.config is before
            await exchanged(client_app, gateway_app, b"second")
    expect_threads(0)


@in_real_time
async def test_a_peer_that_is_made_anew_is_never_missing() -> None:
    """Its packets would go to who has the wider prefix."""
    wide, narrow = PrivateKey.generate().public_key(), PrivateKey.generate().public_key()
    with (
        devices() as (device, app, *_),
        loopback_socket() as a,
        loopback_socket() as b,
        loopback_socket() as own,
    ):
        peers = (
            PeerConfig(public_key=wide, allowed_ips=(ip_network("10.0.0.0/8"),), endpoint=a.getsockname()),
            PeerConfig(
                public_key=narrow, allowed_ips=(ip_network(f"{GATEWAY}/32"),), endpoint=b.getsockname()
            ),
        )
        config = InterfaceConfig(private_key=PrivateKey.generate(), peers=peers)
        async with open_interface(config, tun=device.fileno(), udp=own) as interface:
            ends = threading.Event()

            def send() -> None:
                while not ends.is_set():
                    app.send(packet(CLIENT, GATEWAY))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, send)
                try:
                    while interface.stats().tun["packets_read"] < 100:
                        await trio.sleep(0.001)
                    for _ in range(300):
                        diff = await interface.apply(config, anew=[narrow])
                        assert diff.removed == diff.added == (narrow,)
                finally:
                    ends.set()
            assert interface.stats().tun["packets_read"] > 200
            stats = {each.public_key: each.tunnel for each in interface.stats().peers}
            assert stats[wide].initiations_sent == stats[wide].queued == 0 and not stats[wide].drops


@in_namespace
@in_real_time
async def test_a_device_that_is_down_wakes_nobody_again_and_again() -> None:
    fd, name = make_device(None, headers=True)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        ip("link", "set", "lo", "up")
        ip("link", "set", name, "up")
        device, app = (
            stack.enter_context(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        b = stack.enter_context(loopback_socket())
        async with (
            open_interface(gateway_config(), tun=fd, udp=b) as gateway,
            open_interface(client_config(b.getsockname()), tun=device.fileno()),
        ):
            app.send(packet(CLIENT, GATEWAY, b"up"))
            with trio.fail_after(10):
                while not gateway.stats().tun["packets_written"]:
                    await trio.sleep(0.001)
                ip("link", "set", name, "down")
                app.send(packet(CLIENT, GATEWAY, b"down"))
                while not gateway.stats().tun.get("EIO"):
                    await trio.sleep(0.001)
            mover = gateway._mover
            assert isinstance(mover, WorkerMover)
            turns = 0
            with trio.fail_after(10):
                while turns != (turns := mover._worker._worker.turns):
                    await trio.sleep(0.02)
            assert turns < 100


run_body(globals())
