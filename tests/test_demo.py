"""`connlib demo`: what it shows is true, it looks right, and it leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from ipaddress import IPv4Address
from pathlib import Path

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import connlib.cli.demo
from connlib._pcapng import internet_checksum
from connlib.cli import _packets, _transfer
from interop.machine import missing_rights
from interop.netns import wait_for

COMMAND = (sys.executable, "-m", "connlib", "demo")
PATIENCE = 120.0
"""Seconds until what takes a few counts as stuck."""
HERE, THERE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")


def table_row(output: str, name: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def check_output(output: str) -> None:
    assert "FAILED" not in output
    assert "5 of 5 pings answered" in output
    assert "SHA-256 equal on both sides" in output
    assert table_row(output, "initiations sent")[0] == "0"
    assert "the gateway never started a session" in output
    assert "\x1b" not in output, "colours are for terminals"
    assert max(len(line) for line in output.splitlines()) <= 80


def test_the_demo_shows_what_it_promises() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check_output(done.stdout)
    assert "initiations since then: client 1, gateway 0" in done.stdout
    assert table_row(done.stdout, "sessions") == ["2", "2"]
    assert table_row(done.stdout, "initiations sent") == ["0", "2"]
    assert table_row(done.stdout, "drops") == ["none", "none"]
    gateway, client = (int(count.replace(",", "")) for count in table_row(done.stdout, "packets received"))
    assert table_row(done.stdout, "packets sent") == [f"{client:,}", f"{gateway:,}"]


def test_the_demo_needs_no_root_and_no_network() -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv (Debian: util-linux)")
    script = f"ip link set lo up && exec setpriv --bounding-set=-all {' '.join(COMMAND)}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_output(done.stdout)


def read_terminal(descriptor: int) -> bytes:
    """What is written to a terminal until its other end is closed."""
    output = b""
    end = time.monotonic() + PATIENCE
    while select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            data = os.read(descriptor, 65536)
        except OSError:
            return output  # how Linux says that the other end is closed
        if not data:
            return output
        output += data
    raise AssertionError(f"still running after {PATIENCE} s: {output[-500:]!r}")


def test_in_a_terminal_of_80_columns_the_demo_has_colours_and_fits() -> None:
    mine, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "50"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            output = read_terminal(mine)
        finally:
            process.kill()  # nothing if it has ended
            os.close(mine)
    assert process.returncode == 0
    text = output.decode()
    assert "\x1b[" in text and "━" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(len(line) for part in plain.splitlines() for line in part.split("\r")) <= 80


def test_the_demo_fails_if_something_is_not_as_it_should_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a sleep there is no new session, which is what the demonstration is to show."""
    monkeypatch.setattr(connlib.cli.demo, "NIGHT", 0.0)
    monkeypatch.setattr(connlib.cli.demo, "TRANSFER", 1_000_000)
    with pytest.raises(SystemExit) as stop:
        connlib.cli.demo.run()
    assert stop.value.code == 1
    assert "FAILED initiations since then: client 0, gateway 0" in capsys.readouterr().out


def test_a_transfer_that_takes_too_long_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connlib.cli.demo, "TRANSFER_PATIENCE", 0.0)
    with pytest.raises(SystemExit) as stop:
        connlib.cli.demo.run()
    assert stop.value.code == 1
    assert "FAILED all 134,217,728 bytes within 0 s" in capsys.readouterr().out


def test_the_demo_into_a_closed_pipe_is_silent() -> None:
    script = f"{' '.join(COMMAND)} | head -1"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout.startswith("connlib demo")
    assert done.stderr == ""


# Real devices


