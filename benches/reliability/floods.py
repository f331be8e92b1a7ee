"""Faults 1 to 4: floods from outside, while a tunnel is in use."""

from __future__ import annotations

import ctypes
import math
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
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
from reliability.places import CABLES, MEGABYTE, Child, Tap, child, cpu_seconds, resident, yard

GATEWAY = (f"{CABLES[0]}.1", parties.PORT)
"""Where the clients find the gateway, on their own cable."""
PUBLIC = parties.key(parties.GATEWAY).public_key()
STREAM = 1000
"""Requests a second that the tunnel carries meanwhile, and as many replies."""
SIZE = 1400


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
class Part:
    """What came of one flood."""

    seconds: float
    sent: int
    """Datagrams that the kernel took from the generator."""
    received: int
    """Those of them that the gateway received."""
    drops: Counter[str]
    cpu: float
    """Seconds of a processor that the gateway needed."""

    def refused(self, reasons: Collection[str]) -> int:
        return sum(self.drops[reason] for reason in reasons)


@dataclass
class Seen:
    """What a flood did."""

    alone: Part
    """What it costs."""
    beside: Part
    """While the tunnel was used."""
    delivered: float
    """Share of the requests of the tunnel that were answered meanwhile."""
    grown: int
    replies: int
    longest: int


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
        fired = generator.ask("flood", seconds=seconds / 2)
        before = all_taken(gateway, place.crowd)
        alone = _part(seconds / 2, fired, first, before, cpu_seconds(gateway.pid) - start)
        memory, sent, answered = resident(gateway.pid), place.crowd.sent, place.crowd.answered
        place.tap.packets()
        start = cpu_seconds(gateway.pid)
        generator.tell("flood", seconds=seconds)
        place.crowd.stream(seconds, STREAM, SIZE)
        busy = cpu_seconds(gateway.pid) - start
        fired = generator.read()
        place.crowd.settle()
        beside = _part(seconds, fired, before, all_taken(gateway, place.crowd), busy)
    return Seen(
        alone=alone,
        beside=beside,
        delivered=(place.crowd.answered - answered) / (place.crowd.sent - sent),
        grown=resident(gateway.pid) - memory,
        replies=place.tap.packets(),
        longest=place.tap.longest_datagram(),
    )


def all_taken(gateway: Child, crowd: Crowd) -> dict[str, Any]:
    """The gateway's counters once nothing more comes: those of a moment agree with each other only then."""
    said: dict[str, Any] = gateway.ask("stats")
    while True:
        crowd.serve(0.1)
        before, said = said, gateway.ask("stats")
        if said["udp"]["received"] == before["udp"]["received"]:
            return said


def _part(seconds: float, sent: int, before: dict[str, Any], after: dict[str, Any], cpu: float) -> Part:
    # Each of the tunnel's own datagrams has a packet in it: nothing is renewed, and nothing kept alive, in this time.
    received = _grown(before, after, "udp", "received") - _grown(before, after, "tun", "packets_written")
    return Part(seconds, sent, received, drops_between(before, after), cpu)


def drops_between(before: dict[str, Any], after: dict[str, Any]) -> Counter[str]:
    drops = Counter(after["drops"])
    drops.subtract(before["drops"])
    return drops


def _grown(before: dict[str, Any], after: dict[str, Any], end: str, counter: str) -> int:
    return int(after[end][counter] - before[end][counter])


def at_the_rate(sent: int, seconds: float, rate: float) -> Check:
    """Whether the generator made the rate of the fault; else what was found holds for the rate that it made."""
    made = sent / seconds
    return Check("the generator made", f"{made:,.0f}/s of {rate:,.0f}", made >= 0.9 * rate, timed=True)


def refused_for(what: str, refused: int, received: int) -> Check:
    """Whether what came was refused, and for what it is."""
    held = received > 0 and 0.999 * received <= refused <= 1.001 * received
    return Check(f"refused as {what}, of those received", f"{refused:,} of {received:,}", held)


