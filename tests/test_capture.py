"""`capture_interface`: the packets of a running interface as a file, read back by hand and by Wireshark."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import struct
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import connlib.capture
from connlib import (
    Capture,
    CaptureError,
    ClosedError,
    Interface,
    PresharedKey,
    PrivateKey,
    capture_interface,
)
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_KEY,
    Pair,
    client_config,
    gateway_config,
    in_real_time,
    in_virtual_time,
    loopback_socket,
    open_pair,
    packet,
)
from helpers_pcapng import (
    INTERFACE,
    PACKET,
    SECRETS,
    STATISTICS,
    blocks,
    needs_tshark,
    options,
    packets,
    tshark,
)

INITIATION, RESPONSE, DATA = 1, 2, 4


@asynccontextmanager
async def followed(interface: Interface, file: Any, **wanted: Any) -> AsyncIterator[Capture]:
    """A capture that is being written."""
    with capture_interface(interface, file, **wanted) as capture:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.follow)
            yield capture
            nursery.cancel_scope.cancel()


def read(file: io.BytesIO) -> list[tuple[int, bytes, bytes]]:
    """Interface, flags and frame of each packet."""
    return [(number, told[2], frame) for number, _, frame, told in packets(file.getvalue())]


async def renew(pair: Pair) -> None:
    """Another session."""
    pair.client.initiate_handshake(GATEWAY_KEY.public_key())
    await trio.sleep(1)
    await pair.exchange()


@asynccontextmanager
async def open_pair_with(shared: PresharedKey | None, hosts: tuple[str, str]) -> AsyncIterator[Pair]:
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    config = gateway_config()
    config = replace(config, peers=tuple(replace(peer, preshared_key=shared) for peer in config.peers))
    peer = client_config((hosts[0], 51820), preshared_key=shared)
    async with (
        open_interface(config, tun=gateway_tun, udp=network.host(hosts[0])) as gateway,
        open_interface(peer, tun=client_tun, udp=network.host(hosts[1])) as client,
    ):
        yield Pair(network, gateway, client, gateway_tun, client_tun)


# --- With keys ----------------------------------------------------------------------------------------------------


@needs_tshark
@pytest.mark.parametrize("end", ["gateway", "client"])
@pytest.mark.parametrize(
    ("hosts", "shared"),
    [
        (("192.0.2.1", "192.0.2.2"), None),
        (("2001:db8::1", "2001:db8::2"), PresharedKey.from_bytes(bytes([7] * 32))),
    ],
    ids=["IPv4", "IPv6 and a preshared key"],
)
def test_wireshark_shows_what_is_inside_from_the_next_handshake_on(
    tmp_path: Path, end: str, hosts: tuple[str, str], shared: PresharedKey | None
) -> None:
    path = tmp_path / "live.pcapng"

    @in_virtual_time
    async def run() -> None:
        async with open_pair_with(shared, hosts) as pair:
            await pair.exchange()
            interface = pair.gateway if end == "gateway" else pair.client
            async with followed(interface, path, keys=True) as capture:
                await pair.exchange()
                await trio.sleep(1)
                assert not capture.readable
                await renew(pair)
                await trio.sleep(1)
                (peer,) = interface.config.peers
                assert capture.readable == (peer.public_key,)
                assert capture.packets == 7 and capture.missed == 0

    run()
    seen = tshark(path, "wg.type", "ip.src", "udp.checksum.status", "frame.comment", "frame.interface_name")
    there, back = (CLIENT, GATEWAY)
    # The keepalive that confirms the new session comes before the packets.
    inside = ["", "", "", "", "", there, back]
    for (kind, sources, checksum, comment, name), expected in zip(seen, inside, strict=True):
        assert ",".join(source for source in sources.split(",") if source.startswith("10.")) == expected
        assert checksum.split(",")[0] == "1"
        assert comment == ("peer client" if end == "gateway" else "peer gateway")
        assert name == "memory outer"
        assert kind in "124"
    assert [int(kind) for kind, *_ in seen] == [DATA, DATA, INITIATION, RESPONSE, DATA, DATA, DATA]


@in_virtual_time
async def test_the_keys_stand_before_the_packets_that_they_are_for() -> None:
    file = io.BytesIO()
    async with open_pair() as pair, followed(pair.gateway, file, keys=True):
        for _ in range(3):
            await renew(pair)
            await trio.sleep(10)
    known: list[bytes] = []
    answers = 0
    for kind, body in blocks(file.getvalue()):
        if kind == SECRETS:
            (length,) = struct.unpack("<I", body[4:8])
            lines = [line.split(" = ") for line in body[8 : 8 + length].decode().splitlines()]
            assert [name for name, _ in lines] == [
                "LOCAL_STATIC_PRIVATE_KEY",
                "REMOTE_STATIC_PUBLIC_KEY",
                "LOCAL_EPHEMERAL_PRIVATE_KEY",
            ]
            assert lines[0][1] == GATEWAY_KEY.to_base64()
            assert lines[1][1] == CLIENT_KEY.public_key().to_base64()
            ephemeral = PrivateKey.from_bytes(b64decode(lines[2][1]))
            known.append(ephemeral.public_key().to_bytes())
        elif kind == PACKET and body[20 + 28] == RESPONSE:
            assert body[20 + 28 + 12 :][:32] in known
            answers += 1
    assert len(known) == answers == 3


@in_virtual_time
async def test_after_a_capture_with_keys_none_are_kept_any_more() -> None:
    async with open_pair() as pair:
        async with followed(pair.gateway, io.BytesIO(), keys=True):
            await pair.exchange()
        await renew(pair)
        pair.gateway._node.log_keys(True)
        assert pair.gateway._node.take_key_log() == ([], [])


# --- Without keys -------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_without_keys_none_are_kept_and_nothing_secret_is_in_the_file() -> None:
    file = io.BytesIO()
    async with open_pair() as pair, followed(pair.gateway, file) as capture:
        await pair.exchange()
        await renew(pair)
        await trio.sleep(1)
        assert capture.readable == ()
        assert pair.gateway._node.take_key_log() == ([], [])
    data = file.getvalue()
    assert SECRETS not in [kind for kind, _ in blocks(data)]
    assert len(read(file)) == 7
    for key in (GATEWAY_KEY, CLIENT_KEY):
        assert key.to_bytes() not in data and key.to_base64().encode() not in data
    assert b"there" not in data


@in_virtual_time
async def test_outer_and_inner_packets_are_in_the_order_in_which_they_came_by() -> None:
    file = io.BytesIO()
    stranger = MemoryUdp()
    async with open_pair() as pair, followed(pair.gateway, file, inner=True):
        stranger = pair.network
        await pair.exchange()
        await trio.sleep(1)
        end = stranger.host("192.0.2.9").open(4000)
        end.deliver([connlib.Transmit(("192.0.2.1", 51820), b"garbage")])
        await trio.sleep(1)
        await pair.gateway_tun.send(packet(GATEWAY, "10.0.0.99"))
        await trio.sleep(1)
    names = [options(body[8:])[2] for kind, body in blocks(file.getvalue()) if kind == INTERFACE]
    assert names == [b"memory outer", b"memory inner"]
    came, went = struct.pack("<I", 1), struct.pack("<I", 2)
    there, back = packet(CLIENT, GATEWAY, b"there"), packet(GATEWAY, CLIENT, b"back")
    seen = read(file)
    assert [(number, flags) for number, flags, _ in seen] == [
        (0, came),  # the initiation
        (0, went),  # the response
        (0, came),
        (1, came),
        (1, went),
        (0, went),
        (0, came),  # garbage
        (1, went),  # no route
    ]
    assert [frame for number, _, frame in seen if number == 1] == [there, back, packet(GATEWAY, "10.0.0.99")]
    comments = [told[1] for *_, told in packets(file.getvalue())]
    assert comments == [b"peer client"] * 6 + [b"of no peer"] * 2
    addresses = [frame[12:20] for number, _, frame in seen if number == 0]
    here, client = bytes(4), bytes([192, 0, 2, 2])
    assert addresses == [
        client + here,
        here + client,
        client + here,
        here + client,
        bytes([192, 0, 2, 9]) + here,
    ]
    assert seen[6][2][28:] == b"garbage"


@in_virtual_time
async def test_times_are_those_of_the_interfaces_clock_counted_from_1970() -> None:
    file = io.BytesIO()
    async with open_pair() as pair, followed(pair.client, file, inner=True):
        begin = pair.client._clock.unix_time()
        await pair.exchange()
        await trio.sleep(5)
        await pair.client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(1)
    times = [at / 10**9 for _, at, _, _ in packets(file.getvalue())]
    assert times == sorted(times)
    assert times[0] == pytest.approx(begin, abs=1e-3)
    assert times[-1] == pytest.approx(begin + 5, abs=1e-3)


@in_virtual_time
async def test_of_long_packets_the_beginning_is_kept_with_their_length() -> None:
    file = io.BytesIO()
    async with open_pair() as pair:
        await pair.exchange()
        async with followed(pair.client, file, inner=True, snaplen=60):
            await pair.client_tun.send(packet(CLIENT, GATEWAY, bytes(1000)))
            await trio.sleep(1)
    sizes = [struct.unpack("<5I", body[:20])[3:] for kind, body in blocks(file.getvalue()) if kind == PACKET]
    # 1,020 bytes, padded to 1,024, in 32 of WireGuard, in 28 of UDP.
    assert sizes == [(60, 1020), (60 + 28, 1024 + 32 + 28)]
    limits = [struct.unpack("<I", body[4:8]) for kind, body in blocks(file.getvalue()) if kind == INTERFACE]
    assert limits == [(60 + 48,), (60,)]


@in_virtual_time
async def test_one_kind_alone_has_an_interface_alone() -> None:
    file = io.BytesIO()
    async with open_pair() as pair, followed(pair.gateway, file, outer=False, inner=True):
        await pair.exchange()
    kinds = [kind for kind, _ in blocks(file.getvalue())]
    assert kinds.count(INTERFACE) == kinds.count(STATISTICS) == 1
    assert [(number, frame[12:16]) for number, _, frame in read(file)] == [
        (0, bytes([10, 0, 0, 2])),
        (0, bytes([10, 0, 0, 1])),
    ]


# --- What is missed -----------------------------------------------------------------------------------------------


@in_virtual_time
async def test_what_comes_faster_than_it_is_written_is_counted_for_each_kind() -> None:
    file = io.BytesIO()
    async with open_pair() as pair:
        await pair.exchange()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connlib.capture, "CAPACITY", 2_000)
            # Nobody follows it.
            with capture_interface(pair.client, file, inner=True) as capture:
                for _ in range(20):
                    await pair.client_tun.send(packet(CLIENT, GATEWAY))
                await trio.sleep(1)
    assert capture.packets == len(read(file))
    assert 5 < capture.packets < 20
    assert capture.packets + capture.missed == 40
    counted = [options(body[12:]) for kind, body in blocks(file.getvalue()) if kind == STATISTICS]
    received = [struct.unpack("<Q", told[4])[0] for told in counted]
    dropped = [struct.unpack("<Q", told[5])[0] for told in counted]
    assert received == [20, 20]
    assert sum(dropped) == capture.missed
    for number in (0, 1):
        assert received[number] - dropped[number] == sum(place == number for place, *_ in read(file))


@in_virtual_time
async def test_what_waits_when_the_capture_ends_is_written() -> None:
    file = io.BytesIO()
    async with open_pair() as pair:
        await pair.exchange()
        with capture_interface(pair.client, file, outer=False, inner=True) as capture:
            for n in range(200):
                await pair.client_tun.send(packet(CLIENT, GATEWAY, bytes([n])))
            await trio.sleep(1)
    assert [frame[-1] for _, _, frame in read(file)] == list(range(200))
    assert capture.packets == 200 and capture.missed == 0


# --- The file -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_file_is_for_its_owner_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("capture") / "live.pcapng"
    before = os.umask(0)
    try:
        async with open_pair() as pair, followed(pair.gateway, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@in_virtual_time
async def test_what_is_there_already_is_not_overwritten(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("capture")
    there, link, dangling = folder / "there", folder / "link", folder / "dangling"
    there.write_text("something")
    link.symlink_to(there)
    dangling.symlink_to(folder / "elsewhere")
    async with open_pair() as pair:
        for path in (there, link, dangling):
            with (
                pytest.raises(CaptureError, match=f"^{path} is there already; name another file"),
                capture_interface(pair.gateway, path),
            ):
                pass
        with (
            pytest.raises(CaptureError, match=r"^cannot capture to .*nowhere.*: No such file or directory$"),
            capture_interface(pair.gateway, folder / "nowhere" / "live.pcapng"),
        ):
            pass
        assert not pair.gateway._node.is_captured
    assert there.read_text() == "something"
    assert not (folder / "elsewhere").exists()


class Full:
    """A disk that has so many bytes left."""

    def __init__(self, left: int, file: io.BytesIO | None = None) -> None:
        self.left = left
        self.file = file or io.BytesIO()

    def write(self, data: bytes) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.left])
        self.left -= written
        return written


@in_virtual_time
async def test_a_full_disk_ends_the_capture_and_not_the_tunnel() -> None:
    async with open_pair() as pair, trio.open_nursery() as nursery:

        async def talk() -> None:
            while True:
                await pair.exchange()
                await trio.sleep(1)

        nursery.start_soon(talk)
        with (
            pytest.raises(CaptureError) as error,
            capture_interface(pair.gateway, Full(1_000), inner=True, keys=True) as capture,
        ):
            await capture.follow()
        nursery.cancel_scope.cancel()
        assert str(error.value) == "the capture ends: cannot write to its file: No space left on device"
        assert not pair.gateway._node.is_captured
        with trio.CancelScope(shield=True):
            await renew(pair)
        pair.gateway._node.log_keys(True)
        assert pair.gateway._node.take_key_log() == ([], [])


@in_virtual_time
async def test_a_disk_that_is_full_at_the_beginning_or_the_end_says_so_too() -> None:
    async def capture_some(pair: Pair, left: int) -> None:
        with capture_interface(pair.gateway, Full(left), inner=True):
            for _ in range(10):
                await pair.exchange()

    async with open_pair() as pair:
        for left in (0, 500):
            with pytest.raises(CaptureError, match="No space left"):
                await capture_some(pair, left)
            assert not pair.gateway._node.is_captured


@in_virtual_time
async def test_a_file_that_takes_nothing_is_an_error_too() -> None:
    class Stuck:
        def write(self, data: bytes) -> int:
            return 0

    async with open_pair() as pair:
        with pytest.raises(CaptureError, match="cannot write to its file: it takes no more"):
            capture_interface(pair.gateway, Stuck()).__enter__()


@in_virtual_time
async def test_what_was_written_in_part_is_taken_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("capture") / "live.pcapng"

    async def capture_some(pair: Pair) -> None:
        with capture_interface(pair.gateway, path) as capture:
            await pair.exchange()
            capture._write()
            target: Any = capture._target
            target._file = Full(100, target._own)
            await pair.exchange()
            capture._write()

    async with open_pair() as pair:
        with pytest.raises(CaptureError, match=f"cannot write to {path}: No space left"):
            await capture_some(pair)
    assert [kind for kind, _ in blocks(path.read_bytes())][2:] == [PACKET] * 4


def test_a_file_of_which_nothing_could_be_written_is_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "live.pcapng"
    with connlib.capture._OwnTarget(str(path)) as target:
        target._file = Full(10, target._own)  # type: ignore[arg-type]
        with pytest.raises(CaptureError, match="No space left"):
            target.write(bytes(100))
    assert not path.exists()


def test_a_file_that_took_its_place_meanwhile_stays(tmp_path: Path) -> None:
    path, moved = tmp_path / "live.pcapng", tmp_path / "moved"
    with connlib.capture._OwnTarget(str(path)) as target:
        target._file = Full(10, target._own)  # type: ignore[arg-type]
        path.rename(moved)
        path.write_text("precious")
        with pytest.raises(CaptureError, match="No space left"):
            target.write(bytes(100))
    assert path.read_text() == "precious"
    assert moved.read_bytes() == b"", "what may be secret is not left in part"


# --- Beginning and end --------------------------------------------------------------------------------------------


@in_virtual_time
async def test_one_capture_of_an_interface_goes_on_at_a_time() -> None:
    async with open_pair() as pair:
        with capture_interface(pair.gateway, io.BytesIO()):
            with (
                pytest.raises(
                    CaptureError, match=r"^memory is being captured already; end that capture first$"
                ),
                capture_interface(pair.gateway, io.BytesIO()),
            ):
                pass
            # Another interface is another matter.
            with capture_interface(pair.client, io.BytesIO()):
                pass
        with capture_interface(pair.gateway, io.BytesIO()):
            pass


@in_virtual_time
async def test_the_capture_of_an_interface_that_is_closed_ends_by_itself() -> None:
    file = io.BytesIO()
    async with trio.open_nursery() as nursery, open_pair() as pair:
        manager = capture_interface(pair.gateway, file)
        capture = manager.__enter__()
        nursery.start_soon(capture.follow)
        await pair.exchange()
    manager.__exit__(None, None, None)
    assert len(read(file)) == 4
    with pytest.raises(ClosedError, match=r"^the interface memory is closed$"):
        capture_interface(pair.gateway, file).__enter__()


@in_virtual_time
async def test_arguments_that_make_no_sense_are_errors() -> None:
    async with open_pair() as pair:
        for wrong in (
            {"outer": False},
            {"outer": False, "inner": True, "keys": True},
            {"snaplen": 0},
            {"snaplen": 65_536},
        ):
            with (
                pytest.raises(ValueError, match=r"outer|snaplen"),
                capture_interface(pair.gateway, io.BytesIO(), **wrong),
            ):
                pass
        assert not pair.gateway._node.is_captured


def test_it_runs_on_asyncio_too() -> None:
    file = io.BytesIO()

    async def main() -> None:
        with anyio.fail_after(60):
            async with open_pair() as pair, anyio.create_task_group() as tasks:
                with capture_interface(pair.gateway, file, keys=True) as capture:
                    tasks.start_soon(capture.follow)
                    await pair.exchange()
                    while not capture.readable:
                        await anyio.sleep(0.01)
                    tasks.cancel_scope.cancel()

    anyio.run(main, backend="asyncio")
    assert len(read(file)) == 4


@in_real_time
async def test_packets_of_descriptors_are_captured_too() -> None:
    """They move between the kernel and the node in batches, which Python does not see."""
    file = io.BytesIO()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    client_tun = MemoryTun()
    there, back = packet(CLIENT, GATEWAY), packet(GATEWAY, CLIENT)
    with ours, theirs, loopback_socket() as here, loopback_socket() as client_socket:
        async with (
            open_interface(gateway_config(), tun=ours.fileno(), udp=here) as gateway,
            open_interface(client_config(here.getsockname()), tun=client_tun, udp=client_socket),
        ):
            async with followed(gateway, file, inner=True):
                await client_tun.send(there)
                await anyio.wait_readable(theirs)
                assert theirs.recv(100) == there
                theirs.send(back)
                assert await client_tun.receive() == back
            port = gateway.listen_port
    assert [number for number, *_ in read(file)] == [0, 0, 0, 1, 1, 0]
    assert [frame for number, _, frame in read(file) if number == 1] == [there, back]
    addresses = [frame[12:20] for number, _, frame in read(file) if number == 0]
    unspecified, loopback = bytes(4), bytes([127, 0, 0, 1])
    assert addresses == [
        loopback + unspecified,
        unspecified + loopback,
        loopback + unspecified,
        unspecified + loopback,
    ]
    assert struct.unpack(">H", read(file)[0][2][22:24]) == (port,)
