"""The roles (engine rules, part C): a section for each situation, a test for each of its cells.

The side in question is A where it starts sessions, and B where it answers.
"""

from __future__ import annotations

import pytest

from connlib import (
    Dropped,
    DropReason,
    GaveUp,
    HandshakeStarted,
    Limits,
    PeerSilent,
    Role,
    SessionEstablished,
    Timers,
)
from spec.pair import BOTH_ROLES, EITHER_ROLES, LATENCY, ONE_OF_EACH, Host, Pair, sender_index

L = LATENCY
STARTING = [Role.EITHER, Role.INITIATOR]
"""The roles that may initiate; the peer answers."""
ANSWERING = [(Role.EITHER, Role.EITHER), (Role.EITHER, Role.RESPONDER), (Role.INITIATOR, Role.RESPONDER)]
"""For a situation of B's."""


def keepalive(pair: Pair, when: float, host: Host, interval: float = 25) -> None:
    """Switch a host's persistent keepalive on at an instant."""
    pair.at(when, lambda: pair.feed(host, host.tunn.set_persistent_keepalive(interval, pair.clock())))


# Data to send, no usable session.


@pytest.mark.parametrize("role", STARTING)
def test_without_a_session_data_is_queued_behind_one_initiation(role: Role) -> None:
    pair = Pair((role, Role.RESPONDER))
    pair.lose("I")
    for k in range(40):
        pair.send(k / 10, pair.a, k)
    pair.run(4.9)
    assert pair.a.kinds() == "I"
    assert pair.a.happened(HandshakeStarted) == [0]
    assert pair.a.tunn.stats(pair.clock()).queued == 40


def test_either_waits_five_seconds_for_its_answer_to_be_confirmed_and_then_initiates() -> None:
    pair = Pair()
    pair.drop = lambda host, sent: host is pair.b or sent.at > 0
    pair.initiate(0, pair.a)
    pair.send(1, pair.b, 1)
    pair.send(2, pair.b, 2)
    pair.run(L + 5 - 0.001)
    assert pair.b.times("I") == []
    pair.run(8)
    # Its unconfirmed session was made at L.
    (at,) = pair.b.times("I")
    assert L + 5 <= at <= L + 5.333 + 1e-6


def test_either_whose_unconfirmed_session_is_older_than_that_initiates_at_once() -> None:
    pair = Pair()
    pair.drop = lambda host, sent: host is pair.b or sent.at > 0
    pair.initiate(0, pair.a)
    pair.send(5.4, pair.b, 1)
    pair.run(5.4)
    assert pair.b.times("I") == [5.4]


def unpolled_with_a_packet(until: float, timers: Timers) -> Pair:
    """B has answered, its packet of 1 s waits for the confirmation, and B is not called from 2 s to `until`."""
    pair = Pair(timers=timers)
    pair.drop = lambda host, sent: host is pair.b or sent.at > 0
    pair.initiate(0, pair.a)
    pair.send(1, pair.b, 1)
    pair.run(2)
    pair.b.polled = False
    pair.run(until)
    assert pair.b.tunn.stats(pair.clock()).queued == 1
    pair.b.polled = True
    return pair


def test_a_packet_that_waits_for_a_confirmation_is_dropped_late_if_nobody_called_for_longer_than_an_attempt() -> (
    None
):
    pair = unpolled_with_a_packet(203, Timers())
    pair.run(400)
    assert pair.b.events == [(203, Dropped(DropReason.QUEUE_TIMEOUT, 1))]
    assert pair.b.kinds() == "R"
    assert pair.b.tunn.next_timeout() is None


def test_a_packet_whose_unconfirmed_session_ended_while_nobody_called_gets_another() -> None:
    pair = unpolled_with_a_packet(30, Timers(rekey_after_time=15, reject_after_time=20))
    pair.drop = lambda host, sent: False
    pair.run(40)
    assert pair.b.times("I") == [30]
    assert pair.a.received == [(30 + 3 * L, 1)]


def test_a_responder_queues_and_sends_what_waited_when_the_session_is_confirmed() -> None:
    pair = Pair(ONE_OF_EACH)
    for k in range(3):
        pair.send(k, pair.b, k)
    pair.initiate(89, pair.a)
    pair.run(89.9)
    assert pair.b.kinds() == "RDDD"
    assert pair.a.received == [(89 + 4 * L, 0), (89 + 4 * L, 1), (89 + 4 * L, 2)]


