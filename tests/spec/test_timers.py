"""Keepalives and silent peers (paper, section 6.5; scenarios 9-12, 37, 39, 40)."""

import itertools

import pytest

from connlib import PeerSilent, Role, SessionExpired, TimeoutReason
from spec.pair import BOTH_ROLES, LATENCY, Pair

L = LATENCY


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_an_unanswered_packet_is_acknowledged_once_ten_seconds_later(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.run(170)
    assert pair.b.times("IRCDK") == [11.02]
    assert pair.a.times("IRCDK") == [1]


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_one_way_traffic_is_acknowledged_every_ten_and_a_half_seconds(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    for k in range(158):
        pair.send(k * 0.7, pair.a, k)
    pair.run(119)
    assert pair.b.times("K") == pytest.approx([10.02 + 10.5 * n for n in range(11)])
    assert pair.a.times("I") == []
    assert pair.b.numbers() == list(range(158))


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
    assert pair.a.happened(PeerSilent) == [at]


def test_a_responder_whose_peer_is_silent_says_so_and_sends_nothing() -> None:
    pair = Pair((Role.INITIATOR, Role.RESPONDER)).connect()
    pair.cut(1)
    pair.send(1, pair.b, 1)
    pair.run(100)
    assert pair.b.times("IRCK") == []
    (at,) = pair.b.happened(PeerSilent)
    assert 16 <= at <= 16.333


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_an_answer_within_a_second_asks_for_one_keepalive_in_return(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(60, pair.b, 1)
    pair.send(60 + L + 1, pair.a, 2)
    pair.run(119)
    assert pair.a.times("IK") == []
    assert pair.b.times("IK") == [71.04]


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_persistent_keepalive_acts_at_once_and_counts_from_the_last_packet_either_way(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()

    def switch(interval: float | None) -> None:
        pair.feed(pair.a, pair.a.tunn.set_persistent_keepalive(interval, pair.clock()))

    pair.at(50, lambda: switch(25))
    pair.send(80, pair.a, 1)
    pair.at(116, lambda: switch(None))
    pair.run(160)
    assert pair.b.times("K") == [90.02]
    assert pair.a.times("K") == [50, 75, 115.04]
    assert pair.a.tunn.next_timeout() is not None
    assert pair.a.tunn.next_timeout().reason is TimeoutReason.SESSION_EXPIRY  # type: ignore[union-attr]


def test_a_tunnel_made_with_a_keepalive_initiates_at_once_unless_it_is_a_responder() -> None:
    pair = Pair((Role.EITHER, Role.RESPONDER), keepalive=(25, 25))
    pair.run(1)
    assert pair.a.times("I") == [-2 * L]
    assert pair.b.times("I") == []
    alone = Pair((Role.INITIATOR, Role.RESPONDER), keepalive=(None, 25))
    alone.run(600)
    assert alone.b.times("IRCDK") == []
    assert alone.b.tunn.next_timeout() is None


def test_after_giving_up_a_keepalive_tries_again_one_interval_later() -> None:
    pair = Pair(keepalive=(25, None))
    pair.drop = lambda host, sent: True
    start = pair.now
    pair.run(start + 116)
    initiations = [at - start for at in pair.a.times("I")]
    assert max(at for at in initiations if at < 100) < 90
    assert [round(at, 6) for at in initiations if at >= 100] == [115]


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
    assert all(120 <= later - sooner <= 180 for sooner, later in itertools.pairwise(renewals))
    assert pair.a.happened(SessionExpired) == pair.b.happened(SessionExpired) == []


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_day_with_a_keepalive_of_25_takes_690_initiations_and_4144_keepalives(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    interval = pair.a.tunn.set_persistent_keepalive
    # The keepalive that confirmed the session went out at 0; from there on one is due every 25 s of silence.
    pair.feed(pair.a, interval(25, 10_000.0 + 0.0))
    pair.a.forget()
    pair.run(86_400)
    keepalives = pair.a.times("K")
    initiations = pair.a.times("I")
    assert (len(initiations), len(keepalives)) == (690, 4_144)
    assert len(pair.b.times("R")) == 690
    assert pair.b.times("IDK") == []
    assert pair.a.times("D") == []
    assert (len(pair.a.wakes), len(pair.b.wakes)) == (4_144, 690)
    periods = [later - sooner for sooner, later in itertools.pairwise(initiations)]
    assert periods == pytest.approx([125.04] * 689, abs=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_polling_besides_the_announced_instants_changes_nothing(seed: int) -> None:
    def trace(also_every: float | None) -> list[object]:
        pair = Pair(seed=seed, keepalive=(25, None)).connect()
        for k in range(40):
            pair.send(k * 7.3, pair.a if k % 3 else pair.b, k)
        pair.cut(130)
        pair.heal(300)
        pair.run(600, also_every)
        hosts = (pair.a, pair.b)
        return [[(s.at, s.datagram) for s in h.sent] + h.received + h.events for h in hosts]

    assert trace(None) == trace(0.01)


def test_a_wake_one_millisecond_early_does_nothing() -> None:
    pair = Pair().connect()
    pair.send(1, pair.a, 1)
    pair.run(1.5)
    timeout = pair.b.tunn.next_timeout()
    assert timeout is not None
    early = pair.b.tunn.handle_timeout(timeout.at - 0.001)
    assert early == ([], [], [], None)
    assert pair.b.tunn.next_timeout() == timeout
