"""The rules of a gateway's file: what policies they become, what is wrong with some, and that they hold."""

from __future__ import annotations

import logging
import sys
from ipaddress import ip_network
from typing import Any

import jsonschema
import pytest
import trio

from connlib import (
    Action,
    ConfigError,
    ConfigFileError,
    DropReason,
    Flow,
    Gateway,
    GatewayInterface,
    GatewayPeer,
    GatewayRule,
    Policy,
    Protocol,
    Rule,
    parse_gateway,
)
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from connlib.gatewayschema import schema
from helpers_config import ALICE, BOB, OWN
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    PORT,
    client_config,
    in_virtual_time,
)
from helpers_gateway import MINIMAL
from helpers_policy import ip, udp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def with_peer(lines: str) -> str:
    return f'{MINIMAL}[[peers]]\npublic_key = "{ALICE.to_base64()}"\n{lines}'


def policy_of(lines: str) -> Policy | None:
    """What the file of one peer with these lines makes of it."""
    (peer,) = parse_gateway(with_peer(lines)).to_interface_config().peers
    return peer.policy


RULES = """\
default = "allow"
outbound = "deny"

[[peers.rules]]
allow = false
name = "the vault"
to = ["10.0.0.9", "fd00::9/128"]

[[peers.rules]]
allow = true
name = "web"
protocol = "tcp"
to = ["10.0.0.0/24"]
ports = [443, "8000-8099", "9000"]

[[peers.rules]]
allow = true
protocol = "icmp"
icmp_types = [8, "128-129", 0]

[[peers.rules]]
allow = false
protocol = 47
"""
POLICY = Policy(
    rules=(
        Rule(
            action=Action.DENY,
            destinations=(ip_network("10.0.0.9/32"), ip_network("fd00::9/128")),
            name="the vault",
        ),
        Rule(
            action=Action.ALLOW,
            protocol=Protocol.TCP,
            destinations=(ip_network("10.0.0.0/24"),),
            ports=(443, (8000, 8099), 9000),
            name="web",
        ),
        Rule(action=Action.ALLOW, protocol=Protocol.ICMP, icmp_types=(8, (128, 129), 0)),
        Rule(action=Action.DENY, protocol=47),
    ),
    default=Action.ALLOW,
    outbound=Action.DENY,
)
"""What `RULES` says."""


def test_the_rules_of_a_file_are_the_policy_that_a_script_would_build() -> None:
    assert policy_of(RULES) == POLICY


def test_the_classes_that_a_script_builds_make_the_same_policy() -> None:
    peer = GatewayPeer(
        public_key=ALICE,
        rules=(
            GatewayRule(
                allow=False,
                to=(ip_network("10.0.0.9/32"), ip_network("fd00::9/128")),
                name="the vault",
            ),
            GatewayRule(
                allow=True,
                protocol="tcp",
                to=(ip_network("10.0.0.0/24"),),
                ports=(443, "8000-8099", "9000"),
                name="web",
            ),
            GatewayRule(allow=True, protocol="icmp", icmp_types=(8, "128-129", 0)),
            GatewayRule(allow=False, protocol=47),
        ),
        default=Action.ALLOW,
        outbound=Action.DENY,
    )
    assert peer.to_policy() == POLICY
    assert parse_gateway(with_peer(RULES)).peers == (peer,)


ALLOW_WEB = '[[peers.rules]]\nallow = true\nprotocol = "tcp"\nports = [443]\n'
ASK_WEB = ALLOW_WEB.replace("true", '"ask"')
DENY_SSH = '[[peers.rules]]\nallow = false\nprotocol = "tcp"\nports = [22]\n'


