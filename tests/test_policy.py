"""`Policy`: what may be written, what it says without a packet, and what a `Node` does with it in virtual time."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from connlib import (
    Action,
    ConfigError,
    Flow,
    InterfaceConfig,
    Node,
    NodeConfig,
    PeerConfig,
    Policy,
    PolicyStats,
    PrivateKey,
    Protocol,
    Rule,
    Verdict,
    VerdictReason,
    format_config,
)
from helpers_policy import ACK, FIN, SYN, Gated, allow, back, icmp, ip, tcp, there, udp
from two_tunnels import BOB, START, UNIX_TIME

CAROL = PrivateKey.from_bytes(bytes([3] * 32))

# RFC 5382 REQ-5, RFC 4787 REQ-5, and what docs/policy.md says.
TCP_SECONDS, CLOSED_SECONDS, UDP_SECONDS = 7440.0, 240.0, 120.0


WEB = Policy((allow(Protocol.TCP, 443, name="web"), allow(Protocol.UDP, 443), allow(Protocol.ICMP)))


# --- Packets, read without connlib ---------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """RFC 1071; 0 over data that holds its own checksum."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class Error:
    """An ICMP or ICMPv6 error, taken apart."""

    def __init__(self, packet: bytes) -> None:
        if packet[0] >> 4 == 4:
            assert packet[0] == 0x45
            assert checksum(packet[:20]) == 0
            assert int.from_bytes(packet[2:4], "big") == len(packet)
            protocol, addresses, message = packet[9], (packet[12:16], packet[16:20]), packet[20:]
            assert protocol == 1
            assert checksum(message) == 0
        else:
            assert packet[0] >> 4 == 6
            assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
            protocol, addresses, message = packet[6], (packet[8:24], packet[24:40]), packet[40:]
            assert protocol == 58
            pseudo = packet[8:40] + struct.pack("!II", len(message), 58)
            assert checksum(pseudo + message) == 0
        self.source, self.destination = (str(ip_address(octets)) for octets in addresses)
        self.kind, self.code = message[0], message[1]
        assert message[4:8] == bytes(4)
        self.quoted = message[8:]


# --- A gateway -----------------------------------------------------------------------------------------------------


def test_a_peer_without_a_policy_may_do_everything_and_has_no_numbers() -> None:
    pair = Gated(None)
    assert pair.returns(back(udp(1, 2))) and pair.passes(there(udp(5000, 22)))
    assert pair.gateway.stats(START).peers[0].policy is None


def test_the_first_packet_is_judged_by_the_rules_and_replies_pass_without_one() -> None:
    pair = Gated(WEB)
    assert not pair.returns(back(udp(443, 5000)))
    assert pair.passes(there(udp(5000, 443)))
    assert pair.returns(back(udp(443, 5000)))
    assert not pair.returns(back(udp(443, 5001)))
    assert not pair.passes(there(udp(5000, 53)))
    assert pair.denied == 3
    assert pair.stats.flows == 1


def test_in_a_batch_only_what_is_refused_is_missing() -> None:
    pair = Gated(WEB)
    packets = [there(udp(port, 443 if port % 3 else 22)) for port in range(5000, 5030)]
    _, through = pair.send(*packets)
    assert through == [packet for packet in packets if packet[22:24] != b"\x00\x16"]
    assert pair.denied == 10
    assert pair.stats.flows == 20


@pytest.mark.parametrize(
    ("question", "answer", "protocol", "seconds"),
    [
        (tcp(5000, 443, SYN), tcp(443, 5000, SYN | ACK), 6, TCP_SECONDS),
        (udp(5000, 443), udp(443, 5000), 17, UDP_SECONDS),
        (icmp(8), icmp(0), 1, UDP_SECONDS),
    ],
    ids=["tcp", "udp", "icmp"],
)
def test_a_flow_lasts_for_exactly_its_time(
    question: bytes, answer: bytes, protocol: int, seconds: float
) -> None:
    for late, known in ((-0.25, True), (0.0, False)):
        pair = Gated(WEB)
        assert pair.passes(there(question, protocol))
        pair.wait(seconds + late)
        assert pair.stats.flows == int(known)
        assert pair.returns(back(answer, protocol)) is known


def test_a_closed_connection_lasts_for_four_minutes() -> None:
    for late, known in ((-0.25, True), (0.0, False)):
        pair = Gated(WEB)
        pair.send(*(there(tcp(5000, 443, flags), 6) for flags in (SYN, FIN | ACK)))
        assert pair.returns(back(tcp(443, 5000, FIN | ACK), 6))
        pair.wait(CLOSED_SECONDS + late)
        assert pair.returns(back(tcp(443, 5000, ACK), 6)) is known


