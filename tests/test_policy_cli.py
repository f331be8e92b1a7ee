"""`connlib policy test`, and what `check`, `diff`, the closing lines of `up` and the metrics say of policies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from connlib import Action, DropReason, InterfaceConfig, Policy, PolicyStats, Protocol, Rule
from connlib.cli.up import summarize
from connlib.diff import compute_diff, describe_diff
from connlib.metrics import serve_metrics
from helpers_config import ALICE, BOB
from helpers_config import FULL as WG_QUICK
from helpers_driver import (
    CLIENT,
    GATEWAY,
    Pair,
    gateway_config,
    in_real_time,
    in_virtual_time,
    open_pair,
    packet,
)
from helpers_gateway import MINIMAL
from test_gateway_cli import Command, connlib, write
from test_metrics import OF_THE_CLIENT, samples

__all__ = ["connlib"]  # the fixture

FILE = f"""\
[interface]
private_key_file = "there is none"

[[peers]]
name = "alice"
public_key = "{ALICE.to_base64()}"
allowed_ips = ["10.7.0.2/32", "10.8.0.0/16", "fd07::2/128"]

[[peers.rules]]
allow = false
name = "the vault"
to = ["10.0.0.9/32"]

[[peers.rules]]
allow = true
name = "web"
protocol = "tcp"
to = ["10.0.0.0/8", "fd00::/8"]
ports = [443, "8000-8099"]

[[peers.rules]]
allow = true
protocol = "icmp"
icmp_types = [8, 128]

