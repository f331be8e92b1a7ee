"""`connlib up --flow-log`: what is written, where, and what happens when it cannot be."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from connlib import (
    ConnlibError,
    Direction,
    EndReason,
    FlowEnd,
    FlowRecord,
    Interface,
    PeerConfig,
    Policy,
    PrivateKey,
    Protocol,
    Verdict,
    VerdictReason,
)
from connlib.cli import _flowlog
from connlib.cli._flowlog import FlowLog
from helpers_config import OWN, SHARED
from helpers_driver import gateway_config, in_real_time
from interop.machine import missing_rights
from interop.netns import Background, Wire, joined_namespaces, wait_for
from test_cli import COMMAND
from test_gateway_cli import CLIENT, CLIENT_KEY, UP, up, write

KEY = PrivateKey.from_bytes(bytes([5] * 32)).public_key()
BEGAN = FlowRecord(
    time=1_764_313_200.25,
    peer=KEY,
    direction=Direction.FROM_PEER,
    protocol=Protocol.TCP,
    source=ip_address("10.7.0.4"),
    source_port=50000,
    destination=ip_address("192.168.10.5"),
    destination_port=443,
    icmp_type=None,
    verdict=Verdict(True, VerdictReason.RULE, 2, 'the "web"\n'),
    id=7,
    refused=0,
    end=None,
)


class Source:
    """Stands for an interface that has had these flows."""

    name = "wg0"

    def __init__(self) -> None:
        peer = PeerConfig(public_key=KEY, name="carol", policy=Policy())
        self.config = gateway_config(peers=(peer,))
        self.capacity: int | None = None
        self.records: list[FlowRecord] = []
        self.missed = 0

    def log_flows(self, capacity: int) -> None:
        self.capacity = capacity

    def take_flows(self) -> tuple[list[FlowRecord], int]:
        taken = self.records, self.missed
        self.records, self.missed = [], 0
        return taken


Finish = Callable[..., None]


def finish(flows: FlowLog, source: Source, count: int = 0, missed: int = 0) -> None:
    """Write so many records more."""
    source.records, source.missed = [BEGAN._replace(id=number + 1) for number in range(count)], missed
    trio.run(flows.finish, cast(Interface, source))


def lines(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("there", "between"), [("", ""), ('{"time":"old"}\n', ""), ('{"time":"old"}\n{"ti', "\n")]
)
def test_what_a_killed_process_left_cut_off_is_joined_to_nothing(
    tmp_path: Path, there: str, between: str
) -> None:
    file, source = tmp_path / "flows", Source()
    file.write_text(there)
    with FlowLog(str(file)) as flows:
        finish(flows, source, 1)
        text = file.read_text()
        assert text.startswith(there + between + '{"time":"2025')
        # Put away, and another one that is like it is in its place.
        file.rename(tmp_path / "flows.1")
        file.write_text(there)
        flows.reopen()
        finish(flows, source, 1)
        assert file.read_text() == text
        # Opened anew where it was.
        flows.reopen()
        finish(flows, source, 1)
        assert lines(file.read_text()[len(there) + len(between) :])[1]["id"] == 1
        assert "\n\n" not in file.read_text()


def test_a_line_of_json_for_each_record(tmp_path: Path) -> None:
    file, source = tmp_path / "flows", Source()
    end = FlowEnd(EndReason.EXPIRED, BEGAN.time, 1.5, 3, 300, 2, 200)
    denied = BEGAN._replace(
        protocol=47,
        source_port=None,
        destination_port=None,
        verdict=Verdict(False, VerdictReason.DEFAULT),
        id=None,
        refused=12,
    )
    unreadable = denied._replace(protocol=None, verdict=Verdict(False, VerdictReason.UNPARSEABLE))
    with FlowLog(str(file)) as flows:
        flows.start(cast(Interface, source))
        assert source.capacity == 4096
        source.records = [BEGAN, BEGAN._replace(time=BEGAN.time + 121.5, end=end), denied, unreadable]
        trio.run(flows.finish, cast(Interface, source))
    began, ended, refused, last = lines(file.read_text())
    expected = {
        "time": "2025-11-28T07:00:00.250000Z",
        "event": "began",
        "id": 7,
        "peer": "carol",
        "key": KEY.to_base64(),
        "direction": "from peer",
        "protocol": "tcp",
        "source": "10.7.0.4",
        "source_port": 50000,
        "destination": "192.168.10.5",
        "destination_port": 443,
        "decided_by": "rule",
        "rule": 2,
        "rule_name": 'the "web"\n',
    }
    assert began == expected and list(began) == list(expected)
    assert ended == expected | {
        "time": "2025-11-28T07:02:01.750000Z",
        "event": "ended",
        "why": "expired",
        "start": "2025-11-28T07:00:00.250000Z",
        "seconds": 1.5,
        "packets_from_peer": 3,
        "bytes_from_peer": 300,
        "packets_to_peer": 2,
        "bytes_to_peer": 200,
    }
    assert (refused["event"], refused["protocol"], refused["refused"]) == ("denied", 47, 12)
    assert not refused.keys() & {"id", "source_port", "rule", "rule_name", "icmp_type", "why"}
    assert "protocol" not in last and last["decided_by"] == "unparseable"


def test_the_document_has_a_row_for_every_field_and_lines_with_no_other() -> None:
    text = (Path(__file__).parent.parent / "docs" / "policy.md").read_text()
    section = text.partition("## The flow log")[2].partition("\n## ")[0]
    (example,) = re.findall(r"^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    shown = [json.loads(line) for line in example.replace("\n ", " ").splitlines()]
    assert [line["event"] for line in shown] == ["began", "denied", "ended"]
    end = FlowEnd(EndReason.CLOSED, BEGAN.time, 1.0, 1, 1, 1, 1)
    everything = json.loads(_flowlog._line(BEGAN._replace(icmp_type=8, refused=1, end=end), "carol"))
    rows = "".join(line for line in section.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) >= set(everything)
    assert all(line.keys() <= everything.keys() for line in shown)


def test_the_file_is_its_owners_and_is_continued(tmp_path: Path) -> None:
    file, source = tmp_path / "flows", Source()
    for _ in range(2):
        with FlowLog(str(file)) as flows:
            finish(flows, source, 3)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [line["id"] for line in lines(file.read_text())] == [1, 2, 3, 1, 2, 3]


def test_a_peer_that_is_gone_keeps_its_name(tmp_path: Path) -> None:
    file, source = tmp_path / "flows", Source()
    with FlowLog(str(file)) as flows:
        finish(flows, source)
        source.config = replace(source.config, peers=())
        finish(flows, source, 1)
    assert lines(file.read_text())[0]["peer"] == "carol"


def test_what_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (
        ("link", "it is a symbolic link; name the file itself"),
        ("pipe", "nobody reads from this pipe"),
        ("none/flows", "No such file or directory"),
        ("", "Is a directory"),
    ):
        path = f"{tmp_path}/{name}"
        with pytest.raises(ConnlibError) as error:
            FlowLog(path)
        assert str(error.value) == f"cannot write the flow log to {path}: {why}"
    assert not (tmp_path / "target").exists()


def test_without_a_file_nothing_is_logged() -> None:
    source = Source()
    with FlowLog(None) as flows:
        flows.start(cast(Interface, source))
        flows.reopen()
        finish(flows, source, 1)
        trio.run(flows.follow, cast(Interface, source))
    assert source.capacity is None and len(source.records) == 1


def test_a_file_that_was_put_away_is_made_anew_after_reopen(tmp_path: Path) -> None:
    file, source = tmp_path / "flows", Source()
    with FlowLog(str(file)) as flows:
        finish(flows, source, 1)
        file.rename(tmp_path / "flows.1")
        finish(flows, source, 2)
        flows.reopen()
        finish(flows, source)
        assert file.read_text() == ""
        finish(flows, source, 3)
    assert [len(lines((tmp_path / name).read_text())) for name in ("flows.1", "flows")] == [3, 3]


def test_a_file_that_cannot_be_made_anew_leaves_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, source = tmp_path / "logs", Source()
    folder.mkdir()
    file = folder / "flows"
    with FlowLog(str(file)) as flows:
        folder.rename(tmp_path / "old")
        for _ in range(2):
            flows.reopen()
            finish(flows, source, 1)
    assert len(lines((tmp_path / "old" / "flows").read_text())) == 2
    assert caplog.messages == [
        f"cannot reopen the flow log {file}: No such file or directory; what it lacks is counted (each kind is "
        "reported once)"
    ]


def test_records_that_had_no_room_are_told_of_in_the_log_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, source = tmp_path / "flows", Source()
    with FlowLog(str(file)) as flows:
        finish(flows, source, 1, missed=5)
        finish(flows, source, 1)
    first, *rest = lines(file.read_text())
    assert (first["event"], first["lines"]) == ("dropped", 5) and set(first) == {"time", "event", "lines"}
    assert [line["event"] for line in rest] == ["began", "began"]
    assert caplog.messages == ["wg0: the flow log lacks 5 lines"] * 2


class FullDisk:
    """`os.write` to a disk with so many bytes left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.write(descriptor, data[: self.room])
        self.room -= written
        return written


