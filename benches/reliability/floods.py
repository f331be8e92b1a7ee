"""Faults 1 to 4: floods from outside, while a tunnel is in use."""

from __future__ import annotations

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from connlib import DropReason, Node, Role, Tunn
from connlib._nodeconfig import node_config
from interop.netns import Namespace
from reliability import parties
from reliability.clients import Client, Crowd
from reliability.faults import Check, Run, at_least, at_most, count, note
from reliability.generator import initiation
from reliability.places import CABLES, Child, Tap, child, cpu_seconds, resident, yard

GATEWAY = (f"{CABLES[0]}.1", parties.PORT)
"""Where the clients find the gateway, on their own cable."""
PUBLIC = parties.key(parties.GATEWAY).public_key()
STREAM = 1000
"""Requests a second that the tunnel carries meanwhile, and as many replies."""
SIZE = 1400
MEGABYTE = 1 << 20


@dataclass
class Place:
    """A gateway with a client on one cable and an attacker on the other."""

    gateway: Child
    crowd: Crowd
    middle: Namespace
    friends: Namespace
    attackers: Namespace
    tap: Tap


@contextmanager
def under_attack(clients: int = 1) -> Iterator[Place]:
    with yard(2) as hosts, child(hosts.middle, "gateway", {"peers": 50}) as gateway:
        friends, attackers = hosts.others
        tap = Tap(attackers, "cable1")
        made = [_client(friends, parties.GATEWAY + 1 + number) for number in range(clients)]
        with Crowd(made) as crowd:
            try:
                yield Place(gateway, crowd, hosts.middle, friends, attackers, tap)
            finally:
                tap.close()


def _client(place: Namespace, number: int) -> Client:
    return Client(number, place.make_socket(socket.AF_INET, socket.SOCK_DGRAM), GATEWAY)


@dataclass
class Seen:
    """What a flood did."""

    sent: int
    received: int
    drops: Counter[str]
    cpu_each: float
    """Seconds of the gateway's process for each datagram that it received of a flood alone."""
    busy: float
    """Share of a processor that the gateway had while the tunnel was used."""
    delivered: float
    """Share of the requests of the tunnel that were answered meanwhile."""
    grown: int
    replies: int
    longest: int
    seconds: float


def flood(place: Place, options: dict[str, Any], seconds: float) -> Seen:
    """A flood alone, which says what it costs, and then one while the tunnel is used."""
    place.crowd.connect()
    place.crowd.stream(seconds / 4, STREAM, SIZE)
    place.crowd.settle()
    gateway = place.gateway
    options = {
        "destination": f"{CABLES[1]}.1",
        "port": parties.PORT,
        "public_key": PUBLIC.to_bytes().hex(),
        **options,
    }
    with child(place.attackers, "generator", options) as generator:
        first, start = gateway.ask("stats"), cpu_seconds(gateway.pid)
        generator.ask("flood", seconds=seconds / 2)
        place.crowd.serve(0.2)
        cpu, before = cpu_seconds(gateway.pid) - start, gateway.ask("stats")
        alone = _grown(first, before, "udp", "received")
        memory, sent, answered = resident(gateway.pid), place.crowd.sent, place.crowd.answered
        place.tap.packets()
        start = cpu_seconds(gateway.pid)
        generator.tell("flood", seconds=seconds)
        place.crowd.stream(seconds, STREAM, SIZE)
        busy = cpu_seconds(gateway.pid) - start
        fired = generator.read()
        place.crowd.settle()
        after = gateway.ask("stats")
    drops = Counter(after["drops"])
    drops.subtract(before["drops"])
    requests = place.crowd.sent - sent
    return Seen(
        sent=fired,
        received=_grown(before, after, "udp", "received") - _grown(before, after, "tun", "packets_written"),
        busy=busy / seconds,
        drops=drops,
        cpu_each=cpu / max(alone, 1),
        delivered=(place.crowd.answered - answered) / requests,
        grown=resident(gateway.pid) - memory,
        replies=place.tap.packets(),
        longest=place.tap.longest_datagram(),
        seconds=seconds,
    )


