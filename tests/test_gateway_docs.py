"""docs/gateway.md says what is so: its guide works, its file is read, its mistakes are found, its script runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from connlib import parse_config, parse_gateway
from connlib.cli import main
from connlib.cli.check import run
from connlib.diff import compute_diff, describe_diff
from connlib.gatewayschema import schema
from helpers_config import OWN, SHARED
from interop.machine import missing_rights
from interop.netns import Background, joined_namespaces
from test_gateway_cli import Command, connlib, up, write
from test_qr import scanned_blocks

__all__ = ["connlib"]  # the fixture

DOCUMENT = (Path(__file__).parent.parent / "docs" / "gateway.md").read_text()
FILE, RULES = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
(SCRIPT,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
POLICY_TESTS = re.findall(
    r"^\$ (connlib policy test (?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL
)
(RULES_DIFF,) = re.findall(
    r"^\$ connlib diff office.toml rules.toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL
)
CHECKS = re.findall(r"^\$ connlib check \S+\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)

GUIDE = DOCUMENT.partition("\n# The file\n")[0]
# What is typed there, and what that prints.
STEPS = [
    (command, said)
    for block in re.findall(r"^```\n(# .*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for command, said in re.findall(
        r"^# ((?:connlib|cat|sysctl|pkill) .*)\n((?:(?!# (?:connlib|cat|sysctl|pkill) ).*\n)*)",
        block,
        re.MULTILINE,
    )
]
# What the gateway says when it is up, and when alice comes; what bob's laptop says.
LOGS = [
    dict(STEPS)["connlib up office.toml"],
    *re.findall(r"^```\n(\d\d:.*?)^```", GUIDE, re.MULTILINE | re.DOTALL),
]
CODE = re.compile(r"(?:[█▀▄ ]{50,}\n)+")


# The guide


def plain(text: str) -> str:
    """What the guide prints, without what differs each time: keys, codes, times and ports of the system's choice."""
    text = re.sub(r"[A-Za-z0-9+/]{43}=", "KEY", CODE.sub("CODE\n", text))
    text = re.sub(r"^(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\.\d{3}  ", "TIME  ", text, flags=re.MULTILINE)
    text = re.sub(r"now at [0-9.]+:\d+", "now at ANYWHERE", text)
    text = re.sub(r"UDP port (?!51820,)\d+", "UDP port ANY", text)
    # Its last letter may be + or /, after which there is no \b.
    return re.sub(r"peer [A-Za-z0-9+/]{8}(?![A-Za-z0-9+/])", "peer KEY", text)


@pytest.mark.parametrize("short", ["vAoLo8J/", "vAoLo8J+", "+/oLo8Jx"])
def test_a_key_differs_each_time_whatever_its_letters(short: str) -> None:
    assert plain(f"12:34:56.789  peer {short}  handshake started\n") == "TIME  peer KEY  handshake started\n"


GUIDE_PLAIN = plain(GUIDE)