def test_a_full_disk_costs_lines_and_the_log_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, source = tmp_path / "flows", Source()
    with FlowLog(str(file)) as flows:
        finish(flows, source, 1)
        size = file.stat().st_size
        disk = FullDisk(2 * size + 10)
        monkeypatch.setattr(os, "write", disk)
        for _ in range(3):
            finish(flows, source, 30)
        # Room for the end of the line that was cut off, and for a few bytes of the next one.
        disk.room = 5
        finish(flows, source, 1)
        disk.room = 1_000_000
        finish(flows, source, 2)
    whole, torn = [], []
    for line in file.read_text().splitlines():
        try:
            whole.append(json.loads(line))
        except ValueError:
            torn.append(line)
    # The first one, two that had room, and what came when there was room again. Two were cut off.
    assert [line["event"] for line in whole] == ["began"] * 3 + ["dropped"] + ["began"] * 2
    assert whole[3]["lines"] == 91 - 2
    assert [len(line) for line in torn] == [10, 4]
    assert (
        caplog.messages.count(
            f"cannot write to the flow log {file}: No space left on device; what it lacks is counted (each kind is "
            "reported once)"
        )
        == 1
    )
    assert caplog.messages[-1] == "wg0: the flow log lacks 89 lines"


def test_a_pipe_whose_reader_is_slow_costs_lines_and_each_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe, source = tmp_path / "pipe", Source()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with FlowLog(str(pipe)) as flows:
            finish(flows, source, 4096)
            got = read_all(reader)
            finish(flows, source, 1)
            rest = read_all(reader)
    finally:
        os.close(reader)
    assert 0 < len(lines(got)) < 4096
    dropped, began = lines(rest)
    assert dropped["lines"] == 4096 - len(lines(got)) and began["event"] == "began"
    assert f"cannot write to the flow log {pipe}: its reader is too slow" in caplog.text


