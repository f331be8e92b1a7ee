"""Ages at which a session is renewed, rests and ends (paper, sections 6.1 and 6.2; scenarios 2-8 and 13-16)."""

import pytest

from connlib import DropReason, Role, SessionEstablished, SessionExpired, TimeoutReason
from spec.pair import BOTH_ROLES, LATENCY, ONE_OF_EACH, Pair

L = LATENCY


@pytest.mark.scenario(2)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_after_185_idle_seconds_one_packet_brings_one_handshake_and_arrives(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(185, pair.a, 1)
    pair.run(190)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(185, "I"), (185 + 2 * L, "D")]
    assert [(s.at, s.kind) for s in pair.b.sent] == [(185 + L, "R")]
    assert pair.b.received == [(185 + 3 * L, 1)]
    assert pair.a.times_to(pair.b_index) == pair.b.times_to(pair.a_index) == []


@pytest.mark.scenario(3)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_169_9_the_initiator_still_sends_on_the_session_and_renews_it(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(169.9, pair.a, 1)
    pair.run(280)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(169.9, "D"), (169.9, "I"), (169.94, "K")]
    assert pair.a.times_to(pair.b_index) == [169.9]
    assert pair.b.received == [(169.92, 1)]
    assert pair.b.kinds() == "R"


@pytest.mark.scenario(4)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_170_the_initiator_queues_and_renews(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(170, pair.a, 1)
    pair.run(179)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(170, "I"), (170 + 2 * L, "D")]
    assert pair.a.times_to(pair.b_index) == []
    assert pair.b.received == [(170 + 3 * L, 1)]
    assert pair.b.kinds() == "R"
    # B acknowledges the packet, and the old sessions end at their time all the same.
    pair.run(181)
    assert pair.b.times("K") == [pytest.approx(180 + 3 * L)]
    assert [reason for _, reason in pair.a.wakes] == [TimeoutReason.SESSION_EXPIRY]


