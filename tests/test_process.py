"""Sessions do not survive `fork()` (fault 24), and keys do not survive the objects that held them (fault 26)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from base64 import b64decode
from pathlib import Path

import pytest

from helpers_encryption import need
from helpers_memory import chacha20, memory_of, require_no_key_left
from two_tunnels import ipv4

TESTS = Path(__file__).parent


def run(script: str) -> str:
    """Run a script in a process of its own, without threads, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_after_a_fork_the_child_can_use_no_object_of_its_parent() -> None:
    output = run(
        """
        import os, sys
        from connlib import *
        from connlib._native import LabNode, LabTunn, UpstreamTunn
        from two_tunnels import *

        alice, bob = connected()
        node = Node(NodeConfig(private_key=ALICE, peers=()), now=START, unix_time=UNIX_TIME)
        lab = LabTunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME, seed=1)
        upstream = UpstreamTunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME)
        table, limiter = IndexTable(), RateLimiter(ALICE.public_key(), 1, START)
        calls = [
            lambda: alice.encapsulate(ipv4(), START),
            lambda: alice.encapsulate(b"", START),
            lambda: alice.decapsulate(b"", START),
            lambda: alice.encapsulate_batch(ipv4(), [20], START),
            lambda: alice.decapsulate_batch(b"", [], START),
            lambda: alice.handle_timeout(START),
            lambda: alice.initiate_handshake(START),
            lambda: alice.next_timeout(),
            lambda: alice.stats(START),
            lambda: alice.set_persistent_keepalive(25, START),
            lambda: alice.set_preshared_key(None, START),
            lambda: alice.set_unix_time(0, START),
            lambda: lab.encapsulate(ipv4(), START),
            lambda: upstream.encapsulate(ipv4(), START),
            lambda: node.handle_packets(ipv4(), [20], START),
            lambda: node.handle_datagrams(b"", [], [], START),
            lambda: node.handle_timeout(START),
            lambda: node.apply(NodeConfig(private_key=ALICE), START),
            lambda: node.drain(),
            lambda: node.stats(START),
            lambda: node.pending(),
            lambda: node.capture(1),
            lambda: node.take_captured(1),
            lambda: node.log_keys(True),
            lambda: node.take_key_log(),
            lambda: len(table),
            lambda: tunnel(indices=table),
            lambda: tunnel(rate_limiter=limiter),
        ]
        if os.fork() == 0:
            refused = 0
            for call in calls:
                try:
                    call()
                except ForkedError as error:
                    assert "fork()" in str(error) and chr(10) not in str(error)
                    refused += 1
            # Keys have no state that could be repeated, and new objects are the child's own.
            assert ALICE.public_key() == ALICE.public_key()
            one, two = connected()
            assert two.decapsulate(only(one.encapsulate(ipv4(), START).datagrams), START).packets == [ipv4()]
            print("refused", refused, "of", len(calls), flush=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        # The parent goes on.
        assert bob.decapsulate(only(alice.encapsulate(ipv4(), START).datagrams), START).packets == [ipv4()]
        print("parent ok")
        """
    )
    assert output.split("\n")[:2] == ["refused 28 of 28", "parent ok"]


def test_a_thousand_forks_repeat_no_nonce() -> None:
    """Each child tries to send on its parent's session, and is refused: 0 repeated pairs of key and counter."""
    output = run(
        """
        import os
        from connlib import ForkedError
        from two_tunnels import *

        alice, bob = connected()
        sealed, read = [], []
        for n in range(1000):
            out, into = os.pipe()
            if os.fork() == 0:
                try:
                    os.write(into, only(alice.encapsulate(ipv4(), START).datagrams)[:16])
                except ForkedError:
                    pass
                os._exit(0)
            os.close(into)
            read.append(os.read(out, 100))
            os.close(out)
            os.wait()
            sealed.append(only(alice.encapsulate(ipv4(), START).datagrams)[:16])
        assert not any(read)
        print(len(set(sealed)))
        """
    )
    assert output == "1000\n"


