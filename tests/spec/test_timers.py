"""Keepalives and silent peers (paper, section 6.5; scenarios 9-12, 37, 40)."""

import itertools
from collections import Counter

import pytest

from connlib import PeerSilent, Role, SessionEstablished, SessionExpired, TimeoutReason
from spec.pair import BOTH_ROLES, LATENCY, ONE_OF_EACH, Pair

L = LATENCY


def switch(pair: Pair, when: float, interval: float | None) -> None:
    """Change the persistent keepalive of A at an instant."""
    pair.at(when, lambda: pair.feed(pair.a, pair.a.tunn.set_persistent_keepalive(interval, pair.clock())))


@pytest.mark.scenario(9)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_an_unanswered_packet_is_acknowledged_once_ten_seconds_later(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.run(1_000)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(1, "D")]
    assert [(s.at, s.kind) for s in pair.b.sent] == [(11.02, "K")]


@pytest.mark.scenario(10)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_one_way_traffic_is_acknowledged_every_ten_and_a_half_seconds(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    for k in range(158):
        pair.send(k * 0.7, pair.a, k)
    pair.run(179)
    assert [(s.at, s.kind) for s in pair.b.sent] == [(round(10.02 + 10.5 * n, 6), "K") for n in range(11)]
    assert pair.a.kinds() == "D" * 158
    assert pair.b.numbers() == list(range(158))


@pytest.mark.scenario(11)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_six_unanswered_packets_bring_one_initiation_fifteen_seconds_after_the_first(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    pair.cut(1)
    for second in range(1, 7):
        pair.send(second, pair.a, second)
    pair.run(20.9)
    (at,) = pair.a.times("I")
    assert 16 <= at <= 16.333
    assert pair.a.kinds() == "D" * 6 + "I"
    assert pair.a.happened(PeerSilent) == [at]
    assert pair.b.kinds() == ""


@pytest.mark.scenario(12)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_an_answer_within_a_second_asks_for_one_keepalive_in_return(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(60, pair.b, 1)
    pair.send(60 + L + 1, pair.a, 2)
    pair.run(1_000)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(61.02, "D")]
    assert [(s.at, s.kind) for s in pair.b.sent] == [(60, "D"), (71.04, "K")]


@pytest.mark.scenario(37)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_persistent_keepalive_acts_at_once_and_counts_from_the_last_packet_either_way(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    switch(pair, 50, 25)
    pair.send(80, pair.a, 1)
    switch(pair, 116, None)
    pair.run(179)
    assert pair.b.times("K") == [90.02]
    assert [(s.at, s.kind) for s in pair.a.sent] == [(50, "K"), (75, "K"), (80, "D"), (115.04, "K")]
    timeout = pair.a.tunn.next_timeout()
    assert timeout is not None and timeout.reason is TimeoutReason.SESSION_EXPIRY


@pytest.mark.scenario(40)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_day_with_a_keepalive_of_25_takes_690_initiations_and_4144_keepalives(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    # The keepalive that confirmed the session went out at 0; from there on one is due every 25 s of silence.
    pair.feed(pair.a, pair.a.tunn.set_persistent_keepalive(25, pair.clock()))
    pair.a.forget()
    pair.run(86_400)
    initiations, keepalives = pair.a.times("I"), pair.a.times("K")
    assert Counter(pair.a.kinds()) == {"I": 690, "K": 4_144}
    assert pair.b.kinds() == "R" * 690
    confirming = set(pair.a.happened(SessionEstablished))
    assert len(confirming) == len(confirming & set(keepalives)) == 690
    assert Counter(reason for _, reason in pair.a.wakes) == {
        TimeoutReason.PERSISTENT_KEEPALIVE: 3_454,
        TimeoutReason.SESSION_EXPIRY: 690,
    }
    assert Counter(reason for _, reason in pair.b.wakes) == {TimeoutReason.SESSION_EXPIRY: 690}
    # The keepalive at the session's age of 125 s renews it, and the new session is 40 ms younger.
    periods = {round(later - sooner, 6) for sooner, later in itertools.pairwise(initiations)}
    assert (initiations[0], periods) == (125, {125.04})
    # It is the previous session that ends each time, never the current one.
    assert pair.a.happened(SessionExpired) == pair.b.happened(SessionExpired) == []


def test_nothing_happens_a_moment_before_a_peer_counts_as_silent() -> None:
    pair = Pair().connect()
    pair.cut(1)
    pair.send(1, pair.a, 1)
    pair.run(15.999)
    timeout = pair.a.tunn.next_timeout()
    assert timeout is not None and timeout.reason is TimeoutReason.DEAD_PEER
    pair.run(16.333)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(1, "D"), (round(timeout.at - 10_000, 6), "I")]
    assert pair.a.wakes == [(round(timeout.at - 10_000, 6), TimeoutReason.DEAD_PEER)]


def test_replies_put_off_the_silence_and_then_it_counts_from_the_first_packet_without_one() -> None:
    pair = Pair().connect()
    for second in range(1, 6):
        pair.send(second, pair.a, second)
        pair.send(second + 0.5, pair.b, second)
    pair.cut(15)
    for second in range(20, 30):
        pair.send(second, pair.a, second)
    pair.run(40)
    (at,) = pair.a.times("I")
    assert 35 <= at <= 35.333


@pytest.mark.parametrize("quiet", [10, 25, 60, 115])
def test_a_request_and_its_answer_after_a_quiet_time_start_no_handshake(quiet: float) -> None:
    pair = Pair().connect()
    pair.send(1, pair.a, 1)
    pair.send(2 + quiet, pair.b, 2)
    pair.send(2 + quiet + 2 * L, pair.a, 3)
    pair.run(119)
    assert pair.a.times("I") == pair.b.times("I") == []


def test_received_data_is_due_an_answer_at_exactly_ten_seconds_and_then_only_the_session_ends() -> None:
    pair = Pair().connect()
    pair.send(3, pair.a, 1)
    pair.run(3 + L)
    assert pair.b.tunn.next_timeout() == (pair.clock() + 10, TimeoutReason.PASSIVE_KEEPALIVE)
    pair.run(14)
    assert pair.b.times("K") == [13.02]
    timeout = pair.b.tunn.next_timeout()
    assert timeout is not None and timeout.reason is TimeoutReason.SESSION_EXPIRY
    assert timeout.at == pytest.approx(10_000 + 180 - L)


def test_a_keepalive_asks_for_no_answer() -> None:
    pair = Pair().connect()
    switch(pair, 20, 25)
    pair.run(100)
    assert pair.a.times("K") == [20, 45, 70, 95]
    assert pair.b.kinds() == ""


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_keepalive_of_the_answering_side_goes_out_on_time_and_the_other_sends_none(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    pair.at(5, lambda: pair.feed(pair.b, pair.b.tunn.set_persistent_keepalive(25, pair.clock())))
    pair.run(85)
    assert pair.b.times("K") == [5, 30, 55, 80]
    assert pair.a.kinds() == ""


def test_a_tunnel_made_with_a_keepalive_initiates_at_once_unless_it_is_a_responder() -> None:
    pair = Pair((Role.EITHER, Role.RESPONDER), keepalive=(25, 25))
    pair.run(1)
    assert pair.a.times("I") == [-2 * L]
    assert pair.b.times("I") == []
    alone = Pair(ONE_OF_EACH, keepalive=(None, 25))
    alone.run(600)
    assert alone.b.kinds() == ""
    assert alone.b.tunn.next_timeout() is None


@pytest.mark.parametrize("role", [Role.EITHER, Role.INITIATOR])
def test_after_giving_up_a_keepalive_tries_again_one_interval_later(role: Role) -> None:
    pair = Pair((role, Role.RESPONDER), keepalive=(25, None))
    pair.lose("I")
    start = pair.now
    pair.run(start + 116)
    initiations = [round(at - start, 6) for at in pair.a.times("I")]
    assert max(at for at in initiations if at < 100) < 90
    assert [at for at in initiations if at >= 90] == [115]


def test_a_side_that_did_not_initiate_last_waits_fifteen_seconds_more_for_a_session_to_keep() -> None:
    pair = Pair().connect()
    pair.at(1, lambda: pair.feed(pair.b, pair.b.tunn.set_persistent_keepalive(25, pair.clock())))
    pair.cut(100)
    pair.run(220)
    assert pair.b.times("K") == [1, 26, 51, 76, 101, 126, 151, 176]
    # The next one was due at 201, without a session by then.
    (at, *_) = pair.b.times("I")
    assert 216 <= at <= 216.333 + 1e-6
    assert pair.a.times("I") == []


def test_with_keepalives_on_both_sides_one_side_renews_and_the_other_never() -> None:
    pair = Pair(keepalive=(25, 25))
    pair.run(3600)
    # Both began at once; the side with the larger key, B, has been the initiator since.
    assert len(pair.a.times("I")) == 1
    # The keepalives of one side put off those of the other: B renews when it sends at 120 or hears at 165.
    renewals = pair.b.times("I")[1:]
    assert len(renewals) >= 3600 // 180
    assert all(120 <= later - sooner <= 180 for sooner, later in itertools.pairwise(renewals))
    assert pair.a.happened(SessionExpired) == pair.b.happened(SessionExpired) == []