@pytest.mark.scenario(5)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_179_9_the_responder_sends_and_the_initiator_renews(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(179.9, pair.b, 1)
    pair.run(290)
    assert pair.a.received == [(179.92, 1)]
    assert pair.b.times_to(pair.a_index) == [179.9]
    assert pair.a.times("I") == [179.92]
    assert pair.b.kinds() == "DR"


@pytest.mark.scenario(6)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_at_180_a_session_ends_in_one_wake_and_its_traffic_is_refused(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    old = pair.lose("D")
    pair.send(170, pair.b, 1)
    pair.run(179.999)
    assert [host.tunn.stats(pair.clock()).sessions for host in (pair.a, pair.b)] == [1, 0]
    pair.run(180.001)
    assert pair.a.wakes == [(180, TimeoutReason.SESSION_EXPIRY)]
    assert pair.b.wakes == [(180 - L, TimeoutReason.SESSION_EXPIRY)]
    assert (pair.a.happened(SessionExpired), pair.b.happened(SessionExpired)) == ([180], [180 - L])
    assert pair.a.tunn.stats(pair.clock()).sessions == 0
    assert pair.a.tunn.next_timeout() is None
    for late in (180.001, 183):
        pair.deliver(late, pair.a, old[0].datagram)
    pair.run(184)
    assert pair.a.errors == [(180.001, DropReason.NO_SESSION), (183, DropReason.NO_SESSION)]
    assert (pair.a.received, pair.a.kinds()) == ([], "")


@pytest.mark.scenario(7, polled=False)
def test_an_unpolled_session_is_not_used_at_200_either_way() -> None:
    pair = Pair().connect()
    pair.run(1)
    pair.a.polled = pair.b.polled = False
    old = pair.lose("D", 2)
    pair.send(1, pair.a, 1)
    pair.send(1, pair.b, 2)
    pair.run(199)
    from_a, from_b = (sent.datagram for sent in old)
    pair.deliver(200, pair.b, from_a)
    pair.send(200, pair.b, 3)
    pair.run(200)
    assert pair.b.kinds() == "DI"
    assert pair.b.tunn.stats(pair.clock()).queued == 1
    pair.deliver(200 + L / 2, pair.a, from_b)
    pair.run(205)
    assert pair.a.errors == [(200 + L / 2, DropReason.NO_SESSION)]
    assert pair.b.errors == [(200, DropReason.NO_SESSION)]
    assert pair.b.kinds() == "DID"
    assert pair.b.times_to(pair.a_index) == [1]
    assert pair.a.received == [(200 + 3 * L, 3)]
    assert pair.a.kinds() == "DR"


@pytest.mark.scenario(8)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_fresh_handshake_and_24_idle_hours_are_three_packets_and_one_wake_each(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles)
    pair.initiate(-2 * L, pair.a)
    pair.run(86_400)
    assert (pair.a.kinds(), pair.b.kinds()) == ("IK", "R")
    # Each at 180 s of its own session, which B made 20 ms sooner.
    assert pair.a.wakes == [(180, TimeoutReason.SESSION_EXPIRY)]
    assert pair.b.wakes == [(180 - L, TimeoutReason.SESSION_EXPIRY)]
    assert pair.a.tunn.next_timeout() is None
    assert pair.b.tunn.next_timeout() is None


@pytest.mark.scenario(13)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_one_packet_and_600_idle_seconds_renew_nothing(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.run(601)
    assert [(s.at, s.kind) for s in pair.a.sent] == [(1, "D")]
    assert [(s.at, s.kind) for s in pair.b.sent] == [(11.02, "K")]
    assert (pair.a.happened(SessionExpired), pair.b.happened(SessionExpired)) == ([180], [180 - L])
    assert pair.a.tunn.next_timeout() is None
    assert pair.b.tunn.next_timeout() is None


@pytest.mark.scenario(14)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_packets_at_119_and_121_renew_once_at_121_without_loss(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(119, pair.a, 1)
    pair.send(121, pair.a, 2)
    pair.run(240)
    assert pair.a.times("I") == [121]
    assert pair.b.times("I") == []
    assert pair.a.times_to(pair.b_index) == [119, 121]
    assert pair.a.happened(SessionEstablished) == [121 + 2 * L]
    age = pair.a.tunn.stats(pair.clock()).session_age
    assert age == pytest.approx(240 - (121 + 2 * L), abs=1e-6)
    assert pair.b.received == [(119 + L, 1), (121 + L, 2)]


@pytest.mark.scenario(15)
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


@pytest.mark.scenario(16)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_packet_that_arrives_at_166_is_renewed_by_the_initiator_alone(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(166 - L, pair.b, 1)
    pair.run(280)
    assert pair.a.received == [(166, 1)]
    assert pair.a.times("I") == [166]
    assert pair.b.times("I") == []


@pytest.mark.parametrize(("age", "renewed"), [(119.999, False), (120, True)])
def test_sending_renews_from_120_seconds_on(age: float, renewed: bool) -> None:
    pair = Pair().connect()
    pair.send(age, pair.a, 1)
    pair.run(age)
    assert pair.a.kinds() == ("DI" if renewed else "D")


@pytest.mark.parametrize(("age", "renewed"), [(164.999, False), (165, True)])
def test_receiving_renews_from_165_seconds_on(age: float, renewed: bool) -> None:
    pair = Pair().connect()
    pair.send(age - L, pair.b, 1)
    pair.run(age + 0.001)
    assert pair.a.kinds() == ("I" if renewed else "")


def test_statistics_show_no_session_that_is_too_old_also_if_nobody_polled() -> None:
    pair = Pair().connect()
    pair.a.polled = pair.b.polled = False
    assert pair.a.tunn.stats(pair.clock() + 179.999).sessions == 1
    stats = pair.a.tunn.stats(pair.clock() + 180)
    assert (stats.sessions, stats.session_age) == (0, None)


@pytest.mark.parametrize(("arrives", "accepted"), [(179.99, True), (180, False)])
def test_a_session_that_was_replaced_stays_for_what_is_in_flight_until_it_is_180_old(
    arrives: float, accepted: bool
) -> None:
    pair = Pair(ONE_OF_EACH).connect()
    old = pair.lose("D", 1)
    pair.send(5, pair.b, 1)
    pair.initiate(6, pair.a)
    pair.at(7, lambda: pair.deliver(arrives, pair.a, old[0].datagram))
    pair.run(181)
    assert pair.a.received == ([(arrives, 1)] if accepted else [])
    assert pair.a.errors == ([] if accepted else [(arrives, DropReason.WRONG_INDEX)])