@pytest.fixture
def machine() -> None:
    if reason := missing_rights():
        pytest.skip(reason)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demonstration of this test, and nobody else, makes its files."""
    made = tmp_path / "temporary"
    made.mkdir()
    return made


def leftovers(folder: Path) -> list[str]:
    """The files of a demonstration, and its processes: they have its folder in their command lines."""
    left = os.listdir(folder)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if f"connlib\0up\0{folder}/".encode() in command:
            left.append(command.decode())
    return left


@pytest.mark.usefixtures("machine")
def test_with_real_devices_the_demo_shows_the_same_and_cleans_up(folder: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--tun"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    check_output(done.stdout)
    assert table_row(done.stdout, "sessions") == ["1", "1"]
    assert "both stopped cleanly on SIGINT" in done.stdout
    assert leftovers(folder) == []


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_real_devices_a_signal_leaves_nothing_behind(number: int, tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    with (
        log.open("w") as out,
        subprocess.Popen([*COMMAND, "--tun"], stdout=out, stderr=out, env=environment) as process,
    ):
        try:
            wait_for(
                lambda: "is up" in log.read_text() or process.poll() is not None, "the tunnels", PATIENCE
            )
            assert len(leftovers(folder)) == 3, "a folder and two processes, to be found by this test"
            process.send_signal(number)
            assert process.wait(PATIENCE) == 128 + number
        finally:
            process.kill()  # nothing if it has ended
    assert "Traceback" not in log.read_text()
    assert leftovers(folder) == []


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_process_is_started_leaves_nothing_behind(number: int, folder: Path) -> None:
    script = f"""
import os, subprocess, sys
from connlib.cli import main

class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.kill(os.getpid(), {int(number)})

subprocess.Popen = Popen
sys.argv = ["connlib", "demo", "--tun"]
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers(folder) == []


def test_without_root_the_demo_with_devices_is_one_line() -> None:
    if os.geteuid() != 0:
        done = subprocess.run(
            [*COMMAND, "--tun"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "connlib: connlib demo --tun needs root; connlib demo does without\n"
        return
    script = f"import os, sys; os.geteuid = lambda: 1; sys.argv = {['connlib', 'demo', '--tun']!r}; " + (
        "from connlib.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "connlib: connlib demo --tun needs root; connlib demo does without\n"


# The packets and the transfer


@given(st.sampled_from([0, 8]), st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=1400))
def test_an_echo_is_read_as_it_was_built(kind: int, identifier: int, sequence: int, payload: bytes) -> None:
    echo = _packets.Echo(HERE, THERE, kind, identifier, sequence, payload)
    packet = _packets.build_echo(echo)
    assert _packets.parse(packet) == echo
    assert internet_checksum(packet[:20]) == 0
    damaged = bytearray(packet)
    damaged[-1] ^= 1
    assert _packets.parse(bytes(damaged)) is None


@given(st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=1400))
def test_a_datagram_is_read_as_it_was_built(source: int, destination: int, payload: bytes) -> None:
    datagram = _packets.Datagram(HERE, THERE, source, destination, payload)
    assert _packets.parse(_packets.build_datagram(datagram)) == datagram


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x45" + data))
def test_any_other_packet_is_read_as_nothing_or_something_but_never_raises(packet: bytes) -> None:
    _packets.parse(packet)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.3])
def test_a_transfer_arrives_whole_over_a_link_that_loses_packets(loss: float) -> None:
    trio.run(_transfer_over, loss, clock=MockClock(autojump_threshold=0))


async def _transfer_over(loss: float) -> None:
    dice = random.Random(7)
    data = dice.randbytes(300_000)
    receiver = _transfer.Receiver(HERE, THERE)
    back: deque[bytes] = deque()
    news = anyio.Event()
    reports: list[int] = []

    def send_nowait(packet: bytes) -> None:
        if dice.random() >= loss:
            assert _transfer.is_piece(packet)
            receiver.take(packet)
            if dice.random() >= loss:
                back.append(receiver.acknowledgement())
                news.set()

    async def receive() -> list[bytes]:
        nonlocal news
        await news.wait()
        news = anyio.Event()
        packets = list(back)
        back.clear()
        return packets

    repeated = await _transfer.send(
        data, HERE, THERE, send_nowait=send_nowait, receive=receive, report=reports.append
    )
    assert receiver.digest() == hashlib.sha256(data).digest()
    assert receiver.size == len(data) == reports[-1]
    assert reports == sorted(reports)
    assert (repeated > 0) == (loss > 0)