@pytest.mark.parametrize(
    ("lines", "default", "outbound"),
    [
        (ALLOW_WEB, Action.DENY, Action.DENY),
        (DENY_SSH, Action.DENY, Action.DENY),
        ("rules = []\n", Action.DENY, Action.DENY),
        ('default = "deny"\n', Action.DENY, Action.DENY),
        ('default = "allow"\n', Action.ALLOW, Action.ALLOW),
        ('outbound = "allow"\n', Action.DENY, Action.ALLOW),
        ('outbound = "deny"\n', Action.DENY, Action.DENY),
        ('outbound = "allow"\n' + ALLOW_WEB, Action.DENY, Action.ALLOW),
        ('default = "allow"\n' + DENY_SSH, Action.ALLOW, Action.ALLOW),
        ('default = "allow"\noutbound = "deny"\n', Action.ALLOW, Action.DENY),
        ('default = "ask"\n', Action.ASK, Action.ASK),
        ('outbound = "ask"\n', Action.DENY, Action.ASK),
        (ASK_WEB, Action.DENY, Action.DENY),
    ],
)
def test_what_no_rule_fits_is_denied_unless_default_says_otherwise(
    lines: str, default: Action, outbound: Action
) -> None:
    policy = policy_of(lines)
    assert policy is not None
    assert policy.default is default
    assert (policy.outbound or policy.default) is outbound
    assert policy.decide(Flow.parse("10.0.0.5:80/tcp")).allowed is (default is Action.ALLOW)


def test_a_rule_may_leave_it_to_the_hook() -> None:
    (rule,) = parse_gateway(with_peer(ASK_WEB)).peers[0].rules or ()
    assert rule == GatewayRule(allow="ask", protocol="tcp", ports=(443,))
    assert rule.to_rule() == Rule(action=Action.ASK, protocol=Protocol.TCP, ports=(443,))


def test_a_peer_without_any_of_it_has_no_policy() -> None:
    assert policy_of("") is None
    assert GatewayPeer(public_key=ALICE).to_policy() is None


def test_peers_of_equal_rules_share_one_policy() -> None:
    def peer(key: str, lines: str) -> str:
        return f'[[peers]]\npublic_key = "{key}"\n{lines}'

    web_in_other_words = '[[peers.rules]]\nallow = true\nprotocol = "tcp"\nports = ["443"]\n'
    text = (
        MINIMAL
        + peer(ALICE.to_base64(), ALLOW_WEB)
        + peer(BOB.to_base64(), web_in_other_words)
        + peer(CLIENT_KEY.public_key().to_base64(), DENY_SSH)
    )
    alice, bob, carol = parse_gateway(text).to_interface_config().peers
    assert alice.policy is bob.policy
    assert carol.policy != alice.policy


# What is wrong


def many_rules(count: int, line: str = "") -> str:
    return f"[[peers.rules]]\nallow = true\n{line}" * count