def read_all(descriptor: int) -> bytes:
    data = b""
    while True:
        try:
            data += os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return data


@in_real_time
async def test_standard_output_that_nobody_reads_holds_up_nothing_and_the_end_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_flowlog, "PAUSE", 0.001)
    monkeypatch.setattr(_flowlog, "LAST_WRITE", 0.05)
    source = Source()
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as output:
        monkeypatch.setattr(sys, "stdout", output)
        with FlowLog("-") as flows:
            source.records = [BEGAN] * 4096
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flows.follow, cast(Interface, source))
                # A thread has taken them, and is stuck.
                while source.records:
                    await trio.sleep(0.001)
                source.records = [BEGAN] * 10
                await trio.sleep(0.01)
                assert len(source.records) == 10, "what follows waits where it is bounded"
                nursery.cancel_scope.cancel()
            await flows.finish(cast(Interface, source))
        assert caplog.messages == ["wg0: the flow log lacks 4,106 lines"]
        # Let the thread go.
        os.close(reader)


# --- The command ---------------------------------------------------------------------------------------------------


RULES = """\
[[peers.rules]]
allow = true
name = "ping"
protocol = "icmp"
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    if reason := missing_rights():
        pytest.skip(reason)
    with joined_namespaces() as wire:
        yield wire


def test_up_logs_the_flows_of_a_peer_with_rules(wire: Wire, tmp_path: Path) -> None:
    flows = tmp_path / "flows.jsonl"
    write(tmp_path / "own.key", OWN.to_base64())
    write(tmp_path / "shared.key", SHARED.to_base64())
    client = (
        f'[interface]\nprivate_key = "{CLIENT_KEY.to_base64()}"\naddresses = ["10.9.0.2/24"]\n[[peers]]\n'
        f'public_key = "{OWN.public_key().to_base64()}"\npreshared_key_file = "shared.key"\n'
        f'allowed_ips = ["10.9.0.1/32"]\nendpoint = "{wire.address(0, 4)}:51820"\n'
    )
    ends: list[Background] = []
    try:
        file = write(tmp_path / "gw0.toml", UP + CLIENT + RULES)
        gateway = up(wire.hosts[0], file, "--flow-log", str(flows))
        ends.append(gateway)
        ends.append(up(wire.hosts[1], write(tmp_path / "cl0.toml", client)))
        assert f"the flow log goes to {flows}" in gateway.output()
        wire.hosts[1].run("ping", "-c", "2", "-i", "0.2", "-W", "5", "10.9.0.1")
        wait_for(lambda: flows.read_text().count("\n") == 1, "the first line")
        flows.rename(tmp_path / "flows.1")
        write(file, UP + CLIENT + "rules = []\n")
        gateway.send(signal.SIGHUP)
        wait_for(lambda: flows.exists() and flows.read_text() != "", "the file to be made anew")
        wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1", check=False)
        wait_for(lambda: "denied" in flows.read_text(), "the refusal")
        assert gateway.stop() == 0
        said = gateway.output()
    finally:
        for end in ends:
            if end.returncode is None:
                end.stop()
    (began,) = lines((tmp_path / "flows.1").read_text())
    assert (began["event"], began["peer"], began["protocol"], began["icmp_type"], began["rule_name"]) == (
        "began",
        "client",
        "icmp",
        8,
        "ping",
    )
    ended, denied = lines(flows.read_text())
    assert (ended["event"], ended["id"], ended["why"]) == ("ended", began["id"], "revoked")
    assert (ended["packets_from_peer"], ended["packets_to_peer"]) == (2, 2)
    assert (ended["bytes_from_peer"], ended["start"]) == (168, began["time"])
    assert (denied["event"], denied["decided_by"], denied["refused"]) == ("denied", "default", 1)
    assert "client  now at " in said
    assert "client  denied by default: from 10.9.0.2 to 10.9.0.1/icmp:8\n" in said
    assert "lacks" not in said


def test_up_with_a_flow_log_that_cannot_be_had_does_not_start(tmp_path: Path) -> None:
    write(tmp_path / "own.key", OWN.to_base64())
    file, link = write(tmp_path / "gw0.toml", UP), tmp_path / "link"
    link.symlink_to("nowhere")
    command = [*COMMAND, "up", str(file), "--flow-log", str(link)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    why = "it is a symbolic link; name the file itself"
    assert (done.returncode, done.stderr) == (1, f"connlib: cannot write the flow log to {link}: {why}\n")
