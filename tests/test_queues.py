"""A device with several queues, each with sockets and a thread of its own (`InterfaceConfig.queues`)."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import ClassVar
from unittest import mock

import anyio
import pytest
import trio

from connlib import (
    ClosedError,
    ConfigError,
    DeviceError,
    InterfaceConfig,
    Node,
    NodeConfig,
    PeerConfig,
    PrivateKey,
)
from connlib._native import TunIo, Worker
from connlib.clock import BootClock
from connlib.driver import open_interface
from connlib.tun import open_tun
from connlib.udp import _SocketEnd, bind_pair, bind_pairs, open_udp, sockets_of
from helpers_driver import in_real_time
from helpers_netns import in_namespace, ip, run_body
from helpers_worker import expect_threads
from test_native_io import Machine
from test_policy import checksum
from test_worker import BACK, node, readable
from two_tunnels import ALICE, BOB, ipv4

pytestmark = [
    pytest.mark.offloads,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]
CLOCK = BootClock()


class Bob(Machine):
    """A machine with two pairs of ends, and a thread for each."""

    def __init__(self, **changes: object) -> None:
        super().__init__(BOB, ALICE, "10.0.0.1/32")
        self.node = node(BOB, ALICE, "10.0.0.1/32", **changes)
        self.other = Machine(BOB, ALICE, "10.0.0.1/32")
        beside = [(self.other.tun, self.other.udp)]
        epoch = CLOCK.unix_time() - CLOCK.now()
        self.worker = Worker(self.tun, self.udp, self.node, epoch, beside)
        for each in (self, self.other):
            each.application.settimeout(10)

    def close(self) -> None:
        self.worker.close()
        self.other.close()
        super().close()


class Client:
    """A peer with a socket, which waits for each answer."""

    def __init__(self, own: PrivateKey, other: PrivateKey, to: tuple[str, int], allowed: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(10)
        self.to = to
        peer = PeerConfig(public_key=other.public_key(), allowed_ips=(ip_network(allowed),), endpoint=to)
        config = NodeConfig(private_key=own, peers=(peer,))
        self.node = Node(config, now=CLOCK.now(), unix_time=CLOCK.unix_time())

    def send(self) -> list[bytes]:
        """Sends what the node puts out, and returns the packets among it."""
        output = self.node.drain()
        for transmit in output.transmits:
            self.socket.sendto(transmit.datagram, self.to)
        return list(output.packets)

    def send_packet(self, packet: bytes) -> list[bytes]:
        self.node.handle_packets(packet, [len(packet)], CLOCK.now())
        return self.send()

    def receive(self) -> list[bytes]:
        datagram = self.socket.recv(2000)
        self.node.handle_datagrams(datagram, [len(datagram)], [self.to], CLOCK.now())
        return self.send()

    def connect(self, other: PrivateKey) -> None:
        self.node.initiate_handshake(other.public_key(), CLOCK.now())
        self.send()
        self.receive()

    def answer(self, packet: bytes) -> bytes:
        """The first packet that comes back."""
        packets = self.send_packet(packet)
        while not packets:
            packets = self.receive()
        (packet,) = packets
        return packet

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def bob() -> Iterator[Bob]:
    with contextlib.closing(Bob()) as made:
        yield made


def alice(to: tuple[str, int]) -> Client:
    return Client(ALICE, BOB, to, "10.0.0.2/32")


def test_what_comes_to_a_socket_goes_to_the_queue_beside_it_and_back(bob: Bob) -> None:
    bob.worker.wake()
    expect_threads(2)
    with contextlib.closing(alice(bob.socket.getsockname())) as client:
        client.connect(BOB)
        for here in (bob, bob.other, bob):
            client.to = here.socket.getsockname()
            client.send_packet(ipv4(b"there"))
            assert here.application.recv(2000) == ipv4(b"there")
            here.application.send(ipv4(b"back", **BACK))
            assert client.receive() == [ipv4(b"back", **BACK)]
    assert (bob.udp.stats()["received"], bob.other.udp.stats()["received"]) == (4, 1)
    assert (bob.udp.stats()["sent"], bob.other.udp.stats()["sent"]) == (3, 1)


def test_a_deadline_that_is_brought_about_by_another_thread_is_met() -> None:
    with (
        contextlib.closing(Bob(persistent_keepalive=1.0)) as bob,
        contextlib.closing(alice(bob.other.socket.getsockname())) as client,
    ):
        bob.worker.wake()
        client.connect(BOB)
        assert client.receive() == [] and bob.worker.timer_wakes == 0, "one at once, from the same thread"
        # Nobody calls the thread that keeps the time, but the other one.
        assert client.receive() == []
        (peer,) = bob.node.stats(CLOCK.now()).peers
        assert peer.tunnel.keepalives_sent == 2 and bob.worker.timer_wakes == 1


def test_what_python_causes_is_sent_on_demand(bob: Bob) -> None:
    bob.worker.wake()
    with contextlib.closing(alice(bob.other.socket.getsockname())) as client:
        client.connect(BOB)
        # From here on he knows where she is.
        client.send_packet(ipv4(b"there"))
        assert bob.other.application.recv(2000) == ipv4(b"there")
        assert bob.other.udp.stats()["sent"] == 1
        bob.node.initiate_handshake(ALICE.public_key(), CLOCK.now())
        bob.worker.wake()
        assert client.receive() == []
        assert bob.udp.stats()["sent"] == 1


def test_no_thread_begins_before_the_first_call(bob: Bob) -> None:
    expect_threads(2)
    bob.other.socket.getsockname()
    with contextlib.closing(alice(bob.other.socket.getsockname())) as client:
        client.node.initiate_handshake(BOB.public_key(), CLOCK.now())
        client.send()
        assert not select.select([client.socket], [], [], 0.05)[0]
        assert bob.worker.turns == 0
        bob.worker.wake()
        client.receive()


def test_a_thread_that_fails_ends_the_others_and_says_why(bob: Bob) -> None:
    bob.worker.wake()
    bob.other.udp.close()
    bob.other.application.send(ipv4(b"back", **BACK))
    assert readable(bob.worker)
    with pytest.raises(ClosedError):
        bob.worker.take()
    expect_threads(0)


def test_all_threads_give_up_their_capabilities(bob: Bob) -> None:
    bob.worker.wake()
    found = expect_threads(2)
    bob.worker.give_up()
    for thread in found:
        assert "CapEff:\t0000000000000000" in (thread / "status").read_text()
    bob.worker.stop()
    expect_threads(0)
    bob.worker.give_up()  # there is nobody left


def test_a_port_that_somebody_shares_is_in_use_for_others() -> None:
    pairs = bind_pairs(0, 3)
    with contextlib.ExitStack() as stack:
        for made in (made for pair in pairs for made in pair.values()):
            stack.callback(made.close)
        (port,) = {made.getsockname()[1] for pair in pairs for made in pair.values()}
        for bind in (lambda: bind_pairs(port, 2), lambda: bind_pair(port)):
            with pytest.raises(DeviceError, match="in use"):
                bind()


def test_sockets_that_cannot_be_had_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Fifth(socket.socket):
        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            made.append(self)

        def bind(self, address: object) -> None:
            if len(made) == 5:
                raise OSError(errno.EADDRINUSE, "Address already in use")
            super().bind(address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", Fifth)
    with pytest.raises(DeviceError, match="in use"):
        bind_pairs(0, 3)
    assert len(made) == 5 and all(each.fileno() == -1 for each in made)


def test_the_counters_are_those_of_all_sockets() -> None:
    end = open_udp(None, 0, queues=2)
    with contextlib.closing(end), contextlib.ExitStack() as stack:
        receiver = Machine(BOB, ALICE, "10.0.0.1/32")
        stack.callback(receiver.close)
        first, second = sockets_of(end)
        senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(64)]
        for each in senders:
            stack.enter_context(each).sendto(b"datagram", ("127.0.0.1", end.port))
        counts = [0, 0]
        limit = time.monotonic() + 10
        while sum(counts) < 64 and time.monotonic() < limit:
            counts[0] += first.receive(receiver.node, CLOCK.now(), 64)
            counts[1] += second.receive(receiver.node, CLOCK.now(), 64)
        # The kernel spreads them by their addresses: that one gets none of 64 does not happen.
        assert sum(counts) == 64 and all(counts)
        assert end.stats()["received"] == 64


CLIENTS = 32
GATEWAY = PrivateKey.generate()


def config(keys: list[PrivateKey], **changes: object) -> InterfaceConfig:
    peers = tuple(
        PeerConfig(public_key=key.public_key(), allowed_ips=(ip_network(f"10.0.0.{number + 2}/32"),))
        for number, key in enumerate(keys)
    )
    made = InterfaceConfig(
        private_key=GATEWAY, addresses=(ip_interface("10.0.0.1/24"),), peers=peers, routes=False, queues=3
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def to_echo(number: int, port: int, payload: bytes) -> bytes:
    """A datagram from a client to the gateway's own address, as the kernel wants it."""
    body = struct.pack("!HHHH", 5000, port, 8 + len(payload), 0) + payload
    addresses = ip_address(f"10.0.0.{number + 2}").packed + ip_address("10.0.0.1").packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 17, 0) + addresses
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