def test_a_responder_drops_and_counts_what_waited_for_90_seconds() -> None:
    pair = Pair(ONE_OF_EACH)
    for k in (0, 0, 5):
        pair.send(k, pair.b, 1)
    pair.run(1_000)
    assert pair.b.kinds() == ""
    dropped = DropReason.QUEUE_TIMEOUT
    assert pair.b.events == [(90, Dropped(dropped, 2)), (95, Dropped(dropped, 1))]
    assert pair.b.tunn.stats(pair.clock()).drops == {dropped: 3}
    assert pair.b.tunn.next_timeout() is None


# Sends on a session of age >= 120.


@pytest.mark.parametrize("role", STARTING)
@pytest.mark.parametrize("what", ["data", "keepalive"])
@pytest.mark.parametrize(("age", "renews"), [(119.999, False), (120, True)])
def test_who_initiated_a_session_renews_it_when_it_sends_from_120_on(
    role: Role, what: str, age: float, renews: bool
) -> None:
    pair = Pair((role, Role.RESPONDER)).connect()
    if what == "data":
        pair.send(age, pair.a, 1)
    else:
        keepalive(pair, age, pair.a)
    pair.run(age)
    sent = "D" if what == "data" else "K"
    assert pair.a.kinds() == (sent + "I" if renews else sent)


