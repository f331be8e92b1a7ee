"""Packets of a running interface over its control socket, and `connlib capture`."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from connlib import CaptureError, ControlError
from connlib import _clients as clients
from connlib.cli import capture as command
from connlib.control import CapturedFile, CaptureNews
from connlib.control.protocol import parse_line
from helpers_driver import CLIENT, GATEWAY, in_real_time, packet
from helpers_pcapng import SECRETS, STATISTICS, blocks, needs_tshark, packets, tshark
from interop.netns import Background, Wire, wait_for
from test_cli import COMMAND
from test_control import exchange, served
from test_control_cli import run_dir
from test_control_cli import served as gateway
from test_gateway_cli import Command, connlib, joined, namespace

__all__ = ["connlib", "gateway", "joined", "namespace", "run_dir"]


async def whole(captured: CapturedFile) -> tuple[bytes, int, list[str]]:
    """The file, the number of its packets and who can be read, to the end."""
    data, count = b"", 0
    readable: list[str] = []
    async for news, piece in captured:
        data, count = data + piece, news.packets
        readable += news.readable
    return data, count, readable


@in_real_time
async def test_what_goes_through_the_interface_arrives_as_a_whole_file(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _):
        async with client.capture(inner=True) as captured:
            await exchange(pair)
            await captured.stop()
            data, count, readable = await whole(captured)
        # Initiation, response and two data messages; and the two packets inside.
        assert (count, readable) == (6, [])
        inner = [frame for interface, _, frame, _ in packets(data) if interface == 1]
        assert inner == [packet(CLIENT, GATEWAY), packet(GATEWAY, CLIENT)]
        assert [kind for kind, _ in blocks(data)].count(STATISTICS) == 2
        # And the next one can have it.
        async with client.capture() as captured:
            with pytest.raises(ControlError, match="is being captured already") as caught:
                async with client.capture():
                    pass
            assert caught.value.kind == "capture"


@in_real_time
async def test_with_keys_it_says_who_can_be_read(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _):
        async with client.capture(keys=True) as captured:
            await exchange(pair)
            await captured.stop()
            data, _, readable = await whole(captured)
        assert readable == ["client"]
        assert SECRETS in [kind for kind, _ in blocks(data)]


def test_keys_are_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the interface runs as another user, who may ask for everything else."""
    monkeypatch.setattr(clients.Client, "user", lambda self: 4242)
    monkeypatch.setattr("os.geteuid", lambda: 4242)

    @in_real_time
    async def run() -> None:
        directory = tmp_path / "run"
        directory.mkdir(mode=0o700)
        os.chown(directory, 4242, -1)
        async with served(tmp_path) as (_, client, _):
            with pytest.raises(ControlError, match="keys are for root: they are those of") as caught:
                async with client.capture(keys=True):
                    pass
            assert caught.value.kind == "permission"
            async with client.capture():
                pass

    run()


def test_a_file_of_less_than_nothing_is_no_news() -> None:
    line = b'{"size":-5,"packets":0,"missed":0,"readable":[]}'
    with pytest.raises(ControlError, match="does not speak connlib's control protocol"):
        parse_line(line, CaptureNews)


