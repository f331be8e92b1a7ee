"""Ages at which a session is renewed, rests and ends (paper, sections 6.1 and 6.2; scenarios 2-8 and 13-16)."""

import pytest

from connlib import DropReason, Role, SessionExpired
from spec.pair import BOTH_ROLES, LATENCY, Pair

L = LATENCY


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_after_185_idle_seconds_one_packet_brings_one_handshake_and_arrives(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(185, pair.a, 1)
    pair.run(200)
    assert pair.a.times("I") == [185]
    assert pair.b.received == [(185 + 3 * L, 1)]
    assert pair.a.times("D") == [185 + 2 * L]


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_169_9_the_initiator_still_sends_on_the_session_and_renews_it(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(169.9, pair.a, 1)
    pair.run(170.5)
    assert pair.a.times("D") == [169.9]
    assert pair.a.times("I") == [169.9]
    assert pair.b.received == [(169.92, 1)]


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_170_the_initiator_queues_and_renews(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(170, pair.a, 1)
    pair.run(171)
    assert pair.a.times("I") == [170]
    assert pair.a.times("D") == [170 + 2 * L]
    assert pair.b.received == [(170 + 3 * L, 1)]


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_179_9_the_responder_sends_and_the_initiator_renews(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(179.9, pair.b, 1)
    pair.run(185)
    assert pair.a.received == [(179.92, 1)]
    assert pair.a.times("I") == [179.92]
    assert pair.b.times("I") == []


def test_at_180_a_session_ends_in_one_wake_and_its_traffic_is_refused() -> None:
    pair = Pair().connect()
    pair.b.polled = False
    pair.run(180.01)
    assert [at for at, _ in pair.a.wakes] == [180]
    assert pair.a.happened(SessionExpired) == [180]
    assert pair.a.tunn.stats(pair.clock()).sessions == 0
    # B made its session 20 ms before A did: it ends sooner, unless it sends in time.
    old = Pair((Role.INITIATOR, Role.RESPONDER)).connect()
    old.run(1)
    late = old.b.tunn.encapsulate(b"\x45" + bytes(19), old.clock()).datagrams[0]
    old.run(181)
    assert old.a.tunn.decapsulate(late, old.clock()).error is DropReason.NO_SESSION


def test_an_unpolled_session_is_not_used_at_200_either_way() -> None:
    pair = Pair().connect()
    pair.run(1)
    pair.a.polled = pair.b.polled = False
    stale = pair.a.tunn.encapsulate(b"\x45" + bytes(19), pair.clock()).datagrams[0]
    old = pair.b.tunn.encapsulate(b"\x45" + bytes(19), pair.clock()).datagrams[0]
    pair.now = 200
    output = pair.b.tunn.encapsulate(b"\x45" + bytes(19), pair.clock())
    assert [d[0] for d in output.datagrams] == [1]
    assert pair.b.tunn.stats(pair.clock()).queued == 1
    assert pair.a.tunn.decapsulate(old, pair.clock()).error is DropReason.NO_SESSION
    assert pair.b.tunn.decapsulate(stale, pair.clock()).error is DropReason.NO_SESSION


def test_a_fresh_handshake_and_24_idle_hours_are_three_packets_and_one_wake_each() -> None:
    pair = Pair()
    pair.initiate(-2 * L, pair.a)
    pair.run(86_400)
    assert [s.kind for s in pair.a.sent] == ["I", "K"]
    assert [s.kind for s in pair.b.sent] == ["R"]
    assert [at for at, _ in pair.a.wakes] == [180]
    assert [at for at, _ in pair.b.wakes] == [180 - L]
    assert pair.a.tunn.next_timeout() is None
    assert pair.b.tunn.next_timeout() is None


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_one_packet_and_600_idle_seconds_renew_nothing(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.run(600)
    assert pair.a.times("IRCDK") == [1]
    assert pair.b.times("IRCDK") == [11.02]
    assert pair.a.tunn.next_timeout() is None


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_packets_at_119_and_121_renew_once_at_121_without_loss(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(119, pair.a, 1)
    pair.send(121, pair.a, 2)
    pair.run(122)
    assert pair.a.times("I") == [121]
    assert pair.b.numbers() == [1, 2]
    age = pair.a.tunn.stats(pair.clock()).session_age
    assert age == pytest.approx(122 - (121 + 2 * L), abs=1e-6)


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_an_hour_of_traffic_both_ways_takes_29_initiations_and_loses_nothing(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    for k in range(36_000):
        pair.send(k / 10 + 0.1, pair.a, k)
        pair.send(k / 10 + 0.1, pair.b, k)
    pair.run(3_600.5)
    assert len(pair.a.times("I")) == 29
    assert pair.b.times("I") == []
    assert pair.a.numbers() == list(range(36_000))
    assert pair.b.numbers() == list(range(36_000))


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_packet_that_arrives_at_166_is_renewed_by_the_initiator_alone(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(166 - L, pair.b, 1)
    pair.run(170)
    assert pair.a.times("I") == [166]
    assert pair.b.times("I") == []


def test_statistics_show_no_session_that_is_too_old_also_if_nobody_polled() -> None:
    pair = Pair().connect()
    pair.a.polled = pair.b.polled = False
    assert pair.a.tunn.stats(pair.clock() + 179.999).sessions == 1
    stats = pair.a.tunn.stats(pair.clock() + 180)
    assert (stats.sessions, stats.session_age) == (0, None)
