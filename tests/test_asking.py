"""The hook that decides about first packets: through a `Node` in virtual time, and what verdicts say of it."""

from __future__ import annotations

import socket
from dataclasses import FrozenInstanceError, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from connlib import (
    Action,
    Denied,
    Direction,
    DropReason,
    Flow,
    FlowQuestion,
    Policy,
    Protocol,
    Rule,
    TimeoutReason,
    Verdict,
    VerdictReason,
)
from helpers_policy import RST, Gated, icmp, ip, tcp, there, udp
from two_tunnels import ALICE, BOB, START

# docs/policy.md says so.
ANSWER_TIME, REFUSAL_TIME = 5.0, 10.0
MOST_HELD, MOST_PENDING_PER_PEER = 8, 64

ASKING = Policy((Rule(action=Action.DENY, protocol=47), Rule(action=Action.ASK, name="web")))


def test_a_question_says_who_wants_what_and_which_rule_asks() -> None:
    nodes = Gated(replace(ASKING, outbound=Action.ASK), asks=True)
    nodes.send(there(udp(5000, 53)))
    nodes.send(ip(58, icmp(128), "fd00::1", "fd09::7"))
    nodes.reply(ip(253, b"payload", "10.9.9.8", "10.0.0.1"))
    first, second, third = nodes.gateway.take_questions()
    assert first == FlowQuestion(
        id=1,
        peer=ALICE.public_key(),
        direction=Direction.FROM_PEER,
        protocol=Protocol.UDP,
        source=IPv4Address("10.0.0.1"),
        source_port=5000,
        destination=IPv4Address("10.9.9.9"),
        destination_port=53,
        rule=2,
        rule_name="web",
    )
    assert second == replace(
        first,
        id=2,
        protocol=Protocol.ICMP,
        source=IPv6Address("fd00::1"),
        source_port=None,
        destination=IPv6Address("fd09::7"),
        destination_port=None,
        icmp_type=128,
    )
    assert (third.direction, third.protocol, third.rule, third.rule_name) == (
        Direction.TO_PEER,
        253,
        None,
        None,
    )
    assert third.source == ip_address("10.9.9.8") and third.name is None
    assert nodes.gateway.take_questions() == []
    assert (nodes.stats.flows_pending, nodes.stats.questions, nodes.stats.flows) == (3, 3, 0)
    with pytest.raises(FrozenInstanceError):
        first.id = 3  # type: ignore[misc]


def test_an_answer_lets_everything_go_on_in_order_or_refuses_it() -> None:
    nodes = Gated(ASKING, asks=True)
    nodes.gateway.log_flows(10)
    allowed = [there(udp(5000, 53, bytes([number]))) for number in range(3)]
    refused = [there(udp(5000, 80, bytes([number]))) for number in range(2)]
    assert nodes.send(*allowed, *refused) == ([], [])
    first, second = nodes.gateway.take_questions()
    assert nodes.gateway.decide(first.id, True, nodes.now) is True
    assert nodes.exchange() == ([], allowed)
    assert nodes.gateway.decide(second.id, False, nodes.now) is True
    ((answer,), ()) = map(tuple, nodes.exchange())
    assert (answer[9], answer[20], answer[21], answer[28:]) == (socket.IPPROTO_ICMP, 3, 13, refused[0])
    assert nodes.drops == {DropReason.DENIED: 2}
    assert nodes.send(allowed[0]) == ([], [allowed[0]])
    records, _ = nodes.gateway.take_flows(nodes.now)
    verdicts = [record.verdict for record in records]
    assert verdicts == [
        Verdict(True, VerdictReason.HOOK, 2, "web"),
        Verdict(False, VerdictReason.HOOK, 2, "web"),
    ]
    assert records[1].refused == 2
    # Late, twice, and never asked.
    for question in (first.id, second.id, 3, 2**64 - 1):
        assert nodes.gateway.decide(question, True, nodes.now) is False
    assert nodes.exchange() == ([], [])


def test_what_is_no_number_of_a_question_or_no_bool_raises() -> None:
    gateway = Gated(ASKING, asks=True).gateway
    for question in (-1, 2**64, "1", None):
        with pytest.raises((TypeError, ValueError)):
            gateway.decide(question, True, START)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        gateway.decide(1, None, START)  # type: ignore[arg-type]


def test_the_deadline_of_a_question_is_the_nodes_and_has_its_own_reason() -> None:
    nodes = Gated(ASKING, asks=True)
    nodes.send(there(udp(5000, 53)))
    (question,) = nodes.gateway.take_questions()
    deadline = nodes.gateway.next_timeout()
    assert deadline == (START + ANSWER_TIME, TimeoutReason.UNANSWERED)
    nodes.now = deadline.at
    nodes.gateway.handle_timeout(nodes.now)
    assert nodes.drops == {DropReason.UNANSWERED: 1}
    assert nodes.stats.flows_pending == 0
    assert nodes.gateway.decide(question.id, True, nodes.now) is False
    after = nodes.gateway.next_timeout()
    assert after is None or after.reason is not TimeoutReason.UNANSWERED