PREFIXES = f"to = {[f'10.{number // 256}.{number % 256}.0/24' for number in range(4096)]}\n"
BAD = [
    # lines from the fifth on, line, column, part of the problem, part of the hint
    ("[[peers.rules]]\n", 5, 1, "does not say whether it allows", "allow = true"),
    ('[[peers.rules]]\nallow = "yes"\n', 6, 9, "allow must be true or false, not text", 'or "ask"'),
    ("rules = [{ allow = true, port = 1 }]\n", 5, 26, "port is not a key of [[peers.rules]]", "mean ports?"),
    ("rules = 5\n", 5, 9, "rules must be an array", "[[peers.rules]]"),
    ('[[peers.rules]]\nallow = true\nname = ""\n', 7, 8, "the name is empty", "short name"),
    ('[[peers.rules]]\nallow = true\nprotocol = "sctp"\n', 7, 12, "'sctp' is none of tcp, udp", "one of"),
    ("[[peers.rules]]\nallow = true\nprotocol = 256\n", 7, 12, "protocol: 256 is out of range", "0 to 255"),
    ("[[peers.rules]]\nallow = true\nprotocol = true\n", 7, 12, "must be text, not true", "quotes"),
    ('[[peers.rules]]\nallow = true\nto = ["ten"]\n', 7, 7, "'ten' is not an IP address", "10.0.0.1/24"),
    ("[[peers.rules]]\nallow = true\nports = [443]\n", 5, 1, "ports: only tcp and udp", 'protocol = "tcp"'),
    ("[[peers.rules]]\nallow = true\nicmp_types = [8]\n", 5, 1, "icmp_types: only icmp", '"icmp"'),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "tcp"\nicmp_types = [8]\n',
        *(5, 1, "icmp_types: only icmp", '"icmp"'),
    ),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "tcp"\nports = [443, 65536]\n',
        *(8, 15, "ports: 65536 is out of range", "1 to 65535"),
    ),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "udp"\nports = [443, "53-"]\n',
        *(8, 15, "ports: '' is not a whole number", "1 to 65535"),
    ),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "udp"\nports = ["443",\n "2-1"]\n',
        *(9, 2, "ports: the range 2-1 ends before it begins", "lower"),
    ),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "udp"\nports = [1.5]\n',
        *(8, 10, "ports must be text, not a number", '"1-65535"'),
    ),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "icmp"\nicmp_types = ["0-256"]\n',
        *(8, 15, "icmp_types: 256 is out of range", "0 to 255"),
    ),
    ("[[peers.rules]]\nallow = true\nto = []\n", 7, 6, "to is empty, and so would restrict", "leave it out"),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "tcp"\nports = []\n',
        *(8, 9, "ports is empty, and so would restrict", "leave it out"),
    ),
    (
        '[[peers.rules]]\nallow = true\nprotocol = "icmp"\nicmp_types = []\n',
        *(8, 14, "icmp_types is empty, and so would restrict", "leave it out"),
    ),
    ('default = "drop"\n', 5, 11, "'drop' is none of allow, deny", "one of"),
    ("outbound = true\n", 5, 12, "outbound must be text, not true or false", "quotes"),
    (many_rules(1025), 5 + 2 * 1024, 1, "rules: a peer has at most 1,024", "merge"),
    (many_rules(3, PREFIXES), 5 + 2 * 3, 1, "at most 8,192 destinations, ports and types", "merge"),
]


@pytest.mark.parametrize(("lines", "line", "column", "problem", "hint"), BAD)
def test_what_is_wrong_with_rules_is_named_with_line_and_column(
    lines: str, line: int, column: int, problem: str, hint: str
) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(with_peer(lines), "wg0.toml")
    (error,) = caught.value.problems
    assert problem in error.problem
    assert error.hint is not None and hint in error.hint
    assert (error.line, error.column) == (line, column)
    assert str(error).isprintable(), "one line"


def test_as_many_rules_as_there_may_be_are_fine() -> None:
    policy = policy_of(many_rules(1024))
    assert policy is not None and len(policy.rules) == 1024
    assert policy_of(many_rules(2, PREFIXES)) is not None


ANYWHERE = GatewayRule(allow=True)