def _grown(before: dict[str, Any], after: dict[str, Any], end: str, counter: str) -> int:
    return int(after[end][counter] - before[end][counter])


def _of_the_tunnel(seen: Seen, goal: float) -> list[Check]:
    return [
        note("datagrams", seen.sent / seen.seconds, "a second"),
        note("of them that the gateway received", seen.received / max(seen.sent, 1) * 100, "%"),
        at_least("the tunnel's requests answered", seen.delivered * 100, 90, "%", timed=True),
        note("the gateway's share of a processor meanwhile", seen.busy * 100, "%"),
        at_most("processor time each", seen.cpu_each * 1e6, goal, "us", timed=True),
        at_most("memory grown by", seen.grown / MEGABYTE, 1, "MB", timed=True),
    ]


def garbage(run: Run) -> list[Check]:
    """Fault 1."""
    with under_attack() as place:
        options = {"kind": "garbage", "rate": 100_000 if not run.quick else 5_000}
        seen = flood(place, options, run.pick(10, 0.3))
    return [
        count("replies", seen.replies, 0),
        at_least("refused", sum(seen.drops.values()), 1, timed=False),
        *_of_the_tunnel(seen, goal=2),
    ]


def spoofed_initiations(run: Run) -> list[Check]:
    """Fault 2."""
    with under_attack() as place:
        place.middle.run("ip", "route", "add", "198.18.0.0/15", "via", f"{CABLES[1]}.2")
        options = {"kind": "spoofed initiations", "rate": 100_000 if not run.quick else 2_000}
        seen = flood(place, options, run.pick(10, 0.3))
    processed = seen.drops["INVALID_AEAD_TAG"]
    return [
        # The limit is by whole seconds, of which so many lie in the time.
        at_most("processed without a cookie", processed, 100 * (int(seen.seconds) + 2), timed=False),
        note("that is", processed / seen.seconds, "a second"),
        at_least("cookie replies", seen.drops["COOKIE_REPLY_SENT"], 1, timed=False),
        at_most("longest reply, where 148 came", seen.longest, 148, "bytes", timed=False),
        at_most("replies for each datagram", seen.replies / max(seen.sent, 1), 1, timed=False),
        *_of_the_tunnel(seen, goal=5),
    ]


def one_source_with_cookies(run: Run) -> list[Check]:
    """Fault 3: somebody who can receive cookies, and others who want to connect meanwhile."""
    seconds = run.pick(10, 1)
    others = run.count(40, 3)
    with under_attack(clients=1 + others) as place:
        first, *newcomers = place.crowd.clients
        first.initiate()
        place.crowd.serve_until(lambda: first.established > 0, 10)
        datagrams = _with_cookies(place.attackers)
        options = {
            "kind": "given",
            "rate": 10_000 if not run.quick else 1_000,
            "destination": f"{CABLES[1]}.1",
            "port": parties.PORT,
            "public_key": PUBLIC.to_bytes().hex(),
            "source_port": ATTACKERS_PORT,
            "datagrams": [datagram.hex() for datagram in datagrams],
        }
        with child(place.attackers, "generator", options) as generator:
            start = cpu_seconds(place.gateway.pid)
            alone = generator.ask("flood", seconds=seconds / 4)
            place.crowd.serve(0.2)
            cpu_each = (cpu_seconds(place.gateway.pid) - start) / alone
            before = Counter(place.gateway.ask("stats")["drops"])
            generator.tell("flood", seconds=seconds)
            took = []
            end = time.monotonic() + seconds
            for newcomer in newcomers:
                place.crowd.serve(0.9 * seconds / others if time.monotonic() < end else 0)
                begin = time.monotonic()
                newcomer.initiate()
                place.crowd.serve_until(lambda c=newcomer: c.established > 0, 10)  # type: ignore[misc]
                took.append(time.monotonic() - begin)
            fired = generator.read()
            place.crowd.serve(0.2)
            drops = Counter(place.gateway.ask("stats")["drops"])
            drops.subtract(before)
        connected = sum(newcomer.established > 0 for newcomer in newcomers)
    return [
        at_most("processed", drops["UNKNOWN_PEER"], 5 + 20 * (seconds + 1), timed=False),
        at_least("processed at all", drops["UNKNOWN_PEER"], 1, timed=False),
        at_least("refused", drops["UNDER_LOAD"], 1, timed=False),
        count("others connected", connected, others),
        at_most("slowest of them", max(took), 2, "s", timed=True),
        note("datagrams", fired / seconds, "a second"),
        at_most("processor time each", cpu_each * 1e6, 5, "us", timed=True),
    ]


