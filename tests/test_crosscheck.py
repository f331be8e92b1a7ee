"""`connlib crosscheck`: what it prints, what it writes, and what it says to bad arguments."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import connlib.cli
import connlib.cli.crosscheck
from connlib import InterfaceConfig, PeerConfig, PrivateKey
from connlib.lab import SCENARIOS, Scenario, load_recording
from connlib.wgquick import format_config
from helpers_netns import in_namespace, ip, run_body
from interop.netns import wait_for

PATIENCE = 60.0
MARKED = "# Title\n\n<!-- crosscheck: begin -->\nold\n<!-- crosscheck: end -->\n\nThe end.\n"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(monkeypatch, capsys)


class Call:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.setenv("COLUMNS", "100")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output, and errors."""
        self._monkeypatch.setattr(sys, "argv", ["connlib", "crosscheck", *arguments])
        code = connlib.cli.main()
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err


def test_the_traces_are_shown_side_by_side_and_then_counted(call: Call) -> None:
    code, out, err = call("2", "24")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    difference = next(line for line in lines if "keepalive" in line and "data" in line)
    assert difference.split() == ["185.040", "A", "→", "B", "keepalive", "185.040", "A", "→", "B", "data"]
    table = lines[lines.index("  2  idle 185 s, then a packet") :]
    assert table[1].split() == ["upstream", "1", "1", "0", "of", "1", "1,522", "5.08"]
    assert table[2].split() == ["patched", "1", "0", "0", "of", "1", "2", "5.10"]
    assert table[3].split() == ["asked", "1", "0-1", "0", "2", "5.10"]
    assert "not as asked" not in out
    assert max(len(line.rstrip()) for line in table) <= 80


def test_what_two_hosts_cannot_show_is_said(call: Call) -> None:
    code, out, _ = call("31", "37", "--lines", "0")
    assert code == 0
    assert out.startswith("31  a cookie of 120 s: not here, a world has no limit to set\n")
    assert "mixed    not run: upstream's keepalive is set for life" in out
    assert "→" not in out