def test_a_refusal_is_told_to_the_peer_by_icmp() -> None:
    pair = Gated(WEB)
    for source, destination, kind, code, quoted in (
        ("10.0.0.1", "10.9.9.9", 3, 13, 576 - 28),
        ("fd00::1", "fd09::9", 1, 1, 1280 - 48),
    ):
        for length in (0, 1, 1000, 1300):
            packet = ip(17, udp(5000, 22, bytes(length)), source, destination)
            (answer,), through = pair.send(packet)
            error = Error(answer)
            assert (error.source, error.destination) == (destination, source)
            assert (error.kind, error.code) == (kind, code)
            assert error.quoted == packet[:quoted]
            assert through == []


def test_a_refusal_on_our_side_is_told_there() -> None:
    pair = Gated(WEB)
    to_alice, (answer,) = pair.reply(back(udp(1, 2)))
    error = Error(answer)
    assert (error.source, error.destination, error.kind, error.code) == ("10.0.0.1", "10.9.9.9", 3, 13)
    assert to_alice == []


def test_what_must_not_be_answered_is_not() -> None:
    pair = Gated(Policy())
    quoted = back(udp(443, 5000))
    later = bytearray(there(bytes(64)))
    later[6:8] = (8).to_bytes(2, "big")
    silent = [
        ip(1, bytes([3, 1, 0, 0, 0, 0, 0, 0]) + quoted),
        ip(1, bytes([5, 1, 0, 0, 0, 0, 0, 0]) + quoted),
        bytes(later),
        there(b"short"),
    ]
    got, through = pair.send(*silent)
    assert (got, through) == ([], [])
    assert pair.denied == 4
    assert pair.stats.answers == 0


def test_answers_are_ten_at_once_and_ten_a_second() -> None:
    pair = Gated(WEB)
    refused = there(udp(5000, 22))
    got, _ = pair.send(*[refused] * 100)
    assert len(got) == 10
    pair.wait(0.5)
    got, _ = pair.send(*[refused] * 100)
    assert len(got) == 5
    assert (pair.denied, pair.stats.answers) == (200, 15)


def test_a_policy_that_changes_ends_the_flows_that_it_forbids_at_once() -> None:
    pair = Gated(WEB)
    web, name = there(tcp(5000, 443, SYN), 6), there(udp(5000, 443))
    assert pair.passes(web) and pair.passes(name)
    assert pair.stats.flows == 2
    diff = pair.gateway.apply(pair.config(Policy((allow(Protocol.TCP, (400, 500)),))), pair.now)
    assert [change.fields for change in diff.changed] == [("policy",)]
    assert pair.stats.flows == 1
    assert pair.returns(back(tcp(443, 5000, ACK), 6))
    assert not pair.returns(back(udp(443, 5000)))
    assert not pair.passes(name)
    assert pair.passes(web)
    assert pair.gateway.stats(pair.now).peers[0].tunnel.sessions == 1
    assert not pair.gateway.apply(pair.config(Policy((allow(Protocol.TCP, (400, 500)),))), pair.now)
    assert pair.gateway.apply(pair.config(None), pair.now)
    assert pair.passes(name)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("began_by", ["the peer", "this side"])
def test_a_flow_that_was_revoked_is_not_taken_up_again_by_the_other_side_that_may_begin_any(
    protocol: str, began_by: str
) -> None:
    if protocol == "tcp":
        one, other = there(tcp(5000, 443, ACK), 6), back(tcp(443, 5000, ACK), 6)
        begins = there(tcp(5000, 443, SYN), 6), back(tcp(443, 5000, SYN), 6)
    else:
        begins = one, other = there(udp(5000, 443)), back(udp(443, 5000))
    pair = Gated(Policy(default=Action.ALLOW))
    if began_by == "the peer":
        assert pair.passes(begins[0])
        after = Policy(default=Action.DENY, outbound=Action.ALLOW)
    else:
        assert pair.returns(begins[1])
        after = Policy(default=Action.ALLOW, outbound=Action.DENY)
    assert pair.passes(one) and pair.returns(other)
    pair.gateway.apply(pair.config(after), pair.now)
    for _ in range(2):
        assert not pair.returns(other)
        assert not pair.passes(one)
    assert pair.stats.flows == 0
    assert pair.denied == 4
    if protocol == "tcp":
        # A real new connection of the side that may have one.
        assert pair.returns(begins[1]) if began_by == "the peer" else pair.passes(begins[0])
        assert pair.passes(one) and pair.returns(other)


def test_policies_that_are_equal_are_no_change_whatever_the_objects() -> None:
    pair = Gated(WEB)
    assert not pair.gateway.apply(pair.config(copy.deepcopy(WEB)), pair.now)


