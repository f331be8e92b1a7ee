"""`connlib genkey`, `pubkey` and `genpsk` beside the commands of `wg`, byte for byte."""

from __future__ import annotations

import base64
import io
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from connlib.cli import main

KEYS = 200
CONNLIB = str(Path(sys.executable).with_name("connlib"))


@pytest.fixture(scope="module", autouse=True)
def wg() -> None:
    if not shutil.which("wg"):
        pytest.skip("needs wg (Debian: wireguard-tools)")


def run(*command: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True, timeout=30).stdout


def connlib(command: str, stdin: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The command in this process: starting Python two hundred times would take a minute."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["connlib", command])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
    assert main() == 0
    return out.getvalue()


def test_pubkey_of_any_32_bytes_is_what_wg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of keys that are not clamped: both clamp while they compute."""
    for _ in range(KEYS):
        private = base64.b64encode(secrets.token_bytes(32)) + b"\n"
        expected = run("wg", "pubkey", stdin=private)
        assert connlib("pubkey", private, monkeypatch) == expected


def test_keys_of_genkey_are_taken_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for _ in range(KEYS):
        private = connlib("genkey", b"", monkeypatch)
        decoded = base64.b64decode(private, validate=False)
        assert len(private) == 45
        assert (len(decoded), decoded[0] & 7, decoded[31] >> 6) == (32, 0, 1), "not clamped as wg does"
        assert run("wg", "pubkey", stdin=private) == connlib("pubkey", private, monkeypatch)
        seen.add(private)
    assert len(seen) == KEYS


def test_as_processes_with_pipes() -> None:
    private = run(CONNLIB, "genkey")
    assert run("wg", "pubkey", stdin=private) == run(CONNLIB, "pubkey", stdin=private)
    from_wg = run("wg", "genkey")
    assert run(CONNLIB, "pubkey", stdin=from_wg) == run("wg", "pubkey", stdin=from_wg)
    assert len(run(CONNLIB, "genpsk")) == len(run("wg", "genpsk")) == 45