def test_what_is_over_a_bound_is_dropped_and_counted() -> None:
    nodes = Gated(ASKING, asks=True)
    same = there(udp(5000, 53))
    assert nodes.send(*[same] * (MOST_HELD + 3)) == ([], [])
    assert nodes.drops == {DropReason.PENDING_FULL: 3}
    nodes.send(*[there(udp(5000, 1000 + number)) for number in range(80)])
    assert len(nodes.gateway.take_questions()) == nodes.stats.flows_pending == MOST_PENDING_PER_PEER
    assert nodes.drops == {DropReason.PENDING_FULL: 3 + 81 - MOST_PENDING_PER_PEER}


def test_a_refusal_holds_for_ten_seconds() -> None:
    nodes = Gated(ASKING, asks=True)
    question = there(udp(5000, 53))
    nodes.send(question)
    nodes.gateway.decide(1, False, nodes.now)
    for seconds, asked in ((9.999, 0), (REFUSAL_TIME, 1)):
        nodes.now = START + seconds
        nodes.send(question)
        assert len(nodes.gateway.take_questions()) == asked
    assert nodes.drops[DropReason.DENIED] == 2


def test_a_node_that_nobody_answers_for_refuses_at_once() -> None:
    nodes = Gated(ASKING, asks=True)
    nodes.send(there(udp(5000, 53)))
    nodes.gateway.ask(False, nodes.now)
    ((_, event),) = nodes.gateway.drain().events
    assert isinstance(event, Denied) and event.destination_port == 53
    assert event.verdict == Verdict(False, VerdictReason.NO_HOOK, 2, "web")
    nodes.send(there(udp(5000, 54)))
    assert nodes.drops == {DropReason.DENIED: 2}
    assert nodes.gateway.take_questions() == []


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict(True, VerdictReason.HOOK, 2, "web"), "allowed by the hook, asked by rule 2 (web)"),
        (Verdict(False, VerdictReason.HOOK), "denied by the hook"),
        (Verdict(False, VerdictReason.NO_HOOK, 2), "denied: there is no hook, asked by rule 2"),
        (ASKING.decide(Flow.parse("10.0.0.5/icmp:5")), "denied: it starts no flow, asked by rule 2 (web)"),
        (ASKING.decide(there(tcp(5000, 443, RST), 6)), "denied: it starts no flow, asked by rule 2 (web)"),
        (Verdict(False, VerdictReason.UNANSWERED, 1), "denied: no answer of the hook, asked by rule 1"),
        (Verdict(False, VerdictReason.CROWDED), "denied: too much waits for the hook"),
        (ASKING.decide(Flow.parse("10.0.0.5:443/tcp")), "asks the hook by rule 2 (web)"),
        (Policy(default=Action.ASK).decide(Flow.parse("10.0.0.5/icmp")), "asks the hook by default"),
    ],
)
def test_verdicts_say_who_was_asked_and_by_which_rule(verdict: Verdict, said: str) -> None:
    assert str(verdict) == said
    assert verdict.asks is said.startswith("asks")
    assert verdict.allowed is said.startswith("allowed")


def test_who_is_asked_again_about_a_peer_lets_no_flow_go_on_that_was_allowed() -> None:
    nodes = Gated(ASKING, asks=True)
    ports = allowed, refused, waiting = 443, 444, 445
    for port in ports:
        nodes.send(there(udp(5000, port)))
    for question in nodes.gateway.take_questions():
        if question.destination_port != waiting:
            nodes.gateway.decide(question.id, question.destination_port == allowed, nodes.now)
    nodes.exchange()
    nodes.gateway.ask_again(ALICE.public_key(), nodes.now)
    assert (nodes.stats.flows, nodes.stats.flows_pending) == (0, 1)
    for port in (allowed, refused):
        nodes.send(there(udp(5000, port)))
    asked = {question.destination_port: question.id for question in nodes.gateway.take_questions()}
    assert list(asked) == [waiting, allowed, refused]
    assert nodes.gateway.decide(3, True, nodes.now) is False
    assert nodes.gateway.decide(asked[waiting], True, nodes.now) is True
    assert nodes.exchange() == ([], [there(udp(5000, waiting))])
    with pytest.raises(KeyError, match="no peer has the public key"):
        nodes.gateway.ask_again(BOB.public_key(), nodes.now)
