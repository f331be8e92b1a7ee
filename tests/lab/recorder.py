"""Two tunnels that are called by hand, and the records of what they do: a trace without the world."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from connlib import Output, PresharedKey, PrivateKey
from connlib._native import LabTunn
from connlib.lab._records import (
    Address,
    Arrived,
    Changed,
    Delivered,
    Happened,
    Lost,
    Offered,
    Record,
    Sent,
    Woke,
)
from two_tunnels import UNIX_TIME, ipv4

SECOND = 1_000_000_000
LATENCY = SECOND // 50
ORIGIN = 10_000.0
KEYS = sorted(
    (PrivateKey.from_bytes(bytes([n] * 32)) for n in (1, 2)), key=lambda key: key.public_key().to_bytes()
)


@dataclass
class End:
    """A host with its tunnel."""

    name: str
    peer: str
    tunn: LabTunn
    address: Address
    asleep: bool = False
    numbers: list[int] = field(default_factory=list)


class Recorder:
    """Hosts A and B, 20 ms apart; A has the smaller public key. Times are seconds."""

    hosts = ("A", "B")

    def __init__(
        self,
        *,
        keepalive: float | None = None,
        preshared_key: PresharedKey | None = None,
        addresses: tuple[str, str] = ("192.0.2.1", "192.0.2.2"),
    ) -> None:
        self.records: list[Record] = []
        self.now = 0
        self.loses: Callable[[Sent], str | None] = lambda sent: None
        self.copies: Callable[[Sent], int] = lambda sent: 1
        self._todo: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self.a, self.b = (
            End(
                name,
                "BA"[place],
                LabTunn(
                    KEYS[place],
                    KEYS[1 - place].public_key(),
                    now=ORIGIN,
                    unix_time=UNIX_TIME,
                    seed=place,
                    preshared_key=preshared_key,
                    persistent_keepalive=None if place else keepalive,
                ),
                (addresses[place], 51820),
            )
            for place, name in enumerate("AB")
        )

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something at an instant."""
        self._at(round(seconds * SECOND), action)

    def send(self, seconds: float, end: End, size: int = 64) -> None:
        """An application hands a packet over."""
        number = next(self._numbers)

        def send() -> None:
            if not end.asleep:
                output = end.tunn.encapsulate(ipv4(number.to_bytes(size - 20, "big")), self._clock())
                self.records.append(Offered(self.now, end.name, end.peer, number, size, output.error))
                self._take(end, output)

        self.at(seconds, send)

    def sleep(self, seconds: float, end: End, duration: float) -> None:
        """Suspend a machine."""

        def switch(asleep: bool) -> None:
            end.asleep = asleep
            self.records.append(Changed(self.now, end.name, "asleep" if asleep else "awake"))

        self.at(seconds, lambda: switch(True))
        self.at(seconds + duration, lambda: switch(False))

    def cut(self, seconds: float, duration: float) -> None:
        """Let nothing through for a while."""

        def switch(what: str) -> None:
            self.loses = (lambda sent: "partition") if what == "cut" else (lambda sent: None)
            self.records += [Changed(self.now, end.name, what, end.peer) for end in (self.a, self.b)]

        self.at(seconds, lambda: switch("cut"))
        self.at(seconds + duration, lambda: switch("healed"))

    def run(self, until: float) -> Recorder:
        """Let the time pass."""
        last = round(until * SECOND)
        while True:
            wakes = []
            for end in (self.a, self.b):
                timeout = None if end.asleep else end.tunn.next_timeout()
                if timeout is not None:
                    wakes.append((max(round((timeout.at - ORIGIN) * SECOND), self.now), end, timeout))
            wake = min(wakes, key=lambda wake: wake[0], default=None)
            due = min([self._todo[0][0] if self._todo else last + 1, wake[0] if wake else last + 1])
            if due > last:
                self.now = last
                return self
            self.now = due
            if self._todo and self._todo[0][0] == due:
                heapq.heappop(self._todo)[2]()
            elif wake is not None:
                _, end, timeout = wake
                self.records.append(Woke(self.now, end.name, end.peer, timeout.reason))
                self._take(end, end.tunn.handle_timeout(max(timeout.at, self._clock())))

    def _at(self, instant: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._todo, (instant, next(self._order), action))

    def _clock(self) -> float:
        return ORIGIN + self.now / SECOND

    def _take(self, end: End, output: Output, brought_by: int | None = None) -> None:
        for data in output.packets:
            number = int.from_bytes(data[20:], "big")
            self.records.append(Delivered(self.now, end.name, end.peer, number, len(data), brought_by))
        self.records += [Happened(self.now, end.name, end.peer, event) for event in output.events]
        for datagram in output.datagrams:
            self._post(end, datagram)

    def _post(self, end: End, data: bytes) -> None:
        to = self.b if end is self.a else self.a
        kind = "K" if data[0] == 4 and len(data) == 32 else "?IRCD"[data[0]]
        place = 8 if kind == "R" else 4
        index = int.from_bytes(data[place : place + 4], "little")
        number = next(self._numbers)
        sent = Sent(self.now, end.name, end.peer, number, kind, index, end.address, to.address, data)
        why = self.loses(sent)
        copies = 1 if why else self.copies(sent)
        sent = replace(sent, copies=copies)
        self.records.append(sent)
        if why is not None:
            self.records.append(Lost(self.now, end.name, number, why))
            return
        for copy in range(copies):
            self._at(self.now + LATENCY * (copy + 1), lambda: self._arrive(end, to, number, data))

    def _arrive(self, end: End, to: End, number: int, data: bytes) -> None:
        if to.asleep:
            self.records.append(Lost(self.now, end.name, number, "asleep"))
            return
        output = to.tunn.decapsulate(data, self._clock(), end.address)
        self.records.append(Arrived(self.now, to.name, number, end.address, output.error))
        self._take(to, output, number)


def idle_then_send() -> Recorder:
    """A session that expires of idleness, and a packet at 185 s."""
    recorder = Recorder()
    recorder.send(0, recorder.a)
    recorder.send(185, recorder.a)
    return recorder.run(200)


def crossing() -> Recorder:
    """Both sides start at once."""
    recorder = Recorder()
    recorder.send(0, recorder.a)
    recorder.send(0, recorder.b)
    return recorder.run(15)


def long_sleep() -> Recorder:
    """A keepalive of 25 s, and a machine that sleeps for three hours and then sends."""
    recorder = Recorder(keepalive=25)
    recorder.send(1, recorder.a)
    recorder.sleep(60, recorder.a, 10_800)
    recorder.send(10_860, recorder.a)
    return recorder.run(10_900)


def outage() -> Recorder:
    """Packets that are lost, copied and dropped; initiations that are repeated."""
    recorder = Recorder()
    recorder.copies = lambda sent: 2 if sent.kind in "RD" and sent.at < 2 * SECOND else 1
    for n in range(4):
        recorder.send(1 + n / 2, recorder.a)
    recorder.cut(2.2, 30)
    return recorder.run(40)
