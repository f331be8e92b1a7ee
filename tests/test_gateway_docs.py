"""docs/gateway.md says what is so: its file is read, its mistakes are found, its script runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from connlib import ConfigError, parse_gateway
from connlib.cli.check import run
from connlib.gateway import schema
from helpers_config import OWN, SHARED

DOCUMENT = (Path(__file__).parent.parent / "docs" / "gateway.md").read_text()
FILE, RULES = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
(SCRIPT,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
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


def test_the_rules_are_as_the_document_says() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_gateway(FILE + RULES)
    assert [problem.problem for problem in getattr(caught.value, "problems", ())] == [
        "rules: this version of connlib does not enforce rules, and does not ignore them either"
    ]


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
