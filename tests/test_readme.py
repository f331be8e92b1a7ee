"""The README's scripts run as they stand there."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SCRIPTS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_there_are_three_scripts_and_each_has_about_ten_lines() -> None:
    assert len(SCRIPTS) == 3
    for script in SCRIPTS:
        lines = [line for line in script.splitlines() if line.strip()]
        assert len(lines) <= 13


def test_the_tunnel_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "tunnel.py"
    script.write_text(SCRIPTS[0])
    runpy.run_path(str(script))
    assert capsys.readouterr().out.startswith("Timeout(at=15.")


def test_the_gateway_script_reads_its_file_and_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    script = tmp_path / "gateway.py"
    script.write_text(SCRIPTS[1])
    conf = tmp_path / "wg0.conf"
    conf.write_text("[Interface]\nPrivatKey = x\n")
    conf.chmod(0o600)
    result = subprocess.run([sys.executable, script, conf], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "ConfigFileError" in result.stderr and "PrivateKey" in result.stderr


def test_the_laboratory_s_script_shows_that_the_first_packet_after_the_sleep_arrives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "lab.py"
    script.write_text(SCRIPTS[2])
    runpy.run_path(str(script))
    table = capsys.readouterr().out
    assert "laptop  -> gateway" in table
    assert "packet 0" in table
    assert (tmp_path / "trace.svg").read_text(encoding="utf-8").startswith("<svg")
