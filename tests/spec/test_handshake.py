"""Handshakes lost, late, doubled or crossing, and the packets that wait for them (scenarios 1, 17-28, 33, 35)."""

import itertools
import random

import pytest

from connlib import (
    DropReason,
    GaveUp,
    Limits,
    PresharedKey,
    PrivateKey,
    Role,
    SessionEstablished,
    TimeoutReason,
)
from spec.pair import BOTH_ROLES, LARGER, LATENCY, SMALLER, Host, Pair, Sent, packet

L = LATENCY


def lose(pair: Pair, kind: str, count: int = 10**9) -> None:
    """Lose the next `count` datagrams of a kind."""
    left = count

    def drop(host: Host, sent: Sent) -> bool:
        nonlocal left
        if sent.kind != kind or left == 0:
            return False
        left -= 1
        return True

    pair.drop = drop


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_the_first_packet_arrives_after_three_latencies_with_one_session_each(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    pair.send(0, pair.a, 1)
    pair.run(5)
    assert [s.kind for s in pair.a.sent] == ["I", "D"]
    assert [s.kind for s in pair.b.sent] == ["R"]
    assert [len(s.datagram) for s in pair.a.sent + pair.b.sent] == [148, 96, 92]
    assert pair.b.received == [(3 * L, 1)]
    assert pair.a.tunn.stats(pair.clock()).sessions == pair.b.tunn.stats(pair.clock()).sessions == 1
    assert pair.a.happened(SessionEstablished) == [2 * L]
    assert pair.b.happened(SessionEstablished) == [3 * L]


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_without_an_answer_initiations_go_on_for_90_seconds_and_then_stop(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    lose(pair, "I")
    pair.send(0, pair.a, 1)
    pair.run(1_000)
    at = pair.a.times("I")
    gaps = [later - sooner for sooner, later in itertools.pairwise(at)]
    assert at[0] == 0 and 17 <= len(at) <= 18 and at[-1] < 90
    assert all(5 <= gap <= 5.333 + 1e-6 for gap in gaps)
    assert len(set(gaps)) > 1
    assert pair.a.events[-1] == (90, GaveUp(dropped=1))
    assert pair.a.happened(GaveUp) == [90]
    assert pair.a.tunn.next_timeout() is None
    assert pair.a.tunn.stats(pair.clock()).queued == 0


def test_a_packet_queued_at_80_keeps_the_attempt_going_until_170() -> None:
    pair = Pair()
    lose(pair, "I")
    pair.send(0, pair.a, 1)
    pair.send(80, pair.a, 2)
    pair.run(1_000)
    assert 160 < pair.a.times("I")[-1] < 170
    assert pair.a.events[-1] == (170, GaveUp(dropped=2))


def test_a_failed_renewal_leaves_the_session_alone() -> None:
    pair = Pair().connect()
    pair.drop = lambda host, sent: sent.kind in "IR"
    pair.initiate(30, pair.a)
    for k in range(1, 179 * 2):
        pair.send(k / 2, pair.a, k)
        pair.send(k / 2, pair.b, k)
    pair.run(179.5)
    assert pair.a.happened(GaveUp) == [120]
    assert max(at for at in pair.a.times("I") if at < 120) > 114
    # The packet that A sends at 120 finds the session old and no attempt under way.
    assert pair.a.times("I", since=120)[0] == 120
    assert pair.a.times("D")[-1] == 169.5
    assert pair.b.times("D")[-1] == 178.5
    assert pair.a.numbers() == list(range(1, 179 * 2))


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_lost_initiation_is_sent_again_and_its_packet_arrives(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    lose(pair, "I", 1)
    pair.send(0, pair.a, 1)
    pair.run(20)
    ((at, number),) = pair.b.received
    assert number == 1 and 5 + 3 * L <= at <= 5.333 + 3 * L + 1e-6
    assert len(pair.a.times("I")) == 2
    assert len(pair.b.times("R")) == 1


def test_after_a_lost_response_the_responder_holds_one_unconfirmed_session() -> None:
    pair = Pair().connect()
    lose(pair, "R", 1)
    pair.initiate(30, pair.a)
    pair.send(31, pair.b, 1)
    pair.run(31.01)
    assert pair.b.tunn.stats(pair.clock()).sessions == 2
    pair.run(36)
    assert pair.a.numbers() == [1]
    assert len(pair.a.times("I")) == 2
    assert len(pair.b.times("R")) == 2
    assert pair.b.tunn.stats(pair.clock()).sessions == 2


def test_eighteen_lost_responses_do_not_disturb_the_current_session() -> None:
    pair = Pair().connect()
    pair.drop = lambda host, sent: sent.kind == "R"
    pair.initiate(10, pair.a)
    for k in range(1, 95):
        pair.send(k, pair.b, k)
    pair.run(100)
    assert len(pair.b.times("R")) >= 17
    assert pair.a.numbers() == list(range(1, 95))
    assert pair.b.tunn.stats(pair.clock()).sessions <= 2


def test_a_response_to_the_first_initiation_ends_the_retries_and_one_to_the_second_is_still_taken() -> None:
    pair = Pair()
    held: list[bytes] = []

    def hold(host: Host, sent: Sent) -> bool:
        if sent.kind == "R":
            held.append(sent.datagram)
        return sent.kind == "R"

    pair.drop = hold
    pair.initiate(0, pair.a)
    pair.run(5.5)
    first, second = held
    pair.drop = lambda host, sent: False
    pair.deliver(5.6, pair.a, first)
    pair.run(5.61)
    assert not pair.a.tunn.stats(pair.clock()).handshake_pending
    pair.deliver(5.7, pair.a, second)
    pair.run(6)
    assert len(pair.a.happened(SessionEstablished)) == 2
    # B holds the session of the second response only, and now both use it.
    pair.send(7, pair.a, 1)
    pair.send(7, pair.b, 2)
    pair.run(60)
    assert pair.b.numbers() == [1] and pair.a.numbers() == [2]
    assert len(pair.a.times("I")) == 2


def test_a_response_to_the_second_initiation_is_refused_after_the_rekey_timeout() -> None:
    pair = Pair()
    held: list[bytes] = []

    def hold(host: Host, sent: Sent) -> bool:
        if sent.kind == "R":
            held.append(sent.datagram)
        return sent.kind == "R"

    pair.drop = hold
    pair.initiate(0, pair.a)
    pair.run(5.5)
    sent_at = pair.a.times("I")[1]
    pair.drop = lambda host, sent: False
    pair.deliver(5.6, pair.a, held[0])
    pair.deliver(sent_at + 5, pair.a, held[1])
    pair.run(12)
    assert [error for _, error in pair.a.errors] == [DropReason.UNEXPECTED]


@pytest.mark.parametrize("larger", ["A", "B"])
def test_crossing_initiations_end_on_one_session_that_one_side_renews(larger: str) -> None:
    a_key, b_key = (LARGER, SMALLER) if larger == "A" else (SMALLER, LARGER)
    pair = Pair(a_key=a_key, b_key=b_key)
    pair.send(0, pair.a, 1)
    pair.send(0, pair.b, 2)
    for k in range(2, 2000):
        pair.send(k / 5, pair.a, 2 * k)
        pair.send(k / 5, pair.b, 2 * k + 1)
    pair.run(1)
    assert len(pair.a.times("I")) == len(pair.b.times("I")) == 1
    assert len(pair.a.times("R") + pair.b.times("R")) == 1
    assert max(pair.a.received[0][0], pair.b.received[0][0]) <= 4 * L
    ignored = pair.a.errors + pair.b.errors
    assert [reason for _, reason in ignored] == [DropReason.CROSSED_INITIATION]
    pair.run(400)
    winner, other = (pair.a, pair.b) if larger == "A" else (pair.b, pair.a)
    assert len(winner.times("I")) == 4
    assert len(other.times("I")) == 1


def test_of_300_packets_that_wait_the_first_256_arrive_in_order_and_44_are_counted() -> None:
    pair = Pair()
    for k in range(300):
        pair.send(0, pair.a, k)
    pair.run(5)
    assert pair.b.numbers() == list(range(256))
    assert [reason for _, reason in pair.a.errors] == [DropReason.QUEUE_FULL] * 44
    assert len(pair.a.times("I")) == 1


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_what_the_responder_queues_leaves_in_order_on_the_packet_that_confirms(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    pair.initiate(0, pair.a)
    for k in (1, 2, 3):
        pair.send(L + 0.005 * k, pair.b, k)
    pair.run(5)
    assert pair.b.times("I") == []
    assert pair.b.times("D") == [3 * L] * 3
    assert pair.a.received == [(4 * L, 1), (4 * L, 2), (4 * L, 3)]


def test_a_responder_drops_and_counts_what_waited_for_90_seconds() -> None:
    pair = Pair((Role.INITIATOR, Role.RESPONDER))
    pair.send(0, pair.b, 1)
    pair.send(5, pair.b, 2)
    pair.run(90)
    assert pair.b.wakes == [(90, TimeoutReason.QUEUE_TIMEOUT)]
    assert pair.b.tunn.stats(pair.clock()).queued == 1
    pair.run(1_000)
    assert pair.b.times("IRCDK") == []
    assert [reason for _, reason in pair.b.wakes] == [TimeoutReason.QUEUE_TIMEOUT] * 2
    assert pair.b.tunn.next_timeout() is None


def test_a_side_whose_answer_is_not_confirmed_initiates_for_its_queue_five_seconds_later() -> None:
    pair = Pair()
    pair.drop = lambda host, sent: host is pair.b or sent.at > 0
    pair.initiate(0, pair.a)
    pair.send(1, pair.b, 1)
    pair.run(6)
    (at,) = pair.b.times("I")
    # B made its session when the initiation came, and waits 5 s and a jitter for A to confirm it.
    assert L + 5 <= at <= L + 5.333 + 1e-6
    assert [reason for _, reason in pair.b.wakes] == [TimeoutReason.UNCONFIRMED_SESSION]


def test_with_different_preshared_keys_there_is_no_session_and_the_old_one_is_unharmed() -> None:
    same = PresharedKey.from_bytes(bytes(range(32)))
    other = PresharedKey.from_bytes(bytes(range(1, 33)))
    equal = Pair(psk=(same, same)).connect()
    equal.send(1, equal.a, 1)
    equal.run(2)
    assert equal.b.numbers() == [1]
    equal.b.tunn.set_preshared_key(other, equal.clock())
    equal.initiate(10, equal.a)
    for k in range(10, 100):
        equal.send(k, equal.b, k)
    equal.run(110)
    initiations = equal.a.times("I")
    assert 17 <= len(initiations) <= 18
    assert [reason for _, reason in equal.a.errors] == [DropReason.INVALID_AEAD_TAG] * len(initiations)
    assert equal.a.numbers() == list(range(10, 100))


def test_a_responder_that_expects_another_key_answers_nothing() -> None:
    pair = Pair(b_expects=PrivateKey.from_bytes(bytes([9] * 32)))
    pair.initiate(0, pair.a)
    pair.run(95)
    assert pair.b.times("RCIDK") == []
    count = len(pair.a.times("I"))
    assert [reason for _, reason in pair.b.errors] == [DropReason.WRONG_KEY] * count
    assert pair.b.tunn.stats(pair.clock()).sessions == 0


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_of_everything_that_arrives_twice_the_copy_is_named_and_dropped(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    pair.copies = lambda host, sent: 2
    for k in range(50):
        pair.send(k, pair.a, k)
        pair.send(k + 0.5, pair.b, k)
    pair.run(60)
    assert pair.a.numbers() == pair.b.numbers() == list(range(50))
    assert len(pair.b.times("R")) == len(pair.a.times("I")) == 1
    reasons = {reason for _, reason in pair.b.errors}
    assert reasons == {DropReason.REPLAYED_INITIATION, DropReason.DUPLICATE_COUNTER}
    assert {reason for _, reason in pair.a.errors} == {DropReason.UNEXPECTED, DropReason.DUPLICATE_COUNTER}


@pytest.mark.parametrize("seed", range(20))
def test_with_loss_reordering_and_copies_nothing_arrives_twice_and_it_recovers(seed: int) -> None:
    def run() -> tuple[list[object], Pair]:
        chance = random.Random(seed)
        pair = Pair(seed=seed + 1)
        pair.drop = lambda host, sent: chance.random() < 0.2
        pair.copies = lambda host, sent: 2 if chance.random() < 0.1 else 1
        straight = pair.deliver

        def shuffled(when: float, host: Host, datagram: bytes) -> None:
            straight(when + chance.uniform(0, 0.05), host, datagram)

        pair.deliver = shuffled  # type: ignore[method-assign]
        for k in range(1_200):
            pair.send(k / 2, pair.a, k)
            pair.send(k / 2, pair.b, k)
        pair.heal(600)
        for k in range(1_200, 1_240):
            pair.send(k / 2, pair.a, k)
            pair.send(k / 2, pair.b, k)
        pair.run(625)
        return [(s.at, s.datagram) for h in (pair.a, pair.b) for s in h.sent], pair

    trace, pair = run()
    for host in (pair.a, pair.b):
        numbers = host.numbers()
        assert len(numbers) == len(set(numbers))
        assert set(range(1_232, 1_240)) <= set(numbers)
    assert run()[0] == trace


def test_another_initiation_within_20_ms_is_not_answered() -> None:
    pair = Pair()
    gateway = pair.b.tunn
    clock = pair.clock()
    first = pair.a.tunn.initiate_handshake(clock).datagrams[0]
    again = Pair(seed=8).a.tunn
    again.set_unix_time(1_700_000_100.0, clock)
    second = again.initiate_handshake(clock).datagrams[0]
    assert len(gateway.decapsulate(first, clock).datagrams) == 1
    output = gateway.decapsulate(second, clock + 0.019)
    assert output == ([], [], [], DropReason.INITIATION_TOO_SOON)
    third = again.handle_timeout(clock + 6).datagrams[0]
    assert len(gateway.decapsulate(third, clock + 6).datagrams) == 1


def test_an_initiator_answers_no_initiation() -> None:
    pair = Pair((Role.EITHER, Role.INITIATOR))
    pair.initiate(0, pair.a)
    pair.run(1)
    assert pair.b.times("RCI") == []
    assert [reason for _, reason in pair.b.errors] == [DropReason.ROLE]


def test_while_an_initiation_is_pending_no_second_one_is_sent_on_any_path() -> None:
    pair = Pair()
    lose(pair, "I")
    pair.initiate(0, pair.a)
    for k in range(1, 200):
        pair.initiate(k * 0.02, pair.a)
        pair.send(k * 0.02, pair.a, k)
    pair.run(4.9, also_every=0.01)
    assert pair.a.times("I") == [0]
    assert pair.a.tunn.encapsulate(packet(1), pair.clock()).datagrams == []


def test_what_the_peer_sends_on_a_session_that_ours_replaced_before_it_was_confirmed_arrives() -> None:
    pair = Pair()
    pair.drop = lambda host, sent: host is pair.b and sent.kind == "K"
    pair.initiate(0, pair.b)
    pair.initiate(0.03, pair.a)
    pair.send(0.065, pair.b, 1)
    pair.run(0.1)
    assert pair.a.happened(SessionEstablished) == [0.07]
    assert pair.a.received == [(0.085, 1)]


def test_the_crossing_rule_ends_with_the_first_retry_also_if_nobody_polled() -> None:
    pair = Pair(a_key=LARGER, b_key=SMALLER)
    pair.drop = lambda host, sent: host is pair.a
    pair.a.polled = False
    pair.initiate(0, pair.a)
    pair.initiate(60, pair.b)
    pair.run(60.03)
    assert pair.a.times("R") == [60 + L]


def test_without_a_queue_a_side_still_waits_for_its_answer_to_be_confirmed() -> None:
    pair = Pair(limits=Limits(queue_packets=0))
    pair.initiate(0, pair.a)
    pair.send(0.03, pair.b, 1)
    pair.run(1)
    assert pair.b.times("I") == []
    assert [reason for _, reason in pair.b.errors] == [DropReason.QUEUE_FULL]
