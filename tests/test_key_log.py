"""`LabTunn.key_log`: the secrets of a tunnel of the laboratory. Those of a `Node` are in test_capture.py."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

import pytest

import connlib._native
from connlib import ForkedError, Node, NodeConfig, PeerConfig, PresharedKey, PrivateKey, PublicKey
from connlib._native import LabTunn
from two_tunnels import ALICE, BOB, UNIX_TIME

PSK = PresharedKey.from_bytes(bytes([7] * 32))


def make(own: PrivateKey, peer: PublicKey, seed: int, preshared_key: PresharedKey | None = None) -> LabTunn:
    return LabTunn(own, peer, now=0, unix_time=UNIX_TIME, seed=seed, preshared_key=preshared_key)


def keys(tunn: LabTunn, name: str) -> list[bytes]:
    """The keys of one name, in order."""
    pairs = [line.split(" = ") for line in tunn.key_log()]
    return [base64.b64decode(value) for key, value in pairs if key == name]


def public(private: bytes) -> bytes:
    return PrivateKey.from_bytes(private).public_key().to_bytes()


def handshakes(alice: LabTunn, bob: LabTunn, times: int) -> Iterator[tuple[bytes, bytes]]:
    """The initiation and the response of each of several handshakes."""
    for n in range(times):
        (initiation,) = alice.initiate_handshake(n).datagrams
        (response,) = bob.decapsulate(initiation, n).datagrams
        alice.decapsulate(response, n)
        yield initiation, response


def test_the_key_log_has_exactly_the_ephemeral_keys_that_were_sent() -> None:
    alice, bob = make(ALICE, BOB.public_key(), 1), make(BOB, ALICE.public_key(), 2)
    done = list(handshakes(alice, bob, 3))
    assert [public(key) for key in keys(alice, "LOCAL_EPHEMERAL_PRIVATE_KEY")] == [i[8:40] for i, _ in done]
    assert [public(key) for key in keys(bob, "LOCAL_EPHEMERAL_PRIVATE_KEY")] == [r[12:44] for _, r in done]


def test_the_key_log_begins_with_the_static_keys() -> None:
    assert make(ALICE, BOB.public_key(), 1).key_log() == [
        f"LOCAL_STATIC_PRIVATE_KEY = {ALICE.to_base64()}",
        f"REMOTE_STATIC_PUBLIC_KEY = {BOB.public_key().to_base64()}",
    ]


def test_a_preshared_key_follows_each_ephemeral_key_that_it_may_go_with() -> None:
    alice, bob = (make(ALICE, BOB.public_key(), 1, PSK), make(BOB, ALICE.public_key(), 2, PSK))
    list(handshakes(alice, bob, 3))
    names = [line.split(" = ")[0] for line in alice.key_log()[2:]]
    assert names == ["LOCAL_EPHEMERAL_PRIVATE_KEY", "PRESHARED_KEY"] * 3
    assert keys(alice, "PRESHARED_KEY") == [PSK.to_bytes()] * 3
    other = PresharedKey.from_bytes(bytes([8] * 32))
    alice.set_preshared_key(other, 3)
    alice.set_preshared_key(other, 3)
    names = [line.split(" = ")[0] for line in alice.key_log()[2:]]
    ephemeral = "LOCAL_EPHEMERAL_PRIVATE_KEY"
    assert names == [
        *(ephemeral, "PRESHARED_KEY"),
        *(ephemeral, "PRESHARED_KEY", "PRESHARED_KEY"),
        *(ephemeral, "PRESHARED_KEY", "PRESHARED_KEY"),
    ]
    alice.set_preshared_key(None, 3)
    alice.initiate_handshake(4)
    assert alice.key_log()[-1].startswith(ephemeral)


def test_the_secret_of_cookies_is_not_taken_for_a_key() -> None:
    """It is renewed every two minutes, on use."""
    alice, bob = make(ALICE, BOB.public_key(), 1), make(BOB, ALICE.public_key(), 2)
    for now in (0, 200, 400):
        for n in range(12):
            at = now + n / 40
            (initiation,) = (
                LabTunn(ALICE, BOB.public_key(), now=at, unix_time=UNIX_TIME + at, seed=now + n)
                .initiate_handshake(at)
                .datagrams
            )
            bob.decapsulate(initiation, at, ("192.0.2.1", 51820))
    stats = bob.stats(500)
    assert stats.drops[connlib.DropReason.COOKIE_REPLY_SENT] == 6
    assert len(keys(bob, "LOCAL_EPHEMERAL_PRIVATE_KEY")) == stats.responses_sent == 30
    assert keys(alice, "LOCAL_EPHEMERAL_PRIVATE_KEY") == []


def test_equal_seeds_still_give_equal_datagrams() -> None:
    """What is written down does not change what is drawn."""
    first, second = (
        list(handshakes(make(ALICE, BOB.public_key(), 5), make(BOB, ALICE.public_key(), 6), 2))
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("name", ["Tunn", "Node", "UpstreamTunn", "LabNode"])
def test_no_other_class_has_a_key_log(name: str) -> None:
    assert not hasattr(getattr(connlib._native, name), "key_log")


def test_a_node_keeps_no_keys_unless_it_is_told_to() -> None:
    config = NodeConfig(
        private_key=ALICE, peers=(PeerConfig(public_key=BOB.public_key(), endpoint=("192.0.2.1", 51820)),)
    )
    node = Node(config, now=0, unix_time=UNIX_TIME)
    node.initiate_handshake(BOB.public_key(), 0)
    assert node.take_key_log() == ([], [])
    node.log_keys(True)
    assert node.take_key_log() == ([], [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_child_process_cannot_have_the_key_log() -> None:
    alice = make(ALICE, BOB.public_key(), 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            alice.key_log()
        except ForkedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
