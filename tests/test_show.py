"""What `connlib show` prints, whatever peers are called and whoever does not answer."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from rich.console import Console

from connlib import PeerConfig, PrivateKey
from connlib.cli import show
from connlib.control import ControlClient, ControlError, PeerStatus, Status
from helpers_driver import gateway_config, in_real_time
from test_cli import COMMAND
from test_control import served

KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="


def peer(name: str | None) -> PeerStatus:
    return PeerStatus(
        peer=KEY,
        name=name,
        state="up",
        why="a session of 5 s",
        next="it is renewed",
        next_in=115.0,
        role="either",
        endpoint="[fd77::1]:51820",
        allowed_ips=("10.7.0.2/32",),
        persistent_keepalive=None,
        has_preshared_key=False,
        last_handshake=5.0,
        session_age=5.0,
        last_heard=1.0,
        rtt=0.01,
        loss=0.0,
        tx_bytes=1_000,
        rx_bytes=2_000,
        tx_packets=10,
        rx_packets=20,
        initiations_sent=1,
        queued=0,
        flows=None,
        drops={},
    )


def status(*peers: PeerStatus) -> Status:
    return Status(
        name="wg0",
        public_key=KEY,
        listen_port=51820,
        fwmark=0,
        addresses=("10.7.0.1/24",),
        mtu=1420,
        version="0",
        pid=1,
        up_for=60.0,
        unix_time=1.7e9,
        peers=peers,
        drops={},
        errors={},
        timer_wakes=0,
    )


def printed(*peers: PeerStatus, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    found = {"wg0": status(*peers)}
    console.print(show._tables(found, found, width))
    return out.getvalue()


NAMES = ["bob [old]", "bob [/x]", "[red]bob", ":smile:", "bob\\[x]"]


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_whatever_brackets_it_has(name: str, width: int) -> None:
    text = printed(peer(name), width=width)
    assert name in text
    assert "[fd77::1]:51820" in text


def test_a_narrow_terminal_has_short_keys_and_the_reasons_below_the_table() -> None:
    lines = printed(peer(None), peer("bob"), width=80).splitlines()
    assert not any(KEY in line for line in lines[2:])
    assert lines[-2:] == [
        "QUJDREVG...: a session of 5 s; next: it is renewed in 115.0 s",
        "bob: a session of 5 s; next: it is renewed in 115.0 s",
    ]
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) <= 10


def test_a_wide_terminal_has_whole_keys_and_the_reasons_beside_them() -> None:
    (line,) = (line for line in printed(peer(None), width=160).splitlines() if "fd77" in line)
    assert line.startswith(KEY)
    assert "a session of 5 s; next: it is renewed in 115.0 s" in line


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlClient]:
    """An interface whose process is stopped: the kernel accepts who connects, and nobody answers."""
    defaults = ControlClient.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "patience", 0.5)
    monkeypatch.setattr("connlib.control.client.SERVER_PATIENCE", 0.5)
    directory = tmp_path / "run"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "quiet.sock"))
        listener.listen()
        yield ControlClient("quiet", directory=str(directory))


SILENCE = "quiet does not answer: its process is stopped, or has had no time for 0.5 seconds"


def test_of_several_interfaces_one_that_does_not_answer_is_said_to_and_the_others_are_shown(
    tmp_path: Path, silent: ControlClient
) -> None:
    @in_real_time
    async def run() -> None:
        async with served(tmp_path) as (pair, client, _):
            gone = ControlClient("gone", directory=str(tmp_path / "run"))
            found = await show._look_at_all([client, silent, gone])
            assert list(found) == [pair.gateway.name, "quiet", "gone"]
            assert isinstance(found[pair.gateway.name], Status)
            assert str(found["quiet"]) == SILENCE
            assert str(found["gone"]).startswith("gone is not running: ")
            assert show._exit_code(found) == 1

    run()


def test_one_that_was_named_and_does_not_answer_is_an_error(silent: ControlClient) -> None:
    with pytest.raises(ControlError) as error:
        show.run_show(
            "quiet",
            run_dir=str(Path(silent._path).parent),
            as_json=False,
            watch=False,
            interval=1.0,
        )
    assert str(error.value) == SILENCE


@pytest.mark.parametrize("as_json", [False, True])
def test_a_stopped_process_is_a_line_of_what_all_are(
    silent: ControlClient, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = str(Path(silent._path).parent)
    assert show.run_show(None, run_dir=run_dir, as_json=as_json, watch=False, interval=1.0) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (("", f"connlib: {SILENCE}\n") if as_json else (out, ""))
    assert " ".join((out or err).split()).endswith(SILENCE)


@in_real_time
async def test_nobody_waits_for_a_stopped_process_for_ever(silent: ControlClient) -> None:
    """Whatever is asked: an answer has a bound, and what follows one comes when it happens."""

    async def begin(stream: AbstractAsyncContextManager[object]) -> None:
        async with stream:
            pass

    for asking in (
        silent.show(),
        silent.explain(),
        silent.apply(gateway_config()),
        begin(silent.events()),
        begin(silent.capture()),
    ):
        with pytest.raises(ControlError) as error:
            await asking
        assert (error.value.kind, str(error.value)) == ("connection", SILENCE)


def test_the_page_about_the_control_socket_shows_what_is_printed() -> None:
    alice = msgspec.structs.replace(
        peer("alice"),
        why="a session of 3.2 s, heard 0.0 s ago",
        next="the peer counts as silent, if nothing is heard until then",
        next_in=15.1,
        endpoint="192.0.2.2:46818",
        session_age=3.2,
        rx_bytes=223_100,
        tx_bytes=223_100,
    )
    branch = msgspec.structs.replace(
        peer("branch"),
        peer=KEY[::-1],
        state="waiting",
        why="never heard",
        next="this side waits for the peer to start a session",
        next_in=None,
        endpoint=None,
        session_age=None,
        rx_bytes=0,
        tx_bytes=0,
    )
    now = msgspec.structs.replace(
        status(alice, branch),
        name="office",
        up_for=6.2,
        public_key="ThP/1jHhRJ4Wj2z8VkPJcvdlcIhSCAalmJovfq/3rwc=",
        drops={"no route": 2},
    )
    earlier = msgspec.structs.replace(alice, rx_bytes=191_650, tx_bytes=191_650)
    before = msgspec.structs.replace(now, unix_time=now.unix_time - 0.5, peers=(earlier, branch))
    out = io.StringIO()
    Console(file=out, width=100, highlight=False).print(
        show._tables({"office": before}, {"office": now}, 100)
    )
    page = (Path(__file__).parent.parent / "docs" / "control.md").read_text()
    shown = page.partition("$ connlib show office\n")[2].partition("```")[0]
    assert shown.splitlines() == [line.rstrip() for line in out.getvalue().splitlines()]


@in_real_time
async def test_a_watch_on_a_low_terminal_leaves_nothing_above_it_and_shows_what_comes_later(
    tmp_path: Path,
) -> None:
    rows = 6
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
    os.set_blocking(ours, False)
    said = b""

    async def until(text: bytes) -> None:
        nonlocal said
        while text not in said:
            await trio.lowlevel.wait_readable(ours)
            said += os.read(ours, 1 << 16)

    async def hang_up(listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            listener.accept()[0].close()

    async with served(tmp_path) as (pair, _, path), trio.open_nursery() as nursery:
        peers = [
            PeerConfig(public_key=PrivateKey.generate().public_key(), name=f"peer {number}")
            for number in range(rows)
        ]
        await pair.gateway.apply(dataclasses.replace(pair.gateway.config, peers=tuple(peers)))
        command = (*COMMAND, "show", "--watch", "--interval", "0.1", "--run-dir", str(path.parent))
        environment = {**os.environ, "TERM": "xterm"}
        watch = await trio.lowlevel.open_process(command, stdout=theirs, stderr=theirs, env=environment)
        try:
            await until(b"memory")
            # One that closes whatever connects, first in the alphabet, so that it is seen.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
                listener.bind(str(path.with_name("a.sock")))
                listener.listen()
                nursery.start_soon(hang_up, listener)
                await until(b"went away")
                watch.send_signal(signal.SIGINT)
                await watch.wait()
                nursery.cancel_scope.cancel()
        finally:
            if watch.returncode is None:
                watch.kill()
    os.close(theirs)
    os.close(ours)
    before, *frames = said.split(b"\x1b[H")
    assert b"\x1b[?1049h" in before, "it has a screen of its own"
    assert len(frames) >= 2 and b"memory" in said
    assert all(frame.count(b"\n") < rows for frame in frames)


@asynccontextmanager
async def watching(directory: Path, *options: str) -> AsyncIterator[trio.Process]:
    """`connlib show --watch` with its output in pipes."""
    command = (*COMMAND, "show", "--watch", "--interval", "0.1", "--run-dir", str(directory), *options)
    watch = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield watch
    finally:
        with trio.CancelScope(shield=True):
            if watch.returncode is None:
                watch.kill()
            await watch.wait()
            for stream in (watch.stdout, watch.stderr):
                assert stream is not None
                await stream.aclose()


async def lines_of(stream: trio.abc.ReceiveStream | None, most: int) -> list[str]:
    """The next lines, so many at least unless the stream ends before."""
    assert stream is not None
    said = b""
    while said.count(b"\n") < most and (more := await stream.receive_some()):
        said += more
    return said.decode().splitlines()


@in_real_time
async def test_a_watch_of_one_interface_prints_a_line_of_json_each_time_and_ends_when_it_does(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        _, client, path = await stack.enter_async_context(served(tmp_path))
        watch = await stack.enter_async_context(watching(path.parent, "--json", client.name))
        looks = [msgspec.json.decode(line, type=Status) for line in (await lines_of(watch.stdout, 3))[:3]]
        assert {look.name for look in looks} == {client.name}
        assert looks[0].unix_time < looks[1].unix_time < looks[2].unix_time
        path.unlink()
        (said,) = await lines_of(watch.stderr, 100)
        assert said.startswith(f"connlib: {client.name} is not running: ")
        assert await watch.wait() == 1


@in_real_time
async def test_a_watch_of_all_goes_on_without_any_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client, path), watching(path.parent) as watch:
        (first, *_) = await lines_of(watch.stdout, 10)
        assert first.startswith(f"{client.name}  up for ")
        path.unlink()
        while "no interface of connlib runs here" not in "\n".join(await lines_of(watch.stdout, 1)):
            assert watch.returncode is None
        watch.send_signal(signal.SIGINT)
        assert await watch.wait() == 130
        assert await lines_of(watch.stderr, 100) == []


@pytest.mark.parametrize("options", [(), ("--json",)])
@in_real_time
async def test_a_watch_that_nobody_reads_any_more_ends_in_silence(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    async with served(tmp_path) as (_, _, path), watching(path.parent, *options) as watch:
        await lines_of(watch.stdout, 1)
        assert watch.stdout is not None
        await watch.stdout.aclose()
        await watch.wait()
        assert await lines_of(watch.stderr, 100) == []