ATTACKERS_PORT = 4242
STRANGER = 1_000_000


def _with_cookies(place: Namespace) -> list[bytes]:
    """Initiations of a stranger, from ATTACKERS_PORT of this host, that carry a good MAC2."""
    rng = random.Random(3)
    stranger = Tunn(parties.key(STRANGER), PUBLIC, now=0.0, unix_time=time.time(), role=Role.INITIATOR)
    with place.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("", ATTACKERS_PORT))
        made.connect((f"{CABLES[1]}.1", parties.PORT))
        made.settimeout(0.5)
        (first,) = stranger.initiate_handshake(0.0).datagrams
        # So many that cookies are asked for.
        for number in range(150):
            made.send(initiation(PUBLIC.to_bytes(), number, rng))
        made.send(first)
        # Of all the cookie replies, it understands the one to its own message.
        while stranger.decapsulate(made.recv(2048), 0.0).error is not None:
            pass
    time.sleep(1.1)  # the load of a second is forgotten with it
    return _retries(stranger)


def _retries(stranger: Tunn) -> list[bytes]:
    """Its next initiations, as long as they carry the cookie."""
    found = []
    while (timeout := stranger.next_timeout()) is not None and timeout.at < 85:
        found += stranger.handle_timeout(timeout.at).datagrams
    assert all(datagram[132:] != bytes(16) for datagram in found)
    return found


def one_network(run: Run) -> list[Check]:
    """Fault 4: each address of a /64 has a cookie; and so many IPv4 addresses, of which each is a source of its own."""
    addresses = run.count(65_536, 300)

    def network(number: int) -> str:
        return f"2001:db8:5::{number:x}"

    node, datagrams = _prepared(network, addresses)
    for datagram, source in datagrams:
        node.handle_datagrams(datagram, [len(datagram)], [source], 10.0)
    processed = node.stats(10.0).drops[DropReason.UNKNOWN_PEER]

    def anybody(number: int) -> str:
        return socket.inet_ntoa((0x0B00_0000 + number).to_bytes(4, "big"))

    node, datagrams = _prepared(anybody, addresses)
    before = _own_resident()
    for datagram, source in datagrams:
        node.handle_datagrams(datagram, [len(datagram)], [source], 10.0)
    grown = _own_resident() - before
    of_each = node.stats(10.0).drops[DropReason.UNKNOWN_PEER]
    return [
        at_most(f"processed of {addresses:,} addresses of one /64", processed, 5, timed=False),
        count(f"processed of {addresses:,} IPv4 addresses", of_each, addresses),
        at_most("the table of so many sources", grown / MEGABYTE, 8, "MB", timed=True),
    ]


def _prepared(
    address: Callable[[int], str], addresses: int
) -> tuple[Node, list[tuple[bytes, tuple[str, int]]]]:
    """A node that asks everybody for a cookie, and a message with a good one from each address."""
    config = replace(node_config(parties.gateway_config([])), handshake_limit=0)
    node = Node(config, now=0.0, unix_time=1.7e9)
    found = []
    for number in range(addresses):
        source = (address(number), 4000)
        stranger = Tunn(parties.key(STRANGER), PUBLIC, now=0.0, unix_time=1.7e9, role=Role.INITIATOR)
        (first,) = stranger.initiate_handshake(0.0).datagrams
        node.handle_datagrams(first, [len(first)], [source], 0.0)
        ((_, reply),) = node.drain().transmits
        assert stranger.decapsulate(reply, 0.0).error is None
        (second,) = stranger.handle_timeout(6.0).datagrams
        found.append((second, source))
    return node, found


def _own_resident() -> int:
    return resident(os.getpid())