[[peers]]
name = "branch"
public_key = "{BOB.to_base64()}"
allowed_ips = ["10.7.0.3/32", "10.8.1.0/24"]
"""


# connlib policy test


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "office.toml", FILE)


@pytest.mark.parametrize(
    ("destination", "said", "code"),
    [
        ("10.0.0.5:443/tcp", "allowed by rule 2 (web)", 0),
        ("10.0.0.5:8099/tcp", "allowed by rule 2 (web)", 0),
        ("[fd00::5]:443/tcp", "allowed by rule 2 (web)", 0),
        ("10.0.0.9:443/tcp", "denied by rule 1 (the vault)", 1),
        ("10.0.0.5:22/tcp", "denied by default", 1),
        ("10.0.0.5/icmp", "allowed by rule 3: allow icmp types 8, 128", 0),
        ("10.0.0.5/icmp:8", "allowed by rule 3: allow icmp types 8, 128", 0),
        ("10.0.0.5/icmp:13", "denied by default", 1),
        ("10.0.0.5/47", "denied by default", 1),
        (
            "10.7.0.3:443/tcp",
            "allowed by rule 2 (web); then allowed towards 'branch', which has no policy",
            0,
        ),
        ("10.7.0.3:22/tcp", "denied by default", 1),
        ("10.7.0.2:443/tcp", "allowed by rule 2 (web); then denied towards 'alice' itself by default", 1),
        # The longest prefix says whose it is.
        (
            "10.8.1.1:443/tcp",
            "allowed by rule 2 (web); then allowed towards 'branch', which has no policy",
            0,
        ),
        ("10.8.2.1:443/tcp", "allowed by rule 2 (web); then denied towards 'alice' itself by default", 1),
    ],
)
def test_it_says_which_rule_decides(
    connlib: Command, file: Path, destination: str, said: str, code: int
) -> None:
    expected = (code, f"{destination}: {said}\n", "")
    assert connlib("policy", "test", file, "--peer", "alice", "--to", destination) == expected
    by_key = connlib("policy", "test", file, "--peer", ALICE.to_base64(), "--to", destination)
    assert by_key == expected


def test_what_a_hook_would_be_asked_about_is_said_to_be_and_is_not_allowed(
    connlib: Command, tmp_path: Path
) -> None:
    arguments = (
        "policy",
        "test",
        str(tmp_path / "office.toml"),
        "--peer",
        "alice",
        "--to",
        "10.7.0.3:443/tcp",
        "--to",
        "10.0.0.5/icmp",
        "--to",
        "10.0.0.5/icmp:5",
    )
    asked = FILE.replace("allow = true", 'allow = "ask"').replace(
        "icmp_types = [8, 128]", "icmp_types = [5, 8]"
    )
    write(tmp_path / "office.toml", asked)
    assert connlib(*arguments) == (
        1,
        "10.7.0.3:443/tcp: asks the hook by rule 2 (web)\n"
        "10.0.0.5/icmp: asks the hook by rule 3: ask icmp types 5, 8\n"
        "10.0.0.5/icmp:5: denied: it starts no flow, asked by rule 3: ask icmp types 5, 8\n",
        "",
    )


def test_check_says_that_the_command_has_no_hook(connlib: Command, tmp_path: Path) -> None:
    peer = '[[peers]]\nname = "NAME"\npublic_key = "KEY"\n'
    alice = peer.replace("NAME", "alice").replace("KEY", ALICE.to_base64())
    bob = peer.replace("NAME", "bob").replace("KEY", BOB.to_base64())
    for lines, whose in (
        (alice + 'default = "ask"\n', "policy of alice asks"),
        (
            alice + "[[peers.rules]]\nallow = 'ask'\n" + bob + 'default = "ask"\n',
            "policies of alice, bob ask",
        ),
        (alice + 'default = "deny"\n', None),
    ):
        file = write(tmp_path / "office.toml", MINIMAL + lines)
        code, said, warned = connlib("check", file)
        assert code == 0 and " is right: " in said
        expected = (
            f"warning: {file}: the {whose} a hook, and `connlib up` has none (`decide` of open_interface is one): "
            "what it would be asked about is refused\n"
        )
        assert warned == (expected if whose else "")


def test_of_several_destinations_each_is_a_line_and_one_that_is_denied_decides_the_exit_code(
    connlib: Command, file: Path
) -> None:
    arguments = ("policy", "test", file, "--peer", "alice", "--to", "10.0.0.5:443/tcp")
    assert connlib(*arguments, "--to", "10.0.0.5:22/tcp", "--to", "10.0.0.6/icmp") == (
        1,
        "10.0.0.5:443/tcp: allowed by rule 2 (web)\n"
        "10.0.0.5:22/tcp: denied by default\n"
        "10.0.0.6/icmp: allowed by rule 3: allow icmp types 8, 128\n",
        "",
    )
    assert connlib(*arguments, "--to", "10.0.0.6/icmp")[0] == 0


@pytest.mark.parametrize(
    ("destination", "then", "code"),
    [
        ("10.0.0.5:443/tcp", "", 0),
        ("10.7.0.3:22/tcp", "; then allowed towards 'branch' itself, which has no policy", 0),
        ("10.7.0.2:443/tcp", "; then denied towards 'alice' by default", 1),
    ],
)
def test_a_peer_without_a_policy_is_said_to_have_none(
    connlib: Command, file: Path, destination: str, then: str, code: int
) -> None:
    said = f"{destination}: allowed: 'branch' has no policy, and may reach everything{then}\n"
    assert connlib("policy", "test", file, "--peer", "branch", "--to", destination) == (code, said, "")


@pytest.mark.parametrize(
    ("lines", "said", "code"),
    [
        ("", "allowed towards 'alice', which has no policy", 0),
        ("rules = []", "denied towards 'alice' by default", 1),
        ('default = "allow"', "allowed towards 'alice' by default", 0),
        ('default = "allow"\noutbound = "deny"', "denied towards 'alice' by outbound", 1),
        ('default = "deny"\noutbound = "allow"', "allowed towards 'alice' by outbound", 0),
        ('default = "deny"\noutbound = "ask"', "asks the hook towards 'alice' by outbound", 1),
    ],
)
def test_flows_from_the_gateway_are_for_outbound_alone_to_decide(
    connlib: Command, tmp_path: Path, lines: str, said: str, code: int
) -> None:
    text = f'{MINIMAL}[[peers]]\nname = "alice"\npublic_key = "{ALICE.to_base64()}"\nallowed_ips = ["10.7.0.2"]\n'
    file = write(tmp_path / "wg0.toml", text + lines)
    arguments = ("policy", "test", file, "--peer", "alice", "--from-gateway", "--to", "10.7.0.2:22/tcp")
    assert connlib(*arguments)[:2] == (code, f"10.7.0.2:22/tcp: {said}\n")
    if "asks" in said:
        said = "denied towards 'alice': it starts no flow, asked by outbound"
        assert connlib(*arguments[:-1], "10.7.0.2/icmp:5")[:2] == (1, f"10.7.0.2/icmp:5: {said}\n")


def test_a_flow_from_the_gateway_that_does_not_go_to_the_peer_is_a_mistake(
    connlib: Command, file: Path
) -> None:
    for address, whose in (("10.7.0.3", "belongs to 'branch'"), ("10.0.0.5", "is in no peer's allowed_ips")):
        arguments = ("--from-gateway", "--to", "10.7.0.2:22/tcp", "--to", f"{address}:22/tcp")
        assert connlib("policy", "test", file, "--peer", "alice", *arguments) == (
            2,
            "",
            f"connlib: {address}:22/tcp does not go to 'alice': the address {whose}; "
            "give an address of the peer's\n",
        )


TO = ("--to", "10.0.0.5:443/tcp")


def test_what_is_no_such_peer_file_or_destination_exits_2_with_a_line(
    connlib: Command, file: Path, tmp_path: Path
) -> None:
    quick = write(tmp_path / "wg0.conf", WG_QUICK)
    wrong = write(tmp_path / "wrong.toml", FILE.replace("443,", "0,").replace("icmp_types", "icmp_typs"))
    form = "write 10.0.0.5:443/tcp, [fd00::5]:53/udp or 10.0.0.5/icmp; try connlib policy test --help"
    for arguments, said in (
        ((file, "--peer", "alicia", *TO), f"{file}: there is no peer 'alicia'; did you mean alice?"),
        (
            (file, "--peer", "zoe", *TO),
            f"{file}: there is no peer 'zoe'; give a peer's name, or its public key",
        ),
        (
            (tmp_path / "nowhere", "--peer", "alice", *TO),
            f"{tmp_path}/nowhere: cannot read it: no such file or directory; name a gateway's TOML file",
        ),
        (
            (quick, "--peer", "alice", *TO),
            f"{quick}: only a gateway's TOML file has policies: in a wg-quick file, everything is allowed; "
            "name a file that ends in .toml",
        ),
        (
            (wrong, "--peer", "alice", *TO),
            f"{wrong}:19:10: ports: 0 is out of range; use 1 to 65535\n"
            f"connlib: {wrong}:24:1: icmp_typs is not a key of [[peers.rules]]; did you mean icmp_types?",
        ),
        (
            (tmp_path / "no.toml", "--peer", "alice", *TO),
            f"{tmp_path}/no.toml: cannot read it: no such file or directory; name a gateway's TOML file",
        ),
        (
            (file, "--peer", "alice", "--to", "10.0.0.5:443"),
            "Invalid value: '10.0.0.5:443' is no destination (an IP address, a port or a protocol is missing): "
            + form,
        ),
        ((file, "--peer", "alice"), "Missing option '--to'; try connlib policy test --help"),
        ((file, *TO), "Missing option '--peer'; try connlib policy test --help"),
    ):
        assert connlib("policy", "test", *arguments) == (2, "", f"connlib: {said}\n")
    assert connlib("policy") == (2, "", "connlib: Missing command; try connlib policy --help\n")


def test_a_key_in_the_wrong_place_is_not_echoed(connlib: Command, file: Path) -> None:
    key = BOB.to_base64()[:-3] + "AA="
    for arguments in (("--peer", key, *TO), ("--peer", "alice", "--to", key)):
        code, out, err = connlib("policy", "test", file, *arguments)
        assert (code, out) == (2, "")
        assert key[:12] not in err


# connlib check and connlib diff


def test_check_counts_the_policies(connlib: Command, tmp_path: Path) -> None:
    text = MINIMAL + FILE.partition("\n\n")[2]
    code, out, _ = connlib("check", write(tmp_path / "wg0.toml", text))
    assert code == 0 and ", 2 peers, 1 with a policy, 5 prefixes, public key " in out


def rule(allow: bool, **options: object) -> Rule:
    return Rule(action=Action.ALLOW if allow else Action.DENY, **options)  # type: ignore[arg-type]


WEB = rule(True, protocol=Protocol.TCP, destinations=(ip_network("10.0.0.0/24"),), ports=(443,), name="web")
SSH = rule(True, protocol=Protocol.TCP, ports=(22, (2200, 2299)))
PING = rule(True, protocol=Protocol.ICMP, icmp_types=(8,), name="ping")
VAULT = rule(False, destinations=(ip_network("10.0.0.9/32"), ip_network("fd00::9/128")), name="the vault")
GRE = rule(True, protocol=47)
REST = rule(False)
WEB_TEXT, SSH_TEXT = "allow tcp to 10.0.0.0/24 port 443 (web)", "allow tcp ports 22, 2200-2299"
VAULT_TEXT = "deny to 10.0.0.9/32, fd00::9/128 (the vault)"


def of_policy(policy: Policy | None) -> InterfaceConfig:
    config = gateway_config()
    return replace(config, peers=(replace(config.peers[0], policy=policy),))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (Policy((WEB,)), Policy((WEB,)), []),
        (Policy((WEB,)), Policy((WEB, SSH)), [f"rule 2 added: {SSH_TEXT}"]),
        (Policy((WEB, SSH)), Policy((SSH,)), [f"rule 1 removed: {WEB_TEXT}"]),
        (
            Policy((WEB, GRE)),
            Policy((VAULT, WEB, PING, REST)),
            [
                "rule 2 removed: allow protocol 47",
                f"rule 1 added: {VAULT_TEXT}",
                "rule 3 added: allow icmp type 8 (ping)",
                "rule 4 added: deny everything",
            ],
        ),
        (Policy((WEB, VAULT)), Policy((VAULT, WEB)), ["the rules are in another order"]),
        (
            Policy((WEB, VAULT)),
            Policy((VAULT, WEB, SSH)),
            [f"rule 3 added: {SSH_TEXT}", "the other rules are in another order"],
        ),
        (Policy((WEB,)), Policy((WEB, WEB)), [f"rule 2 added: {WEB_TEXT}"]),
        (Policy(), Policy(default=Action.ALLOW), ["default: deny -> allow"]),
        (Policy(), Policy(outbound=Action.ALLOW), ["outbound: as default -> allow"]),
        (
            None,
            Policy((WEB,), outbound=Action.ALLOW),
            [
                "policy: none, everything is allowed -> 1 rule, default deny, outbound allow",
                f"rule 1 added: {WEB_TEXT}",
            ],
        ),
        (
            Policy((WEB, SSH)),
            None,
            [
                "policy: 2 rules, default deny -> none, everything is allowed",
                f"rule 1 removed: {WEB_TEXT}",
                f"rule 2 removed: {SSH_TEXT}",
            ],
        ),
        (
            Policy(),
            Policy(tuple(rule(True, protocol=number) for number in range(200))),
            [
                *(f"rule {number + 1} added: allow protocol {number}" for number in range(8)),
                "192 more rules added",
            ],
        ),
    ],
)
def test_the_diff_says_what_changed_of_a_policy(
    old: Policy | None, new: Policy | None, expected: list[str]
) -> None:
    before, after = of_policy(old), of_policy(new)
    changes = describe_diff(compute_diff(before, after), before, after)
    assert [str(change) for change in changes] == [f"~ client: {text}" for text in expected]


def test_an_added_peer_is_shown_with_its_policy() -> None:
    before, after = gateway_config(peers=()), of_policy(Policy((WEB, SSH)))
    (change,) = describe_diff(compute_diff(before, after), before, after)
    assert str(change).endswith(f", allowed IPs {CLIENT}/32, 2 rules, default deny")


def test_a_diff_of_files_is_printed(connlib: Command, tmp_path: Path) -> None:
    text = MINIMAL + FILE.partition("\n\n")[2]
    old = write(tmp_path / "old.toml", text)
    new = write(tmp_path / "new.toml", text.replace("443, ", "").replace('"branch"', '"branch"\nrules = []'))
    code, out, _ = connlib("diff", old, new)
    assert code == 0
    assert out.splitlines() == [
        "~ alice: rule 2 removed: allow tcp to 10.0.0.0/8, fd00::/8 ports 443, 8000-8099 (web)",
        "~ alice: rule 2 added: allow tcp to 10.0.0.0/8, fd00::/8 port 8000-8099 (web)",
        "~ branch: policy: none, everything is allowed -> 0 rules, default deny",
    ]


def test_a_text_of_many_destinations_is_cut() -> None:
    networks = tuple(ip_network(f"10.{number}.0.0/16") for number in range(10))
    assert str(rule(True, destinations=networks)) == (
        "allow to 10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16, 10.5.0.0/16, 10.6.0.0/16, "
        "10.7.0.0/16 and 2 more"
    )


# Counters


async def two_are_denied(pair: Pair) -> None:
    """A flow passes, and is over when the next policy does not allow it; then two packets are refused."""
    await pair.gateway.apply(of_policy(Policy((rule(True, destinations=(ip_network(GATEWAY),)),))))
    await pair.exchange()
    assert pair.gateway.stats().peers[0].policy == PolicyStats(flows=1, flows_evicted=0, answers=0)
    await pair.gateway.apply(of_policy(Policy((PING,))))
    for _ in range(2):
        await pair.client_tun.send(packet(CLIENT, GATEWAY))
        await pair.client_tun.receive()


@in_virtual_time
async def test_the_closing_lines_of_up_say_what_a_policy_did() -> None:
    async with open_pair() as pair:
        await two_are_denied(pair)
        stats = pair.gateway.stats()
        names = {pair.client.public_key: "client"}
        in_all, dropped = summarize(stats, names)
        assert in_all.startswith("client  in all: ")
        assert in_all.endswith(" initiations sent, 2 denied, 0 flows at the end")
        assert dropped == "dropped: denied by a policy 2"
        (peer,) = stats.peers
        assert peer.policy is not None
        evicted = replace(peer, policy=replace(peer.policy, flows=1, flows_evicted=3))
        in_all, _ = summarize(replace(stats, peers=(evicted,)), names)
        assert in_all.endswith(", 2 denied, 1 flow at the end, 3 evicted")
        in_all, _ = summarize(replace(stats, peers=(replace(peer, policy=None),)), names)
        assert in_all.endswith(" initiations sent")


@in_real_time
async def test_prometheus_gets_the_flows_of_peers_that_have_a_policy() -> None:
    async with open_pair() as pair, serve_metrics(pair.gateway, port=0) as server:
        await pair.exchange()
        assert ("connlib_peer_flows", OF_THE_CLIENT) not in await samples(server.port)
        await two_are_denied(pair)
        seen = await samples(server.port)
        (peer,) = pair.gateway.stats().peers
        assert peer.policy is not None
        denied = OF_THE_CLIENT | {("reason", DropReason.DENIED.value)}
        assert seen["connlib_peer_flows", OF_THE_CLIENT] == peer.policy.flows == 0
        assert seen["connlib_peer_flows_evicted_total", OF_THE_CLIENT] == 0
        assert seen["connlib_peer_policy_answers_total", OF_THE_CLIENT] == 2
        assert seen["connlib_peer_drops_total", denied] == 2
