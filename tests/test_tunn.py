"""`Tunn`, method by method: what goes in, what comes out, and what misuse raises."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from connlib import (
    DropReason,
    GaveUp,
    HandshakeStarted,
    IndexTable,
    Limits,
    PresharedKey,
    PrivateKey,
    RateLimiter,
    Role,
    SessionEstablished,
    SessionExpired,
    TimeoutReason,
    Tunn,
)
from connlib._native import LabTunn
from two_tunnels import (
    ALICE,
    BOB,
    SOURCE,
    START,
    UNIX_TIME,
    connected,
    deliver,
    handshake,
    ipv4,
    ipv6,
    nothing,
    only,
    tunnel,
)

# The paper, sections 5.4 and 6.1, written out.
INITIATION, RESPONSE, COOKIE_REPLY, KEEPALIVE = 148, 92, 64, 32
REKEY_AFTER_TIME, REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME = 120.0, 180.0, 90.0
REKEY_TIMEOUT, KEEPALIVE_TIMEOUT, MAX_JITTER = 5.0, 10.0, 0.333


def test_a_handshake_is_three_messages_of_the_sizes_of_the_paper() -> None:
    alice, bob = tunnel(ALICE), tunnel(BOB)
    first = alice.encapsulate(ipv4(b"hello"), START)
    assert [len(d) for d in first.datagrams] == [INITIATION]
    assert first.datagrams[0][:4] == b"\x01\0\0\0"
    assert first.events == [HandshakeStarted()]
    assert first.error is None and first.packets == []
    second = bob.decapsulate(only(first.datagrams), START + 0.02)
    assert [len(d) for d in second.datagrams] == [RESPONSE]
    assert second.datagrams[0][:4] == b"\x02\0\0\0"
    third = alice.decapsulate(only(second.datagrams), START + 0.04)
    assert third.events == [SessionEstablished(initiator=True)]
    last = deliver(third.datagrams, bob, START + 0.06)
    assert [packet for output in last for packet in output.packets] == [ipv4(b"hello")]
    assert [event for output in last for event in output.events] == [SessionEstablished(initiator=False)]
    assert alice.stats(START + 0.06).rtt == pytest.approx(0.04)


def test_without_a_packet_the_initiator_confirms_with_a_keepalive() -> None:
    alice, bob = tunnel(ALICE), tunnel(BOB)
    response = bob.decapsulate(only(alice.initiate_handshake(START).datagrams), START)
    confirmation = alice.decapsulate(only(response.datagrams), START)
    assert [len(d) for d in confirmation.datagrams] == [KEEPALIVE]
    assert confirmation.datagrams[0][:4] == b"\x04\0\0\0"


@pytest.mark.parametrize(
    "packet", [ipv4(b"four"), ipv6(b"six"), ipv4(bytes(1400)), ipv6(), ipv4(bytes(65_000))]
)
def test_packets_of_both_families_come_out_as_they_went_in(packet: bytes) -> None:
    alice, bob = connected()
    for sender, receiver in ((alice, bob), (bob, alice)):
        datagram = only(sender.encapsulate(packet, START + 1).datagrams)
        # Header 16, tag 16, and padding to 16 that does not pass the MTU (paper, section 5.4.6).
        padded = max(len(packet), min(math.ceil(len(packet) / 16) * 16, 1420))
        assert len(datagram) == 32 + padded
        assert receiver.decapsulate(datagram, START + 1) == ([], [packet], [], None)


def test_the_mtu_caps_the_padding() -> None:
    alice, _ = connected(mtu=1001)
    sizes = {
        n: len(only(alice.encapsulate(ipv4(bytes(n - 20)), START).datagrams)) for n in (990, 1000, 1001, 1100)
    }
    assert sizes == {990: 992 + 32, 1000: 1001 + 32, 1001: 1001 + 32, 1100: 1100 + 32}


def test_queued_packets_follow_the_handshake_in_order() -> None:
    alice, bob = tunnel(ALICE), tunnel(BOB)
    packets = [ipv4(bytes([n])) for n in range(10)]
    outputs = [alice.encapsulate(packet, START) for packet in packets]
    assert [len(output.datagrams) for output in outputs] == [1] + [0] * 9
    assert alice.stats(START).queued == 10
    response = bob.decapsulate(only(outputs[0].datagrams), START)
    flushed = alice.decapsulate(only(response.datagrams), START)
    received = [packet for output in deliver(flushed.datagrams, bob, START) for packet in output.packets]
    assert received == packets
    assert alice.stats(START).queued == 0


def test_an_empty_packet_is_a_keepalive_and_is_not_queued() -> None:
    alone = tunnel()
    output = alone.encapsulate(b"", START)
    assert output == ([], [], [], DropReason.NO_SESSION)
    alice, bob = connected()
    datagram = only(alice.encapsulate(b"", START + 1).datagrams)
    assert len(datagram) == KEEPALIVE
    assert nothing(bob.decapsulate(datagram, START + 1))


def test_a_full_queue_drops_the_newest_and_says_so() -> None:
    alice = tunnel(limits=Limits(queue_packets=3))
    errors = [alice.encapsulate(ipv4(bytes([n])), START).error for n in range(5)]
    assert errors == [None, None, None, DropReason.QUEUE_FULL, DropReason.QUEUE_FULL]
    assert alice.stats(START).drops == {DropReason.QUEUE_FULL: 2}


def test_a_deadline_that_is_fed_back_fires() -> None:
    for offset in (0.0, 0.1, 1 / 3, 12345.678901234, 1e8 + 0.1, 1.0e9 + 0.7):
        alice = tunnel(now=offset)
        alice.initiate_handshake(offset)
        timeout = alice.next_timeout()
        assert timeout is not None
        assert timeout.reason is TimeoutReason.HANDSHAKE_RETRY
        assert offset + REKEY_TIMEOUT <= timeout.at + 1e-6 <= offset + REKEY_TIMEOUT + MAX_JITTER + 2e-6
        assert [len(d) for d in alice.handle_timeout(timeout.at).datagrams] == [INITIATION]
        later = alice.next_timeout()
        assert later is not None and later.at > timeout.at


def test_a_timeout_before_its_time_does_nothing() -> None:
    alice = tunnel()
    assert alice.next_timeout() is None
    assert nothing(alice.handle_timeout(START + 1000))
    alice.initiate_handshake(START + 1000)
    timeout = alice.next_timeout()
    assert timeout is not None
    assert nothing(alice.handle_timeout(timeout.at - 0.001))
    assert alice.next_timeout() == timeout


@pytest.mark.parametrize(
    "call",
    [
        lambda alice: alice.decapsulate(b"xx", START + 50),
        lambda alice: alice.decapsulate(bytes([1, 0, 0, 0]) + bytes(144), START + 50, SOURCE),
        lambda alice: alice.decapsulate_batch(b"xx", [2], START + 50),
        lambda alice: alice.set_preshared_key(None, START + 50),
        lambda alice: alice.set_unix_time(UNIX_TIME, START + 50),
    ],
    ids=["garbage", "a wrong mac", "a batch of garbage", "a preshared key", "the wall clock"],
)
def test_no_instant_is_announced_that_has_passed(call: Callable[[Tunn], object]) -> None:
    alice = tunnel(ALICE)
    alice.initiate_handshake(START)
    call(alice)
    timeout = alice.next_timeout()
    assert timeout is not None and timeout.at == START + 50
    assert [len(datagram) for datagram in alice.handle_timeout(timeout.at).datagrams] == [INITIATION]


def test_attempts_end_after_ninety_seconds_and_drop_what_waited() -> None:
    alice = tunnel()
    alice.encapsulate(ipv4(), START)
    initiations, events, now = [START], [], START
    while (timeout := alice.next_timeout()) is not None:
        now = timeout.at
        output = alice.handle_timeout(now)
        initiations += [now for _ in output.datagrams]
        events += output.events
    gaps = [later - sooner for sooner, later in itertools.pairwise(initiations)]
    assert all(REKEY_TIMEOUT <= gap + 1e-6 <= REKEY_TIMEOUT + MAX_JITTER + 1e-5 for gap in gaps)
    assert 17 <= len(initiations) <= 18 and initiations[-1] < START + REKEY_ATTEMPT_TIME
    assert now == pytest.approx(START + REKEY_ATTEMPT_TIME)
    assert events == [GaveUp(dropped=1)]
    assert alice.stats(now).drops == {DropReason.GAVE_UP: 1}


def test_a_session_ends_after_180_seconds_of_silence() -> None:
    alice, bob = connected()
    for side in (alice, bob):
        timeout = side.next_timeout()
        assert timeout == (START + REJECT_AFTER_TIME, TimeoutReason.SESSION_EXPIRY)
        assert side.handle_timeout(timeout.at).events == [SessionExpired()]
        assert side.next_timeout() is None
        assert side.stats(timeout.at).sessions == 0


def test_received_data_is_acknowledged_after_ten_seconds() -> None:
    alice, bob = connected()
    deliver(alice.encapsulate(ipv4(), START + 1).datagrams, bob, START + 1)
    assert bob.next_timeout() == (START + 1 + KEEPALIVE_TIMEOUT, TimeoutReason.PASSIVE_KEEPALIVE)
    output = bob.handle_timeout(START + 1 + KEEPALIVE_TIMEOUT)
    assert [len(d) for d in output.datagrams] == [KEEPALIVE]


def test_unanswered_data_starts_a_handshake_after_fifteen_seconds() -> None:
    alice, _ = connected()
    alice.encapsulate(ipv4(), START + 1)
    timeout = alice.next_timeout()
    assert timeout is not None and timeout.reason is TimeoutReason.DEAD_PEER
    assert START + 16 <= timeout.at + 1e-6 <= START + 16 + MAX_JITTER + 1e-5
    assert [len(d) for d in alice.handle_timeout(timeout.at).datagrams] == [INITIATION]


def test_a_sender_renews_its_session_at_120_seconds() -> None:
    alice, bob = connected()
    assert [len(d) for d in alice.encapsulate(ipv4(), START + 119.9).datagrams] == [64]
    output = alice.encapsulate(ipv4(), START + REKEY_AFTER_TIME)
    assert sorted(len(d) for d in output.datagrams) == [64, INITIATION]
    assert [len(d) for d in bob.encapsulate(ipv4(), START + REKEY_AFTER_TIME).datagrams] == [64]


def test_a_persistent_keepalive_is_due_at_once_and_then_at_its_interval() -> None:
    alice, bob = tunnel(ALICE, persistent_keepalive=25), tunnel(BOB)
    first = alice.next_timeout()
    assert first == (START, TimeoutReason.PERSISTENT_KEEPALIVE)
    response = bob.decapsulate(only(alice.handle_timeout(START).datagrams), START)
    deliver(alice.decapsulate(only(response.datagrams), START).datagrams, bob, START)
    for tick in range(1, 4):
        assert alice.next_timeout() == (START + 25 * tick, TimeoutReason.PERSISTENT_KEEPALIVE)
        assert [len(d) for d in alice.handle_timeout(START + 25 * tick).datagrams] == [KEEPALIVE]


def test_a_persistent_keepalive_can_be_switched_on_and_off() -> None:
    alice, _ = connected()
    on = alice.set_persistent_keepalive(10, START + 5)
    assert [len(d) for d in on.datagrams] == [KEEPALIVE]
    assert alice.next_timeout() == (START + 15, TimeoutReason.PERSISTENT_KEEPALIVE)
    assert nothing(alice.set_persistent_keepalive(None, START + 6))
    assert alice.next_timeout() == (START + REJECT_AFTER_TIME, TimeoutReason.SESSION_EXPIRY)
    alice.set_persistent_keepalive(10, START + 7)
    assert nothing(alice.set_persistent_keepalive(0, START + 8))
    assert alice.next_timeout() == (START + REJECT_AFTER_TIME, TimeoutReason.SESSION_EXPIRY)


def test_time_that_goes_backwards_stands_still() -> None:
    alice, bob = connected()
    alice.handle_timeout(START + 100)
    before = alice.next_timeout()
    datagram = only(alice.encapsulate(ipv4(), START - 900).datagrams)
    assert bob.decapsulate(datagram, 0.0).packets == [ipv4()]
    assert nothing(alice.handle_timeout(0.0))
    # Sent at 100, by the tunnel's clock, so that 15 seconds later an answer is overdue.
    timeout = alice.next_timeout()
    assert before is not None and timeout is not None
    assert timeout.reason is TimeoutReason.DEAD_PEER
    assert START + 115 <= timeout.at + 1e-6 <= START + 115 + MAX_JITTER + 1e-5
    assert alice.stats(0.0).session_age == 100


def test_a_wall_clock_that_goes_backwards_still_gives_later_timestamps() -> None:
    alice, bob = tunnel(ALICE), tunnel(BOB)
    handshake(alice, bob)
    alice.set_unix_time(UNIX_TIME - 10 * 365 * 86_400, START + 1)
    handshake(alice, bob, START + 10)
    assert bob.stats(START + 10).drops == {}


def test_a_datagram_that_comes_twice_is_delivered_once() -> None:
    alice, bob = connected()
    datagram = only(alice.encapsulate(ipv4(), START).datagrams)
    assert bob.decapsulate(datagram, START).packets == [ipv4()]
    for _ in range(3):
        assert bob.decapsulate(datagram, START) == ([], [], [], DropReason.DUPLICATE_COUNTER)
    assert bob.stats(START).drops == {DropReason.DUPLICATE_COUNTER: 3}


def test_an_initiation_that_comes_twice_is_answered_once() -> None:
    alice, bob = tunnel(ALICE), tunnel(BOB)
    initiation = only(alice.initiate_handshake(START).datagrams)
    assert len(bob.decapsulate(initiation, START).datagrams) == 1
    for n in range(1, 6):
        output = bob.decapsulate(initiation, START + n)
        assert output == ([], [], [], DropReason.REPLAYED_INITIATION)


def test_packets_that_overtake_each_other_all_arrive() -> None:
    alice, bob = connected()
    datagrams = [only(alice.encapsulate(ipv4(bytes([n])), START).datagrams) for n in range(100)]
    received = [packet for output in deliver(reversed(datagrams), bob, START) for packet in output.packets]
    assert received == [ipv4(bytes([n])) for n in reversed(range(100))]


def test_a_peer_with_another_key_is_not_answered() -> None:
    stranger = PrivateKey.from_bytes(bytes([9] * 32))
    mallory, bob = tunnel(stranger, BOB.public_key()), tunnel(BOB)
    output = bob.decapsulate(only(mallory.initiate_handshake(START).datagrams), START)
    assert output == ([], [], [], DropReason.WRONG_KEY)


def test_an_initiation_for_another_peer_fails_at_its_mac() -> None:
    alice = tunnel(ALICE, PrivateKey.from_bytes(bytes([9] * 32)).public_key())
    output = tunnel(BOB).decapsulate(only(alice.initiate_handshake(START).datagrams), START)
    assert output == ([], [], [], DropReason.INVALID_MAC)


def test_equal_preshared_keys_work_and_different_ones_fail_at_the_response() -> None:
    one, two = (PresharedKey.from_bytes(bytes([n] * 32)) for n in (1, 2))
    handshake(tunnel(ALICE, preshared_key=one), tunnel(BOB, preshared_key=one))
    for a_key, b_key in ((one, two), (one, None), (None, two)):
        alice, bob = tunnel(ALICE, preshared_key=a_key), tunnel(BOB, preshared_key=b_key)
        response = bob.decapsulate(only(alice.initiate_handshake(START).datagrams), START)
        output = alice.decapsulate(only(response.datagrams), START)
        assert output == ([], [], [], DropReason.INVALID_AEAD_TAG)


def test_another_preshared_key_is_used_from_the_next_handshake_on() -> None:
    alice, bob = connected()
    key = PresharedKey.generate()
    alice.set_preshared_key(key, START + 1)
    assert bob.decapsulate(only(alice.encapsulate(ipv4(), START + 1).datagrams), START + 1).packets == [
        ipv4()
    ]
    bob.set_preshared_key(key, START + 1)
    handshake(alice, bob, START + 2)
    bob.set_preshared_key(None, START + 3)
    response = bob.decapsulate(only(alice.initiate_handshake(START + 4).datagrams), START + 4)
    assert alice.decapsulate(only(response.datagrams), START + 4).error is DropReason.INVALID_AEAD_TAG


def test_roles_decide_who_starts_and_who_answers() -> None:
    client = tunnel(ALICE, role=Role.INITIATOR)
    gateway = tunnel(BOB, role=Role.RESPONDER)
    assert gateway.initiate_handshake(START) == ([], [], [], DropReason.ROLE)
    assert gateway.encapsulate(ipv4(b"queued"), START) == ([], [], [], None)
    response = gateway.decapsulate(only(client.initiate_handshake(START).datagrams), START)
    confirmation = client.decapsulate(only(response.datagrams), START)
    (flushed,) = deliver(confirmation.datagrams, gateway, START)
    assert client.decapsulate(only(flushed.datagrams), START).packets == [ipv4(b"queued")]
    other_client = tunnel(BOB, role=Role.INITIATOR)
    assert client.decapsulate(only(other_client.initiate_handshake(START).datagrams), START) == (
        [],
        [],
        [],
        DropReason.ROLE,
    )


def test_while_an_initiation_is_pending_there_is_no_second_one() -> None:
    alice = tunnel()
    alice.initiate_handshake(START)
    for n in range(200):
        assert nothing(alice.initiate_handshake(START + n / 100))
        assert nothing(alice.handle_timeout(START + n / 100))
        assert alice.encapsulate(ipv4(), START + n / 100).datagrams == []
    assert alice.stats(START + 2).initiations_sent == 1
    assert alice.stats(START + 2).handshake_pending


def test_under_load_a_handshake_takes_a_cookie_first() -> None:
    limiter = RateLimiter(BOB.public_key(), 0, START)
    alice, bob = tunnel(ALICE), tunnel(BOB, rate_limiter=limiter)
    cookie = bob.decapsulate(only(alice.initiate_handshake(START).datagrams), START, SOURCE)
    assert cookie.error is DropReason.COOKIE_REPLY_SENT
    assert [len(d) for d in cookie.datagrams] == [COOKIE_REPLY]
    assert nothing(alice.decapsulate(only(cookie.datagrams), START))
    retry = alice.next_timeout()
    assert retry is not None
    second = alice.handle_timeout(retry.at)
    assert second.datagrams[0][132:] != bytes(16)
    moved = (SOURCE[0], SOURCE[1] + 1)
    assert bob.decapsulate(second.datagrams[0], retry.at, moved).error is DropReason.COOKIE_REPLY_SENT
    assert [len(d) for d in bob.decapsulate(second.datagrams[0], retry.at, SOURCE).datagrams] == [RESPONSE]
    assert bob.decapsulate(second.datagrams[0], retry.at).error is DropReason.UNDER_LOAD


def test_indices_are_unique_in_a_table_and_given_back() -> None:
    table = IndexTable()
    assert len(table) == 0
    tunnels = [tunnel(indices=table) for _ in range(50)]
    indices = {only(each.initiate_handshake(START).datagrams)[4:8] for each in tunnels}
    assert len(indices) == len(table) == 50
    del tunnels
    assert len(table) == 0


def test_statistics_count_what_passed() -> None:
    alice, bob = connected()
    for n in range(5):
        deliver(alice.encapsulate(ipv4(bytes(n)), START + 1).datagrams, bob, START + 1)
    a, b = alice.stats(START + 3), bob.stats(START + 3)
    assert (a.tx_packets, a.rx_packets, b.tx_packets, b.rx_packets) == (5, 0, 0, 5)
    wire = INITIATION + KEEPALIVE + 5 * 64
    assert (a.tx_bytes, b.rx_bytes) == (wire, wire)
    assert (a.rx_bytes, b.tx_bytes) == (RESPONSE, RESPONSE)
    assert (a.initiations_sent, a.responses_sent, a.keepalives_sent) == (1, 0, 1)
    assert (b.initiations_sent, b.responses_sent, b.keepalives_sent) == (0, 1, 0)
    assert a.last_handshake == a.session_age == 3
    assert a.sessions == b.sessions == 1
    assert b.loss == 0 and a.rtt == 0 and b.rtt is None
    assert not a.handshake_pending


def test_lost_packets_show_in_the_loss() -> None:
    alice, bob = connected()
    datagrams = [only(alice.encapsulate(ipv4(), START).datagrams) for _ in range(4)]
    deliver([datagrams[0], datagrams[3]], bob, START)
    # The confirming keepalive and four packets, of which two were lost.
    assert bob.stats(START).loss == pytest.approx(0.4)


def test_batches_do_what_single_calls_do() -> None:
    alice, bob = connected()
    packets = [ipv4(bytes(n * 7)) for n in range(64)] + [ipv6(bytes(1380))]
    sealed = alice.encapsulate_batch(b"".join(packets), [len(p) for p in packets], START)
    assert len(sealed.lengths) == 65 and sum(sealed.lengths) == len(sealed.data)
    assert sealed.errors == [] and sealed.events == [] and sealed.datagrams == []
    opened = bob.decapsulate_batch(sealed.data, sealed.lengths, START, SOURCE)
    assert opened.items() == packets
    assert opened.errors == [] and opened.datagrams == []


def test_a_batch_names_the_inputs_that_it_dropped_and_goes_on() -> None:
    alice, bob = connected()
    good = [only(alice.encapsulate(ipv4(bytes([n])), START).datagrams) for n in range(3)]
    datagrams = [good[0], b"garbage", good[1], good[1], bytes(0), good[2]]
    batch = bob.decapsulate_batch(b"".join(datagrams), [len(d) for d in datagrams], START)
    assert batch.items() == [ipv4(bytes([n])) for n in range(3)]
    assert batch.errors == [
        (1, DropReason.INVALID_PACKET),
        (3, DropReason.DUPLICATE_COUNTER),
        (4, DropReason.INVALID_PACKET),
    ]
    assert sum(bob.stats(START).drops.values()) == 3


def test_a_batch_that_has_no_session_is_queued_behind_one_initiation() -> None:
    alice, bob = tunnel(ALICE), tunnel(BOB)
    packets = [ipv4(bytes([n])) for n in range(5)]
    batch = alice.encapsulate_batch(b"".join(packets), [len(p) for p in packets], START)
    assert batch.lengths == [INITIATION]
    assert batch.events == [HandshakeStarted()]
    answered = bob.decapsulate_batch(batch.data, batch.lengths, START, SOURCE)
    assert (answered.data, answered.lengths) == (b"", [])
    assert [len(d) for d in answered.datagrams] == [RESPONSE]
    flushed = alice.decapsulate_batch(answered.datagrams[0], [RESPONSE], START)
    assert flushed.events == [SessionEstablished(initiator=True)]
    received = [packet for output in deliver(flushed.datagrams, bob, START) for packet in output.packets]
    assert received == packets


def test_a_renewal_in_the_middle_of_a_batch_keeps_the_order() -> None:
    alice, bob = connected()
    packets = [ipv4(bytes([n])) for n in range(6)]
    batch = alice.encapsulate_batch(b"".join(packets), [len(p) for p in packets], START + 130)
    assert sorted(batch.lengths) == [64] * 6 + [INITIATION]
    received = [packet for output in deliver(batch.items(), bob, START + 130) for packet in output.packets]
    assert received == packets


def test_an_empty_batch_is_nothing() -> None:
    alice, _ = connected()
    assert alice.encapsulate_batch(b"", [], START) == (b"", [], [], [], [])
    assert alice.decapsulate_batch(b"", (), START) == (b"", [], [], [], [])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(kind: Any) -> None:
    alice, bob = connected()
    datagram = only(alice.encapsulate(kind(ipv4()), START).datagrams)
    assert bob.decapsulate(kind(datagram), START).packets == [ipv4()]
    batch = alice.encapsulate_batch(kind(ipv4() * 2), [20, 20], START)
    assert bob.decapsulate_batch(kind(batch.data), batch.lengths, START).items() == [ipv4()] * 2


def test_equal_seeds_give_equal_traces_and_other_seeds_do_not() -> None:
    def trace(seed: int) -> list[bytes]:
        alice, bob = (
            LabTunn(own, peer.public_key(), now=START, unix_time=UNIX_TIME, seed=seed)
            for own, peer in ((ALICE, BOB), (BOB, ALICE))
        )
        first = alice.encapsulate(ipv4(), START)
        second = bob.decapsulate(only(first.datagrams), START)
        third = alice.decapsulate(only(second.datagrams), START)
        return first.datagrams + second.datagrams + third.datagrams

    assert trace(1) == trace(1)
    assert not set(trace(1)) & set(trace(2))
    assert isinstance(LabTunn(ALICE, BOB.public_key(), now=0, unix_time=0, seed=2**64 - 1), Tunn)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            LabTunn(ALICE, BOB.public_key(), now=0, unix_time=0, seed=seed)
    with pytest.raises(TypeError):
        Tunn(ALICE, BOB.public_key(), now=0, unix_time=0, seed=1)  # type: ignore[call-arg]


def test_two_tunnels_of_the_same_keys_draw_different_randomness() -> None:
    first, second = (only(tunnel().initiate_handshake(START).datagrams) for _ in range(2))
    assert first[8:40] != second[8:40]


def test_a_tunnel_shows_no_key_and_is_not_pickled_or_copied() -> None:
    import copy
    import pickle

    alice = tunnel()
    assert ALICE.to_base64() not in repr(alice)
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            make(alice)


def test_other_threads_run_while_a_batch_is_sealed() -> None:
    alice, bob = connected()
    packets = ipv4(bytes(1380)) * 64
    errors: list[BaseException] = []

    def work(own: Tunn) -> None:
        try:
            for _ in range(50):
                own.encapsulate_batch(packets, [1400] * 64, START)
                own.stats(START)
                own.next_timeout()
        except BaseException as error:  # an assertion in a thread would be lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(side,)) for side in (alice, alice, bob, bob)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert alice.stats(START).tx_packets == bob.stats(START).tx_packets == 2 * 50 * 64


@contextmanager
def changing(buffer: bytearray, contents: Sequence[bytes]) -> Iterator[None]:
    """Another thread writes these into a buffer over and over, until the end of the block."""
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for content in contents:
                buffer[:] = content

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


ROUNDS, MOST_ROUNDS = 400, 100_000
"""At least so many tries, and as many more as it takes until the other thread has had its turn."""


def test_a_buffer_that_another_thread_changes_is_sealed_as_it_was_at_one_moment() -> None:
    """Fault 27: a mutable buffer is copied once, before the engine sees it."""
    alice, bob = connected()
    contents = [ipv4(bytes([n]) * 1380) * 64 for n in range(4)]
    buffer = bytearray(contents[0])
    seen: set[bytes] = set()
    with changing(buffer, contents):
        for turn in range(MOST_ROUNDS):
            view = memoryview(buffer) if turn % 2 else buffer
            sealed = alice.encapsulate_batch(view, [1400] * 64, START)
            opened = bob.decapsulate_batch(sealed.data, sealed.lengths, START)
            assert opened.data in contents
            seen.add(opened.data)
            if turn >= ROUNDS and len(seen) > 1:
                break
    assert len(seen) > 1, "nothing changed"


def test_a_buffer_that_another_thread_changes_is_opened_as_it_was_at_one_moment() -> None:
    """Fault 27: each datagram is whole, so that its tag is right, whichever it is."""
    alice, bob = connected()
    datagrams = [alice.encapsulate(ipv4(bytes([n]) * 1380), START).datagrams[0] for n in range(4)]
    buffer = bytearray(datagrams[0])
    opened: list[bytes] = []
    with changing(buffer, datagrams):
        for turn in range(MOST_ROUNDS):
            view = memoryview(buffer) if turn % 2 else buffer
            output = bob.decapsulate(view, START)
            assert output.error in (None, DropReason.DUPLICATE_COUNTER)
            opened += output.packets
            if turn >= ROUNDS and len(opened) > 1:
                break
    assert len(opened) > 1, "nothing changed"
    assert len(set(opened)) == len(opened)