def test_a_grandchild_is_refused_too_and_a_child_of_multiprocessing() -> None:
    output = run(
        """
        import multiprocessing, os
        from connlib import ForkedError
        from two_tunnels import *

        alice, _ = connected()

        def work():
            try:
                alice.stats(START)
            except ForkedError:
                print("refused", flush=True)

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        if os.fork() == 0:
            if os.fork() == 0:
                work()
                os._exit(0)
            os.wait()
            own = tunnel()
            if os.fork() == 0:
                alice = own
                work()
                os._exit(0)
            os.wait()
            os._exit(0)
        os.wait()
        """
    )
    assert output == "refused\n" * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
def test_no_key_is_left_in_memory_after_its_objects_are_gone() -> None:
    """Another process looks for the bytes, which never were in Python: only their base64 was."""
    script = """
        import gc, sys
        from connlib import *

        def work():
            own = PrivateKey.from_base64("QUJD" * 10 + "QUE=")
            shared = PresharedKey.from_base64("eHl6" * 10 + "eHg=")
            peer = PrivateKey.from_bytes(bytes([2] * 32)).public_key()
            tunn = Tunn(own, peer, now=0, unix_time=0, preshared_key=shared)
            tunn.initiate_handshake(0)
            config = NodeConfig(private_key=own, peers=(PeerConfig(public_key=peer, preshared_key=shared),))
            node = Node(config, now=0, unix_time=0)
            print("made", flush=True)
            sys.stdin.readline()

        work()
        gc.collect()
        print("gone", flush=True)
        sys.stdin.readline()
        """
    # The keys are XORed here, so that a parent's memory that a child inherits could not be what is found.
    own, shared = (re.compile(re.escape(piece)) for piece in (b"ABC" * 10 + b"AA", b"xyz" * 10 + b"xx"))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        counts = []
        for state in ("made\n", "gone\n"):
            assert child.stdout.readline() == state
            memory = memory_of(child.pid)
            counts.append((len(own.findall(memory)), len(shared.findall(memory))))
            child.stdin.write("\n")
            child.stdin.flush()
    made, gone = counts
    assert made[0] > 0 and made[1] > 0
    assert gone == (0, 0)


def test_the_keystream_of_the_test_is_that_of_the_rfc() -> None:
    """RFC 8439, section 2.4.2, whose first block has the counter 1."""
    key = bytes(range(32))
    counter = bytes.fromhex("0000004a00000000")
    assert chacha20(key, counter)[:8].hex() == "224f51f3401bd9e1"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
def test_no_key_of_a_session_is_left_when_it_has_expired() -> None:
    """The keys are in no Python object ever; they are found as those that decrypt what was sent."""
    script = """
        import sys
        from two_tunnels import *

        def say(word):
            print(word, flush=True)
            sys.stdin.readline()

        alice, bob = connected()
        for sender in (alice, bob):
            print(only(sender.encapsulate(ipv4(), START).datagrams).hex())
        say("made")
        for tunn in (alice, bob):
            tunn.handle_timeout(START + 180)
        say("expired")
        """
    require_no_key_left(script, [ipv4(), ipv4()], "expired")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
