"""A batch is what the single calls are, whatever is in it, though it is written to another place in another way."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from connlib import Batch, DropReason, Event, Limits
from connlib._native import LabTunn
from two_tunnels import ALICE, BOB, SOURCE, START, UNIX_TIME, ipv4, ipv6, only


def pair(mtu: int = 1420, queue: int = 256) -> tuple[LabTunn, LabTunn]:
    """Two tunnels without a session; the same ones every time."""
    alice, bob = (
        LabTunn(
            own,
            other.public_key(),
            now=START,
            unix_time=UNIX_TIME,
            seed=seed,
            mtu=mtu,
            limits=Limits(queue_packets=queue),
        )
        for own, other, seed in ((ALICE, BOB, 1), (BOB, ALICE, 2))
    )
    return alice, bob


def connect(alice: LabTunn, bob: LabTunn) -> None:
    response = only(bob.decapsulate(only(alice.initiate_handshake(START).datagrams), START).datagrams)
    assert bob.decapsulate(only(alice.decapsulate(response, START).datagrams), START).error is None


def one_by_one(tunn: LabTunn, items: list[bytes], now: float, *, sending: bool) -> Batch:
    """What a batch call should return."""
    main: list[bytes] = []
    others: list[bytes] = []
    events: list[Event] = []
    errors: list[tuple[int, DropReason]] = []
    for index, item in enumerate(items):
        output = tunn.encapsulate(item, now) if sending else tunn.decapsulate(item, now, SOURCE)
        main += output.datagrams if sending else output.packets
        others += output.packets if sending else output.datagrams
        events += output.events
        if output.error is not None:
            errors.append((index, output.error))
    return Batch(b"".join(main), [len(item) for item in main], others, events, errors)


def as_batch(tunn: LabTunn, items: list[bytes], now: float, *, sending: bool) -> Batch:
    data, lengths = b"".join(items), [len(item) for item in items]
    if sending:
        return tunn.encapsulate_batch(data, lengths, now)
    return tunn.decapsulate_batch(data, lengths, now, SOURCE)


packets = st.one_of(
    st.integers(0, 60).map(lambda n: ipv4(bytes([n]) * n)),
    st.integers(0, 40).map(lambda n: ipv6(bytes([n]) * n)),
    st.sampled_from([b"", b"\x45", ipv4(bytes(1400)), ipv4(bytes(1395)), ipv4(bytes(2000)), b"x" * 65_472]),
)
# Fresh, in use, due for renewal, too old for its initiator, and gone (engine rules, part C).
ages = st.sampled_from([0.0, 1.0, 119.9, 120.0, 165.0, 169.9, 170.0, 180.0, 400.0])


@given(
    sent=st.lists(packets, max_size=20),
    age=ages,
    established=st.booleans(),
    mtu=st.sampled_from([576, 1001, 1420, 9000]),
    queue=st.sampled_from([3, 256]),
)
@settings(deadline=None, max_examples=300)
def test_sealing(sent: list[bytes], age: float, established: bool, mtu: int, queue: int) -> None:
    results = []
    for call in (one_by_one, as_batch):
        alice, bob = pair(mtu, queue)
        if established:
            connect(alice, bob)
        results.append(
            (call(alice, sent, START + age, sending=True), alice.stats(START + age), alice.next_timeout())
        )
    assert results[0] == results[1]


def mixed(alice: LabTunn, sent: list[bytes], rng: random.Random, age: float) -> list[bytes]:
    """What might arrive at Bob: what Alice sent, copies, changed bits, cuts, noise, a handshake, in any order."""
    genuine = [datagram for packet in sent for datagram in alice.encapsulate(packet, START + age).datagrams]
    arriving = list(genuine)
    for datagram in genuine:
        changed = bytearray(datagram)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        cut = datagram[: rng.randrange(len(datagram))]
        arriving += rng.sample([datagram, bytes(changed), cut, rng.randbytes(rng.randrange(100)), b""], 2)
    arriving += alice.initiate_handshake(START + age).datagrams
    rng.shuffle(arriving)
    return arriving


@given(sent=st.lists(packets, max_size=15), age=ages, seed=st.integers(0, 2**32), queued=st.booleans())
@settings(deadline=None, max_examples=300)
def test_opening(sent: list[bytes], age: float, seed: int, queued: bool) -> None:
    results = []
    for call in (one_by_one, as_batch):
        alice, bob = pair()
        connect(alice, bob)
        arriving = mixed(alice, sent, random.Random(seed), age)
        if queued:
            bob.encapsulate(ipv4(b"waits"), START + 300)
        now = START + max(age, 300 if queued else 0)
        results.append((call(bob, arriving, now, sending=False), bob.stats(now), bob.next_timeout()))
    assert results[0] == results[1]


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("length", [20, 21, 31, 32, 1419, 1420, 1421, 8920, 65_472])
def test_batches_of_one_size(count: int, length: int) -> None:
    alice, bob = pair()
    connect(alice, bob)
    sent = [ipv4(bytes([n]) * (length - 20)) for n in range(count)]
    sealed = as_batch(alice, sent, START, sending=True)
    opened = as_batch(bob, sealed.items(), START, sending=False)
    assert opened.items() == sent
    assert opened.lengths == [length] * count and opened[2:] == ([], [], [])


def test_the_bytes_of_a_batch_do_not_change_when_the_next_one_is_made() -> None:
    alice, bob = pair()
    connect(alice, bob)
    kept = [as_batch(alice, [ipv4(bytes([n]) * 500)] * 8, START, sending=True) for n in range(20)]
    opened = [as_batch(bob, batch.items(), START, sending=False).items() for batch in kept]
    assert opened == [[ipv4(bytes([n]) * 500)] * 8 for n in range(20)]