def _of_the_flood(seen: Seen, rate: float, least: int, goal: float) -> list[Check]:
    alone, beside = seen.alone, seen.beside
    each = alone.cpu / alone.received * 1e6 if alone.received else math.inf
    return [
        at_the_rate(beside.sent, beside.seconds, rate),
        at_least("datagrams that the gateway received", beside.received, least, timed=False),
        note("that is", beside.received / max(beside.sent, 1) * 100, "%"),
        at_least("the tunnel's requests answered", seen.delivered * 100, 90, "%", timed=True),
        note("the gateway's share of a processor meanwhile", beside.cpu / beside.seconds * 100, "%"),
        at_most(
            f"processor time each, of {alone.received:,} without the tunnel", each, goal, "us", timed=True
        ),
        at_most("memory grown by", seen.grown / MEGABYTE, 1, "MB", timed=True),
    ]


def garbage(run: Run) -> list[Check]:
    """Fault 1."""
    rate = run.count(100_000, 5_000)
    with under_attack() as place:
        seen = flood(place, {"kind": "garbage", "rate": rate}, run.pick(10, 0.5))
    return [
        count("replies", seen.replies, 0),
        refused_for("what no key made", seen.beside.refused(GARBAGE), seen.beside.received),
        *_of_the_flood(seen, rate, least=run.count(10_000, 200), goal=2),
    ]


GARBAGE = ("INVALID_PACKET", "INVALID_MAC", "WRONG_INDEX")
"""What is wrong with the garbage: a header or a length, a MAC1 for nobody, an index that was not given to anybody."""
SPOOFED = ("INVALID_AEAD_TAG", "COOKIE_REPLY_SENT", "UNDER_LOAD")
"""What becomes of initiations of which only MAC1 is right: processed, answered by a cookie, or, where none is left,
neither."""


def spoofed_initiations(run: Run) -> list[Check]:
    """Fault 2."""
    rate = run.count(100_000, 2_000)
    with under_attack() as place:
        place.middle.run("ip", "route", "add", "198.18.0.0/15", "via", f"{CABLES[1]}.2")
        seen = flood(place, {"kind": "spoofed initiations", "rate": rate}, run.pick(10, 0.5))
    beside = seen.beside
    processed = beside.drops["INVALID_AEAD_TAG"]
    in_all = processed + seen.alone.drops["INVALID_AEAD_TAG"]
    return [
        # The limit is by whole seconds, of which so many lie in the time.
        at_most("processed without a cookie", processed, 100 * (int(beside.seconds) + 2), timed=False),
        note("that is", processed / beside.seconds, "a second"),
        at_least("processed at all, here and without the tunnel", in_all, 1, timed=False),
        at_least("cookie replies", beside.drops["COOKIE_REPLY_SENT"], 1, timed=False),
        at_most(
            "cookie replies, 20,000 a second and 1,000 at once",
            beside.drops["COOKIE_REPLY_SENT"],
            # What comes after the last datagram was sent was received then.
            20_000 * (beside.seconds + 1) + 1_000,
            timed=False,
        ),
        at_most("longest reply, where 148 came", seen.longest, 148, "bytes", timed=False),
        at_least("replies", seen.replies, 1, timed=False),
        at_most("replies for each datagram received", seen.replies / max(beside.received, 1), 1, timed=False),
        refused_for("an initiation of nobody", beside.refused(SPOOFED), beside.received),
        *_of_the_flood(seen, rate, least=run.count(10_000, 200), goal=5),
    ]