@pytest.mark.parametrize(
    ("fields", "error", "problem"),
    [
        ({"allow": "no"}, TypeError, "allow must be a bool"),
        ({"protocol": "sctp"}, ConfigError, "none of this name"),
        ({"protocol": "any"}, ConfigError, "none of this name"),
        ({"protocol": 256}, ConfigError, "256 is out of range"),
        ({"protocol": True}, ConfigError, "protocol: 'True' is not a whole number"),
        ({"protocol": "tcp", "ports": "443"}, TypeError, "ports must be a tuple"),
        ({"protocol": "tcp", "ports": (0,)}, ConfigError, "0 is out of range"),
        ({"protocol": "tcp", "ports": ("0",)}, ConfigError, "0 is out of range"),
        ({"protocol": "tcp", "ports": ("2-1",)}, ConfigError, "ends before it begins"),
        ({"protocol": "tcp", "ports": (443.5,)}, ConfigError, "ports: '443.5' is not a whole number"),
        ({"ports": (1,)}, ConfigError, "only tcp and udp have ports"),
        ({"protocol": 6, "icmp_types": (1,)}, ConfigError, "only icmp has types"),
        ({"protocol": "icmp", "icmp_types": (256,)}, ConfigError, "icmp_types: 256 is out of range"),
        ({"to": ("10.0.0.0/8",)}, TypeError, "destinations"),
        ({"to": ()}, ConfigError, "to is empty, and so would restrict nothing"),
        ({"protocol": "tcp", "ports": ()}, ConfigError, "ports is empty"),
        ({"protocol": "icmp", "icmp_types": ()}, ConfigError, "icmp_types is empty"),
        ({"name": "a\nb"}, ConfigError, "not printable"),
    ],
)
def test_a_rule_that_is_wrong_cannot_be_made(
    fields: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error) as caught:
        GatewayRule(**{"allow": True, **fields})
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "error", "problem"),
    [
        ({"default": "deny"}, TypeError, "default"),
        ({"outbound": "allow"}, TypeError, "outbound"),
        ({"rules": (ANYWHERE,) * 1025}, ConfigError, "at most 1,024"),
    ],
)
def test_a_peer_whose_policy_is_wrong_cannot_be_made(
    fields: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error) as caught:
        GatewayPeer(public_key=ALICE, **fields)
    assert problem in str(caught.value)


NO_RULE_ALLOWS = (
    "wg0.toml:3:1: this peer may reach nothing: no rule allows anything, and default is deny unless it is set"
)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (DENY_SSH, [NO_RULE_ALLOWS]),
        ("rules = []\n", [NO_RULE_ALLOWS]),
        ('outbound = "allow"\n', [NO_RULE_ALLOWS]),
        (DENY_SSH + ALLOW_WEB, []),
        ('default = "allow"\n' + DENY_SSH, []),
        ('default = "deny"\n', []),
        ("", []),
    ],
)
def test_a_peer_that_was_probably_not_to_be_locked_out_is_warned_about(
    caplog: pytest.LogCaptureFixture, lines: str, said: list[str]
) -> None:
    with caplog.at_level(logging.WARNING, "connlib.config"):
        parse_gateway(with_peer(lines), "wg0.toml")
    assert caplog.messages == said


# Schema


VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_schema_takes_what_the_reader_takes() -> None:
    for lines in ("", RULES, ALLOW_WEB, ASK_WEB, "rules = []\n"):
        VALIDATOR.validate(tomllib.loads(with_peer(lines)))


@pytest.mark.parametrize(
    "rule",
    [
        'allow = "yes"',
        'protocol = "tcp"',
        'allow = true, protocol = "any"',
        "allow = true, protocol = 256",
        "allow = true, protocol = 1.5",
        "allow = true, ports = [0]",
        "allow = true, ports = [65536]",
        'allow = true, ports = ["http"]',
        "allow = true, icmp_types = [256]",
        'allow = true, name = ""',
        'allow = true, to = "10.0.0.0/8"',
        "allow = true, to = []",
        "allow = true, ports = []",
        "allow = true, icmp_types = []",
    ],
)
def test_the_schema_refuses_what_is_wrong_by_itself(rule: str) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(with_peer(f"rules = [{{ {rule} }}]\n")))


def test_the_schema_knows_three_words_for_default_and_outbound() -> None:
    for field in ("default", "outbound"):
        for word, is_right in (("allow", True), ("deny", True), ("ask", True), ("drop", False)):
            document = tomllib.loads(with_peer(f'{field} = "{word}"\n'))
            assert VALIDATOR.is_valid(document) is is_right


# From the text to the packet


def gateway_file(lines: str) -> str:
    return f"""\
[interface]
private_key = "{GATEWAY_KEY.to_base64()}"
listen_port = {PORT}
role = "responder"

[[peers]]
name = "client"
public_key = "{CLIENT_KEY.public_key().to_base64()}"
allowed_ips = ["{CLIENT}/32"]
{lines}"""