@in_namespace
@in_real_time
async def test_many_clients_have_their_answers_through_a_device_with_three_queues() -> None:
    ip("link", "set", "lo", "up")
    keys = [PrivateKey.generate() for _ in range(CLIENTS)]
    async with open_interface(config(keys)) as interface, anyio.create_task_group() as tasks:
        expect_threads(3)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("10.0.0.1", 0))
            server.settimeout(10)

            def answer() -> None:
                for _ in range(CLIENTS * 3):
                    content, client = server.recvfrom(2000)
                    server.sendto(content, client)

            tasks.start_soon(anyio.to_thread.run_sync, answer)
            port = server.getsockname()[1]
            at = ("127.0.0.1", interface.listen_port)

            def ask() -> None:
                for number, key in enumerate(keys):
                    with contextlib.closing(Client(key, GATEWAY, at, "10.0.0.1/32")) as client:
                        client.connect(GATEWAY)
                        for payload in (b"one", b"two", b"three"):
                            packet = client.answer(to_echo(number, port, payload))
                            assert packet[28:] == payload and packet[16:20] == bytes([10, 0, 0, number + 2])

            await anyio.to_thread.run_sync(ask)
        parts = [io.stats() for io in interface._tun._ios], [io.stats() for io in interface._udp._ios]  # type: ignore[attr-defined]
        for queue, sockets in zip(*parts, strict=True):
            assert queue["packets_written"] and sockets["received"]
        stats = interface.stats()
        assert stats.tun["packets_written"] == CLIENTS * 3
        # The kernel has packets of its own for whoever is on the link, too.
        assert stats.tun["packets_read"] >= sum(peer.tunnel.tx_packets for peer in stats.peers) == CLIENTS * 3
        assert stats.udp["received"] == sum(part["received"] for part in parts[1]) == CLIENTS * 5
        assert stats.udp["sent"] == CLIENTS * 4
        # Another port: all of them move.
        port = interface.listen_port
        await interface.apply(replace(interface.config, listen_port=port + 1 if port < 65_000 else port - 1))
        assert interface.listen_port != port and len(sockets_of(interface._udp)) == 3
        expect_threads(3)
        with pytest.raises(
            ConfigError, match="made when the interface starts, and cannot change from 3 to 2"
        ):
            await interface.apply(replace(interface.config, queues=2))
        # What is the device's is known to all queues.
        await interface.apply(replace(interface.config, offload=False))
        assert interface.is_open
    expect_threads(0)


