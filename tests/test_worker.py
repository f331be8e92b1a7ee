"""A thread that moves packets: `connlib._native.Worker`."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from connlib import ClosedError, Node, NodeConfig, PeerConfig
from connlib._native import LabNode, Worker
from connlib.clock import BootClock
from helpers_memory import require_no_key_left
from helpers_worker import expect_threads, output_of, threads
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


def test_it_gives_up_its_capabilities_when_it_is_told_to(machines: tuple[Machine, Machine]) -> None:
    """Those of the process it would keep when that gives them up: each thread has its own."""
    alice, _ = machines
    with contextlib.closing(worker(alice)) as end:
        at_rest(end)
        (thread,) = expect_threads(1)
        end.give_up()
        status = (thread / "status").read_text()
        for line in ("CapInh", "CapPrm", "CapEff"):
            assert f"{line}:\t0000000000000000" in status
        end.stop()
        end.give_up()  # there is nobody left


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
    assert output_of(script, 60).split() == ["refused"] * 4 + ["moves"]


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
    require_no_key_left(script, starts, "removed")


def test_what_python_causes_is_not_overtaken_by_what_comes_later(machines: tuple[Machine, Machine]) -> None:
    alice, bob = machines
    packet = ipv4()
    with contextlib.closing(worker(alice)):
        with contextlib.closing(worker(bob)):
            alice.application.send(packet)
            assert bob.application.recv(2000) == packet
        ends = threading.Event()
        counters: list[int] = []

        def keep_it_busy() -> None:
            while not ends.is_set():
                alice.application.send(packet)

        sender = threading.Thread(target=keep_it_busy)
        sender.start()
        try:
            while len(counters) < 5_000:
                alice.node.handle_packets(packet, [len(packet)], CLOCK.now())
                while readable(bob.socket, 0):
                    counters.append(int.from_bytes(bob.socket.recv(2000)[8:16], "little"))
        finally:
            ends.set()
            sender.join()
    assert counters == sorted(counters)