@in_real_time
async def test_that_a_capture_has_ended_is_logged_however_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one with keys, whoever reads the log wants to know how long it went on."""
    caplog.set_level("INFO", "connlib.control")
    async with served(tmp_path) as (pair, client, _):
        async with client.capture(keys=True):
            pass
        while pair.gateway._node.is_captured:
            await trio.sleep(0.01)
        async with client.capture() as captured:
            await captured.stop()
            await whole(captured)
    said = [record.getMessage() for record in caplog.records if "captur" in record.getMessage()]
    began = f"memory: captured by user {os.getuid()}"
    ended = "memory: the capture has ended"
    assert said == [f"{began}, with keys", ended, began, ended]


@in_real_time
async def test_who_goes_away_ends_the_capture(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _):
        async with client.capture():
            assert pair.gateway._node.is_captured
        while pair.gateway._node.is_captured:
            await trio.sleep(0.01)


@in_real_time
async def test_who_does_not_read_misses_packets_and_holds_nothing_up(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _), client.capture(inner=True) as captured:
        await exchange(pair)
        # More than its memory and the socket's hold.
        sent = 12_000
        for _ in range(sent):
            await pair.client_tun.send(packet(CLIENT, GATEWAY, b"x" * 1300))
            assert await pair.gateway_tun.receive()
        await captured.stop()
        packets_ = missed = 0
        async for news, _ in captured:
            packets_, missed = news.packets, news.missed
        # Both ends of a packet are in the gateway's file; the other six are those of `exchange`. Where that takes
        # long, keepalives come along.
        tunnels = [interface.stats().peers[0].tunnel for interface in (pair.gateway, pair.client)]
        keepalives = sum(tunnel.keepalives_sent for tunnel in tunnels)
        assert missed > 0 and packets_ + missed == 2 * sent + 6 + keepalives
        assert (await client.show()).peers[0].rx_packets == sent + 1


@in_real_time
async def test_a_capture_ends_with_the_interface(tmp_path: Path) -> None:
    async with served(tmp_path) as (pair, client, _), client.capture() as captured:
        await exchange(pair)
        pair.gateway._closed()
        data, count, _ = await whole(captured)
        assert count == 4
        assert [kind for kind, _ in blocks(data)][-1] == STATISTICS


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"outer": False}, "a capture of nothing"),
        ({"outer": False, "inner": True, "keys": True}, "keys are for what is encrypted"),
        (
            {"keys": True, "snaplen": 100},
            "with keys, snaplen must be 65535: what is cut off cannot be decrypted",
        ),
        ({"keys": True, "snaplen": 65_534}, "with keys, snaplen must be 65535"),
        ({"snaplen": 0}, "the request is malformed"),
        ({"snaplen": 65_536}, "the request is malformed"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, wanted: dict[str, int], says: str) -> None:
    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (pair, client, _):
            with pytest.raises(ControlError, match=says) as caught:
                async with client.capture(**wanted):  # type: ignore[arg-type]
                    pass
            assert caught.value.kind == "request"
            assert not pair.gateway._node.is_captured

    run()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def capturing(
    gateway: tuple[Wire, Background], tmp_path: Path
) -> Iterator[tuple[Wire, Background, Background]]:
    """A gateway and a client that have a session, and `connlib capture gw0 --outer --inner --keys`."""
    wire, up = gateway
    command = (*COMMAND, "capture", "gw0", "-o", str(tmp_path / "gw0.pcapng"), "--outer", "--inner", "--keys")
    capture = Background(command, tmp_path / "capture.log")
    try:
        wait_for(lambda: "gw0: capturing" in capture.output(), "the capture")
        yield wire, up, capture
    finally:
        if capture.returncode is None:
            capture.stop(signal.SIGKILL)


@needs_tshark
def test_the_command_makes_a_file_that_wireshark_decrypts_from_the_next_handshake_on(
    capturing: tuple[Wire, Background, Background], tmp_path: Path
) -> None:
    wire, _, capture = capturing
    path = tmp_path / "gw0.pcapng"
    wire.hosts[1].run("ping", "-c", "1", "-W", "5", "10.9.0.1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert capture.stop(signal.SIGINT) == 0
    lines = capture.output().splitlines()
    assert lines[0] == (
        f"warning: {path} will hold the private key of gw0: whoever has it can read the traffic, and can be this end "
        "of the tunnels until the key is changed"
    )
    assert lines[1:3] == [
        "gw0: capturing, stop with Ctrl-C",
        "what is encrypted can be read from each peer's next handshake on",
    ]
    assert lines[-1].startswith("gw0: ") and lines[-1].endswith(" packets")
    # The one ping and its answer, outside and inside.
    assert len(tshark(path, "frame.number")) >= 4


def test_what_is_there_already_is_kept_and_nothing_is_captured(
    gateway: tuple[Wire, Background], tmp_path: Path, connlib: Command
) -> None:
    path = tmp_path / "there"
    path.write_text("precious")
    assert connlib("capture", "gw0", "-o", path) == (
        1,
        "",
        f"connlib: {path} is there already; name another file to capture to\n",
    )
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert connlib("capture", "gw0", "-o", link)[0] == 1
    assert path.read_text() == "precious" and not (tmp_path / "elsewhere").exists()
    code, _, err = connlib("capture", "gw7", "-o", tmp_path / "new")
    assert code == 1 and err.startswith("connlib: gw7 is not running: ")
    assert not (tmp_path / "new").exists()
    code, _, err = connlib("capture", "gw0", "-o", tmp_path / "new", "--inner", "--keys")
    assert code == 2 and "--keys are for what is encrypted: add --outer" in err
    code, _, err = connlib("capture", "gw0", "-o", tmp_path / "new", "--snaplen", "100", "--keys")
    assert code == 2 and "--keys are for whole packets" in err and not (tmp_path / "new").exists()


def test_standard_output_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connlib.cli.capture.os.dup", lambda _: os.open("/dev/full", os.O_WRONLY))
    with (
        pytest.raises(CaptureError, match=r"cannot write to standard output: No space left on device$"),
        command._target("-") as target,
    ):
        target.write(b"x")


def test_a_second_signal_ends_a_capture_whose_rest_does_not_come(run_dir: Path, tmp_path: Path) -> None:
    """The interface's process was stopped meanwhile."""
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20.0)
        listener.bind(str(run_dir / "gw0.sock"))
        listener.listen()
        path = tmp_path / "gw0.pcapng"
        capture = Background((*COMMAND, "capture", "gw0", "-o", str(path)), tmp_path / "capture.log")
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20.0)
                assert connection.recv(4096).endswith(b"\n")
                connection.sendall(b'{"result":null}\n')
                wait_for(lambda: "gw0: capturing" in capture.output(), "the capture")
                capture.send(signal.SIGINT)
                assert connection.recv(4096) == b"", "it wants no more"
                assert capture.stop(signal.SIGTERM) == 1
        finally:
            if capture.returncode is None:
                capture.send(signal.SIGKILL)
    assert capture.output().splitlines()[1:] == ["connlib: gw0: stopped before all of the file had come"]
