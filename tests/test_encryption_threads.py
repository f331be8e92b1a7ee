"""Several threads that seal and open packets together: `threads` of a `NodeConfig`."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

import connlib.cli.bench
from connlib import ConfigDiff, Node, NodeConfig, PeerConfig
from connlib._native import Encryption, LabNode
from helpers_encryption import need
from helpers_worker import expect_threads, output_of
from test_native_io import Machine
from test_worker import CLOCK, worker
from two_tunnels import ALICE, BOB, START, UNIX_TIME, ipv4

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at threads as Linux shows them")
TEAM = "connlib-team"


def config(threads: int = 1, encryption: str = "ring") -> NodeConfig:
    return NodeConfig(private_key=ALICE, encryption=encryption, threads=threads)


def node(threads: int = 1, encryption: str = "ring") -> Node:
    return Node(config(threads, encryption), now=START, unix_time=UNIX_TIME)


def test_a_node_has_as_many_threads_as_are_wanted_less_its_callers_while_it_lives() -> None:
    expect_threads(0, TEAM)
    one = node()
    expect_threads(0, TEAM)
    three = node(3)
    expect_threads(2, TEAM)
    assert three.encryption == one.encryption == ("ring", "it was asked for")
    del three
    expect_threads(0, TEAM)


def test_another_count_of_threads_is_applied() -> None:
    need("ipsec-mb")
    alice = node()
    for threads, encryption, changed in (
        (3, "ring", ("threads",)),
        (3, "ring", ()),
        (2, "ipsec-mb", ("encryption", "threads")),
        (2, "ring", ("encryption",)),
        (1, "ring", ("threads",)),
    ):
        assert alice.apply(config(threads, encryption), START) == ConfigDiff(node=changed)
        assert alice.encryption[0] == encryption
        expect_threads(threads - 1, TEAM)


def test_a_count_that_makes_no_sense_is_refused() -> None:
    alice = node()
    for threads in (0, 65, -1, 2**64):
        with pytest.raises(ValueError, match="threads must be 1 to 64"):
            node(threads)
        with pytest.raises(ValueError, match="threads must be 1 to 64"):
            alice.apply(config(threads), START)
        with pytest.raises(ValueError, match="threads must be 1 to 64"):
            Encryption("ring", threads)
    for none in (None, "2", 2.0):
        with pytest.raises(TypeError, match="threads must be an integer"):
            Node(replace(config(), threads=none), now=START, unix_time=UNIX_TIME)  # type: ignore[arg-type]
    assert alice.apply(config(), START) == ConfigDiff()


def capabilities(thread: Path) -> list[str]:
    """CapInh, CapPrm, CapEff, CapBnd and CapAmb."""
    return [line for line in (thread / "status").read_text().splitlines() if line.startswith("Cap")]


def test_they_give_up_their_capabilities_when_they_are_told_to() -> None:
    alice = node(3)
    found = expect_threads(2, TEAM)
    before = capabilities(Path("/proc/thread-self"))
    alice.give_up_rights()
    for thread in found:
        assert {line.split()[1] for line in capabilities(thread)[:3]} == {"0" * 16}
    assert capabilities(Path("/proc/thread-self")) == before
    node().give_up_rights()  # who has none


def test_the_laboratory_has_one_thread_whatever_is_asked_for() -> None:
    lab = LabNode(config(4), now=START, unix_time=UNIX_TIME, seed=1)
    expect_threads(0, TEAM)
    assert lab.apply(config(5), START) == ConfigDiff()
    expect_threads(0, TEAM)


def test_signals_leave_the_threads_alone() -> None:
    alice = node(4)
    for thread in expect_threads(3, TEAM):
        status = (thread / "status").read_text()
        (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
        # All but SIGKILL and SIGSTOP, which cannot be, and the two that the C library keeps for itself.
        assert int(blocked, 16) | 1 << 8 | 1 << 18 | 1 << 31 | 1 << 32 == 2**64 - 1
    own = Path("/proc/thread-self/status").read_text()
    assert "SigBlk:\t0000000000000000" in own, "as before"
    del alice


def test_the_thread_that_moves_packets_shares_them_with_others() -> None:
    with contextlib.ExitStack() as stack:
        machines: list[Machine] = []
        for own, other, inner in ((BOB, ALICE, "10.0.0.1/32"), (ALICE, BOB, "10.0.0.2/32")):
            machine = Machine(own, other, inner)
            stack.callback(machine.close)
            endpoint = machines[0].socket.getsockname() if machines else None
            peer = PeerConfig(
                public_key=other.public_key(), allowed_ips=(ip_network(inner),), endpoint=endpoint
            )
            wanted = NodeConfig(private_key=own, peers=(peer,), encryption="ring", threads=3)
            machine.node = Node(wanted, now=CLOCK.now(), unix_time=CLOCK.unix_time())
            machine.application.settimeout(10)
            machines.append(machine)
        bob, alice = machines
        expect_threads(4, TEAM)
        for each in machines:
            stack.enter_context(contextlib.closing(worker(each)))
        # Few and large ones: sockets take no more at once.
        packets = [ipv4(bytes([n]) * 8000) for n in range(20)]
        for _ in range(5):
            for packet in packets:
                alice.application.send(packet)
            assert [bob.application.recv(10_000) for _ in packets] == packets


def test_without_threads_one_does_all_and_says_so() -> None:
    """Where the system has no memory for another thread's stack."""
    output = output_of(
        """
        import resource
        from test_encryption_threads import *

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, most))
        alice = node(64)
        alone = Encryption("ring", 64)
        expect_threads(0, TEAM)
        print(*alice.encryption)
        print(alone.threads, min(alone.measure(64, 0.0)) > 0)
        print(alice.apply(config(64), START).node)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        print(alice.apply(config(2), START).node)
        expect_threads(1, TEAM)
        print(alice.encryption[1])
        """
    )
    assert output.splitlines() == [
        "ring it was asked for; the system has no more threads for it",
        "1 True",
        "()",
        "('threads',)",
        "it was asked for",
    ]