def one_source_with_cookies(run: Run) -> list[Check]:
    """Fault 3: somebody who can receive cookies, and others who want to connect meanwhile."""
    seconds = run.pick(10, 1)
    others, rate = run.count(40, 3), run.count(10_000, 1_000)
    with under_attack(clients=1 + others) as place:
        first, *newcomers = place.crowd.clients
        first.initiate()
        place.crowd.serve_until(lambda: first.established > 0, 10)
        datagrams = _with_cookies(place.attackers)
        options = {
            "kind": "given",
            "rate": rate,
            "destination": f"{CABLES[1]}.1",
            "port": parties.PORT,
            "public_key": PUBLIC.to_bytes().hex(),
            "source_port": ATTACKERS_PORT,
            "datagrams": [datagram.hex() for datagram in datagrams],
        }
        with child(place.attackers, "generator", options) as generator:
            first_stats, start = place.gateway.ask("stats"), cpu_seconds(place.gateway.pid)
            fired = generator.ask("flood", seconds=seconds / 4)
            before = all_taken(place.gateway, place.crowd)
            alone = _part(seconds / 4, fired, first_stats, before, cpu_seconds(place.gateway.pid) - start)
            others_sent = sum(newcomer.datagrams_sent for newcomer in newcomers)
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
            beside = _part(seconds, fired, before, all_taken(place.gateway, place.crowd), 0.0)
            others_sent = sum(newcomer.datagrams_sent for newcomer in newcomers) - others_sent
        connected = sum(newcomer.established > 0 for newcomer in newcomers)
    received = beside.received - others_sent
    each = alone.cpu / alone.received * 1e6 if alone.received else math.inf
    return [
        at_most("processed", beside.drops["UNKNOWN_PEER"], 5 + 20 * (seconds + 1), timed=False),
        at_least("processed at all", beside.drops["UNKNOWN_PEER"], 1, timed=False),
        at_least("refused", beside.drops["UNDER_LOAD"], 1, timed=False),
        refused_for("a stranger, or too many", beside.refused(("UNKNOWN_PEER", "UNDER_LOAD")), received),
        count("others connected", connected, others),
        at_most("slowest of them", max(took), 2, "s", timed=True),
        at_the_rate(beside.sent, seconds, rate),
        at_least("datagrams that the gateway received", received, run.count(10_000, 200), timed=False),
        at_most(f"processor time each, of {alone.received:,} alone", each, 5, "us", timed=True),
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


_LATER = 20.0
"""When everybody has a cookie, none of which is 120 s old."""


def one_network(run: Run) -> list[Check]:
    """Fault 4: each address of a /64 has a cookie; and so many IPv4 addresses, of which each is a source of its own."""
    addresses = run.count(65_536, 300)
    sources = run.count(65_536, 2_000)

    def network(number: int) -> str:
        return f"2001:db8:5::{number:x}"

    node, datagrams = _prepared(network, addresses)
    for datagram, source in datagrams:
        node.handle_datagrams(datagram, [len(datagram)], [source], _LATER)
    processed = node.stats(_LATER).drops[DropReason.UNKNOWN_PEER]

    def anybody(number: int) -> str:
        return socket.inet_ntoa((0x0B00_0000 + number).to_bytes(4, "big"))

    node, datagrams = _prepared(anybody, sources)
    before = _allocated()
    for datagram, source in datagrams:
        node.handle_datagrams(datagram, [len(datagram)], [source], _LATER)
    after = _allocated()
    of_each = node.stats(_LATER).drops[DropReason.UNKNOWN_PEER]
    return [
        at_most(f"processed of {addresses:,} addresses of one /64", processed, 5, timed=False),
        count(f"processed of {sources:,} IPv4 addresses", of_each, sources),
        _size_of_table(sources, before, after),
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
        # Of 20,000 cookies a second, half.
        now = number / 10_000
        stranger = Tunn(parties.key(STRANGER), PUBLIC, now=now, unix_time=1.7e9, role=Role.INITIATOR)
        (first,) = stranger.initiate_handshake(now).datagrams
        node.handle_datagrams(first, [len(first)], [source], now)
        ((_, reply),) = node.drain().transmits
        assert stranger.decapsulate(reply, now).error is None
        (second,) = stranger.handle_timeout(now + 6.0).datagrams
        found.append((second, source))
    return node, found


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _size_of_table(sources: int, before: int | None, after: int | None) -> Check:
    what = f"the table of {sources:,} sources"
    if before is None or after is None:
        return note(what, "not here: needs glibc 2.33, to know what is allocated")
    grown = after - before
    # 65,536 of them are to have 8 MB. A source is known by 8 bytes and a time of 8: less is no measure of the table.
    held = 16 * sources <= grown <= 8 * MEGABYTE * sources / 65_536
    return Check(what, f"{grown / MEGABYTE:.3g} MB, {grown / sources:.0f} bytes each", held)


def _allocated() -> int | None:
    """Bytes that malloc has given out (mallinfo(3)), if it tells. Resident memory is no measure: freed memory is used
    again."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)
