"""A thread that moves packets: `connlib._native.Worker`, and interfaces with one (`InterfaceConfig.worker`)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import anyio
import pytest
import trio

from connlib import ClosedError, DeviceError, InterfaceConfig, Node, NodeConfig, PeerConfig, PrivateKey
from connlib._mover import PumpMover, WorkerMover
from connlib._native import LabNode, Worker
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
from helpers_memory import keys_in, memory_of
from helpers_netns import in_namespace, ip, run_body
from test_native_io import Machine
from two_tunnels import ALICE, BOB, START, UNIX_TIME, ipv4

pytestmark = [
    pytest.mark.offloads,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
BACK = {"source": "10.0.0.2", "destination": "10.0.0.1"}
CLOCK = BootClock()


def node(own: object, other: object, allowed: str, **changes: object) -> Node:
    """One that knows the system's time, as that of an interface."""
    peer = PeerConfig(public_key=other.public_key(), allowed_ips=(ip_network(allowed),), **changes)  # type: ignore[attr-defined,arg-type]
    config = NodeConfig(private_key=own, peers=(peer,))  # type: ignore[arg-type]
    return Node(config, now=CLOCK.now(), unix_time=CLOCK.unix_time())


def worker(machine: Machine, unix_epoch: float | None = None) -> Worker:
    if unix_epoch is None:
        unix_epoch = CLOCK.unix_time() - CLOCK.now()
    made = Worker(machine.tun, machine.udp, machine.node, unix_epoch)
    made.wake()
    return made


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Alice, who knows where Bob is, and Bob."""
    with contextlib.ExitStack() as stack:
        bob = Machine(BOB, ALICE, "10.0.0.1/32")
        stack.callback(bob.close)
        bob.node = node(BOB, ALICE, "10.0.0.1/32")
        alice = Machine(ALICE, BOB, "10.0.0.2/32")
        stack.callback(alice.close)
        alice.node = node(ALICE, BOB, "10.0.0.2/32", endpoint=bob.socket.getsockname())
        for each in (alice, bob):
            each.application.settimeout(10)
        yield alice, bob


def readable(one: socket.socket | Worker, seconds: float = 10) -> bool:
    return bool(select.select([one], [], [], seconds)[0])


def threads() -> list[Path]:
    """The threads of this process that move packets."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (task / "comm").read_text().strip() == "connlib":
                found.append(task)
    return found


def expect_threads(count: int) -> list[Path]:
    """One gives itself its name when it begins, and one that was joined may be listed for another moment."""
    end = time.monotonic() + 10
    while len(found := threads()) != count:
        assert time.monotonic() < end, found
    return found


def at_rest(end: Worker) -> None:
    """Until its first turn is over, and it waits."""
    limit = time.monotonic() + 10
    while end.turns == 0 or any("\nState:\tS" not in (each / "status").read_text() for each in threads()):
        assert time.monotonic() < limit


