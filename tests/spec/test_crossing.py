"""Initiations that cross (engine rules, part C; scenario 24)."""

import pytest

from connlib import DropReason, SessionEstablished
from spec.pair import LARGER, LATENCY, SMALLER, Pair, receiver_index, sender_index

L = LATENCY


@pytest.mark.scenario(24)
@pytest.mark.parametrize("larger", ["A", "B"])
def test_crossing_initiations_end_on_one_session_that_one_side_renews(larger: str) -> None:
    a_key, b_key = (LARGER, SMALLER) if larger == "A" else (SMALLER, LARGER)
    pair = Pair(a_key=a_key, b_key=b_key)
    winner, other = (pair.a, pair.b) if larger == "A" else (pair.b, pair.a)
    pair.send(0, pair.a, 1)
    pair.send(0, pair.b, 2)
    pair.run(0.99)
    assert pair.a.times("I") == pair.b.times("I") == [0]
    # The other side answers; the one with the larger key does not.
    assert (winner.times("R"), other.times("R")) == ([], [L])
    assert (winner.errors, other.errors) == ([(L, DropReason.CROSSED_INITIATION)], [])
    assert other.received == [(3 * L, 1 if larger == "A" else 2)]
    assert winner.received == [(4 * L, 2 if larger == "A" else 1)]
    for k in range(5, 2000):
        pair.send(k / 5, pair.a, 2 * k)
        pair.send(k / 5, pair.b, 2 * k + 1)
    pair.run(1.5)
    (response,) = (sent.datagram for sent in other.sent if sent.kind == "R")
    indices = {
        host.name: {receiver_index(s.datagram) for s in host.sent if s.kind == "D"}
        for host in (winner, other)
    }
    assert indices == {winner.name: {sender_index(response)}, other.name: {receiver_index(response)}}
    pair.run(400)
    # Renewed at the first packet from 120 s on, three times.
    assert len(winner.times("I")) == 4
    assert len(other.times("I")) == 1
    assert len(pair.a.numbers()) == len(pair.b.numbers()) == 1 + 1995


@pytest.mark.parametrize("larger", ["A", "B"])
@pytest.mark.parametrize("lost", ["the first", "the second"])
def test_of_two_crossing_initiations_one_is_enough(larger: str, lost: str) -> None:
    a_key, b_key = (LARGER, SMALLER) if larger == "A" else (SMALLER, LARGER)
    pair = Pair(a_key=a_key, b_key=b_key)
    loser = pair.a if lost == "the first" else pair.b
    pair.drop = lambda host, sent: host is loser and sent.kind == "I" and sent.at == 0
    pair.send(0, pair.a, 1)
    pair.send(0, pair.b, 2)
    pair.run(20)
    assert (pair.a.numbers(), pair.b.numbers()) == ([2], [1])
    # If it is the larger key's initiation that arrives, it is answered; else its owner waits for its retry.
    quick = (larger == "B") == (lost == "the first")
    assert (max(pair.a.received[0][0], pair.b.received[0][0]) <= 4 * L) is quick


def test_what_the_peer_sends_on_a_session_that_ours_replaced_before_it_was_confirmed_arrives() -> None:
    pair = Pair()
    pair.drop = lambda host, sent: host is pair.b and sent.kind == "K"
    pair.initiate(0, pair.b)
    pair.initiate(0.03, pair.a)
    pair.send(0.065, pair.b, 1)
    pair.run(0.1)
    assert pair.a.happened(SessionEstablished) == [0.07]
    assert pair.a.received == [(0.085, 1)]


def test_the_crossing_rule_ends_with_the_first_retry() -> None:
    pair = Pair(a_key=LARGER, b_key=SMALLER)
    pair.drop = lambda host, sent: host is pair.a and sent.kind == "I"
    pair.initiate(0, pair.a)
    pair.initiate(0, pair.b)
    pair.run(4.9)
    assert pair.a.kinds() == "I" and pair.a.errors == [(L, DropReason.CROSSED_INITIATION)]
    pair.run(12)
    retry = pair.a.times("I")[1]
    assert pair.a.times("R") == [round(next(at for at in pair.b.times("I") if at + L > retry) + L, 6)]


def test_the_crossing_rule_ends_with_the_first_retry_also_if_nobody_polled() -> None:
    pair = Pair(a_key=LARGER, b_key=SMALLER)
    pair.drop = lambda host, sent: host is pair.a
    pair.a.polled = False
    pair.initiate(0, pair.a)
    pair.initiate(60, pair.b)
    pair.run(60.03)
    assert pair.a.times("R") == [60 + L]


def test_whoever_initiates_while_sessions_exist_gets_the_same_rule() -> None:
    pair = Pair().connect()
    pair.initiate(30, pair.a)
    pair.initiate(30, pair.b)
    pair.run(31)
    winner, other = pair.b, pair.a
    assert (winner.kinds(), other.kinds()) == ("IK", "IR")
    new = {receiver_index(sent.datagram) for sent in other.sent if sent.kind == "R"}
    pair.send(32, pair.a, 1)
    pair.send(32, pair.b, 2)
    pair.run(33)
    assert (pair.a.numbers(), pair.b.numbers()) == ([2], [1])
    assert {receiver_index(sent.datagram) for sent in other.sent if sent.kind == "D"} == new


def test_an_initiation_that_comes_when_the_other_side_had_its_answer_is_answered_too() -> None:
    pair = Pair(a_key=LARGER, b_key=SMALLER)
    pair.delay = lambda host, sent: 1.0 if host is pair.b and sent.kind == "I" else 0
    pair.send(0, pair.b, 1)
    pair.send(0.005, pair.a, 2)
    pair.run(10)
    assert pair.a.times("R") == [1 + L]
    assert (pair.a.numbers(), pair.b.numbers()) == ([1], [2])
    assert len(pair.a.times("I") + pair.b.times("I")) == 2