@pytest.mark.parametrize("roles", ANSWERING)
def test_who_answered_does_not_renew_a_session_when_it_sends(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    # A's keepalive for the first of them is A's to renew the session with.
    pair.lose("K")
    for k in range(120, 135):
        pair.send(k, pair.b, k)
    pair.run(130 + L)
    assert pair.b.kinds() == "D" * 11
    pair.run(134.5)
    assert pair.a.times("I") == [130 + L]
    assert pair.b.happened(HandshakeStarted) == []


# Receives on a session of age >= 165.


@pytest.mark.parametrize("role", STARTING)
@pytest.mark.parametrize(("age", "renews"), [(164.999, False), (165, True)])
def test_who_initiated_a_session_renews_it_when_it_receives_from_165_on(
    role: Role, age: float, renews: bool
) -> None:
    pair = Pair((role, Role.RESPONDER)).connect()
    pair.send(age - L, pair.b, 1)
    pair.run(age + 0.0005)
    assert pair.a.received == [(age, 1)]
    assert pair.a.kinds() == ("I" if renews else "")


@pytest.mark.parametrize("roles", ANSWERING)
def test_who_answered_does_not_renew_a_session_when_it_receives(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    # Without an answer to A's initiations the session gets so old.
    pair.drop = lambda host, sent: sent.kind == "I"
    for k in range(120, 170):
        pair.send(k, pair.a, k)
    pair.run(179)
    assert pair.b.numbers() == list(range(120, 170))
    assert set(pair.b.kinds()) == {"K"}


# Data unanswered for 15 s.


@pytest.mark.parametrize("roles", [EITHER_ROLES, (Role.EITHER, Role.RESPONDER), ONE_OF_EACH])
def test_data_without_an_answer_for_15_seconds_brings_one_initiation(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.cut(1)
    pair.send(1, pair.a, 1)
    pair.run(20.9)
    (at,) = pair.a.times("I")
    assert 16 <= at <= 16.333
    assert pair.a.happened(PeerSilent) == [at]


@pytest.mark.parametrize("roles", ANSWERING)
def test_also_who_answered_misses_an_answer_but_a_responder_only_says_so(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.cut(1)
    pair.send(1, pair.b, 1)
    pair.run(20.9)
    (silent,) = pair.b.happened(PeerSilent)
    assert 16 <= silent <= 16.333
    assert pair.b.times("I") == ([silent] if roles[1] is Role.EITHER else [])


def test_a_keepalive_needs_no_answer() -> None:
    pair = Pair().connect()
    keepalive(pair, 1, pair.a, 100)
    pair.cut(1)
    pair.run(60)
    assert pair.a.kinds() == "K"
    assert pair.a.happened(PeerSilent) == []


# Persistent keepalive due.


@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("side", ["A", "B"])
def test_with_a_session_a_keepalive_that_is_due_is_sent_in_every_role(
    roles: tuple[Role, Role], side: str
) -> None:
    pair = Pair(roles).connect()
    host = pair.a if side == "A" else pair.b
    keepalive(pair, 10, host)
    pair.run(100)
    assert host.times("IKD", since=1) == [10, 35, 60, 85]
    assert pair.peer(host).times("IKD", since=1) == []


@pytest.mark.parametrize("role", STARTING)
def test_without_a_session_a_keepalive_that_is_due_brings_one_initiation(role: Role) -> None:
    pair = Pair((role, Role.RESPONDER))
    pair.lose("I")
    keepalive(pair, 3, pair.a)
    pair.run(7.9)
    assert pair.a.times("I") == [3]


def test_the_last_initiator_does_not_wait_when_its_session_is_gone() -> None:
    pair = Pair().connect()
    keepalive(pair, 10, pair.a, 60)
    pair.lose("IR")
    # Its keepalive at 130 begins an attempt that ends at 220; the session ended at 180.
    pair.run(281)
    assert [at for at in pair.a.times("I") if at >= 220] == [280]


def test_either_that_answered_last_waits_fifteen_seconds_and_a_jitter_more() -> None:
    pair = Pair().connect()
    keepalive(pair, 10, pair.b, 60)
    pair.cut(100)
    pair.run(190)
    assert pair.b.times("K") == [10, 70, 130]
    pair.run(210)
    # Due at 190.
    (at,) = pair.b.times("I")
    assert 205 <= at <= 205.333 + 1e-6


@pytest.mark.parametrize("connected", [True, False])
def test_without_a_session_a_responders_keepalive_does_nothing(connected: bool) -> None:
    pair = Pair(ONE_OF_EACH)
    if connected:
        pair.connect()
        pair.run(181)
        pair.b.forget()
    keepalive(pair, 190, pair.b)
    pair.run(1_000)
    assert (pair.b.kinds(), pair.b.wakes, pair.b.events) == ("", [], [])
    assert pair.b.tunn.next_timeout() is None


# Receives a valid initiation.


@pytest.mark.parametrize("role", [Role.EITHER, Role.RESPONDER])
def test_a_valid_initiation_is_answered(role: Role) -> None:
    pair = Pair((Role.EITHER, role))
    pair.initiate(0, pair.a)
    pair.run(1)
    assert pair.b.times("R") == [L]
    assert pair.b.happened(SessionEstablished) == [3 * L]


@pytest.mark.parametrize("role", STARTING)
def test_an_initiator_answers_no_initiation(role: Role) -> None:
    pair = Pair((role, Role.INITIATOR))
    pair.initiate(0, pair.a)
    pair.run(100)
    assert pair.b.kinds() == ""
    assert {reason for _, reason in pair.b.errors} == {DropReason.ROLE}
    assert pair.b.tunn.stats(pair.clock()).sessions == 0
    assert pair.b.tunn.next_timeout() is None
    assert pair.a.happened(GaveUp) == [90]


# The send counter at REKEY_AFTER_MESSAGES. The keepalive that confirms a session counts: it is number 0.


@pytest.mark.parametrize("role", STARTING)
def test_at_the_message_limit_an_initiator_renews_its_session(role: Role) -> None:
    pair = Pair((role, Role.RESPONDER), limits=Limits(rekey_after_messages=5)).connect()
    for k in range(1, 5):
        pair.send(k, pair.a, k)
    pair.run(4.01)
    assert pair.a.times("I") == [4]
    pair.run(5)
    assert pair.b.numbers() == [1, 2, 3, 4]
    assert len(pair.b.times("R")) == 1


def test_at_the_message_limit_also_who_answered_renews_a_session() -> None:
    pair = Pair(limits=Limits(rekey_after_messages=5)).connect()
    for k in range(1, 6):
        pair.send(k, pair.b, k)
    pair.run(4.9)
    assert pair.b.times("I") == []
    pair.run(6)
    assert pair.b.times("I") == [5]
    assert pair.a.numbers() == [1, 2, 3, 4, 5]


def test_at_the_message_limit_a_responder_says_so_once_and_goes_on() -> None:
    pair = Pair(ONE_OF_EACH, limits=Limits(rekey_after_messages=5)).connect()
    for k in range(1, 10):
        pair.send(k, pair.b, k)
    pair.run(9.5)
    assert pair.b.times("I") == []
    assert pair.b.happened(PeerSilent) == [5]
    assert pair.a.numbers() == list(range(1, 10))


# The send counter at REJECT_AFTER_MESSAGES.


@pytest.mark.parametrize("role", STARTING)
def test_beyond_the_last_message_data_waits_for_one_initiation(role: Role) -> None:
    pair = Pair((role, Role.RESPONDER), limits=Limits(reject_after_messages=5)).connect()
    for k in range(1, 8):
        pair.send(k / 1000, pair.a, k)
    pair.run(0.008)
    # The keepalive and four packets were five messages.
    assert pair.a.kinds() == "DDDDI"
    assert pair.a.tunn.stats(pair.clock()).queued == 3
    pair.run(1)
    assert pair.a.times("I") == [0.005]
    assert pair.b.numbers() == list(range(1, 8))


def test_beyond_the_last_message_either_that_answered_initiates_too() -> None:
    pair = Pair(limits=Limits(reject_after_messages=5)).connect()
    for k in range(1, 8):
        pair.send(1 + k / 1000, pair.b, k)
    pair.run(2)
    assert pair.b.times("I") == [1.006]
    assert pair.a.numbers() == list(range(1, 8))


def test_beyond_the_last_message_a_responder_queues_and_says_so() -> None:
    pair = Pair(ONE_OF_EACH, limits=Limits(reject_after_messages=5)).connect()
    for k in range(1, 8):
        pair.send(1 + k / 1000, pair.b, k)
    pair.run(2)
    assert pair.b.kinds() == "DDDDD"
    assert pair.b.happened(PeerSilent) == [1.006]
    assert pair.b.tunn.stats(pair.clock()).queued == 2
    pair.initiate(3, pair.a)
    pair.run(4)
    assert pair.a.numbers() == list(range(1, 8))
    assert pair.b.times("I") == []


# In every role.


@pytest.mark.parametrize(("after", "taken"), [(0.019, False), (0.02, True)])
def test_one_initiation_in_20_ms_is_taken(after: float, taken: bool) -> None:
    pair = Pair()
    gateway, clock = pair.b.tunn, pair.clock()
    first = pair.a.tunn.initiate_handshake(clock).datagrams[0]
    # The same peer, started anew.
    again = Pair(seed=8).a.tunn
    again.set_unix_time(1_700_000_100.0, clock)
    second = again.initiate_handshake(clock).datagrams[0]
    assert sender_index(first) != sender_index(second)
    assert len(gateway.decapsulate(first, clock).datagrams) == 1
    output = gateway.decapsulate(second, clock + after)
    assert output.error is (None if taken else DropReason.INITIATION_TOO_SOON)
    assert len(output.datagrams) == taken
    third = again.handle_timeout(clock + 6).datagrams[0]
    assert len(gateway.decapsulate(third, clock + 6).datagrams) == 1
    assert gateway.stats(clock + 6).drops == ({} if taken else {DropReason.INITIATION_TOO_SOON: 1})


@pytest.mark.parametrize("role", STARTING)
def test_while_an_initiation_is_pending_no_second_one_is_sent_on_any_path(role: Role) -> None:
    pair = Pair((role, Role.RESPONDER)).connect()
    pair.lose("I")
    # Every path at once: asked for, old when it sends and receives, kept alive, and with a peer that is silent.
    pair.initiate(150, pair.a)
    for k in range(1, 230):
        pair.initiate(150 + k * 0.02, pair.a)
        pair.send(150 + k * 0.02, pair.a, k)
        pair.send(150 + k * 0.02, pair.b, k)
    keepalive(pair, 152, pair.a, 1)
    pair.run(154.9, also_every=0.01)
    assert pair.a.times("I") == [150]
    assert pair.a.happened(HandshakeStarted) == [150]
    pair.run(156)
    assert len(pair.a.times("I")) == 2


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_session_of_180_seconds_is_not_used_by_any_call_though_nobody_polled(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    pair.a.polled = pair.b.polled = False
    pair.lose("IR")
    pair.send(180, pair.a, 1)
    pair.send(180, pair.b, 2)
    pair.at(180, lambda: pair.feed(pair.a, pair.a.tunn.encapsulate(b"", pair.clock())))
    pair.at(180, lambda: pair.feed(pair.b, pair.b.tunn.encapsulate(b"", pair.clock())))
    keepalive(pair, 180, pair.a)
    keepalive(pair, 180, pair.b)
    pair.run(181)
    assert pair.a.times("DK") == pair.b.times("DK", since=1) == []
    assert [host.errors for host in (pair.a, pair.b)] == [[(180, DropReason.NO_SESSION)]] * 2


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_data_waits_from_170_on_though_nobody_polled_and_what_was_queued_is_renewed_for(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    pair.a.polled = False
    pair.send(170, pair.a, 1)
    pair.run(170)
    assert pair.a.kinds() == "I"
    # A keepalive is not data, and B may still send.
    keepalive(pair, 170, pair.a)
    pair.send(170, pair.b, 2)
    pair.run(171)
    assert pair.a.times_to(pair.b_index) == [170]
    assert pair.a.received == [(170 + L, 2)]
    assert pair.b.received == [(170 + 3 * L, 1)]
