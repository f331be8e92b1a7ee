"""The control socket of an interface whose ends are in memory: requests and clients."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
import trio
from trio.testing import MockClock

from connlib import DeviceError, InterfaceConfig, PrivateKey, PublicKey
from connlib.driver import Interface, MemoryTun, MemoryUdp, open_interface
from connlib.socketfile import SocketFile
from connlib.uapi import server
from connlib.uapi.device import Device
from connlib.uapi.protocol import PeerSection, SetRequest
from connlib.uapi.server import serve
from helpers_driver import CLIENT, GATEWAY, packet

A_KEY, B_KEY = PrivateKey.generate(), PrivateKey.generate()
A_HOST, B_HOST = "192.0.2.1", "192.0.2.2"
LOW_ORDER = "00" * 32


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs a test's body on both event loops, for a bounded time."""

    def run(body: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            with anyio.fail_after(60):
                await body()

        anyio.run(bounded, backend=request.param)

    return run


def hexed(key: PrivateKey | PublicKey) -> str:
    return key.to_bytes().hex()


@dataclass
class End:
    interface: Interface
    device: Device
    tun: MemoryTun
    path: str

    async def ask(self, *lines: str) -> list[str]:
        """A request on a connection of its own; the lines of the answer."""
        async with await anyio.connect_unix(self.path) as client:
            await client.send("\n".join([*lines, "", ""]).encode())
            answer = b""
            while not answer.endswith(b"\n\n"):
                answer += await client.receive()
        return answer.decode().splitlines()[:-1]

    async def set(self, *lines: str) -> int:
        (answer,) = await self.ask("set=1", *lines)
        name, _, number = answer.partition("=")
        assert name == "errno"
        return -int(number)

    async def get(self) -> list[str]:
        *lines, last = await self.ask("get=1")
        assert last == "errno=0"
        return lines


@asynccontextmanager
async def served(network: MemoryUdp, host: str, folder: Path) -> AsyncIterator[End]:
    tun = MemoryTun()
    nobodys = InterfaceConfig(private_key=PrivateKey.generate())
    folder.mkdir(mode=0o700, exist_ok=True)
    async with open_interface(nobodys, tun=tun, udp=network.host(host)) as interface:
        device = Device(interface, keyless=True)
        name = f"wg{host.rpartition('.')[2]}"
        with SocketFile(name, str(folder / "run")) as file:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, device, file.socket)
                yield End(interface, device, tun, file.path)
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def both(folder: Path) -> AsyncIterator[tuple[End, End]]:
    """Two ends that know each other; the first one knows where the second is."""
    network = MemoryUdp()
    async with served(network, A_HOST, folder) as a, served(network, B_HOST, folder) as b:
        assert (
            await a.set(
                f"private_key={hexed(A_KEY)}",
                "listen_port=1111",
                f"public_key={hexed(B_KEY.public_key())}",
                f"endpoint={B_HOST}:2222",
                f"allowed_ip={GATEWAY}/32",
            )
            == 0
        )
        assert (
            await b.set(
                f"private_key={hexed(B_KEY)}",
                "listen_port=2222",
                f"public_key={hexed(A_KEY.public_key())}",
                f"allowed_ip={CLIENT}/32",
            )
            == 0
        )
        yield a, b