def test_what_the_patched_engine_does_otherwise_than_asked_stands_out(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = SCENARIOS
    assert isinstance(first, Scenario)
    asked = replace(first.asked, initiations=2, wakes=(3, 4))
    monkeypatch.setattr(connlib.cli.crosscheck, "SCENARIOS", (replace(first, asked=asked),))
    code, out, _ = call("1", "--lines", "0")
    assert code == 0
    assert "     not as asked: initiations, wakes\n" in out


def test_each_run_is_drawn_once_it_was_measured(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "pictures"
    assert call("2", "37", "--lines", "0", "--draw", str(folder))[0] == 0
    drawn = sorted(path.name for path in folder.iterdir())
    assert drawn == ["scenario-2-patched.svg", "scenario-2-upstream.svg", "scenario-37-patched.svg"]
    assert "2: idle 185 s, then a packet (upstream)" in (folder / "scenario-2-upstream.svg").read_text()


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_played(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, out, err = call("2", "--draw", str(tmp_path / "file" / "folder"))
    assert (code, out) == (1, "")
    assert err.startswith("connlib: ") and err.count("\n") == 1


def test_numbers_are_played_in_order_and_once(call: Call) -> None:
    code, out, _ = call("6", "03", "6", "--lines", "0")
    assert code == 0
    assert [line for line in out.splitlines() if line[:3].strip().isdigit()] == [
        "  3  a packet at 169.9 s",
        "  6  nothing, past 180 s",
    ]


def test_the_replay_says_that_a_recording_was_cut_off(call: Call, tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.write_text(
        '{"connlib-recording": 1, "peers": [{"role": "either", "keepalive": null}]}\n'
        '[0, 0, "packet", 100, true]\n{"missed": 3}\n[2000000000, 0, "pack'
    )
    code, out, err = call("--replay", str(recording), "--lines", "0")
    assert (code, err) == (0, "")
    assert out.startswith(
        "The last line of the recording is incomplete and is missing here.\n"
        "Inputs that came too fast to be recorded and are missing here: 3.\n"
    )
    assert "peer 0 of the recording, 1 input in 0.0 s" in out


def test_the_table_of_a_document_is_written_anew_and_nothing_else(call: Call, tmp_path: Path) -> None:
    document = tmp_path / "engine.md"
    document.write_text(MARKED)
    assert call("2", "--lines", "0", "--markdown", str(document))[0] == 0
    text = document.read_text()
    before, _, rest = text.partition("<!-- crosscheck: begin -->\n")
    table, _, after = rest.partition("<!-- crosscheck: end -->\n")
    assert (before, after) == ("# Title\n\n", "\nThe end.\n")
    assert "| 2 | idle 185 s, then a packet | upstream | 1 | 1 |" in table
    assert "old" not in text


@pytest.mark.parametrize("names", [["0"], ["41"], ["x"], ["2", "-1"], ["²"], ["1" * 5000]])
def test_what_is_no_scenario_is_one_line(call: Call, names: list[str]) -> None:
    code, out, err = call("--", *names)
    assert (code, out) == (2, "")
    assert err == "connlib: a scenario is a number from 1 to 40; try connlib crosscheck 2 24 38\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--markdown", "{dir}/none.md"], 1, "cannot read {dir}/none.md: No such file or directory"),
        (
            ["--markdown", "{dir}/unmarked.md"],
            1,
            "{dir}/unmarked.md has no place for the table; put the lines ",
        ),
        (
            ["--replay", "{dir}/none"],
            2,
            "{dir}/none: cannot read it: no such file or directory; name a recording",
        ),
        (
            ["--replay", "{dir}/unmarked.md"],
            2,
            "{dir}/unmarked.md:1: this is not a line of a recording; give a file",
        ),
        (
            ["--replay", "{dir}/idle"],
            1,
            "{dir}/idle: nothing came in while this was recorded; nothing to replay",
        ),
        (["--replay", "x", "2"], 2, "Invalid value: --replay takes its file, and nothing else; try "),
        (["--record", "x"], 2, "Invalid value: --record takes one wg-quick file, and nothing else; try "),
        (["--record", "x", "a", "b"], 2, "Invalid value: --record takes one wg-quick file, and nothing else"),
        (["--lines", "-1"], 2, "Invalid value for '--lines': "),
    ],
)
def test_bad_arguments_and_files_are_one_line(
    call: Call, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "unmarked.md").write_text("# Title\n")
    (tmp_path / "idle").write_text(
        '{"connlib-recording": 1, "peers": [{"role": "either", "keepalive": null}]}\n'
    )
    result = call(*(argument.format(dir=tmp_path) for argument in arguments))
    assert result[:2] == (code, "")
    assert result[2].startswith("connlib: " + message.format(dir=tmp_path))
    assert result[2].count("\n") == 1


@in_namespace
def test_a_live_interface_is_recorded_and_replayed() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = PrivateKey.generate()
        config = InterfaceConfig(
            private_key=PrivateKey.generate(),
            # Nobody is there: what is recorded is our side of it.
            peers=(
                PeerConfig(
                    public_key=peer.public_key(), endpoint=("127.0.0.1", 9), persistent_keepalive=25.0
                ),
            ),
        )
        file, recording = folder / "wg0.conf", folder / "recording"
        file.touch(0o600)
        file.write_text(format_config(config))
        command = [sys.executable, "-m", "connlib", "crosscheck"]
        log = folder / "log"
        with (
            log.open("w") as told,
            subprocess.Popen([*command, "--record", str(recording), str(file)], stderr=told) as process,
        ):
            try:
                wait_for(
                    lambda: "recording to" in log.read_text() or process.poll() is not None,
                    "the recording",
                    PATIENCE,
                )
                assert "recording to" in log.read_text()
                assert "wg0" in ip("link")
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()  # nothing if it has ended
        # The keepalive was due at once, and asked for a session.
        (first, *_) = load_recording(recording).inputs
        assert (first.kind.value, first.at, first.peer, first.taken) == ("timeout", 0, 0, True)
        assert peer.public_key().to_base64() not in recording.read_text()
        done = subprocess.run(
            [*command, "--replay", str(recording)], capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "peer 0 of the recording" in done.stdout

        again = subprocess.run(
            [*command, "--record", str(recording), str(file)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        expected = f"connlib: {recording} is there already; name another file to record to\n"
        assert (again.returncode, again.stderr) == (1, expected)
        assert "wg0" not in ip("link")


run_body(globals())