def test_outbound_is_the_default_unless_it_is_said() -> None:
    for policy, expected in (
        (Policy(), False),
        (Policy(default=Action.ALLOW), True),
        (Policy(default=Action.ALLOW, outbound=Action.DENY), False),
        (Policy(outbound=Action.ALLOW), True),
    ):
        pair = Gated(policy)
        assert pair.returns(back(udp(1, 2))) is expected
        # If it passed, so does what answers it.
        assert pair.passes(there(udp(2, 1))) is (expected or policy.default is Action.ALLOW)


def test_more_flows_than_allowed_push_out_the_oldest() -> None:
    pair = Gated(WEB)
    for first in range(0, 8200, 100):
        pair.send(*(there(udp(port, 443)) for port in range(first, first + 100)))
    assert pair.stats == PolicyStats(flows=8192, flows_evicted=8, answers=0)
    assert not pair.returns(back(udp(443, 7)))
    assert pair.returns(back(udp(443, 8)))


# --- Verdicts without a packet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "verdict", "text"),
    [
        ("10.0.0.5:443/tcp", Verdict(True, VerdictReason.RULE, 2, "web"), "allowed by rule 2 (web)"),
        ("10.0.0.5:8081/tcp", Verdict(True, VerdictReason.RULE, 2, "web"), "allowed by rule 2 (web)"),
        ("10.0.0.9:443/tcp", Verdict(False, VerdictReason.RULE, 1, None), "denied by rule 1"),
        ("10.0.0.5:22/tcp", Verdict(False, VerdictReason.DEFAULT, None, None), "denied by default"),
        ("10.0.0.5:443/udp", Verdict(False, VerdictReason.DEFAULT, None, None), "denied by default"),
        ("[fd00::5]:443/tcp", Verdict(False, VerdictReason.DEFAULT, None, None), "denied by default"),
        ("10.0.0.5/icmp", Verdict(True, VerdictReason.RULE, 3, "ping"), "allowed by rule 3 (ping)"),
        ("10.0.0.5/icmp:8", Verdict(True, VerdictReason.RULE, 3, "ping"), "allowed by rule 3 (ping)"),
        ("10.0.0.5/icmp:13", Verdict(False, VerdictReason.DEFAULT, None, None), "denied by default"),
        ("fd00::5/icmp", Verdict(False, VerdictReason.DEFAULT, None, None), "denied by default"),
        ("fd00::5/icmp:129", Verdict(False, VerdictReason.DEFAULT, None, None), "denied by default"),
        ("10.0.0.5/47", Verdict(True, VerdictReason.RULE, 4, None), "allowed by rule 4"),
    ],
)
def test_a_policy_says_which_rule_decides_and_its_packet_gets_the_same(
    to: str, verdict: Verdict, text: str
) -> None:
    network = (ip_network("10.0.0.0/24"),)
    policy = Policy(
        (
            Rule(action=Action.DENY, destinations=(ip_network("10.0.0.9/32"),)),
            allow(Protocol.TCP, 443, (8080, 8090), destinations=network, name="web"),
            allow(Protocol.ICMP, icmp_types=(8,), name="ping"),
            allow(47),
        )
    )
    flow = Flow.parse(to)
    assert str(flow) == to
    assert policy.decide(flow) == verdict
    assert str(policy.decide(flow)) == text
    icmp = 58 if "fd00" in to else 1
    numbers: dict[Protocol | int, int] = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.ICMP: icmp, 47: 47}
    number = numbers[flow.protocol]
    payload = {6: tcp(1, flow.port or 0, SYN), 17: udp(1, flow.port or 0), 47: b""}.get(
        number, bytes([flow.icmp_type or (128 if number == 58 else 8)]) + bytes(7)
    )
    source = "fd00::1" if number == 58 or "fd00" in to else "10.0.0.1"
    assert policy.decide(ip(number, payload, source, str(flow.destination))) == verdict


