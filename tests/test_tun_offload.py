"""Offloads of real TUN devices: two interfaces, each with its device in a network namespace of its own."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from connlib import DeviceError
from connlib._native import TunIo
from connlib.config import OFFLOADS
from connlib.driver import Interface, open_interface
from connlib.tun import make_device, open_tun
from helpers_driver import client_config, gateway_config, loopback_socket
from helpers_encryption import need
from helpers_netns import in_namespace, ip, run_body

T = TypeVar("T")

FAMILIES = {socket.AF_INET: ("10.0.0.2", "10.0.0.1"), socket.AF_INET6: ("fd00::2", "fd00::1")}
UDP_SEGMENT = 103
SECONDS = 60


@contextmanager
def far_away() -> Iterator[Callable[[Callable[[], T]], T]]:
    """Calls in a thread that is in another namespace."""

    def leave() -> None:
        assert ctypes.CDLL(None).unshare(0x4000_0000) == 0

    with ThreadPoolExecutor(1, initializer=leave) as pool:
        yield lambda call: pool.submit(call).result(SECONDS)


def device(name: str, mtu: int, *addresses: str, headers: bool = True) -> int:
    """A device that is up in the namespace of this thread."""
    fd, _ = make_device(name, headers=headers)
    ip("link", "set", name, "mtu", str(mtu), "up")
    for address in addresses:
        ip("address", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))
    return fd


@asynccontextmanager
async def two_interfaces(
    near: int, far: int, offload: bool | tuple[str, ...] = True, encryption: str = "auto"
) -> AsyncIterator[tuple[Interface, Interface]]:
    with loopback_socket() as udp, loopback_socket() as client_udp:
        gateway = replace(gateway_config(), mtu=8920, offload=offload)
        client = replace(client_config(udp.getsockname()), mtu=8920, offload=offload, encryption=encryption)
        allowed = (ip_network("10.0.0.0/24"), ip_network("fd00::/64"))
        gateway = replace(gateway, peers=(replace(gateway.peers[0], allowed_ips=allowed),))
        client = replace(client, peers=(replace(client.peers[0], allowed_ips=allowed),))
        async with (
            open_interface(gateway, tun=far, udp=udp) as gateway_end,
            open_interface(client, tun=near, udp=client_udp) as client_end,
        ):
            yield client_end, gateway_end


def tcp_server(family: socket.AddressFamily, address: str) -> socket.socket:
    server = socket.create_server((address, 0), family=family)
    server.settimeout(SECONDS)
    return server


def received_digest(server: socket.socket) -> bytes:
    digest = hashlib.sha256()
    with server, server.accept()[0] as connection:
        connection.settimeout(SECONDS)
        while data := connection.recv(1 << 16):
            digest.update(data)
    return digest.digest()


def send(address: tuple[str, int], family: socket.AddressFamily, data: bytes) -> None:
    with socket.socket(family) as sender:
        sender.settimeout(SECONDS)
        sender.connect(address)
        sender.sendall(data)


async def send_all(sender: socket.socket, data: bytes) -> None:
    await trio.to_thread.run_sync(sender.sendall, data)


async def transfer(server: socket.socket, family: socket.AddressFamily, size: int = 2_000_000) -> None:
    """Send by TCP from here to there, and compare."""
    data = random.Random(size).randbytes(size)
    digests: list[bytes] = []

    async def receive() -> None:
        digests.append(await trio.to_thread.run_sync(received_digest, server))

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.to_thread.run_sync(send, server.getsockname()[:2], family, data)
    assert digests == [hashlib.sha256(data).digest()]


def bulk(offload: bool, encryption: str = "auto") -> None:
    async def main() -> None:
        with far_away() as there:
            near = device("near0", 1420, "10.0.0.2/24", "fd00::2/64")
            far = there(lambda: device("far0", 1420, "10.0.0.1/24", "fd00::1/64"))
            # Whoever made the device may have given it the longer header that newer virtio has.
            fcntl.ioctl(far, 0x4004_54D8, struct.pack("i", 12))  # TUNSETVNETHDRSZ
            async with two_interfaces(near, far, offload, encryption) as (client, gateway):
                for mtu in (1280, 1420, 8920):
                    ip("link", "set", "near0", "mtu", str(mtu))
                    there(lambda mtu=mtu: ip("link", "set", "far0", "mtu", str(mtu)))  # type: ignore[misc]
                    for family, (_, address) in FAMILIES.items():
                        before = client.stats().tun, gateway.stats().tun
                        await transfer(there(lambda f=family, a=address: tcp_server(f, a)), family)  # type: ignore[misc]
                        after = client.stats().tun, gateway.stats().tun
                        read = after[0]["superpackets_read"] - before[0]["superpackets_read"]
                        written = after[1]["superpackets_written"] - before[1]["superpackets_written"]
                        assert (read > 0) == (written > 0) == offload, (mtu, family, read, written)
                tun = client.stats().tun, gateway.stats().tun
                assert not any(count for one in tun for name, count in one.items() if name.startswith("bad_"))
                assert tun[0]["superpackets_refused"] == tun[1]["superpackets_refused"] == 0
            os.close(near)
            os.close(far)

    trio.run(main)


@pytest.mark.offloads
@in_namespace
def test_bulk_arrives_with_offloads_and_superpackets_move() -> None:
    bulk(True)


@in_namespace
def test_bulk_arrives_without_offloads_and_no_superpacket_moves() -> None:
    bulk(False)


@pytest.mark.offloads
@in_namespace
def test_bulk_arrives_where_one_end_seals_and_opens_with_ipsec_mb() -> None:
    need("ipsec-mb")
    bulk(True, "ipsec-mb")


@pytest.mark.offloads
@in_namespace
def test_offloads_are_switched_by_name_while_a_connection_goes_on() -> None:
    async def main() -> None:
        with far_away() as there:
            near = device("near0", 1420, "10.0.0.2/24")
            far = there(lambda: device("far0", 1420, "10.0.0.1/24"))
            async with two_interfaces(near, far) as (client, gateway):
                server = there(lambda: tcp_server(socket.AF_INET, "10.0.0.1"))
                data = random.Random(1).randbytes(2_000_000)
                with socket.socket() as sender:
                    sender.settimeout(SECONDS)
                    await trio.to_thread.run_sync(sender.connect, server.getsockname())
                    # Not here: the last packet of the handshake has to get there meanwhile.
                    connection, _ = await trio.to_thread.run_sync(server.accept)
                    connection.settimeout(SECONDS)

                    async def moved(offload: bool | tuple[str, ...]) -> tuple[bool, bool]:
                        for interface in (client, gateway):
                            await interface.apply(replace(interface.config, offload=offload))
                        before = client.stats().tun, gateway.stats().tun
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(send_all, sender, data)
                            got = 0
                            while got < len(data):
                                part = await trio.to_thread.run_sync(connection.recv, 1 << 16)
                                assert part == data[got : got + len(part)]
                                got += len(part)
                        after = client.stats().tun, gateway.stats().tun
                        return (
                            after[0]["superpackets_read"] > before[0]["superpackets_read"],
                            after[1]["superpackets_written"] > before[1]["superpackets_written"],
                        )

                    assert await moved(True) == (True, True)
                    assert await moved(False) == (False, False)
                    assert await moved(("coalesce_tcp",)) == (False, True)
                    assert await moved(("tso4", "uso")) == (True, False)
                    assert await moved(("checksum",)) == (False, False)
                    assert await moved(True) == (True, True)
                    connection.close()
                    server.close()
            os.close(near)
            os.close(far)

    trio.run(main)


@pytest.mark.offloads
@in_namespace
def test_datagrams_arrive_whole_whether_the_kernel_leaves_cutting_them_to_us_or_not() -> None:
    async def main() -> None:
        with far_away() as there:
            near = device("near0", 1420, "10.0.0.2/24", "fd00::2/64")
            far = there(lambda: device("far0", 1420, "10.0.0.1/24", "fd00::1/64"))
            io = TunIo(near)
            segments = "uso" in io.set_offloads(OFFLOADS)  # since Linux 6.2
            io.close()
            async with two_interfaces(near, far) as (client, gateway):
                for offload in (True, False):
                    for interface in (client, gateway):
                        await interface.apply(replace(interface.config, offload=offload))
                    for family, (_, address) in FAMILIES.items():
                        receiver = there(lambda f=family: socket.socket(f, socket.SOCK_DGRAM))  # type: ignore[misc]
                        with receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
                            receiver.settimeout(SECONDS)
                            receiver.bind((address, 0))
                            sender.connect(receiver.getsockname()[:2])
                            sender.send(b"first")
                            await trio.to_thread.run_sync(receiver.recv, 2000)
                            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
                            data = random.Random(3).randbytes(30_500)
                            sender.send(data)
                            got = [await trio.to_thread.run_sync(receiver.recv, 2000) for _ in range(31)]
                            assert b"".join(got) == data
                            assert {len(one) for one in got[:-1]} == {1000} and len(got[-1]) == 500
                    read = client.stats().tun["superpackets_read"]
                    written = gateway.stats().tun["superpackets_written"]
                    assert read == written == (2 if segments else 0)
            os.close(near)
            os.close(far)

    trio.run(main)


@in_namespace
def test_a_device_of_the_callers_without_headers_has_no_offloads() -> None:
    fd = device("bare0", 1420, "10.0.0.2/24", headers=False)
    io = TunIo(fd)
    assert io.set_offloads(OFFLOADS) == []
    io.close()
    os.close(fd)


@in_namespace
def test_offloads_that_a_device_lacks_are_named_if_they_were_asked_for_by_name() -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("connlib").addHandler(handler)
    fd = device("bare0", 1420, headers=False)
    end = open_tun(fd, None)
    for offload in (True, False, ("tso4", "uso"), ("tso4", "uso")):
        end.set_offload(offload)
    end.close()
    assert lines == ["bare0: the device does not do tso4, uso; its packets go one by one"]
    os.close(fd)


@pytest.mark.offloads
@in_namespace
def test_a_device_of_the_callers_is_given_back_without_offloads() -> None:
    fd = device("near0", 1420, "10.0.0.2/24")

    def checksums_are_left_to_us() -> bool:
        value = array.array("B", struct.pack("II", 0x16, 0))  # ETHTOOL_GTXCSUM
        request = struct.pack("16sP16x", b"near0", value.buffer_info()[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL
        return bool(struct.unpack("II", value.tobytes())[1])

    end = open_tun(fd, None)
    assert checksums_are_left_to_us()
    end.close()
    assert not checksums_are_left_to_us()
    os.close(fd)


@in_namespace
def test_what_the_kernel_hands_out_as_one_leaves_as_one() -> None:
    """By the largest UDP payload, 65,507 bytes, the 32 bytes around each packet, and the 64 of UDP_MAX_SEGMENTS."""

    async def main() -> None:
        config = replace(client_config(), name="made0", addresses=(), peers=())
        async with open_interface(config) as interface:
            for mtu, packets in ((None, 45), (1280, 49), (8920, 7), (576, 64), (65_472, 1)):
                await interface.apply(replace(config, mtu=mtu))
                (link,) = json.loads(ip("-d", "-j", "link", "show", "dev", "made0"))
                assert link["gso_max_segs"] == packets, mtu

    trio.run(main)


def test_the_names_are_the_same_in_python_and_in_rust() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        io = TunIo(one.fileno())
        assert io.set_offloads(OFFLOADS) == []
        with pytest.raises(ValueError, match="there is no offload"):
            io.set_offloads(["TSO4"])


def test_a_kernel_that_knows_no_headers_gives_a_device_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tunsetiff = 0x400454CA

    def ioctl(_fd: int, request: int, argument: bytes) -> bytes:
        if request != tunsetiff:
            return argument  # the room for a burst
        flags = int.from_bytes(argument[16:18], "little")
        asked.append(flags)
        if flags & 0x4000:
            raise OSError(errno.EINVAL, "Invalid argument")
        return argument

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    fd, name = make_device("plain0", headers=True)
    os.close(fd)
    assert name == "plain0" and asked == [0xD001, 0x9001]
    asked.clear()

    def refuse(_fd: int, request: int, _argument: bytes) -> bytes:
        asked.append(request)
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(DeviceError, match="no permission"):
        make_device("plain0", headers=True)
    assert len(asked) == 1


@in_namespace
def test_the_device_that_an_interface_makes_has_headers() -> None:
    end = open_tun(None, "made0")
    assert end.stats()["superpackets_read"] == 0
    ip("link", "set", "made0", "up")
    assert int(Path("/sys/class/net/made0/tun_flags").read_text(), 16) & 0x4000
    end.close()


run_body(globals())