def test_packets_go_both_ways_while_python_does_nothing(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    with contextlib.closing(worker(alice)), contextlib.closing(worker(bob)):
        for number in range(100):
            there = ipv4(number.to_bytes(4, "big"))
            alice.application.send(there)
            assert bob.application.recv(2000) == there
            back = ipv4(number.to_bytes(4, "big"), **BACK)
            bob.application.send(back)
            assert alice.application.recv(2000) == back


def test_it_says_once_that_there_is_something_and_again_when_there_is_more(
    machines: tuple[Machine, Machine],
) -> None:
    alice, bob = machines
    with contextlib.closing(worker(alice)) as end:
        assert not readable(end, 0)
        alice.application.send(ipv4())
        assert readable(bob.socket) and readable(end), "a handshake has started"
        end.take()
        assert [event.event for event in alice.node.take_events()]
        # A turn for nothing: there is no news, and the first ones were taken.
        before = end.turns
        end.wake()
        while end.turns == before:
            assert not readable(end, 0)
        with contextlib.closing(worker(bob)):
            assert readable(end), "the session is there"
        end.take()
        assert [event.event for event in alice.node.take_events()]


def test_what_the_node_puts_out_when_python_calls_it_is_sent_on_demand(
    machines: tuple[Machine, Machine],
) -> None:
    alice, bob = machines
    with contextlib.closing(worker(alice)) as end:
        at_rest(end)
        alice.node.initiate_handshake(BOB.public_key(), CLOCK.now())
        assert alice.node.pending()[0] == 1
        end.wake()
        assert readable(bob.socket) and len(bob.socket.recv(2000)) == 148
        assert alice.node.pending()[0] == 0


def test_events_are_taken_and_datagrams_left_to_who_moves_them(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    alice.node.initiate_handshake(BOB.public_key(), CLOCK.now())
    assert alice.node.pending()[0] == 1
    assert [peer for peer, _ in alice.node.take_events()] == [BOB.public_key()]
    assert alice.node.pending() == (1, 0, 0)


def test_it_meets_the_deadlines_of_the_node(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    # A keepalive is due at once, and asks for a session.
    at = bob.socket.getsockname()
    alice.node = node(ALICE, BOB, "10.0.0.2/32", endpoint=at, persistent_keepalive=25.0)
    deadline = alice.node.next_timeout()
    assert deadline is not None and deadline.at <= CLOCK.now()
    with contextlib.closing(worker(alice)) as end:
        assert readable(bob.socket) and len(bob.socket.recv(2000)) == 148
        assert end.timer_wakes == 1
        retry = alice.node.next_timeout()
        assert retry is not None and retry.at > CLOCK.now()
    assert end.timer_wakes == 1, "also when it was closed"


def test_a_wall_clock_that_was_set_is_noticed_before_the_next_handshake(
    machines: tuple[Machine, Machine],
) -> None:
    alice, bob = machines
    wrong = 1_000_000.0
    peer = PeerConfig(
        public_key=BOB.public_key(),
        allowed_ips=(ip_network("10.0.0.2/32"),),
        endpoint=bob.socket.getsockname(),
    )
    alice.node = Node(NodeConfig(private_key=ALICE, peers=(peer,)), now=CLOCK.now(), unix_time=wrong)
    with contextlib.closing(worker(alice, wrong - CLOCK.now())) as end:
        assert readable(end)
        end.take()
        before = time.time()
        alice.application.send(ipv4())
        assert readable(bob.socket)
    _, sent = alice.node.timestamps()
    # TAI64N: eight bytes of seconds, from 2^62 on.
    seconds = int.from_bytes(next(iter(sent.values()))[:8], "big") - 2**62
    assert before - 60 < seconds < time.time() + 60


def test_closing_it_ends_the_thread_and_so_does_forgetting_it(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    expect_threads(0)
    end = worker(alice)
    expect_threads(1)
    end.close()
    expect_threads(0)
    for call in (end.wake, end.take, end.fileno):
        with pytest.raises(ClosedError):
            call()
    end.close()
    end = worker(alice)
    expect_threads(1)
    del end
    expect_threads(0)


def test_it_does_nothing_before_the_first_call_and_nothing_more_when_it_was_stopped(
    machines: tuple[Machine, Machine],
) -> None:
    alice, bob = machines
    with contextlib.closing(Worker(alice.tun, alice.udp, alice.node, CLOCK.unix_time() - CLOCK.now())) as end:
        alice.application.send(ipv4())
        (thread,) = expect_threads(1)
        for _ in range(2):  # it waits, and looks now and then whether it was called
            assert end.turns == 0 and alice.tun.stats()["packets_read"] == 0
        end.wake()
        assert readable(bob.socket) and readable(end)
        end.stop()
        expect_threads(0)
        assert not thread.exists()
        turns = end.turns
        end.take()
        end.wake()
        assert end.turns == turns
        end.stop()
    end.stop()


def test_forgetting_it_while_others_wait_for_its_ends_is_safe(machines: tuple[Machine, Machine]) -> None:
    """Whoever waits for a lock does not have the interpreter's, and the other way round."""
    alice, _ = machines
    ends = threading.Event()

    def look() -> None:
        while not ends.is_set():
            alice.tun.stats()
            alice.udp.stats()
            alice.node.next_timeout()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for each in lookers:
        each.start()
    try:
        for _ in range(200):
            end = worker(alice)
            del end
    finally:
        ends.set()
        for each in lookers:
            each.join(10)
    expect_threads(0)


def test_an_end_that_is_closed_under_it_ends_it_and_it_says_why(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    with contextlib.closing(worker(alice)) as end:
        alice.tun.close()
        end.wake()
        assert readable(end)
        with pytest.raises(ClosedError):
            end.take()
        expect_threads(0)


def test_a_node_with_predictable_keys_and_closed_ends_are_refused(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    lab = LabNode(NodeConfig(private_key=ALICE), now=START, unix_time=UNIX_TIME, seed=1)
    with pytest.raises(TypeError, match="LabNode"):
        Worker(alice.tun, alice.udp, lab, 0.0)
    alice.udp.close()
    with pytest.raises(ClosedError):
        worker(alice)
    expect_threads(0)


def test_signals_leave_the_thread_alone(machines: tuple[Machine, Machine]) -> None:
    alice, _ = machines
    with contextlib.closing(worker(alice)):
        (thread,) = expect_threads(1)
        status = (thread / "status").read_text()
        (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
        # All but SIGKILL and SIGSTOP, which cannot be, and the two that the C library keeps for itself.
        assert int(blocked, 16) | 1 << 8 | 1 << 18 | 1 << 31 | 1 << 32 == 2**64 - 1
    own = Path("/proc/thread-self/status").read_text()
    assert "SigBlk:\t0000000000000000" in own, "as before"


def test_it_has_no_capabilities(machines: tuple[Machine, Machine]) -> None:
    """Those of the process it would keep when that gives them up: each thread has its own."""
    alice, _ = machines
    with contextlib.closing(worker(alice)) as end:
        at_rest(end)
        (thread,) = expect_threads(1)
        status = (thread / "status").read_text()
        for line in ("CapInh", "CapPrm", "CapEff"):
            assert f"{line}:\t0000000000000000" in status


def test_a_child_process_cannot_use_it_and_ends_without_it() -> None:
    script = """
        import os, socket, sys
        from connlib import ForkedError
        from test_worker import *

        bob = Machine(BOB, ALICE, "10.0.0.1/32")
        bob.node = node(BOB, ALICE, "10.0.0.1/32")
        alice = Machine(ALICE, BOB, "10.0.0.2/32")
        alice.node = node(ALICE, BOB, "10.0.0.2/32", endpoint=bob.socket.getsockname())
        ends = worker(alice), worker(bob)
        child = os.fork()
        if child == 0:
            for call in (ends[0].wake, ends[0].take, ends[0].fileno, ends[0].close):
                try:
                    call()
                except ForkedError:
                    print("refused")
            assert threads() == []
            del ends, alice, bob
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        for each in (alice, bob):
            each.application.settimeout(10)
        alice.application.send(ipv4(b"still"))
        assert bob.application.recv(2000) == ipv4(b"still")
        print("moves")
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 4 + ["moves"]


def test_no_key_of_a_session_is_left_on_the_stack_of_a_thread_that_made_it() -> None:
    script = """
        import sys
        from test_worker import *

        def say(word):
            print(word, flush=True)
            sys.stdin.readline()

        bob = Machine(BOB, ALICE, "10.0.0.1/32")
        bob.node = node(BOB, ALICE, "10.0.0.1/32")
        alice = Machine(ALICE, BOB, "10.0.0.2/32")
        alice.node = node(ALICE, BOB, "10.0.0.2/32", endpoint=bob.socket.getsockname())
        ends = worker(alice), worker(bob)
        for each in (alice, bob):
            each.application.settimeout(10)
        alice.application.send(ipv4(b"first"))
        bob.application.recv(2000)
        alice.node.capture(1 << 20)
        bob.node.capture(1 << 20)
        for sender, receiver, packet in ((alice, bob, ipv4(b"x")), (bob, alice, ipv4(b"x", **BACK))):
            sender.application.send(packet)
            assert receiver.application.recv(2000) == packet
            (captured, *_), _, _ = sender.node.take_captured(1 << 20)
            print(captured.data.hex())
            receiver.node.take_captured(1 << 20)
        say("made")
        for each, own in ((alice, ALICE), (bob, BOB)):
            each.node.apply(NodeConfig(private_key=own), CLOCK.now())
        say("removed")
        """
    starts = [ipv4(b"x"), ipv4(b"x", **BACK)]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        datagrams = [bytes.fromhex(child.stdout.readline()) for _ in range(2)]
        memories = []
        for state in ("made\n", "removed\n"):
            assert child.stdout.readline() == state
            memories.append(memory_of(child.pid))
            child.stdin.write("\n")
            child.stdin.flush()
    made, removed = memories
    found = [keys_in(made, datagram, start) for datagram, start in zip(datagrams, starts, strict=True)]
    keys = [key for each in found for key in each]
    assert len(keys) == 2
    assert all(made.count(key) >= 2 for key in keys)
    assert [removed.count(key) for key in keys] == [0, 0]


# --- Interfaces ------------------------------------------------------------------------------------------------------


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
