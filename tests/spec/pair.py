"""Two tunnels, a line between them, and a clock that the test moves: the ground of the scenarios.

Times are seconds since A's first session was made, as in the scenarios; the engines' clock starts elsewhere.
Every call is made at an instant that a tunnel announced, at which a datagram arrives, or at which the test acts.
`watched` makes other calls in addition, of which nothing may come.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connlib import DropReason, Event, Output, PresharedKey, PrivateKey, Role, TimeoutReason
from connlib._native import LabTunn

ORIGIN = 10_000.0
"""What the engines' clock shows when A's first session is made."""
UNIX_ORIGIN = 1_700_000_000.0
LATENCY = 0.02
NOTHING = Output([], [], [], None)

EITHER_ROLES = (Role.EITHER, Role.EITHER)
ONE_OF_EACH = (Role.INITIATOR, Role.RESPONDER)
BOTH_ROLES = [EITHER_ROLES, ONE_OF_EACH]
"""For the scenarios in which only A initiates."""

# Two private keys whose public keys are known to differ in order: A's public key is the smaller one.
_KEYS = sorted(
    (PrivateKey.from_bytes(bytes([n] * 32)) for n in (1, 2)), key=lambda key: key.public_key().to_bytes()
)
SMALLER, LARGER = _KEYS
Address = tuple[str, int]


class Polling(enum.Enum):
    """When tunnels are called though nothing arrives and nothing is sent."""

    ANNOUNCED = "at the announced instants only"
    IN_ADDITION = "also 1 ms before each of them, and every 10 ms of the first hour"


POLL_INTERVAL, POLLED_FOR, EARLY = 0.01, 3_600.0, 0.001


@dataclass
class _Watch:
    polling: Polling
    pairs: list[Pair] = field(default_factory=list)


_watch: _Watch | None = None


@contextlib.contextmanager
def watched(polling: Polling) -> Iterator[list[Pair]]:
    """Poll the pairs that are made meanwhile like this; they are in the list."""
    global _watch
    outer, _watch = _watch, _Watch(polling)
    try:
        yield _watch.pairs
    finally:
        _watch = outer


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


def sender_index(datagram: bytes) -> bytes:
    """The index that the sender of an initiation or a response wants to read on what it gets."""
    assert datagram[0] in (1, 2)
    return datagram[4:8]


def receiver_index(datagram: bytes) -> bytes:
    """The index on a response, a cookie reply, data or a keepalive: whose session or handshake it is for."""
    assert datagram[0] in (2, 3, 4)
    return datagram[8:12] if datagram[0] == 2 else datagram[4:8]


def mac2(datagram: bytes) -> bytes | None:
    """The last 16 bytes of an initiation or a response, None for zeros: no cookie was there to make it of."""
    assert datagram[0] in (1, 2)
    return datagram[-16:] if any(datagram[-16:]) else None


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
    address: Address | None
    """Where its datagrams come from; None: the other side is not told."""
    polled: bool = True
    sent: list[Sent] = field(default_factory=list)
    received: list[tuple[float, int]] = field(default_factory=list)
    events: list[tuple[float, Event]] = field(default_factory=list)
    errors: list[tuple[float, DropReason]] = field(default_factory=list)
    wakes: list[tuple[float, TimeoutReason]] = field(default_factory=list)

    def times(self, kinds: str, since: float = float("-inf")) -> list[float]:
        """When it sent datagrams of these kinds."""
        return [s.at for s in self.sent if s.kind in kinds and s.at >= since]

    def kinds(self) -> str:
        """What it sent, in order."""
        return "".join(s.kind for s in self.sent)

    def times_to(self, index: bytes) -> list[float]:
        """When it sent data or keepalives to a receiver index, that is, on one session."""
        return [s.at for s in self.sent if s.kind in "DK" and receiver_index(s.datagram) == index]

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


def _state(host: Host) -> tuple[int, int, bool]:
    """What a wake may change without a word, as of the last call."""
    stats = host.tunn.stats(0)
    return stats.sessions, stats.queued, stats.handshake_pending


class Pair:
    """Hosts A and B with a line of 20 ms each way.

    settings: for both engines; for_a, for_b: for one. engine: what makes them.
    """

    a_index: bytes
    """After `connect`: the receiver index of A's session, which B writes on what it sends."""
    b_index: bytes
    """After `connect`: the receiver index of B's session, which A writes on what it sends."""

    def __init__(
        self,
        roles: tuple[Role, Role] = EITHER_ROLES,
        *,
        a_key: PrivateKey = SMALLER,
        b_key: PrivateKey = LARGER,
        b_expects: PrivateKey | None = None,
        psk: tuple[PresharedKey | None, PresharedKey | None] = (None, None),
        keepalive: tuple[float | None, float | None] = (None, None),
        seed: int = 1,
        engine: Callable[..., Any] = LabTunn,
        for_a: Mapping[str, Any] | None = None,
        for_b: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.now = -2 * LATENCY
        self.polling = Polling.ANNOUNCED
        self.polls = 0
        self.log: list[tuple[float, str, Output | TimeoutReason]] = []
        """Everything that either side did, in order."""
        if _watch is not None:
            self.polling = _watch.polling
            _watch.pairs.append(self)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.drop: Callable[[Host, Sent], bool] = lambda host, sent: False
        self.copies: Callable[[Host, Sent], int] = lambda host, sent: 1
        self.delay: Callable[[Host, Sent], float] = lambda host, sent: 0
        expected_by_b = (b_expects or a_key).public_key()
        self.a, self.b = (
            Host(
                name,
                engine(
                    own_key,
                    peer_key,
                    now=self.clock(),
                    unix_time=UNIX_ORIGIN,
                    role=role,
                    preshared_key=key,
                    persistent_keepalive=interval,
                    seed=seed * 2 + place,
                    **settings,
                    **(own_settings or {}),
                ),
                address,
            )
            for place, (name, own_key, peer_key, role, key, interval, own_settings, address) in enumerate(
                zip(
                    "AB",
                    (a_key, b_key),
                    (b_key.public_key(), expected_by_b),
                    roles,
                    psk,
                    keepalive,
                    (for_a, for_b),
                    (("192.0.2.1", 51820), ("192.0.2.2", 51820)),
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
        now = round(self.now, 6)
        if any(output):
            self.log.append((now, host.name, output))
        for datagram in output.datagrams:
            sent = Sent(now, kind_of(datagram), datagram)
            host.sent.append(sent)
            if self.drop(host, sent):
                continue
            for _ in range(self.copies(host, sent)):
                self.deliver(self.now + LATENCY + self.delay(host, sent), self.peer(host), datagram)
        host.received += [(now, number_of(data)) for data in output.packets]
        host.events += [(now, event) for event in output.events]
        if output.error is not None:
            host.errors.append((now, output.error))
        timeout = host.tunn.next_timeout()
        assert timeout is None or timeout.at >= self.clock() - 1e-6, (
            "an instant that has passed was announced"
        )

    def peer(self, host: Host) -> Host:
        """The other one."""
        return self.b if host is self.a else self.a

    def deliver(self, when: float, host: Host, datagram: bytes, source: Address | None = None) -> None:
        """Have a datagram reach a host at an instant, from `source` or from where its peer is now."""
        source = source or self.peer(host).address
        self.at(when, lambda: self.feed(host, host.tunn.decapsulate(datagram, self.clock(), source)))

    def _next_wake(self) -> tuple[float, Host, TimeoutReason] | None:
        first = None
        for host in (self.a, self.b):
            timeout = host.tunn.next_timeout() if host.polled else None
            if timeout is not None and (first is None or timeout.at - ORIGIN < first[0]):
                first = timeout.at - ORIGIN, host, timeout.reason
        return first

    def run(self, until: float, also_every: float | None = None) -> None:
        """Let the time pass. `also_every`: besides the announced instants, poll both hosts this often."""
        polled_until = float("inf")
        if self.polling is Polling.IN_ADDITION:
            also_every, polled_until = POLL_INTERVAL, POLLED_FOR
        poll_at = self.now + also_every if also_every else float("inf")
        while True:
            wake = self._next_wake()
            action_at = self._queue[0][0] if self._queue else float("inf")
            wake_at = wake[0] if wake else float("inf")
            next_at = min(action_at, wake_at, until)
            if also_every:
                poll_at = self._poll(poll_at, also_every, min(next_at, polled_until))
            if next_at == until < min(action_at, wake_at):
                self.now = until
                return
            if self.polling is Polling.IN_ADDITION and next_at == wake_at:
                self._poll(max(self.now, wake_at - EARLY), float("inf"), wake_at)
            self.now = max(self.now, next_at)
            if next_at == action_at:
                heapq.heappop(self._queue)[2]()
            elif wake is not None:
                _, host, reason = wake
                host.wakes.append((round(self.now, 6), reason))
                self.log.append((round(self.now, 6), host.name, reason))
                self._wake(host)

    def _poll(self, at: float, every: float, end: float) -> float:
        """Call both hosts though nothing is due, from `at` on and before `end`. Returns when the next call would be."""
        if at >= end - 1e-6:
            return at
        hosts = [host for host in (self.a, self.b) if host.polled]
        before = [host.tunn.next_timeout() for host in hosts]
        calls = [(host.name, host.tunn.handle_timeout) for host in hosts]
        # An instant of 10 ms that is due at a deadline but for the last bits of a float comes after it.
        while at < end - 1e-6:
            for name, handle_timeout in calls:
                output = handle_timeout(ORIGIN + at)
                assert output == NOTHING, f"{name}, polled at {at} with nothing due: {output}"
            self.polls += 1
            at += every
        after = [host.tunn.next_timeout() for host in hosts]
        assert before == after, f"polls until {end} changed what is announced: {before}, {after}"
        return at

    def _wake(self, host: Host) -> None:
        """Scenario 39: each wake emits something or changes the state, and what is next is later."""
        before, state = host.tunn.next_timeout(), _state(host)
        assert before is not None
        output = host.tunn.handle_timeout(max(before.at, self.clock()))
        self.feed(host, output)
        assert any(output) or _state(host) != state, f"{host.name}: the wake for {before} did nothing"
        after = host.tunn.next_timeout()
        assert after is None or after.at > before.at, f"{host.name}: after {before} comes {after}"

    def lose(self, kinds: str, count: int = 10**9) -> list[Sent]:
        """The next `count` datagrams of these kinds do not arrive; they are in the list."""
        lost: list[Sent] = []

        def drop(host: Host, sent: Sent) -> bool:
            if sent.kind not in kinds or len(lost) == count:
                return False
            lost.append(sent)
            return True

        self.drop = drop
        return lost

    def connect(self) -> Pair:
        """One handshake, by A, whose session is made now, at 0; what was seen is forgotten. B confirms 20 ms later."""
        self.initiate(-2 * LATENCY, self.a)
        self.run(0)
        assert self.a.tunn.stats(self.clock()).sessions == 1
        assert self.b.tunn.stats(self.clock()).sessions == 1
        (initiation, keepalive) = self.a.sent
        self.a_index, self.b_index = sender_index(initiation.datagram), receiver_index(keepalive.datagram)
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


def first_difference(first: Sequence[Pair], second: Sequence[Pair]) -> str | None:
    """Where two runs part; None if they do not."""
    for one, other in zip(first, second, strict=True):
        for earlier, later in zip(one.log, other.log):  # noqa: B905 - the lengths are compared below
            if earlier != later:
                return f"in the first run: {earlier}; in the second: {later}"
        if len(one.log) != len(other.log):
            return f"in the first run {len(one.log)} entries; in the second {len(other.log)}"
    return None
