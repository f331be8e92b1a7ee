"""Two tunnels, a line between them, and a clock that the test moves: the ground of the scenarios.

Times are seconds since A's first session was made, as in the scenarios; the engines' clock starts elsewhere.
Every call is made at an instant that a tunnel announced, at which a datagram arrives, or at which the test acts.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from connlib import DropReason, Event, Output, PresharedKey, PrivateKey, Role, TimeoutReason
from connlib._native import LabTunn

ORIGIN = 10_000.0
"""What the engines' clock shows when A's first session is made."""
UNIX_ORIGIN = 1_700_000_000.0
LATENCY = 0.02

BOTH_ROLES = [(Role.EITHER, Role.EITHER), (Role.INITIATOR, Role.RESPONDER)]
"""For the scenarios in which only A initiates."""

# Two private keys whose public keys are known to differ in order: A's public key is the smaller one.
_KEYS = sorted(
    (PrivateKey.from_bytes(bytes([n] * 32)) for n in (1, 2)), key=lambda key: key.public_key().to_bytes()
)
SMALLER, LARGER = _KEYS


def kind_of(datagram: bytes) -> str:
    """I, R, C, D or K for the five things that are sent."""
    if datagram[0] == 4:
        return "K" if len(datagram) == 32 else "D"
    return {1: "I", 2: "R", 3: "C"}[datagram[0]]


def packet(number: int, length: int = 64) -> bytes:
    """An IPv4 packet that carries `number`."""
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, b"\x0a\0\0\x01", b"\x0a\0\0\x02")
    return header + struct.pack(">I", number) + bytes(length - 24)


def number_of(data: bytes) -> int:
    """The number in a packet."""
    return int(struct.unpack(">I", data[20:24])[0])


@dataclass
class Sent:
    """A datagram that a host sent."""

    at: float
    kind: str
    datagram: bytes


@dataclass
class Host:
    """One end: its tunnel and what it has seen."""

    name: str
    tunn: LabTunn
    polled: bool = True
    sent: list[Sent] = field(default_factory=list)
    received: list[tuple[float, int]] = field(default_factory=list)
    events: list[tuple[float, Event]] = field(default_factory=list)
    errors: list[tuple[float, DropReason]] = field(default_factory=list)
    wakes: list[tuple[float, TimeoutReason]] = field(default_factory=list)

    def times(self, kinds: str, since: float = float("-inf")) -> list[float]:
        """When it sent datagrams of these kinds."""
        return [s.at for s in self.sent if s.kind in kinds and s.at >= since]

    def numbers(self) -> list[int]:
        """The packets that reached it, in order."""
        return [number for _, number in self.received]

    def happened(self, kind: type) -> list[float]:
        """When events of this class happened."""
        return [at for at, event in self.events if isinstance(event, kind)]

    def forget(self) -> None:
        """Clear what was seen so far."""
        for seen in (self.sent, self.received, self.events, self.errors, self.wakes):
            seen.clear()


class Pair:
    """Hosts A and B with a line of 20 ms each way."""

    def __init__(
        self,
        roles: tuple[Role, Role] = (Role.EITHER, Role.EITHER),
        *,
        a_key: PrivateKey = SMALLER,
        b_key: PrivateKey = LARGER,
        b_expects: PrivateKey | None = None,
        psk: tuple[PresharedKey | None, PresharedKey | None] = (None, None),
        keepalive: tuple[float | None, float | None] = (None, None),
        seed: int = 1,
        **settings: Any,
    ) -> None:
        self.now = -2 * LATENCY
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.drop: Callable[[Host, Sent], bool] = lambda host, sent: False
        self.copies: Callable[[Host, Sent], int] = lambda host, sent: 1
        expected_by_b = (b_expects or a_key).public_key()
        self.a, self.b = (
            Host(
                name,
                LabTunn(
                    own_key,
                    peer_key,
                    now=self.clock(),
                    unix_time=UNIX_ORIGIN,
                    role=role,
                    preshared_key=key,
                    persistent_keepalive=interval,
                    seed=seed * 2 + place,
                    **settings,
                ),
            )
            for place, (name, own_key, peer_key, role, key, interval) in enumerate(
                zip(
                    "AB",
                    (a_key, b_key),
                    (b_key.public_key(), expected_by_b),
                    roles,
                    psk,
                    keepalive,
                    strict=True,
                )
            )
        )

    def clock(self) -> float:
        """What the engines' clock shows."""
        return ORIGIN + self.now

    def at(self, when: float, action: Callable[[], Any]) -> None:
        """Do something at an instant."""
        heapq.heappush(self._queue, (when, next(self._order), action))

    def send(self, when: float, host: Host, number: int) -> None:
        """Have a host send packet `number` at an instant."""
        self.at(when, lambda: self.feed(host, host.tunn.encapsulate(packet(number), self.clock())))

    def initiate(self, when: float, host: Host) -> None:
        """Force a handshake at an instant."""
        self.at(when, lambda: self.feed(host, host.tunn.initiate_handshake(self.clock())))

    def feed(self, host: Host, output: Output) -> None:
        """Take what a call caused: datagrams travel, the rest is written down."""
        peer = self.b if host is self.a else self.a
        for datagram in output.datagrams:
            sent = Sent(round(self.now, 6), kind_of(datagram), datagram)
            host.sent.append(sent)
            if self.drop(host, sent):
                continue
            for _ in range(self.copies(host, sent)):
                self.deliver(self.now + LATENCY, peer, datagram)
        host.received += [(round(self.now, 6), number_of(data)) for data in output.packets]
        host.events += [(round(self.now, 6), event) for event in output.events]
        if output.error is not None:
            host.errors.append((round(self.now, 6), output.error))
        timeout = host.tunn.next_timeout()
        assert timeout is None or timeout.at >= self.clock() - 1e-6, (
            "an instant that has passed was announced"
        )

    def deliver(self, when: float, host: Host, datagram: bytes) -> None:
        """Have a datagram reach a host at an instant."""
        source = ("192.0.2.1", 51820) if host is self.b else ("192.0.2.2", 51820)
        self.at(when, lambda: self.feed(host, host.tunn.decapsulate(datagram, self.clock(), source)))

    def _next_wake(self) -> tuple[float, Host, TimeoutReason] | None:
        wakes = []
        for host in (self.a, self.b):
            timeout = host.tunn.next_timeout()
            if timeout is not None and host.polled:
                wakes.append((timeout.at - ORIGIN, host, timeout.reason))
        return min(wakes, key=lambda wake: wake[0], default=None)

    def run(self, until: float, also_every: float | None = None) -> None:
        """Let the time pass. `also_every`: besides the announced instants, poll both hosts this often."""
        poll_at = self.now + also_every if also_every else float("inf")
        while True:
            wake = self._next_wake()
            action_at = self._queue[0][0] if self._queue else float("inf")
            wake_at = wake[0] if wake else float("inf")
            next_at = min(action_at, wake_at, poll_at)
            if next_at > until:
                self.now = until
                return
            self.now = max(self.now, next_at)
            if next_at == action_at:
                heapq.heappop(self._queue)[2]()
            elif wake is not None and next_at == wake_at:
                _, host, reason = wake
                host.wakes.append((round(self.now, 6), reason))
                before = host.tunn.next_timeout()
                output = host.tunn.handle_timeout(max(before.at if before else 0, self.clock()))
                self.feed(host, output)
                self._check_wake(host, before, output)
            else:
                poll_at += also_every or 0
                for host in (self.a, self.b):
                    self.feed(host, host.tunn.handle_timeout(self.clock()))

    def _check_wake(self, host: Host, before: Any, output: Output) -> None:
        """Scenario 39: each wake emits something or changes what is next, and what is next is later."""
        after = host.tunn.next_timeout()
        assert after != before, f"{host.name}: the wake for {before} did nothing"
        assert after is None or after.at > before.at or after.reason != before.reason

    def connect(self) -> Pair:
        """One handshake, by A, whose session is made now, at 0; what was seen is forgotten. B confirms 20 ms later."""
        self.initiate(-2 * LATENCY, self.a)
        self.run(0)
        assert self.a.tunn.stats(self.clock()).sessions == 1
        assert self.b.tunn.stats(self.clock()).sessions == 1
        self.a.forget()
        self.b.forget()
        return self

    def cut(self, when: float) -> None:
        """From an instant on nothing arrives."""

        def cut() -> None:
            self.drop = lambda host, sent: True

        self.at(when, cut)

    def heal(self, when: float) -> None:
        """From an instant on everything arrives again."""

        def heal() -> None:
            self.drop = lambda host, sent: False

        self.at(when, heal)