@pytest.mark.parametrize(
    ("encryption", "threads"), [("ring", 1), ("ipsec-mb", 1), ("ring", 3), ("ipsec-mb", 3)]
)
def test_no_key_of_a_session_is_left_with_the_backend_that_seals_and_opens_batches(
    encryption: str, threads: int
) -> None:
    """Neither in its memory nor on its stacks, which the library wipes by itself (SAFE_DATA)."""
    need(encryption)
    script = f"""
        import sys
        from connlib import Node, NodeConfig, PeerConfig
        from two_tunnels import *
        from ipaddress import ip_network

        def say(word):
            print(word, flush=True)
            sys.stdin.readline()

        def node(own, other, inner, at):
            network = ip_network(inner)
            peer = PeerConfig(public_key=other.public_key(), allowed_ips=(network,), endpoint=(at, 51820))
            config = NodeConfig(private_key=own, peers=(peer,), encryption="{encryption}", threads={threads})
            return Node(config, now=START, unix_time=UNIX_TIME)

        alice = node(ALICE, BOB, "10.0.0.2/32", "192.0.2.2")
        bob = node(BOB, ALICE, "10.0.0.1/32", "192.0.2.1")

        def carry(sender, receiver, source):
            datagrams = [transmit.datagram for transmit in sender.drain().transmits]
            lengths = list(map(len, datagrams))
            receiver.handle_datagrams(b"".join(datagrams), lengths, [(source, 51820)] * len(lengths), START)
            return datagrams

        alice.handle_packets(ipv4(), [20], START)
        for _ in range(2):
            carry(alice, bob, "192.0.2.1")
            carry(bob, alice, "192.0.2.2")
        bob.drain()
        # So much that several threads share it.
        there = ipv4(bytes(1000))
        back = ipv4(bytes(1000), source="10.0.0.2", destination="10.0.0.1")
        for sender, receiver, source, packet in (
            (alice, bob, "192.0.2.1", there), (bob, alice, "192.0.2.2", back),
        ):
            sender.handle_packets(packet * 100, [len(packet)] * 100, START)
            print(carry(sender, receiver, source)[-1].hex())
            assert receiver.drain().packets == [packet] * 100
        say("made")
        for each in (alice, bob):
            each.handle_timeout(START + 180)
        say("expired")
        """
    starts = [ipv4(bytes(1000)), ipv4(bytes(1000), source="10.0.0.2", destination="10.0.0.1")]
    require_no_key_left(script, starts, "expired")


HANDSHAKE = """
    from connlib import NodeConfig, PeerConfig
    from connlib._native import LabNode
    from two_tunnels import *

    HOSTS = (("192.0.2.1", 51820), ("192.0.2.2", 51820))

    def nodes():
        pair = []
        for seed, (own, peer) in enumerate([(ALICE, BOB), (BOB, ALICE)]):
            peers = (PeerConfig(public_key=peer.public_key(), endpoint=HOSTS[1 - seed]),)
            pair.append(LabNode(NodeConfig(private_key=own, peers=peers), now=0, unix_time=UNIX_TIME, seed=seed))
        return pair

    def shake_hands(pair):
        # More than once, because the seeded generator keeps what it gave last.
        for now in range(0, 100, 10):
            pair[0].initiate_handshake(BOB.public_key(), now)
            for turn in (0, 1, 0):
                (transmit,) = pair[turn].drain().transmits
                pair[1 - turn].handle_datagrams(transmit.datagram, [len(transmit.datagram)], [HOSTS[turn]], now)
            assert pair[1].stats(now).peers[0].tunnel.last_handshake == 0
    """


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
def test_ephemeral_keys_are_in_memory_only_while_a_key_log_is_on_and_until_they_are_taken() -> None:
    """Nodes of equal seeds draw equal keys, so that this process learns which ones to look for in another."""
    learn = """
        pair = nodes()
        for node in pair:
            node.log_keys(True)
        shake_hands(pair)
        for node in pair:
            print(node.take_key_log()[0][2].partition(" = ")[2])
        """
    keys = [b64decode(line) for line in run(textwrap.dedent(HANDSHAKE) + textwrap.dedent(learn)).split()]
    assert len(set(keys)) == 2
    script = """
        import sys

        def say(word):
            print(word, flush=True)
            sys.stdin.readline()

        pair = nodes()
        shake_hands(pair)
        say("off")
        for end in ("taken", "ended"):
            pair = nodes()
            for node in pair:
                node.log_keys(True)
            shake_hands(pair)
            say("on")
            for node in pair:
                assert node.take_key_log() if end == "taken" else node.log_keys(False) is None
            say(end)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HANDSHAKE) + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        for state in ("off", "on", "taken", "on", "ended"):
            assert child.stdout.readline() == f"{state}\n"
            memory = memory_of(child.pid)
            assert [key in memory for key in keys] == [state == "on"] * 2, state
            child.stdin.write("\n")
            child.stdin.flush()
