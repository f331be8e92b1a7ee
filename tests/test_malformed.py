"""Malformed datagrams: named and counted, never an exception, never an answer (fault 8; faults 15 and 20 in part)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from connlib import DropReason, NodeConfig, Output, PeerConfig, Tunn
from connlib._native import LabNode
from two_tunnels import ALICE, BOB, SOURCE, START, UNIX_TIME, handshake, ipv4, nothing, only, tunnel

LENGTHS = [*range(2049), 65_535]
# What a datagram that nobody made for us can be dropped for.
REFUSALS = {
    DropReason.INVALID_PACKET,
    DropReason.INVALID_MAC,
    DropReason.WRONG_INDEX,
    DropReason.INVALID_AEAD_TAG,
    DropReason.NO_SESSION,
    DropReason.UNEXPECTED,
    DropReason.DUPLICATE_COUNTER,
    DropReason.INVALID_COUNTER,
}

Make = Callable[[int, bytes], bytes]


def noise(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def of_type(kind: int) -> Make:
    """Messages that start as a real one: type, reserved zeros, and an index (paper, section 5.4)."""

    def make(length: int, index: bytes) -> bytes:
        # A response and what follows it name the receiver where an initiation names its sender.
        prefix = bytes([kind, 0, 0, 0]) + index
        if kind == 2:
            prefix += index
        return (prefix + noise(length)(length))[:length]

    return make


def with_counter(counter: int) -> Make:
    """A data message with this counter (paper, section 5.4.6)."""

    def make(length: int, index: bytes) -> bytes:
        return (b"\x04\0\0\0" + index + counter.to_bytes(8, "little") + noise(length)(length))[:length]

    return make


KINDS: dict[str, Make] = {
    "zeros": lambda length, index: bytes(length),
    "ones": lambda length, index: b"\xff" * length,
    "noise": lambda length, index: noise(length)(length),
    "initiation": of_type(1),
    "response": of_type(2),
    "cookie reply": of_type(3),
    "data": of_type(4),
    "first data": with_counter(0),
    "last data": with_counter(2**64 - 1),
    "data at the limit": with_counter(2**64 - 2**13 - 1),
    "unknown type": of_type(5),
    "reserved bits": lambda length, index: (b"\x04\0\0\x01" + index + noise(length)(length))[:length],
}


def fresh() -> tuple[Tunn, Tunn, bytes]:
    """Tunnels without a session, and an index of nobody."""
    return tunnel(ALICE), tunnel(BOB), b"\x01\x02\x03\x04"


def pending() -> tuple[Tunn, Tunn, bytes]:
    """An initiation of the tunnel is under way; its index."""
    alice, bob = tunnel(ALICE), tunnel(BOB)
    return alice, bob, only(bob.initiate_handshake(START).datagrams)[4:8]


def established() -> tuple[Tunn, Tunn, bytes]:
    """A session; the index that the peer sends to."""
    alice, bob = tunnel(ALICE), tunnel(BOB)
    handshake(alice, bob)
    return alice, bob, only(alice.encapsulate(ipv4(), START).datagrams)[4:8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [fresh, pending, established])
def test_datagrams_of_every_length_are_refused(
    state: Callable[[], tuple[Tunn, Tunn, bytes]], kind: str
) -> None:
    alice, bob, index = state()
    before = bob.next_timeout()
    for length in LENGTHS:
        datagram = KINDS[kind](length, index)
        assert len(datagram) == length
        output = bob.decapsulate(datagram, START, SOURCE)
        assert output[:3] == ([], [], []) and output.error in REFUSALS, length
    assert sum(bob.stats(START).drops.values()) == len(LENGTHS)
    # As if nothing had come.
    assert bob.next_timeout() == before
    if state is established:
        assert bob.decapsulate(only(alice.encapsulate(ipv4(), START).datagrams), START).packets == [ipv4()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_them_is_refused_one_by_one(kind: str) -> None:
    _, bob, index = established()
    datagrams = [KINDS[kind](length, index) for length in LENGTHS]
    batch = bob.decapsulate_batch(b"".join(datagrams), LENGTHS, START, SOURCE)
    assert (batch.data, batch.lengths, batch.datagrams, batch.events) == (b"", [], [], [])
    assert [n for n, _ in batch.errors] == list(range(len(LENGTHS)))
    assert {reason for _, reason in batch.errors} <= REFUSALS


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_refuses_them_too(kind: str) -> None:
    peer = PeerConfig(public_key=ALICE.public_key(), endpoint=SOURCE)
    node = LabNode(NodeConfig(private_key=BOB, peers=(peer,)), now=START, unix_time=UNIX_TIME, seed=1)
    node.initiate_handshake(ALICE.public_key(), START)
    index = node.drain().transmits[0].datagram[4:8]
    before = node.next_timeout()
    datagrams = [KINDS[kind](length, index) for length in LENGTHS]
    node.handle_datagrams(b"".join(datagrams), LENGTHS, [("198.51.100.7", 9)] * len(LENGTHS), START)
    assert node.drain() == ([], [], [])
    assert node.next_timeout() == before
    stats = node.stats(START)
    assert stats.peers[0].endpoint == SOURCE
    counts = [stats.drops, stats.peers[0].tunnel.drops]
    assert sum(sum(drops.values()) for drops in counts) == len(LENGTHS)
    assert {reason for drops in counts for reason in drops} <= REFUSALS


def messages() -> Iterator[tuple[str, Tunn, bytes]]:
    """Each genuine message, with the tunnel that waits for it."""
    alice, bob = tunnel(ALICE), tunnel(BOB)
    initiation = only(alice.initiate_handshake(START).datagrams)
    yield "initiation", bob, initiation
    response = only(bob.decapsulate(initiation, START).datagrams)
    yield "response", alice, response
    keepalive = only(alice.decapsulate(response, START).datagrams)
    yield "keepalive", bob, keepalive
    assert bob.decapsulate(keepalive, START).error is None
    yield "data", bob, only(alice.encapsulate(ipv4(b"payload"), START).datagrams)


def refused(output: Output) -> bool:
    return output[:3] == ([], [], []) and output.error is not None


def test_every_truncation_and_extension_of_a_genuine_message_is_refused() -> None:
    for name, receiver, message in messages():
        for length in range(len(message)):
            assert refused(receiver.decapsulate(message[:length], START)), (name, length)
        for extra in (1, 16, 1000):
            assert refused(receiver.decapsulate(message + bytes(extra), START)), (name, extra)


def test_every_changed_bit_of_a_genuine_message_is_refused_and_the_message_is_then_taken() -> None:
    for name, receiver, message in messages():
        # Without a cookie MAC2 is not looked at (paper, section 5.4.4).
        checked = len(message) - 16 if name in ("initiation", "response") else len(message)
        for bit in range(checked * 8):
            changed = bytearray(message)
            changed[bit // 8] ^= 1 << bit % 8
            assert refused(receiver.decapsulate(changed, START)), (name, bit)


def test_authentic_messages_without_an_ip_packet_are_named_and_deliver_nothing() -> None:
    handed = {
        "one byte": b"\x45",
        "no version": bytes(40),
        "version 5": b"\x55" + bytes(39),
        # Padding makes a packet up to 15 bytes longer: 16 bytes here.
        "IPv4 shorter than its header": ipv4()[:15],
        "IPv4 longer than what came": ipv4(bytes(100))[:50],
        "IPv4 of total length 0": b"\x45\0\0\0" + bytes(16),
        "IPv4 of total length 19": b"\x45\0\0\x13" + bytes(16),
        "IPv6 shorter than its header": b"\x60" + bytes(31),
        "IPv6 longer than what came": b"\x60\0\0\0\0\x09" + bytes(34),
    }
    alice, bob, _ = established()
    for name, packet in handed.items():
        datagram = only(alice.encapsulate(packet, START).datagrams)
        assert bob.decapsulate(datagram, START) == ([], [], [], DropReason.INVALID_PACKET), name
    assert bob.stats(START).drops == {DropReason.INVALID_PACKET: len(handed)}
    assert bob.stats(START).rx_packets == 0


def test_a_packet_is_cut_to_the_length_that_it_claims() -> None:
    alice, bob, _ = established()
    for extra in (1, 13, 500):
        datagram = only(alice.encapsulate(ipv4(b"x") + bytes(extra), START).datagrams)
        assert bob.decapsulate(datagram, START).packets == [ipv4(b"x")]


def test_a_million_bytes_of_noise_leave_a_session_as_it_was() -> None:
    alice, bob, _ = established()
    rng = random.Random(7)
    for _ in range(1000):
        assert refused(bob.decapsulate(rng.randbytes(rng.randrange(2000)), START, SOURCE))
    assert nothing(bob.handle_timeout(START))
    assert bob.decapsulate(only(alice.encapsulate(ipv4(), START).datagrams), START).packets == [ipv4()]
