"""`connlib demo`: a gateway and a client in one process, without root and without a network.

Each end is a whole interface of `connlib.driver`: a UDP socket on 127.0.0.1 on one side, and, in place of a TUN device,
packets in memory on the other. Their clock can jump, which is how they sleep for three hours in no time.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, ip_network

import anyio
import trio

from connlib._native import PrivateKey
from connlib._text import counts
from connlib._types import DropReason, PeerConfig, Role, SessionEstablished, TunnStats
from connlib.config import InterfaceConfig
from connlib.driver import BootClock, Interface, MemoryTun, open_interface

from . import _packets, _transfer
from ._stage import Show, rate

PINGS = 5
PING_SIZE = 56
TRANSFER = 128 * 1024 * 1024
NIGHT = 3 * 3600.0
PATIENCE = 10.0
TRANSFER_PATIENCE = 60.0
"""Seconds until something that takes milliseconds counts as failed."""
BATCH = 64


class JumpingClock:
    """The system's clock, which can be set forward: what a suspended machine sees when it wakes up."""

    def __init__(self) -> None:
        self._clock = BootClock()
        self.ahead = 0.0

    def now(self) -> float:
        """Seconds, as `BootClock`, and what it jumped."""
        return self._clock.now() + self.ahead

    def unix_time(self) -> float:
        """Seconds since 1970, and what it jumped."""
        return self._clock.unix_time() + self.ahead


@dataclass
class Side:
    """The gateway or the client."""

    name: str
    address: IPv4Address
    tun: MemoryTun
    interface: Interface
    sessions: list[SessionEstablished] = field(default_factory=list)
    established: anyio.Event = field(default_factory=anyio.Event)

    @property
    def tunnel(self) -> TunnStats:
        """The counters of its only peer."""
        return self.interface.stats().peers[0].tunnel

    async def watch(self) -> None:
        """Remember each session that begins."""
        async for _, event in self.interface.events():
            if isinstance(event, SessionEstablished):
                self.sessions.append(event)
                self.established.set()

    async def receive(self) -> list[bytes]:
        """Wait for packets, and take those that are there."""
        packets = [await self.tun.receive()]
        try:
            while len(packets) < BATCH:
                packets.append(self.tun.receive_nowait())
        except anyio.WouldBlock:
            pass
        return packets


def run() -> None:
    """Show it. Raises `SystemExit` with 1 if something was not as it should be."""
    show = Show("connlib demo: a WireGuard gateway and a client, over UDP on 127.0.0.1")
    trio.run(_run, show)
    if show.failures:
        raise SystemExit(1)


async def _run(show: Show) -> None:
    clock = JumpingClock()
    async with AsyncExitStack() as stack:
        gateway, client = await _open(stack, clock)
        receiver = _transfer.Receiver(client.address, gateway.address)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for side in (gateway, client):
            tasks.start_soon(side.watch)
        tasks.start_soon(_answer, gateway, receiver)
        show.step("Two ends")
        for side, role in ((gateway, Role.RESPONDER), (client, Role.INITIATOR)):
            interface = side.interface
            show.line(
                f"{side.name:8} {side.address}  127.0.0.1:{interface.listen_port:<5}  {role.value:9}  "
                f"{interface.public_key.to_base64()[:16]}..."
            )
        await _show_all(show, clock, gateway, client, receiver)
        tasks.cancel_scope.cancel()


async def _show_all(
    show: Show, clock: JumpingClock, gateway: Side, client: Side, receiver: _transfer.Receiver
) -> None:
    await _shake_hands(show, gateway, client)
    if show.failures:
        return  # nothing else can work then, and each of it would wait its time
    show.step("Pings through the tunnel, client to gateway")
    show.pings(str(gateway.address), await _ping(client, gateway.address, PINGS), PINGS, PING_SIZE + 8)
    if show.failures:
        return
    await _send_bulk(show, gateway, client, receiver)
    await _sleep(show, clock, gateway, client)
    _count(show, gateway, client)


async def _open(stack: AsyncExitStack, clock: JumpingClock) -> tuple[Side, Side]:
    gateway_key, client_key = PrivateKey.generate(), PrivateKey.generate()
    gateway_address, client_address = IPv4Interface("10.77.0.1/24"), IPv4Interface("10.77.0.2/24")
    gateway_socket, client_socket = (_loopback_socket(stack) for _ in range(2))

    async def open_side(
        name: str, address: IPv4Interface, config: InterfaceConfig, udp: socket.socket
    ) -> Side:
        tun = MemoryTun()
        interface = await stack.enter_async_context(open_interface(config, tun=tun, udp=udp, clock=clock))
        return Side(name, address.ip, tun, interface)

    return (
        await open_side(
            "gateway",
            gateway_address,
            InterfaceConfig(
                private_key=gateway_key,
                role=Role.RESPONDER,
                peers=(
                    PeerConfig(
                        public_key=client_key.public_key(), allowed_ips=(ip_network(client_address.ip),)
                    ),
                ),
            ),
            gateway_socket,
        ),
        await open_side(
            "client",
            client_address,
            InterfaceConfig(
                private_key=client_key,
                role=Role.INITIATOR,
                peers=(
                    PeerConfig(
                        public_key=gateway_key.public_key(),
                        allowed_ips=(ip_network(gateway_address.ip),),
                        endpoint=gateway_socket.getsockname(),
                    ),
                ),
            ),
            client_socket,
        ),
    )


def _loopback_socket(stack: AsyncExitStack) -> socket.socket:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.bind(("127.0.0.1", 0))
    return made


