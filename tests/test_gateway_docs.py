"""docs/gateway.md says what is so: its file is read, its mistakes are found, its script runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from connlib import parse_gateway
from connlib.cli import main
from connlib.cli.check import run
from connlib.diff import compute_diff, describe_diff
from connlib.gatewayschema import schema
from helpers_config import OWN, SHARED

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
