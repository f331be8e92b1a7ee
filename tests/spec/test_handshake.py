"""Handshakes lost, late or refused, and the packets that wait for them (scenarios 1, 17-23, 25-28)."""

import itertools

import pytest

from connlib import (
    DropReason,
    GaveUp,
    IndexTable,
    Limits,
    PresharedKey,
    PrivateKey,
    Role,
    SessionEstablished,
    TimeoutReason,
)
from spec.pair import BOTH_ROLES, LATENCY, ONE_OF_EACH, Pair, receiver_index, sender_index

L = LATENCY


@pytest.mark.scenario(1)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_the_first_packet_arrives_after_three_latencies_with_one_session_each(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    pair.send(0, pair.a, 1)
    pair.run(10)
    assert [(s.at, s.kind, len(s.datagram)) for s in pair.a.sent] == [(0, "I", 148), (2 * L, "D", 96)]
    assert [(s.at, s.kind, len(s.datagram)) for s in pair.b.sent] == [(L, "R", 92)]
    assert pair.b.received == [(3 * L, 1)]
    assert pair.a.tunn.stats(pair.clock()).sessions == pair.b.tunn.stats(pair.clock()).sessions == 1
    assert pair.a.happened(SessionEstablished) == [2 * L]
    assert pair.b.happened(SessionEstablished) == [3 * L]
    # The packet is acknowledged like any other.
    pair.run(20)
    assert (pair.a.kinds(), pair.b.kinds()) == ("ID", "RK")


def retries(pair: Pair, since: float, until: float) -> int:
    """Check that A's initiations came at the gaps of retries in a stretch of time; how many they were."""
    at = [at for at in pair.a.times("I") if since <= at < until]
    gaps = [later - sooner for sooner, later in itertools.pairwise(at)]
    assert at[0] == since and at[-1] >= until - 5.333 - 1e-6
    assert all(5 <= gap <= 5.333 + 1e-6 for gap in gaps)
    assert len(set(gaps)) > 1
    return len(at)


@pytest.mark.scenario(17)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_without_an_answer_initiations_go_on_for_90_seconds_and_then_stop(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    pair.lose("I")
    pair.send(0, pair.a, 1)
    pair.run(1_000)
    assert 17 <= retries(pair, 0, 90) <= 18
    assert set(pair.a.kinds()) == {"I"} and pair.a.times("I")[-1] < 90
    assert pair.a.events[-1] == (90, GaveUp(dropped=1))
    assert pair.a.happened(GaveUp) == [90]
    assert pair.a.wakes[-1] == (90, TimeoutReason.GIVE_UP)
    assert pair.a.tunn.next_timeout() is None
    assert pair.a.tunn.stats(pair.clock()).queued == 0


@pytest.mark.scenario(18)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_packet_queued_at_80_keeps_the_attempt_going_until_170(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    pair.lose("I")
    pair.send(0, pair.a, 1)
    pair.send(80, pair.a, 2)
    pair.run(1_000)
    assert 32 <= retries(pair, 0, 170) <= 34
    assert pair.a.times("I")[-1] < 170
    assert pair.a.happened(GaveUp) == [170]
    assert pair.a.events[-1] == (170, GaveUp(dropped=2))
    assert pair.a.tunn.next_timeout() is None


@pytest.mark.scenario(19)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_failed_renewal_leaves_the_session_alone(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.lose("IR")
    pair.initiate(30, pair.a)
    for k in range(359):
        pair.send(k / 2 + 0.25, pair.a, k)
        pair.send(k / 2 + 0.25, pair.b, k)
    pair.run(179.9)
    assert pair.a.happened(GaveUp) == [120]
    assert pair.a.wakes[0][0] >= 35
    assert 17 <= retries(pair, 30, 120) <= 18
    # The packet that A sends next finds the session old and no attempt under way.
    assert pair.a.times("I", since=120)[0] == 120.25
    assert pair.a.times_to(pair.b_index) == pair.a.times("D") == [k / 2 + 0.25 for k in range(340)]
    assert pair.b.times_to(pair.a_index) == pair.b.times("D") == [k / 2 + 0.25 for k in range(359)]
    assert pair.b.numbers() == list(range(340))
    assert pair.a.numbers() == list(range(359))
    assert pair.b.times("I") == []
    stats = pair.a.tunn.stats(pair.clock())
    assert (stats.sessions, stats.queued) == (1, 19)


@pytest.mark.scenario(20)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_lost_initiation_is_sent_again_and_its_packet_arrives(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    pair.lose("I", 1)
    pair.send(0, pair.a, 1)
    pair.run(10)
    ((at, number),) = pair.b.received
    assert number == 1 and 5 + 3 * L <= at <= 5.333 + 3 * L + 1e-6
    assert (pair.a.kinds(), pair.b.kinds()) == ("IID", "R")


@pytest.mark.scenario(21)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_after_a_lost_response_the_responder_holds_one_unconfirmed_session(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.lose("R", 1)
    pair.initiate(30, pair.a)
    for k in range(31, 36):
        pair.send(k, pair.b, k)
    sessions: list[int] = []

    def count() -> None:
        sessions.append(pair.b.tunn.stats(pair.clock()).sessions)

    for k in range(300, 361):
        pair.at(k / 10, count)
    pair.run(36)
    assert (pair.a.kinds(), pair.b.times("R")) == ("IIK", [30.02, round(pair.a.times("I")[1] + L, 6)])
    assert pair.a.times("I")[1] >= 35
    # One beside the confirmed one, or beside the one that it replaced.
    assert (sessions[0], set(sessions[1:])) == (1, {2})
    assert pair.b.times_to(pair.a_index) == [31, 32, 33, 34, 35]
    assert pair.a.numbers() == [31, 32, 33, 34, 35]


@pytest.mark.scenario(22)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_eighteen_lost_responses_do_not_disturb_the_current_session(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    lost = pair.lose("R")
    pair.initiate(10, pair.a)
    for k in range(1, 165):
        pair.send(k, pair.b, k)
    pair.run(100)
    assert len(lost) == len(pair.b.times("R")) == len(pair.a.times("I")) == 18
    assert pair.b.tunn.stats(pair.clock()).sessions == 2
    assert pair.b.times_to(pair.a_index) == pair.b.times("D")
    # And after A gave up, until it renews the session because it receives on it at 165.
    pair.run(164.9)
    assert pair.a.numbers() == list(range(1, 165))
    assert pair.a.errors == pair.b.errors == []


@pytest.mark.scenario(23)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_response_to_the_first_initiation_ends_the_retries_and_one_to_the_second_is_still_taken(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    held = pair.lose("R", 2)
    pair.initiate(0, pair.a)
    pair.run(5.5)
    first, second = (sent.datagram for sent in held)
    retried = pair.a.times("I")[1]
    pair.deliver(5.6, pair.a, first)
    pair.run(5.61)
    assert not pair.a.tunn.stats(pair.clock()).handshake_pending
    # Just inside REKEY_TIMEOUT of the second initiation.
    pair.deliver(retried + 4.999, pair.a, second)
    pair.run(retried + 5)
    assert pair.a.happened(SessionEstablished) == [5.6, round(retried + 4.999, 6)]
    # B holds the session of the second response only, and now both use it.
    pair.send(12, pair.a, 1)
    pair.send(12, pair.b, 2)
    pair.run(100)
    assert (pair.a.times("D"), pair.b.times("D")) == ([12], [12])
    assert 12 in pair.a.times_to(sender_index(second)) and 12 in pair.b.times_to(receiver_index(second))
    assert (pair.a.numbers(), pair.b.numbers()) == ([2], [1])
    assert len(pair.a.times("I")) == 2
    assert len(pair.b.times("R")) == 2


@pytest.mark.scenario(23)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_after_the_first_response_there_are_no_retries_though_the_second_never_comes(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    held = pair.lose("R", 2)
    pair.initiate(0, pair.a)
    pair.run(5.5)
    pair.deliver(5.6, pair.a, held[0].datagram)
    pair.run(150)
    assert len(pair.a.times("I")) == 2
    assert pair.a.happened(SessionEstablished) == [5.6]
    assert pair.a.happened(GaveUp) == []


@pytest.mark.scenario(23)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_response_to_the_second_initiation_is_refused_after_the_rekey_timeout(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    held = pair.lose("R", 2)
    pair.initiate(0, pair.a)
    pair.run(5.5)
    retried = pair.a.times("I")[1]
    pair.deliver(5.6, pair.a, held[0].datagram)
    pair.deliver(retried + 5, pair.a, held[1].datagram)
    pair.run(12)
    assert [error for _, error in pair.a.errors] == [DropReason.UNEXPECTED]
    assert pair.a.happened(SessionEstablished) == [5.6]


def with_a_session_that_b_has_given_up(since: float) -> Pair:
    """A initiates at `since` and has a session 6 s later, of the first response; B has given that up for a second one,
    which is lost, and goes on with the session before."""
    pair = Pair(ONE_OF_EACH).connect()
    held = pair.lose("R", 2)
    pair.initiate(since, pair.a)
    pair.run(since + 5.5)
    assert len(held) == 2
    pair.deliver(since + 6, pair.a, held[0].datagram)
    return pair


@pytest.mark.scenario(23)
def test_a_peer_that_sends_on_the_old_session_only_does_not_pass_for_one_that_hears_us_on_the_new_one() -> (
    None
):
    """Found by the state machine: A had a session of which B knew nothing more, and B's packets kept it quiet."""
    pair = with_a_session_that_b_has_given_up(10)
    for k in range(17, 31):
        pair.send(k, pair.b, k)
    pair.send(20, pair.a, 1)
    pair.send(37, pair.a, 2)
    pair.run(60)
    assert pair.a.happened(SessionEstablished)[0] == 16
    assert pair.b.errors[0] == (round(16 + L, 6), DropReason.WRONG_INDEX)
    # The first packet without an answer was that of 20; a keepalive is none.
    (initiation,) = pair.a.times("I", since=16)
    assert 20 + 15 <= initiation <= 20 + 15 + 0.333
    assert pair.b.received == [(37 + L, 2)]
    assert pair.a.numbers() == list(range(17, 31))


@pytest.mark.scenario(23)
def test_a_session_that_the_peer_never_uses_is_replaced_when_it_is_heard_on_another() -> None:
    """As above, but A has nothing to send: only what it hears tells it that B does not know the session."""
    pair = with_a_session_that_b_has_given_up(100)
    for k in range(110, 300):
        pair.send(k, pair.b, k)
    pair.run(300)
    # From 15 s after the session on: the packet of 121 is the first to arrive then.
    initiations = pair.a.times("I", since=106)
    assert initiations[0] == 121 + L
    assert pair.a.numbers() == list(range(110, 300)), "none waited for a session"
    assert len(initiations) == 2, "and one at the age of 165 s, because A sends nothing but keepalives"


@pytest.mark.scenario(25)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_of_300_packets_that_wait_the_first_256_arrive_in_order_and_44_are_counted(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    for k in range(300):
        pair.send(0, pair.a, k)
    pair.run(11)
    assert pair.b.received == [(3 * L, k) for k in range(256)]
    assert pair.a.errors == [(0, DropReason.QUEUE_FULL)] * 44
    assert pair.a.tunn.stats(pair.clock()).drops == {DropReason.QUEUE_FULL: 44}
    assert pair.a.kinds() == "I" + "D" * 256


@pytest.mark.scenario(26)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("confirming", ["K", "D"])
def test_what_the_responder_queues_leaves_in_order_on_the_packet_that_confirms(
    roles: tuple[Role, Role], confirming: str
) -> None:
    pair = Pair(roles)
    if confirming == "K":
        pair.initiate(0, pair.a)
    else:
        pair.send(0, pair.a, 9)
    for k in (1, 2, 3):
        pair.send(L + 0.005 * k, pair.b, k)
    pair.run(11)
    assert pair.a.kinds().startswith("I" + confirming)
    assert pair.b.kinds() == "RDDD"
    assert pair.b.times("D") == [3 * L] * 3
    assert pair.a.received == [(4 * L, 1), (4 * L, 2), (4 * L, 3)]


@pytest.mark.scenario(27)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_with_different_preshared_keys_there_is_no_session_and_the_old_one_is_unharmed(
    roles: tuple[Role, Role],
) -> None:
    same = PresharedKey.from_bytes(bytes(range(32)))
    other = PresharedKey.from_bytes(bytes(range(1, 33)))
    pair = Pair(roles, psk=(same, same)).connect()
    pair.send(1, pair.a, 1)
    pair.run(2)
    assert pair.b.numbers() == [1]
    pair.b.tunn.set_preshared_key(other, pair.clock())
    pair.initiate(10, pair.a)
    for k in range(10, 110):
        pair.send(k, pair.b, k)
        pair.send(k, pair.a, k)
    pair.run(111)
    assert 17 <= retries(pair, 10, 100) <= 18
    initiations = pair.a.times("I")
    assert pair.b.times("R") == [round(at + L, 6) for at in initiations]
    assert pair.a.errors == [(round(at + 2 * L, 6), DropReason.INVALID_AEAD_TAG) for at in initiations]
    assert pair.a.happened(GaveUp) == [100]
    assert pair.a.numbers() == list(range(10, 110))
    assert pair.b.numbers() == [1, *range(10, 110)]
    assert pair.a.times_to(pair.b_index) == pair.a.times("D")


@pytest.mark.scenario(28)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_responder_that_expects_another_key_answers_nothing(roles: tuple[Role, Role]) -> None:
    table = IndexTable()
    stranger = PrivateKey.from_bytes(bytes([9] * 32))
    pair = Pair(roles, b_expects=stranger, for_b={"indices": table})
    pair.initiate(0, pair.a)
    pair.run(95)
    assert pair.b.kinds() == ""
    count = retries(pair, 0, 90)
    assert [reason for _, reason in pair.b.errors] == [DropReason.WRONG_KEY] * count
    stats = pair.b.tunn.stats(pair.clock())
    assert (stats.sessions, stats.queued, stats.handshake_pending, len(table)) == (0, 0, False, 0)
    assert stats.drops == {DropReason.WRONG_KEY: count}
    assert pair.b.tunn.next_timeout() is None


def test_without_a_queue_a_side_still_waits_for_its_answer_to_be_confirmed() -> None:
    pair = Pair(limits=Limits(queue_packets=0))
    pair.initiate(0, pair.a)
    pair.send(0.03, pair.b, 1)
    pair.run(1)
    assert pair.b.times("I") == []
    assert [reason for _, reason in pair.b.errors] == [DropReason.QUEUE_FULL]