def test_the_guide_s_commands_print_what_it_says(
    connlib: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = []
    for command, said in STEPS:
        match shlex.split(command):
            case ["connlib", "up" | "apply", *_]:
                continue  # below, with devices
            case ["connlib", *arguments]:
                code, out, err = connlib(*arguments)
                assert code == 0 and plain(out + err) == plain(said), command
                ran.append(arguments)
            case ["cat", name]:
                assert plain((tmp_path / name).read_text()) == plain(said)
            case ["sysctl", "-w", setting]:
                assert Path("/proc/sys", *setting.partition("=")[0].split(".")).exists()
                assert said == setting.replace("=", " = ") + "\n"
            case other:
                raise AssertionError(f"{other} is not known here")
    assert [arguments[:2] for arguments in ran] == [
        ["init", "office.toml"],
        ["peer", "add"],
        ["peer", "add"],
        ["peer", "list"],
        ["peer", "remove"],
    ]


def test_the_guide_s_code_is_the_configuration_of_the_peer_in_its_log() -> None:
    (code,) = CODE.findall(GUIDE)
    config = parse_config(scanned_blocks(code))
    gateway, client, *_ = LOGS
    (peer,) = config.peers
    assert f"public key {peer.public_key.to_base64()}, 0 peers" in gateway
    assert f"+ alice, peer {config.private_key.public_key().to_base64()}, " in client
    assert (peer.endpoint, [str(each) for each in config.addresses]) == (
        ("vpn.example.org", 51820),
        ["10.7.0.2/32"],
    )


def test_the_guide_s_phone_and_laptop_connect_and_the_logs_say_what_it_says(
    connlib: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    with joined_namespaces() as wire:
        assert connlib("init", "office.toml", "--endpoint", wire.address(0, 4))[0] == 0
        ends: list[Background] = []
        try:
            gateway = up(wire.hosts[0], tmp_path / "office.toml")
            ends.append(gateway)
            said = gateway.output()
            for name in ("alice", "bob"):
                code, out, _ = connlib("peer", "add", name, "--qr")
                assert code == 0
                before = gateway.output()
                code, out_of_apply, _ = connlib("apply", "office.toml")
                assert code == 0 and plain(out_of_apply) in GUIDE_PLAIN
                client = up(wire.hosts[1], write(tmp_path / f"{name}.conf", scanned_blocks(out)))
                ends.append(client)
                wire.hosts[1].run("ping", "-c", "1", "-W", "10", "10.7.0.1")
                if name == "alice":
                    assert plain(gateway.output().removeprefix(before)) == plain(LOGS[1])
                else:
                    # The host name is none here.
                    lookup = r"TIME  peer KEY: vpn\.example\.org is 192\.0\.2\.1\n"
                    assert plain(client.output()) == re.sub(lookup, "", plain(LOGS[2]))
                assert client.stop() == 0
            assert plain(said) == plain(LOGS[0])
        finally:
            for end in ends:
                end.stop()


# The reference


def test_the_file_is_right_and_its_mistakes_are_found_where_the_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = FILE.replace("listen_port", "listen_prt").replace("alice.psk", "bob.psk")
    broken = broken.replace("192.168.20.0/24", "10.7.0.2/32").replace("= 25", '= "25"')
    for name, text in {
        "gateway.key": OWN.to_base64(),
        "alice.psk": SHARED.to_base64(),
        "office.toml": FILE,
        "broken.toml": broken,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    right, wrong = CHECKS
    assert run("office.toml", allow_world_readable=False) == 0
    assert capsys.readouterr().out.partition("public key")[0] == right.partition("public key")[0]
    assert run("broken.toml", allow_world_readable=False) == 1
    assert capsys.readouterr().out == wrong


def test_the_rules_decide_as_the_document_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "office.toml").write_text(f"{FILE}\n{RULES}")
    assert len(POLICY_TESTS) == 2
    for command, said in POLICY_TESTS:
        monkeypatch.setattr(sys, "argv", shlex.split(command.replace("\\\n", " ")))
        assert main() == 1
        assert capsys.readouterr().out == said


def test_the_difference_between_rules_is_as_the_document_says() -> None:
    changed = RULES.replace("192.168.10.9/32", "192.168.10.8/31")
    changed = changed.replace("[[peers.rules]]", 'outbound = "allow"\n[[peers.rules]]', 1)
    added = '[[peers.rules]]\nallow = true\nto = ["10.7.0.0/24"]\n'
    before, after = (
        parse_gateway(text).with_keys(OWN, {}) for text in (FILE + RULES, FILE + added + changed)
    )
    changes = describe_diff(compute_diff(before, after), before, after)
    assert "".join(f"{change}\n" for change in changes) == RULES_DIFF


def test_the_script_builds_a_gateway() -> None:
    names: dict[str, object] = {}
    exec(compile(SCRIPT, "docs/gateway.md", "exec"), names)
    assert str(names["gateway"]).startswith(
        "Gateway(interface=GatewayInterface(private_key=<PrivateKey: hidden>"
    )


def test_every_field_is_in_the_document() -> None:
    for definition in schema()["$defs"].values():
        for field in definition.get("properties", ()):
            written = (f"`{field}`", f"[{field}]", f"\n{field} = ")
            assert any(each in DOCUMENT for each in written), field