async def _answer(gateway: Side, receiver: _transfer.Receiver) -> None:
    """What is behind the gateway: it answers pings, and takes the bulk transfer."""
    while True:
        pieces = 0
        for packet in await gateway.receive():
            if _transfer.is_piece(packet):
                receiver.take(packet)
                pieces += 1
            elif (
                isinstance(echo := _packets.parse(packet), _packets.Echo)
                and echo.kind == _packets.ECHO_REQUEST
            ):
                reply = echo._replace(
                    source=echo.destination, destination=echo.source, kind=_packets.ECHO_REPLY
                )
                await gateway.tun.send(_packets.build_echo(reply))
        if pieces:
            await gateway.tun.send(receiver.acknowledgement())


async def _shake_hands(show: Show, gateway: Side, client: Side) -> None:
    show.step("Handshake")
    start = time.perf_counter()
    client.interface.initiate_handshake(gateway.interface.public_key)
    with anyio.move_on_after(PATIENCE):
        await client.established.wait()
        milliseconds = (time.perf_counter() - start) * 1e3
        show.line(f"the client started a session, and had it after {milliseconds:.2f} ms")
        await gateway.established.wait()
    show.check(
        client.sessions[-1:] == [SessionEstablished(initiator=True)]
        and gateway.sessions[-1:] == [SessionEstablished(initiator=False)],
        "both ends have a session that the client started",
    )


async def _ping(client: Side, target: IPv4Address, count: int) -> list[float]:
    """Round-trip times in milliseconds of those that were answered."""
    times = []
    identifier = os.getpid() & 0xFFFF
    for sequence in range(1, count + 1):
        echo = _packets.Echo(
            client.address, target, _packets.ECHO_REQUEST, identifier, sequence, os.urandom(PING_SIZE)
        )
        start = time.perf_counter()
        await client.tun.send(_packets.build_echo(echo))
        with anyio.move_on_after(PATIENCE):
            while not any(_is_reply(packet, echo) for packet in await client.receive()):
                pass
            times.append((time.perf_counter() - start) * 1e3)
        await anyio.sleep(0.05)
    return times


def _is_reply(packet: bytes, echo: _packets.Echo) -> bool:
    reply = _packets.parse(packet)
    return isinstance(reply, _packets.Echo) and reply.kind == _packets.ECHO_REPLY and reply[3:] == echo[3:]


async def _send_bulk(show: Show, gateway: Side, client: Side, receiver: _transfer.Receiver) -> None:
    show.step("Bulk transfer, client to gateway")
    data = os.urandom(TRANSFER)
    with show.progress() as progress:
        bar = progress.add_task("", total=TRANSFER)
        start = time.perf_counter()
        repeated = 0
        with anyio.move_on_after(TRANSFER_PATIENCE) as patience:
            repeated = await _transfer.send(
                data,
                client.address,
                gateway.address,
                send_nowait=client.tun.send_nowait,
                receive=client.receive,
                report=lambda size: progress.update(bar, completed=size),
            )
        seconds = time.perf_counter() - start
    show.line(
        f"{receiver.size:,} bytes in {seconds:.2f} s: {rate(receiver.size, seconds)} with both ends in one thread"
    )
    again = f", {repeated:,} sent again" if repeated else ""
    show.line(f"{receiver.pieces:,} packets of up to {_transfer.PIECE} bytes{again}")
    if patience.cancelled_caught:
        show.check(False, f"all {len(data):,} bytes within {TRANSFER_PATIENCE:.0f} s")
    else:
        show.check(receiver.digest() == hashlib.sha256(data).digest(), "SHA-256 equal on both sides")


async def _sleep(show: Show, clock: JumpingClock, gateway: Side, client: Side) -> None:
    show.step("Three hours of sleep")
    # What still has to be acknowledged is, so that nothing is under way when the lid closes.
    await _ping(client, gateway.address, 1)
    before = client.tunnel.initiations_sent, gateway.tunnel.initiations_sent
    clock.ahead += NIGHT
    times = await _ping(client, gateway.address, 1)
    if times:
        show.line(f"both clocks jumped by 3 h; the first packet was answered after {times[0]:.2f} ms")
    show.check(bool(times), "the first packet arrived")
    new = client.tunnel.initiations_sent - before[0], gateway.tunnel.initiations_sent - before[1]
    show.check(new == (1, 0), f"initiations since then: client {new[0]}, gateway {new[1]}")


def _count(show: Show, gateway: Side, client: Side) -> None:
    show.step("Counters")
    sides = (gateway, client)
    tunnels = [side.tunnel for side in sides]

    def row(title: str, values: list[int]) -> tuple[str, list[str]]:
        return title, [f"{value:,}" for value in values]

    show.table(
        [side.name for side in sides],
        [
            row(
                "sessions",
                [len(side.sessions) for side in sides],
            ),
            row("initiations sent", [tunnel.initiations_sent for tunnel in tunnels]),
            row("responses sent", [tunnel.responses_sent for tunnel in tunnels]),
            row("packets sent", [tunnel.tx_packets for tunnel in tunnels]),
            row("packets received", [tunnel.rx_packets for tunnel in tunnels]),
            row("bytes sent", [tunnel.tx_bytes for tunnel in tunnels]),
            row("bytes received", [tunnel.rx_bytes for tunnel in tunnels]),
            (
                "drops",
                [
                    _drops(side.interface.stats().drops, tunnel.drops)
                    for side, tunnel in zip(sides, tunnels, strict=True)
                ],
            ),
        ],
    )
    show.check(gateway.tunnel.initiations_sent == 0, "the gateway never started a session")


def _drops(*drops: Mapping[DropReason, int]) -> str:
    return counts({reason.value: count for each in drops for reason, count in each.items()}) or "none"
