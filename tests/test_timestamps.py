"""Timestamps of handshakes outlive the process (faults 7 and 33): in memory and in virtual time, with a real file."""

from __future__ import annotations

import functools
import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from connlib import (
    ClosedError,
    ConnlibError,
    DropReason,
    InterfaceConfig,
    Node,
    PrivateKey,
    Role,
    TimestampStore,
    Transmit,
)
from connlib._nodeconfig import node_config
from connlib.driver import Interface, LoopClock, MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    PORT,
    client_config,
    gateway_config,
    in_virtual_time,
    packet,
)

INITIATION, RESPONSE, DATA = 1, 2, 4
ELSEWHERE = ("203.0.113.5", 4500)
NOW, YEAR = 1_790_000_000.0, 365 * 86_400.0
CLIENT_PUBLIC, GATEWAY_PUBLIC = CLIENT_KEY.public_key(), GATEWAY_KEY.public_key()


def tai64n(unix_time: float) -> bytes:
    """By hand: 1970 is 2^62 + 37, and the clock is shown to 2^24 ns."""
    seconds, nanoseconds = divmod(round(unix_time * 1e9), 1_000_000_000)
    return (0x4000_0000_0000_0025 + seconds).to_bytes(8, "big") + (nanoseconds >> 24 << 24).to_bytes(4, "big")


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps does not wait for a thread."""

    async def call(function: Callable[[], Any]) -> Any:
        await anyio.lowlevel.checkpoint()
        return function()

    monkeypatch.setattr("connlib.timestamps._in_thread", call)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "wg0.timestamps.json"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "connlib")
    return lambda: [record.getMessage() for record in caplog.records]


class World:
    """A network on which every datagram is seen."""

    def __init__(self) -> None:
        self.sent: list[tuple[tuple[str, int], int, bytes]] = []
        """Destination, kind, and the datagram."""
        self.network = MemoryUdp(self._see)
        # Somebody has to be there for what is sent to be seen.
        self._elsewhere = self.network.host(ELSEWHERE[0]).open(ELSEWHERE[1])
        self._clients = 0

    def _see(self, _source: object, destination: tuple[str, int], datagram: bytes) -> bool:
        self.sent.append((destination, datagram[0], datagram))
        return False

    def first(self, kind: int) -> bytes:
        return next(datagram for _, each, datagram in self.sent if each == kind)

    @asynccontextmanager
    async def gateway(
        self, file: Path | None = None, config: InterfaceConfig | None = None, tun: MemoryTun | None = None
    ) -> AsyncIterator[Interface]:
        async with open_interface(
            config or gateway_config(),
            tun=tun or MemoryTun(),
            udp=self.network.host(GATEWAY_HOST),
            timestamps=None if file is None else TimestampStore(file),
        ) as interface:
            yield interface

    @asynccontextmanager
    async def client(
        self, file: Path | None = None, unix_time: float | None = None, **changes: Any
    ) -> AsyncIterator[Interface]:
        self._clients += 1  # each a minute after the one before: what is not later is a replay
        async with open_interface(
            client_config(**changes),
            tun=MemoryTun(),
            udp=self.network.host(CLIENT_HOST),
            clock=LoopClock(time.time() + 60 * self._clients if unix_time is None else unix_time),
            timestamps=None if file is None else TimestampStore(file),
        ) as interface:
            yield interface

    async def answers(self, gateway: Interface, datagram: bytes, times: int = 3) -> int:
        """How many datagrams come of one that is sent from elsewhere, again and again."""
        before = len(self.sent)
        for _ in range(times):
            self._elsewhere.deliver([Transmit((GATEWAY_HOST, PORT), datagram)])
            await trio.sleep(1)
        assert gateway.stats().udp["received"] >= times
        return len([to for to, _, each in self.sent[before:] if each != datagram and to == ELSEWHERE])


async def connect(client: Interface) -> None:
    """Establish a new session."""
    client.initiate_handshake(GATEWAY_PUBLIC)
    await trio.sleep(1)
    age = client.stats().peers[0].tunnel.last_handshake
    assert age is not None and age < 1.5


async def recorded(world: World, file: Path | None) -> bytes:
    """An initiation that a gateway has answered, which has ended since."""
    async with world.gateway(file), world.client() as client:
        await connect(client)
    return world.first(INITIATION)


# Replays


@in_virtual_time
async def test_an_initiation_that_is_replayed_after_a_restart_gets_no_answer(file: Path) -> None:
    world = World()
    initiation = await recorded(world, file)
    async with world.gateway(file) as gateway:
        assert await world.answers(gateway, initiation) == 0
        (peer,) = gateway.stats().peers
        assert peer.tunnel.drops == {DropReason.REPLAYED_INITIATION: 3}
        assert peer.endpoint is None
        async with world.client() as client:
            await connect(client)


@in_virtual_time
async def test_where_the_file_is_lost_it_gets_one_answer_and_data_goes_nowhere(file: Path) -> None:
    world = World()
    initiation = await recorded(world, file)
    file.unlink()
    tun = MemoryTun()
    async with world.gateway(file, tun=tun) as gateway:
        assert await world.answers(gateway, initiation) == 1
        await tun.send(packet(GATEWAY, CLIENT))
        await trio.sleep(60)
        assert gateway.stats().peers[0].endpoint is None
    assert [kind for to, kind, _ in world.sent if to == ELSEWHERE] == [RESPONSE]


@in_virtual_time
async def test_without_a_store_a_restart_forgets() -> None:
    world = World()
    initiation = await recorded(world, None)
    async with world.gateway() as gateway:
        assert await world.answers(gateway, initiation) == 1


@in_virtual_time
async def test_what_a_kill_leaves_has_what_came_at_least_five_seconds_ago(file: Path, tmp_path: Path) -> None:
    world = World()
    left = []
    async with world.gateway(file), world.client() as client:
        for pause in (0, 1, 10):
            await trio.sleep(pause)
            await connect(client)
            initiations = [each for _, kind, each in world.sent if kind == INITIATION]
            left.append((file.read_bytes(), initiations[-1]))
        await trio.sleep(10)
        left.append((file.read_bytes(), left[1][1]))
    # The first is written at once, the second only when five seconds have passed since, the third at once again.
    for number, ((text, initiation), answers) in enumerate(zip(left, (0, 1, 0, 0), strict=True)):
        copy = tmp_path / f"killed-{number}.json"
        copy.write_bytes(text)
        async with world.gateway(copy) as gateway:
            assert await world.answers(gateway, initiation) == answers, number


@in_virtual_time
async def test_what_came_last_is_written_at_the_end_even_if_that_is_a_cancellation(file: Path) -> None:
    world = World()
    async with world.client() as client:
        with trio.CancelScope() as scope:
            async with world.gateway(file):
                await connect(client)
                await connect(client)
                scope.cancel()
                await trio.sleep_forever()
        last = [each for _, kind, each in world.sent if kind == INITIATION][-1]
        async with world.gateway(file) as gateway:
            assert await world.answers(gateway, last) == 0


@in_virtual_time
async def test_what_was_kept_waits_for_a_key_and_a_peer_that_come_later(file: Path) -> None:
    world = World()
    initiation = await recorded(world, file)
    nobodys = gateway_config(private_key=PrivateKey.generate(), peers=())
    async with world.gateway(file, nobodys) as gateway:
        await gateway.apply(gateway_config())
        assert await world.answers(gateway, initiation) == 0
    # An interface that never got its key has not lost what was kept either.
    async with world.gateway(file, nobodys):
        await trio.sleep(60)
    async with world.gateway(file) as gateway:
        assert await world.answers(gateway, initiation) == 0


@in_virtual_time
async def test_a_timestamp_that_is_forgotten_is_gone_from_the_file(file: Path) -> None:
    world = World()
    initiation = await recorded(world, file)
    async with world.gateway(file) as gateway:
        assert gateway.forget_timestamp(CLIENT_PUBLIC)
        assert not gateway.forget_timestamp(CLIENT_PUBLIC)
        await trio.sleep(1)
        assert json.loads(file.read_text())["received"] == {}
        assert await world.answers(gateway, initiation) == 1
    with pytest.raises(ClosedError):
        gateway.forget_timestamp(CLIENT_PUBLIC)


# Our own


@in_virtual_time
async def test_after_a_clock_was_set_back_and_a_restart_the_peer_still_takes_us(file: Path) -> None:
    world = World()
    async with world.gateway():
        async with world.client(file, NOW) as client:
            await connect(client)
        # Without what was sent, the gateway takes it for a replay.
        async with world.client(None, NOW - YEAR) as client:
            with pytest.raises(AssertionError):
                await connect(client)
        async with world.client(file, NOW - YEAR) as client:
            await connect(client)
        # And once more, from there.
        async with world.client(file, NOW - 2 * YEAR) as client:
            await connect(client)


@in_virtual_time
async def test_an_initiation_without_an_answer_is_written_once_a_minute(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[float] = []
    save = TimestampStore.save

    def counted(*arguments: Any) -> None:
        saves.append(trio.current_time())
        save(*arguments)

    monkeypatch.setattr(TimestampStore, "save", counted)
    world = World()
    async with world.client(file, persistent_keepalive=25.0) as client:
        await trio.sleep(3600)
        assert client.stats().peers[0].tunnel.initiations_sent > 500
        pauses = [saves[index] - saves[index - 1] for index in range(1, len(saves))]
        assert 45 < len(pauses) < 60
        assert min(pauses) >= 60
        # Idle, it writes nothing.
        del saves[:]
        await client.apply(replace(client_config(), peers=()))
        await trio.sleep(3600)
        assert saves == []


# The file


@in_virtual_time
async def test_the_file_says_what_it_is_and_is_its_owners_alone(file: Path) -> None:
    world = World()
    async with world.gateway(file), world.client(file.with_name("client"), NOW) as client:
        await connect(client)
        assert json.loads(file.read_text()) == {
            "version": 1,
            "received": {CLIENT_PUBLIC.to_base64(): tai64n(NOW).hex()},
            "sent": {},
        }
    assert json.loads(file.with_name("client").read_text()) == {
        "version": 1,
        "received": {},
        "sent": {CLIENT_PUBLIC.to_base64(): tai64n(NOW).hex()},
    }
    for path, mode in ((file, 0o600), (Path(f"{file}.lock"), 0o600), (file.parent, 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert {path.name for path in file.parent.iterdir()} == {
        file.name,
        f"{file.name}.lock",
        "client",
        "client.lock",
    }


@in_virtual_time
async def test_an_interface_that_heard_nothing_writes_nothing(file: Path) -> None:
    async with World().gateway(file):
        await trio.sleep(3600)
    assert not file.exists()


KEY = CLIENT_KEY.public_key().to_base64()
STAMP = tai64n(NOW).hex()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 200,
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 0, "received": {}, "sent": {}}',
        b'{"version": true, "received": {}, "sent": {}}',
        b'{"version": "2", "received": {}, "sent": {}}',
        b'{"version": 1, "received": [], "sent": {}}',
        b'{"version": 1, "received": {}, "sent": 5}',
        f'{{"version": 1, "received": {{"{KEY[:-2]}": "{STAMP}"}}, "sent": {{}}}}'.encode(),
        f'{{"version": 1, "received": {{"{KEY}": "{STAMP[:-2]}"}}, "sent": {{}}}}'.encode(),
        f'{{"version": 1, "received": {{"{KEY}": "{STAMP[:-1]}g"}}, "sent": {{}}}}'.encode(),
        f'{{"version": 1, "received": {{"{KEY}": 7}}, "sent": {{}}}}'.encode(),
        f'{{"version": 1, "received": {{}}, "sent": {{"{KEY}": "{"0" * 24}"}}}}'.encode(),
        b'{"version": 1, "received": {}, "sent": {}}' + b" " * (1 << 24),
    ],
    ids=range(20),
)
def test_a_damaged_file_is_warned_of_once_and_replaced(
    text: bytes, file: Path, warnings: Callable[[], list[str]]
) -> None:
    @in_virtual_time
    async def check() -> None:
        file.parent.mkdir()
        file.write_bytes(text)
        world = World()
        initiation = await recorded(world, file)
        (warning,) = warnings()
        assert f"{file}: is damaged, and not used: " in warning
        async with world.gateway(file) as gateway:
            assert await world.answers(gateway, initiation) == 0
        assert len(warnings()) == 1

    check()


@in_virtual_time
async def test_a_file_of_a_later_version_is_left_as_it_is(
    file: Path, warnings: Callable[[], list[str]]
) -> None:
    file.parent.mkdir()
    file.write_text('{"version": 2, "something": "else"}')
    await recorded(World(), file)
    assert warnings() == [
        f"timestamps of handshakes are not kept: {file}: was written by a later version of connlib"
    ]
    assert file.read_text() == '{"version": 2, "something": "else"}'


def _is_directory(file: Path) -> None:
    file.mkdir(parents=True)


def _is_link(file: Path) -> None:
    file.parent.mkdir()
    file.symlink_to("/dev/null")


def _is_below_a_file(file: Path) -> None:
    file.parent.write_text("")


def _has_a_link_for_a_lock(file: Path) -> None:
    file.parent.mkdir()
    Path(f"{file}.lock").symlink_to("made")


@pytest.mark.parametrize("spoil", [_is_directory, _is_link, _is_below_a_file, _has_a_link_for_a_lock])
def test_a_file_that_cannot_be_had_is_warned_of_once_and_stops_nothing(
    spoil: Callable[[Path], None], file: Path, warnings: Callable[[], list[str]]
) -> None:
    spoil(file)

    @in_virtual_time
    async def check() -> None:
        await recorded(World(), file)

    check()
    (warning,) = warnings()
    assert warning.startswith(f"timestamps of handshakes are not kept: {file}: cannot be ")
    assert not (file.parent / "made").exists()


@in_virtual_time
async def test_a_pipe_in_its_place_keeps_nobody_waiting(
    file: Path, warnings: Callable[[], list[str]]
) -> None:
    file.parent.mkdir()
    os.mkfifo(file)
    await recorded(World(), file)
    assert len(warnings()) == 1
    assert json.loads(file.read_text())["version"] == 1


@in_virtual_time
async def test_what_cannot_be_written_is_warned_of_once_and_tried_again(
    file: Path, warnings: Callable[[], list[str]]
) -> None:
    world = World()
    async with world.gateway(file), world.client() as client:
        aside = file.parent.rename(file.parent.with_name("aside"))
        for _ in range(3):
            await connect(client)
            await trio.sleep(10)
        assert warnings() == [f"{file}: cannot be written: No such file or directory"]
        aside.rename(file.parent)
        await connect(client)
        await trio.sleep(10)
        assert list(json.loads(file.read_text())["received"]) == [KEY]
        assert len(warnings()) == 1


@in_virtual_time
async def test_two_interfaces_do_not_share_a_file(file: Path, warnings: Callable[[], list[str]]) -> None:
    world = World()
    initiation = await recorded(world, file)
    text = file.read_text()
    async with world.gateway(file) as gateway:
        async with world.client(file) as client:
            assert warnings() == [f"timestamps of handshakes are not kept: {file}: another interface uses it"]
            await connect(client)
        assert await world.answers(gateway, initiation) == 0
    assert file.read_text() != text
    assert json.loads(file.read_text())["sent"] == {}
    # Nobody holds it any more.
    store = TimestampStore(file)
    store.open()
    with pytest.raises(ConnlibError, match="another interface uses it"):
        store.open()
    store.close()
    store.close()
    assert repr(store) == f"TimestampStore({str(file)!r})"


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_file(file: Path) -> None:
    key = PrivateKey.generate().public_key()
    script = (
        "import itertools, sys; from connlib import PublicKey, TimestampStore\n"
        "store = TimestampStore(sys.argv[1]); store.open(); key = PublicKey.from_base64(sys.argv[2])\n"
        "for number in itertools.count(1):\n"
        "    store.save({key: number.to_bytes(12, 'big')}, {})\n"
        "    print(number, flush=True)\n"
    )
    for lines in (1, 2, 7, 20, 33):
        command = [sys.executable, "-c", script, str(file), key.to_base64()]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                for _ in range(lines):
                    last = int(process.stdout.readline())
            finally:
                process.kill()
        store = TimestampStore(file)
        received, sent = store.open()
        store.close()
        assert int.from_bytes(received[key], "big") >= last
        assert sent == {}


def test_it_runs_on_asyncio_and_in_a_thread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    network = MemoryUdp()

    async def main() -> None:
        there, tun, client_tun = packet(CLIENT, GATEWAY), MemoryTun(), MemoryTun()
        with anyio.fail_after(60):
            async with (
                open_interface(
                    gateway_config(),
                    tun=tun,
                    udp=network.host(GATEWAY_HOST),
                    timestamps=TimestampStore(file),
                ),
                open_interface(client_config(), tun=client_tun, udp=network.host(CLIENT_HOST)),
            ):
                await client_tun.send(there)
                assert await tun.receive() == there

    for backend in ("asyncio", "trio"):
        file.unlink(missing_ok=True)
        anyio.run(main, backend=backend)
        assert list(json.loads(file.read_text())["received"]) == [KEY]


def test_cancellation_at_any_time_leaves_no_descriptor(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    async def call(function: Callable[[], Any]) -> Any:
        result = function()
        await anyio.lowlevel.checkpoint()
        return result

    monkeypatch.setattr("connlib.timestamps._in_thread", call)

    async def main(steps: int) -> bool:
        world = World()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel() -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel)
                async with world.gateway(file), world.client(file.with_name("client")) as client:
                    client.initiate_handshake(GATEWAY_PUBLIC)
                    for _ in range(30):
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        return not scope.cancelled_caught

    trio.run(main, 10_000)
    before = len(os.listdir("/proc/self/fd"))
    while not trio.run(main, steps):
        steps += 1
        assert len(os.listdir("/proc/self/fd")) == before
    assert steps > 10


# The node


def test_a_node_refuses_timestamps_that_are_none() -> None:
    node = Node(node_config(gateway_config()), now=1.0, unix_time=NOW)
    restore = functools.partial(node.restore_timestamps, now=1.0)
    for length in (0, 11, 13):
        with pytest.raises(ValueError, match=f"a timestamp has 12 bytes, not the {length} that .* has"):
            restore({CLIENT_PUBLIC: bytes(length)}, {})
    with pytest.raises(ValueError, match="is no TAI64N timestamp from 1970 on"):
        restore({CLIENT_PUBLIC: tai64n(NOW)}, {GATEWAY_PUBLIC: bytes(12)})
    with pytest.raises(TypeError, match="a PublicKey each"):
        restore({"a": bytes(12)}, {})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="bytes-like"):
        restore({CLIENT_PUBLIC: 5}, {})  # type: ignore[dict-item]
    assert node.timestamps() == ({}, {})
    assert node.timestamps_version() == 0


def test_a_node_gives_back_what_it_was_given_and_knows_what_it_sent() -> None:
    config = client_config()
    node = Node(node_config(config), now=1.0, unix_time=NOW)
    other = PrivateKey.generate().public_key()
    node.restore_timestamps({GATEWAY_PUBLIC: tai64n(5), other: tai64n(6)}, {other: tai64n(7)}, 1.0)
    node.initiate_handshake(GATEWAY_PUBLIC, 2.0)
    received, sent = node.timestamps()
    assert received == {other: tai64n(6), GATEWAY_PUBLIC: tai64n(5)}
    # Peers that are not configured are the first to be forgotten.
    assert list(received) == [other, GATEWAY_PUBLIC]
    assert sent == {other: tai64n(7), CLIENT_PUBLIC: tai64n(NOW + 1)}
    assert node.timestamps_version() == 1
    assert config.role is Role.INITIATOR