ALLOW_DNS = (
    f'[[peers.rules]]\nallow = true\nname = "dns"\nprotocol = "udp"\nto = ["{GATEWAY}"]\nports = [53]\n'
)
UNREACHABLE, PROHIBITED = 3, 13


class Ends:
    """The two devices: the client's, and the one of the gateway."""

    def __init__(self) -> None:
        self.client, self.gateway = MemoryTun(), MemoryTun()

    async def asks(self, port: int) -> bool:
        """Whether a question from the client gets through, and its answer back; if not, that the client is told."""
        question = ip(17, udp(5000, port), CLIENT, GATEWAY)
        await self.client.send(question)
        answer = ip(17, udp(port, 5000), GATEWAY, CLIENT)
        async with trio.open_nursery() as nursery:
            arrived: list[bytes] = []

            async def reply() -> None:
                arrived.append(await self.gateway.receive())
                await self.gateway.send(answer)

            nursery.start_soon(reply)
            back = await self.client.receive()
            nursery.cancel_scope.cancel()
        if arrived:
            assert (arrived, back) == ([question], answer)
            return True
        assert (back[9], back[20], back[21]) == (1, UNREACHABLE, PROHIBITED)
        assert back[28:] == question
        return False


@in_virtual_time
async def test_a_file_s_rules_are_enforced_and_a_reload_changes_them_within_the_session() -> None:
    """The client is refused one port and allowed another; then the rule goes, and later the policy."""
    network, ends = MemoryUdp(), Ends()
    first = parse_gateway(gateway_file(ALLOW_DNS)).to_interface_config()
    async with (
        open_interface(first, tun=ends.gateway, udp=network.host(GATEWAY_HOST)) as gateway,
        open_interface(client_config(), tun=ends.client, udp=network.host(CLIENT_HOST)),
    ):
        assert await ends.asks(53)
        assert not await ends.asks(54)
        for lines, changed, dns, other in (
            (DENY_SSH, ("policy",), False, False),
            (ALLOW_DNS.replace("[53]", "[54]"), ("policy",), False, True),
            (ALLOW_DNS.replace("[53]", '["54"]'), None, False, True),
            ("", ("policy",), True, True),
        ):
            config = parse_gateway(gateway_file(lines)).to_interface_config()
            diff = await gateway.apply(config)
            assert [change.fields for change in diff.changed] == ([changed] if changed else [])
            assert (await ends.asks(53), await ends.asks(54)) == (dns, other), lines
        (stats,) = gateway.stats().peers
        assert stats.tunnel.drops == {DropReason.DENIED: 5}
        assert stats.tunnel.responses_sent == 1, "one session"
        assert stats.policy is None


@in_virtual_time
async def test_what_a_file_s_outbound_denies_does_not_reach_the_peer() -> None:
    network, ends = MemoryUdp(), Ends()
    question = ip(17, udp(5000, 53), GATEWAY, CLIENT)
    config = parse_gateway(gateway_file('default = "allow"\noutbound = "deny"\n')).to_interface_config()
    async with (
        open_interface(config, tun=ends.gateway, udp=network.host(GATEWAY_HOST)) as gateway,
        open_interface(client_config(), tun=ends.client, udp=network.host(CLIENT_HOST)),
    ):
        assert await ends.asks(53)
        await ends.gateway.send(question)
        told = await ends.gateway.receive()
        assert (told[9], told[20], told[21], told[28:]) == (1, UNREACHABLE, PROHIBITED, question)
        (stats,) = gateway.stats().peers
        assert stats.policy is not None
        assert (stats.policy.flows, stats.policy.answers) == (1, 1)


def test_a_gateway_that_a_script_builds_has_the_policies_too() -> None:
    gateway = Gateway(
        interface=GatewayInterface(private_key=OWN),
        peers=(GatewayPeer(public_key=ALICE, rules=(ANYWHERE,)), GatewayPeer(public_key=BOB)),
    )
    alice, bob = gateway.to_interface_config().peers
    assert alice.policy == Policy((Rule(action=Action.ALLOW),))
    assert bob.policy is None