def test_a_child_process_has_none_of_the_threads_cannot_use_them_and_ends_without_them() -> None:
    """Also if it begins while they are about to sleep, and hold locks: nothing in the child waits for these."""
    output = output_of(
        """
        import os
        from connlib import ForkedError
        from test_encryption_threads import *

        refused = 0
        for _ in range(300):
            team, alice = Encryption("ring", 4), node(3)
            team.measure(1420, 0.0)
            child = os.fork()
            if child == 0:
                expect_threads(0, TEAM)
                for call in (
                    lambda: team.measure(1420, 0.0),
                    lambda: team.threads,
                    lambda: alice.encryption,
                    lambda: alice.apply(config(5), START),
                ):
                    try:
                        call()
                    except ForkedError:
                        refused += 1
                del team, alice, call
                own = Encryption("ring", 3)
                own.measure(1420, 0.0)
                os._exit(refused)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
            team.measure(1420, 0.0)
        print("done")
        """
    )
    assert output == "done\n"


# connlib bench


@pytest.mark.parametrize(
    ("processors", "teams"),
    [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 8]), (64, [2, 8])],
    ids=lambda value: str(value),
)
def test_bench_measures_two_threads_and_as_many_as_there_are_processors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, processors: int, teams: list[int]
) -> None:
    monkeypatch.setattr(connlib.cli.bench, "_processors", lambda: processors)
    connlib.cli.bench.run(seconds=0.0, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert list(found["threads"]) == list(map(str, teams))
    for times in found["threads"].values():
        assert list(times) == list(found["nanoseconds"]["ring"])
        assert all(set(each) == {"seal", "open"} and min(each.values()) > 0 for each in times.values())
    connlib.cli.bench.run(seconds=0.0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    titles = [title for count in teams for title in (f"{count} threads seal", "open", "gain")]
    head = "".join(["bytes", *(f"{title:>15}" for title in titles)])
    if not teams:
        assert not any("threads" in line for line in lines)
        return
    rows = [line.split() for line in lines[lines.index(head) + 1 :][:4]]
    assert [row[0] for row in rows] == ["64", "576", "1420", "8920"]
    assert all(
        len(row) == 1 + 3 * len(teams) and row[3][-1] == "x" and float(row[3][:-1]) > 0 for row in rows
    )


def test_bench_says_how_many_times_as_fast_several_threads_are() -> None:
    def times(seal: float, opened: float) -> dict[int, connlib.cli.bench.Times]:
        return {size: {"seal": seal, "open": opened} for size in connlib.cli.bench.SIZES}

    lines = connlib.cli.bench._lines(
        {
            "encryption": "ring",
            "why": "of a test",
            "nanoseconds": {"ring": times(900, 1100)},
            "threads": {2: times(600, 650), 4: times(200, 300)},
            "missing": {},
        }
    )
    assert lines[-1].split() == ["8920", "600", "650", "1.60x", "200", "300", "4.00x"]


def test_bench_says_that_there_are_no_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(name: str = "auto", threads: int = 1) -> Encryption:
        return Encryption("ring")

    monkeypatch.setattr(connlib.cli.bench, "_processors", lambda: 2)
    monkeypatch.setattr(connlib.cli.bench, "Encryption", alone)
    connlib.cli.bench.run(seconds=0.0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "not measured: 2 threads: it was asked for"
    assert not any("several" in line for line in lines)