async def exchange(a: End, b: End) -> None:
    there, back = packet(CLIENT, GATEWAY, b"there"), packet(GATEWAY, CLIENT, b"back")
    await a.tun.send(there)
    assert await b.tun.receive() == there
    await b.tun.send(back)
    assert await a.tun.receive() == back


Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_two_interfaces_are_configured_and_talk(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            await exchange(a, b)
            lines = await b.get()
            (stats,) = b.interface.stats().peers
            assert lines[:3] == [
                f"private_key={hexed(B_KEY)}",
                "listen_port=2222",
                f"public_key={hexed(A_KEY.public_key())}",
            ]
            assert f"endpoint={A_HOST}:1111" in lines, "learned, not configured"
            assert f"tx_bytes={stats.tunnel.tx_bytes}" in lines
            assert f"rx_bytes={stats.tunnel.rx_bytes}" in lines
            (date,) = [int(line.partition("=")[2]) for line in lines if "time_sec=" in line]
            age = stats.tunnel.last_handshake
            assert age is not None and abs(b.interface.stats().unix_time - age - date) <= 2

    run(body)


def test_without_a_key_everything_can_be_set_and_nothing_is_sent(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryUdp()
        async with served(network, A_HOST, tmp_path) as a:
            lines = [
                f"public_key={hexed(B_KEY.public_key())}",
                f"endpoint={B_HOST}:2222",
                "persistent_keepalive_interval=25",
                f"allowed_ip={GATEWAY}/32",
            ]
            assert await a.set("fwmark=7", *lines) == 0
            answer = await a.get()
            assert not any(line.startswith("private_key") for line in answer)
            assert set(lines) <= set(answer) and "fwmark=7" in answer
            await a.tun.send(packet(CLIENT, GATEWAY))
            await anyio.wait_all_tasks_blocked()
            assert a.interface.stats().udp["lost"] == 0 == a.interface.stats().udp["sent"]
            # With the key, the keepalive that was set before it starts a session at once.
            assert await a.set(f"private_key={hexed(A_KEY)}") == 0
            await anyio.wait_all_tasks_blocked()
            assert a.interface.stats().peers[0].tunnel.initiations_sent == 1

    run(body)


def test_a_key_that_is_cleared_ends_the_sessions_and_keeps_the_settings(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            await exchange(a, b)
            assert await b.set(f"private_key={'00' * 32}") == 0
            assert b.interface.stats().peers == ()
            assert f"endpoint={A_HOST}:1111" in await b.get(), "where it has roamed to is not forgotten"
            assert await b.set(f"private_key={hexed(B_KEY)}") == 0
            await b.tun.send(packet(GATEWAY, CLIENT))
            assert await a.tun.receive() == packet(GATEWAY, CLIENT)

    run(body)


def test_another_private_key_makes_other_sessions(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        new = PrivateKey.generate()
        async with both(tmp_path) as (a, b):
            await exchange(a, b)

            async def counted() -> list[str]:
                return [
                    line
                    for line in await b.get()
                    if re.match("rx_bytes|tx_bytes|last_handshake_time_sec", line)
                ]

            before = await counted()
            assert await b.set(f"private_key={hexed(new)}") == 0
            assert b.interface.stats().peers[0].tunnel.sessions == 0
            assert await counted() == before, "as the kernel does"
            assert len(before) == 3 and not any(line.endswith("=0") for line in before)
            assert (
                await a.set(
                    f"public_key={hexed(B_KEY.public_key())}",
                    "remove=true",
                    f"public_key={hexed(new.public_key())}",
                    f"endpoint={B_HOST}:2222",
                    f"allowed_ip={GATEWAY}/32",
                )
                == 0
            )
            await exchange(a, b)

    run(body)


def test_replaced_peers_have_no_session_and_updated_ones_keep_theirs(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            await exchange(a, b)
            section = [f"public_key={hexed(A_KEY.public_key())}", f"allowed_ip={CLIENT}/32"]
            assert await b.set(*section) == 0
            assert b.interface.stats().peers[0].tunnel.sessions == 1
            assert await b.set("replace_peers=true", *section) == 0
            (stats,) = b.interface.stats().peers
            assert (stats.tunnel.sessions, stats.tunnel.rx_bytes, stats.endpoint) == (0, 0, None)

    run(body)


def test_an_endpoint_that_is_set_again_counts_though_the_peer_has_roamed(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            await exchange(a, b)
            assert await b.set("listen_port=3333") == 0
            await b.tun.send(packet(GATEWAY, CLIENT))
            await a.tun.receive()
            assert f"endpoint={B_HOST}:3333" in await a.get()
            key = f"public_key={hexed(B_KEY.public_key())}"
            assert await a.set(key, f"endpoint={B_HOST}:2222") == 0
            assert f"endpoint={B_HOST}:2222" in await a.get()

    run(body)


def test_nothing_is_sent_before_the_device_was_up_and_its_mtu_is_followed(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, _):
            device = Device(a.interface, up=False)
            await device.link_changed(1500, up=False)
            assert a.interface.config.mtu == 1500 and a.interface.config.peers == ()
            request = SetRequest(peers=[PeerSection(public_key=B_KEY.public_key(), persistent_keepalive=25)])
            assert list(await device.answer(request)) == [b"errno=0\n\n"]
            await anyio.wait_all_tasks_blocked()
            assert a.interface.stats().peers == ()
            await device.link_changed(1500, up=True)
            await anyio.wait_all_tasks_blocked()
            assert a.interface.stats().peers[0].tunnel.initiations_sent == 1
            # What no interface can have is the next best.
            for mtu, taken in ((68, 576), (65_535, 65_472), (None, 65_472)):
                await device.link_changed(mtu, up=False)
                assert a.interface.config.mtu == taken
                assert len(a.interface.stats().peers) == 1, "once up, it goes on"

    run(body)


def test_a_link_that_cannot_be_followed_for_now_is_said_once_and_followed_later(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, _):
            device = Device(a.interface, up=False)

            async def fail(*_: object, **__: object) -> None:
                raise DeviceError("UDP port 1111 is in use", hint="wait")

            with monkeypatch.context() as patch:
                patch.setattr(type(a.interface), "apply", fail)
                for _ in range(3):
                    assert not await device.link_changed(1500, up=True)
            assert sum("an MTU of 1500 cannot be had" in text for text in caplog.messages) == 1
            assert await device.link_changed(1500, up=True)
            assert len(a.interface.config.peers) == 1 and a.interface.config.mtu == 1500

    run(body)


def test_a_peer_of_low_order_is_a_setting_and_gets_no_packet(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            await exchange(a, b)
            sent = a.interface.stats().udp["sent"]
            # A narrower prefix than that of the other peer, which must not get its packets.
            prefix = f"allowed_ip={GATEWAY}/32"
            assert await a.set(f"public_key={hexed(B_KEY.public_key())}", "allowed_ip=10.0.0.0/8") == 0
            low = [f"public_key={LOW_ORDER}", f"endpoint={B_HOST}:2222", "persistent_keepalive_interval=1"]
            assert await a.set(*low, prefix) == 0
            assert {*low, prefix} <= set(await a.get())
            await a.tun.send(packet(CLIENT, GATEWAY))
            await anyio.wait_all_tasks_blocked()
            assert a.interface.stats().udp["sent"] == sent
            assert await a.set(f"public_key={LOW_ORDER}", "remove=true") == 0
            await exchange(a, b)

    run(body)


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        (["listen_port=3333", "fwmark=7", "nonsense=1"], errno.EINVAL),
        (["fwmark=7", "listen_port=4444"], errno.EADDRINUSE),
        (["fwmark=7", "nonsense"], errno.EPROTO),
    ],
)
def test_a_request_that_fails_changes_nothing(
    run: Run, tmp_path: Path, lines: list[str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_use(_end: object, port: int, _mark: int) -> None:
        raise DeviceError("in use") from OSError(errno.EADDRINUSE, "in use")

    async def body() -> None:
        async with both(tmp_path) as (a, b):
            before = await a.get()
            if number == errno.EADDRINUSE:
                monkeypatch.setattr("connlib.memory.MemoryUdpEnd.reopened", in_use)
            assert await a.set(*lines) == number
            assert await a.get() == before
            await exchange(a, b)

    run(body)


def test_after_a_request_that_failed_a_device_with_a_peer_of_low_order_still_takes_another_mtu(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_use(_end: object, port: int, _mark: int) -> None:
        raise DeviceError("in use") from OSError(errno.EADDRINUSE, "in use")

    async def body() -> None:
        async with both(tmp_path) as (a, b):
            low = [f"public_key={LOW_ORDER}", "allowed_ip=10.99.0.0/16"]
            assert await a.set(*low) == 0
            (stand_in,) = {peer.public_key for peer in a.interface.config.peers} - {B_KEY.public_key()}
            with monkeypatch.context() as patch:
                patch.setattr("connlib.memory.MemoryUdpEnd.reopened", in_use)
                assert await a.set("listen_port=4444", "replace_peers=true") == errno.EADDRINUSE
            await a.device.link_changed(1300, up=True)
            assert a.interface.config.mtu == 1300
            assert {peer.public_key for peer in a.interface.config.peers} == {B_KEY.public_key(), stand_in}
            assert set(low) <= set(await a.get())
            await exchange(a, b)

    run(body)


def test_a_program_may_change_the_interface_as_well(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            config = b.interface.config
            await b.interface.apply(InterfaceConfig(private_key=B_KEY, listen_port=2222))
            assert f"public_key={hexed(A_KEY.public_key())}" not in await b.get()
            await b.interface.apply(config)
            assert await b.set("fwmark=1") == 0
            await exchange(a, b)

    run(body)


# --- Clients --------------------------------------------------------------------------------------------------------


def test_a_client_may_stay_as_long_as_it_asks_now_and_then(tmp_path: Path) -> None:
    clock = MockClock()

    async def body() -> None:
        async with both(tmp_path) as (a, _), await anyio.connect_unix(a.path) as client:
            for _ in range(5):
                clock.jump(50)
                await client.send(b"get=1\n\n")
                assert (await client.receive()).startswith(b"private_key=")
            clock.jump(61)
            with pytest.raises(anyio.EndOfStream):
                await client.receive()

    trio.run(body, clock=clock)


def test_slow_clients_hold_nobody_up(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, b):
            slow = [socket.socket(socket.AF_UNIX) for _ in range(100)]
            try:
                for number, client in enumerate(slow):
                    client.connect(a.path)
                    # Nothing, half a request, or one whose answer is not read.
                    client.sendall((b"", b"set=1\nlisten_port=3", b"get=1\n\n" * 1000)[number % 3])
                await exchange(a, b)
                assert f"listen_port={1111}" in await a.get()
                assert await a.set("fwmark=5") == 0
            finally:
                for client in slow:
                    client.close()

    run(body)


def test_the_client_that_was_silent_for_longest_makes_room(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CLIENTS", 3)

    async def body() -> None:
        async with both(tmp_path) as (a, _):
            first, second, third = [await anyio.connect_unix(a.path) for _ in range(3)]
            await anyio.wait_all_tasks_blocked()
            await first.send(b"get=1\n\n")
            assert (await first.receive()).startswith(b"private_key=")
            await a.get()
            with pytest.raises(anyio.EndOfStream):
                await second.receive()
            for client in (first, third):
                await client.send(b"get=1\n\n")
                assert (await client.receive()).startswith(b"private_key=")
                await client.aclose()
            await second.aclose()

    run(body)


def test_a_client_that_takes_too_long_is_sent_away(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.05)

    async def body() -> None:
        async with both(tmp_path) as (a, _), await anyio.connect_unix(a.path) as client:
            await client.send(b"set=1\nlisten_port=3")
            with pytest.raises(anyio.EndOfStream):
                await client.receive()
            assert "listen_port=1111" in await a.get()

    run(body)


def test_several_requests_on_one_connection_are_answered_in_order(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with both(tmp_path) as (a, _), await anyio.connect_unix(a.path) as client:
            await client.send(b"set=1\nfwmark=9\n\nset=1\nnonsense=1\nx\n\nget=1\n\n")
            answer = b""
            while answer.count(b"\n\n") < 3:
                answer += await client.receive()
            assert answer.startswith(b"errno=0\n\nerrno=-22\n\nprivate_key=")
            assert b"\nfwmark=9\n" in answer

    run(body)


def test_a_request_without_an_end_is_answered_and_cut_off(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connlib.uapi.protocol.RequestParser.__init__.__defaults__", (1000,))

    async def body() -> None:
        async with both(tmp_path) as (a, _), await anyio.connect_unix(a.path) as client:
            await client.send(b"set=1\n" + b"listen_port=1\n" * 100)
            assert await client.receive() == b"errno=-%d\n\n" % errno.E2BIG
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()

    run(body)


def test_an_answer_is_of_one_moment_while_peers_are_replaced(run: Run, tmp_path: Path) -> None:
    """Each request replaces all prefixes by those of one generation; no answer holds two of them."""

    async def replace(a: End, generations: int) -> None:
        for generation in range(generations):
            prefixes = [f"allowed_ip=10.{generation}.{number}.0/24" for number in range(200)]
            key = hexed(B_KEY.public_key())
            assert await a.set("replace_peers=true", f"public_key={key}", *prefixes) == 0

    async def body() -> None:
        async with both(tmp_path) as (a, _):
            seen: set[str] = set()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(replace, a, 100)
                while len(seen) < 30:
                    networks = [line for line in await a.get() if line.startswith("allowed_ip=10.")]
                    found = {network.split(".")[1] for network in networks}
                    assert len(found) == 1 and len(networks) in (1, 200)
                    seen |= found
                    if "99" in found:
                        break
            assert len(seen) > 3

    run(body)


def test_a_very_long_request_is_taken_and_told_again(run: Run, tmp_path: Path) -> None:
    """As many allowed IPs as WireGuard's own test sets in one call."""

    async def body() -> None:
        async with both(tmp_path) as (a, _):
            prefixes = [f"allowed_ip=10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32" for n in range(130_560)]
            assert await a.set(f"public_key={hexed(B_KEY.public_key())}", *prefixes) == 0
            assert sum(line.startswith("allowed_ip=") for line in await a.get()) == 130_560

    run(body)