@in_namespace
@in_real_time
async def test_the_queues_of_a_device_go_with_the_interface() -> None:
    for _ in range(2):
        async with open_interface(config([], name="several0")):
            ip("link", "show", "several0")
    assert "several0" not in ip("link")


@in_namespace
@in_real_time
async def test_the_sockets_of_all_queues_are_marked() -> None:
    async with open_interface(config([], fwmark=7)) as interface:
        for changes in ({}, {"fwmark": 8}, {"listen_port": 5_555}):
            await interface.apply(replace(interface.config, **changes))  # type: ignore[arg-type]
            udp: _SocketEnd = interface._udp  # type: ignore[assignment]
            marks = [
                made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
                for pair in udp._pairs
                for made in pair.values()
            ]
            assert len(marks) >= 3 and set(marks) == {interface.config.fwmark}


@in_namespace
@in_real_time
async def test_a_device_that_is_deleted_ends_all_queues() -> None:
    async def serve() -> None:
        async with open_interface(config([], name="several0")):
            ip("link", "del", "several0")
            await trio.sleep_forever()

    with pytest.raises(DeviceError, match="was deleted"):
        await serve()
    expect_threads(0)


@in_real_time
async def test_what_the_caller_has_made_has_one_queue(caplog: pytest.LogCaptureFixture) -> None:
    device, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, _:
        async with open_interface(config([]), tun=device.fileno()) as interface:
            expect_threads(1)
            assert len(sockets_of(interface._udp)) == 1
    (warning,) = caplog.messages
    assert warning.endswith("has one queue, not 3: not all of it was made here")


@in_namespace
def test_offloads_are_switched_for_all_queues() -> None:
    class Watched:
        """Each queue merges what it writes by what it knows itself."""

        made: ClassVar[list[Watched]] = []

        def __init__(self, fd: int, beside: Watched | None = None) -> None:
            self.io: TunIo = TunIo(fd, None if beside is None else beside.io)
            self.on: list[str] = []
            self.made.append(self)

        def set_offloads(self, names: Sequence[str]) -> list[str]:
            self.on = self.io.set_offloads(names)
            return self.on

        def close(self) -> None:
            self.io.close()

    with mock.patch("connlib.tun.TunIo", Watched):
        end = open_tun(None, None, queues=3)
        assert [bool(queue.on) for queue in Watched.made] == [True] * 3
        end.set_offload(("coalesce_tcp",))
        assert [queue.on for queue in Watched.made] == [["coalesce_tcp"]] * 3
        end.close()


@in_namespace
def test_more_queues_than_the_kernel_gives_leave_nothing() -> None:
    with pytest.raises(DeviceError, match="cannot add a queue to several0: Argument list too long"):
        open_tun(None, "several0", queues=300)
    assert "several0" not in ip("link")


run_body(globals())
