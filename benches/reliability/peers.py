"""Faults 6, 14 and 33: in memory and in virtual time, so that the figures are the same on every machine."""

from __future__ import annotations

import ipaddress
import struct

from connlib import DropReason, Node
from connlib._nodeconfig import node_config
from connlib.lab import World
from reliability import parties
from reliability.faults import Check, Run, count, note

YEAR = 365.25 * 86_400
BATCH = 1000


def foreign_sources(run: Run) -> list[Check]:
    """Fault 14: one peer sends what would come from another, or from nobody."""
    packets = run.count(1_000_000, 10_000)
    honest, hostile = parties.GATEWAY + 1, parties.GATEWAY + 2
    gateway = Node(node_config(parties.gateway_config([honest, hostile])), now=0.0, unix_time=1.7e9)
    client = Node(parties.client_config(hostile, ("192.0.2.1", 1)), now=0.0, unix_time=1.7e9)
    source = ("192.0.2.2", 2)
    delivered = 0

    def carry(data: bytes, lengths: list[int]) -> None:
        nonlocal delivered
        client.handle_packets(data, lengths, 1.0)
        datagrams = [transmit.datagram for transmit in client.drain().transmits]
        gateway.handle_datagrams(
            b"".join(datagrams), [len(each) for each in datagrams], [source] * len(datagrams), 1.0
        )
        output = gateway.drain()
        delivered += len(output.packets)
        answers = [transmit.datagram for transmit in output.transmits]
        client.handle_datagrams(
            b"".join(answers), [len(each) for each in answers], [("192.0.2.1", 1)] * len(answers), 1.0
        )

    own = _packet(parties.address(hostile))
    for _ in range(3):
        carry(own, [len(own)])
    for transmit in client.drain().transmits:
        gateway.handle_datagrams(transmit.datagram, [len(transmit.datagram)], [source], 1.0)
    delivered += len(gateway.drain().packets)
    # Those of its own arrive, so that what follows is refused for its source and for nothing else.
    genuine, delivered = delivered, 0
    addresses = [
        parties.address(honest),
        parties.address(parties.GATEWAY),
        "192.0.2.77",
        "0.0.0.0",
        "255.255.255.255",
    ]
    forged = [_packet(address) for address in addresses]
    for start in range(0, packets, BATCH):
        batch = [forged[number % len(forged)] for number in range(start, start + BATCH)]
        carry(b"".join(batch), [len(each) for each in batch])
    (refused,) = (
        peer.tunnel.drops.get(DropReason.SOURCE_NOT_ALLOWED, 0)
        for peer in gateway.stats(1.0).peers
        if peer.public_key == parties.key(hostile).public_key()
    )
    return [
        count("genuine packets delivered", genuine, 3),
        count(f"of {packets:,} forged ones delivered", delivered, 0),
        count("refused and counted", refused, packets),
    ]


def replayed_initiation(run: Run) -> list[Check]:
    """Fault 6: somebody else sends what the client has sent."""
    copies = run.count(1000, 100)
    number, here, elsewhere = parties.GATEWAY + 1, ("192.0.2.2", 2), ("203.0.113.7", 7)
    gateway = Node(node_config(parties.gateway_config([number])), now=0.0, unix_time=1.7e9)
    client = Node(parties.client_config(number, ("192.0.2.1", 1)), now=0.0, unix_time=1.7e9)
    own = _packet(parties.address(number))
    client.handle_packets(own, [len(own)], 0.0)
    ((_, initiation),) = client.drain().transmits
    gateway.handle_datagrams(initiation, [len(initiation)], [here], 0.0)
    ((_, response),) = gateway.drain().transmits
    client.handle_datagrams(response, [len(response)], [("192.0.2.1", 1)], 0.0)
    ((_, data),) = client.drain().transmits
    gateway.handle_datagrams(data, [len(data)], [here], 0.0)
    delivered = gateway.drain().packets == [own]
    replies = 0
    for copy in range(copies):
        # Slow enough not to be refused for that.
        now = 1.0 + copy / 10
        gateway.handle_datagrams(initiation, [len(initiation)], [elsewhere], now)
        replies += len(gateway.drain().transmits)
    (peer,) = gateway.stats(1.0).peers
    return [
        count("the genuine one led to a session", int(delivered), 1),
        count(f"replies to {copies:,} copies", replies, 0),
        count("endpoints moved", int(peer.endpoint != here), 0),
        count("refused as replayed", peer.tunnel.drops.get(DropReason.REPLAYED_INITIATION, 0), copies),
    ]


def _packet(source: str) -> bytes:
    """A packet to the gateway."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 253, 0)
    return (
        head
        + ipaddress.ip_address(source).packed
        + ipaddress.ip_address(parties.address(1)).packed
        + bytes(8)
    )


def clocks(run: Run) -> list[Check]:
    """Fault 33: the wall clock of each end is set by ten years while the tunnel is in use; then an hour of suspend."""
    lost = handshakes = 0
    worlds = 0
    for seed in range(run.count(20, 2)):
        for step in (10 * YEAR, -10 * YEAR):
            for which in (0, 1):
                world = World(seed=seed)
                ends = world.host("a"), world.host("b")
                world.link(*ends).set(latency=0.01)
                world.tunnel(*ends)
                for second in range(300):
                    ends[0].send(at=float(second))
                    ends[1].send(at=second + 0.5)
                ends[which].step_clock(step, at=100.0)
                world.run(until=310.0)
                worlds += 1
                lost += sum(fate.outcome != "delivered" for fate in world.trace.fates().values())
                handshakes += ends[0].stats().initiations_sent + ends[1].stats().initiations_sent
    slowest = max(_after_suspend(seed, who) for seed in range(run.count(20, 2)) for who in (0, 1))
    return [
        count(f"packets lost in {worlds} runs of 300 s", lost, 0),
        note("initiations in each", handshakes / worlds),
        Check("first packet after an hour's suspend, at most", f"{slowest:.3g} s", slowest <= 6),
    ]


def _after_suspend(seed: int, who: int) -> float:
    """Seconds until the first packet after the suspend of one end has arrived at the other."""
    world = World(seed=seed)
    ends = world.host("a"), world.host("b")
    world.link(*ends).set(latency=0.01)
    world.tunnel(*ends)
    ends[0].send(at=1.0)
    ends[1].send(at=2.0)
    ends[who].sleep(3600, at=10.0)
    ends[who].send(at=3610.5)
    world.run(until=3700.0)
    (fate,) = [fate for fate in world.trace.fates().values() if fate.offered.at >= 3600e9]
    return (fate.at - fate.offered.at) / 1e9 if fate.outcome == "delivered" else float("inf")