def test_a_packet_that_cannot_be_judged_is_denied_with_the_reason() -> None:
    policy = Policy(default=Action.ALLOW)
    later = bytearray(there(bytes(64)))
    later[6:8] = (8).to_bytes(2, "big")
    assert policy.decide(bytes(later)) == Verdict(False, VerdictReason.FRAGMENT)
    assert str(policy.decide(bytes(later))) == "denied: a fragment without the first one"
    for packet in (b"", b"junk", there(b"short"), there(udp(1, 2))[:-1]):
        assert policy.decide(packet) == Verdict(False, VerdictReason.UNPARSEABLE)
        assert str(policy.decide(packet)) == "denied: not a packet that can be judged"


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.5", "10.0.0.5:443", "10.0.0.5/tcp", "10.0.0.5:443/icmp", "10.0.0.5:99999/tcp", "10.0.0/icmp",
     "10.0.0.5:443/sctp", "10.0.0.5:/tcp", "[10.0.0.5]:443/tcp", "host:443/tcp", "10.0.0.5/300", "10.0.0.5/icmp:256",
     "10.0.0.5/icmp:", "10.0.0.5/47:1", "10.0.0.5:443/tcp:1", "x" * 10_000],
)  # fmt: skip
def test_a_destination_that_is_none_is_one_clear_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 10\.0\.0\.5:443/tcp") as raised:
        Flow.parse(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"action": "allow"}, TypeError, "action"),
        ({"protocol": "tcp"}, TypeError, "protocol"),
        ({"protocol": True}, TypeError, "protocol"),
        ({"protocol": 256}, ValueError, "0 to 255"),
        ({"destinations": ("10.0.0.0/8",)}, TypeError, "destinations"),
        ({"destinations": ip_network("10.0.0.0/8")}, TypeError, "tuple"),
        ({"ports": (80,)}, ValueError, "TCP or Protocol.UDP"),
        ({"ports": (80,), "protocol": 47}, ValueError, "TCP or Protocol.UDP"),
        ({"ports": (65_536,), "protocol": Protocol.TCP}, ValueError, "0 to 65535"),
        ({"ports": ((90, 80),), "protocol": Protocol.TCP}, ValueError, "before it begins"),
        ({"ports": ("80",), "protocol": Protocol.TCP}, TypeError, "number"),
        ({"ports": 80, "protocol": Protocol.TCP}, TypeError, "tuple"),
        ({"icmp_types": (8,)}, ValueError, "ICMP"),
        ({"icmp_types": (256,), "protocol": Protocol.ICMP}, ValueError, "0 to 255"),
        ({"name": 5}, TypeError, "name"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_one_clear_line(
    options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem) as raised:
        Rule(**{"action": Action.ALLOW, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "error", "problem"),
    [
        (lambda: Policy([allow()]), TypeError, "tuple"),  # type: ignore[arg-type]
        (lambda: Policy(("x",)), TypeError, "Rule"),  # type: ignore[arg-type]
        (lambda: Policy(default="deny"), TypeError, "default"),  # type: ignore[arg-type]
        (lambda: Policy(outbound=False), TypeError, "outbound"),  # type: ignore[arg-type]
        (lambda: Policy((allow(),) * 1025), ValueError, "1024 rules"),
        (lambda: Policy((allow(Protocol.TCP, *range(8193)),)), ValueError, "8192"),
        (lambda: Flow(IPv4Address("10.0.0.1"), Protocol.TCP), ValueError, "port"),
        (lambda: Flow(IPv4Address("10.0.0.1"), 6), ValueError, "port"),
        (lambda: Flow(IPv4Address("10.0.0.1"), Protocol.ICMP, 1), ValueError, "port"),
        (lambda: Flow(IPv4Address("10.0.0.1"), Protocol.ANY), ValueError, "protocol"),
        (lambda: Flow(IPv4Address("10.0.0.1"), 47, icmp_type=8), ValueError, "icmp_type"),
        (lambda: Flow("10.0.0.1", Protocol.ICMP), TypeError, "destination"),  # type: ignore[arg-type]
        (lambda: Gated("open"), TypeError, "Policy"),  # type: ignore[arg-type]
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_by_one_clear_line(
    make: Any, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_policies_are_plain_values() -> None:
    assert copy.deepcopy(WEB) == WEB
    assert pickle.loads(pickle.dumps(WEB)) == WEB
    assert hash(WEB) == hash(copy.deepcopy(WEB))


def test_peers_that_share_a_policy_are_judged_by_it_and_others_by_theirs() -> None:
    def peers(policies: Sequence[Policy | None]) -> NodeConfig:
        keys = [PrivateKey.from_bytes(bytes([n] * 32)).public_key() for n in range(10, 10 + len(policies))]
        return NodeConfig(
            private_key=BOB,
            peers=tuple(
                PeerConfig(public_key=key, policy=each) for key, each in zip(keys, policies, strict=True)
            ),
        )

    bob = Node(peers([WEB, WEB, None, Policy()]), now=START, unix_time=UNIX_TIME)
    diff = bob.apply(peers([WEB, Policy(), WEB, Policy()]), START)
    assert [change.fields for change in diff.changed] == [("policy",)] * 2


def test_a_wg_quick_file_cannot_hold_a_policy() -> None:
    config = InterfaceConfig(
        private_key=BOB, peers=(PeerConfig(public_key=CAROL.public_key(), name="carol", policy=WEB),)
    )
    with pytest.raises(ConfigError, match="carol has a policy"):
        format_config(config)


def test_the_script_of_the_documentation_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "policy.md").read_text()
    script, hook = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # examples/ask_first.py runs such a one.
    compile(hook, "the hook", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    exec(script, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"print\(.*\)  # (.*)", script) and len(printed) == 3
