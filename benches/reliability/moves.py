"""Fault 32: a machine whose default route and addresses change under its interface."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from interop.netns import Namespace
from reliability import parties
from reliability.faults import Check, Run, at_least, at_most, count, note
from reliability.places import CABLES, Child, child, lay_cable, yard

THERE = "10.99.0.1"
"""The gateway's address, on no cable."""
NUMBER = parties.GATEWAY + 1
RATE = 100
"""Requests a second."""
PORT = 9


def changed_addresses(run: Run) -> list[Check]:
    """Fault 32: an interface with two ways to the gateway's; what a program on its machine asks through the tunnel."""
    pause = run.pick(3, 0.6)
    with yard(1) as hosts:
        (moving,) = hosts.others
        lay_cable(hosts.middle, moving, 1)
        hosts.middle.run("ip", "address", "add", f"{THERE}/32", "dev", "lo")
        # The gateway takes from each cable only what belongs there, as most networks do: whoever goes another way from
        # its old address is not heard.
        for cable in ("cable0", "cable1"):
            hosts.middle.run("sysctl", "-qw", f"net.ipv4.conf.{cable}.rp_filter=1")
        _default_route(moving, 0)
        client = {"client": NUMBER, "gateway": (THERE, parties.PORT)}
        with (
            child(hosts.middle, "gateway", {"peers": 1}) as gateway,
            child(moving, "gateway", client) as interface,
            _programs(hosts.middle, moving) as stream,
        ):
            if not stream.run_until_answered(30):
                raise RuntimeError("no session with the gateway")
            before = _handshakes(interface)
            checks = [check for step in _steps(moving) for check in _measure(stream, gateway, pause, *step)]
            return [
                *checks,
                note("requests lost in all", stream.sent - stream.answered),
                count("handshakes besides the first", _handshakes(interface) - before, 0),
            ]


def _steps(moving: Namespace) -> list[tuple[str, Callable[[], None], str]]:
    """What changes, how, and from which address the gateway is to hear of the client then."""

    def another_cable() -> None:
        # The old address stays, and would be sent from.
        _default_route(moving, 1)

    def no_second_cable() -> None:
        moving.run("ip", "address", "delete", f"{CABLES[1]}.2/24", "dev", "cable1")
        _default_route(moving, 0)

    def another_address() -> None:
        moving.run("ip", "address", "delete", f"{CABLES[0]}.2/24", "dev", "cable0")
        moving.run("ip", "address", "add", f"{CABLES[0]}.7/24", "dev", "cable0")
        _default_route(moving, 0)

    return [
        ("default route by the other cable", another_cable, f"{CABLES[1]}.2"),
        ("address of that cable removed", no_second_cable, f"{CABLES[0]}.2"),
        ("another address on the first cable", another_address, f"{CABLES[0]}.7"),
    ]


def _default_route(moving: Namespace, cable: int) -> None:
    moving.run("ip", "route", "replace", "default", "via", f"{CABLES[cable]}.1")


def _measure(
    stream: _Stream, gateway: Child, pause: float, what: str, change: Callable[[], None], address: str
) -> list[Check]:
    stream.run(pause / 3)
    stream.answered_at.clear()
    stream.run(pause / 10)
    change()
    changed = time.monotonic()
    stream.run(pause)
    healed = stream.run_until_answered(30)
    # If there is no answer any more, silence goes on until now.
    times = [*stream.answered_at, time.monotonic()]
    gap = max(later - earlier for earlier, later in itertools.pairwise(times))
    ((seen, _),) = gateway.ask("stats")["endpoints"]
    after = sum(at > changed for at in stream.answered_at)
    return [
        at_most(f"{what}: longest silence", gap, 1, "s", timed=True),
        count(f"{what}: healed", int(healed), 1),
        at_least(f"{what}: answered after it", after, 1, timed=False),
        Check(f"{what}: the gateway hears it from", seen, seen == address),
    ]


def _handshakes(interface: Child) -> int:
    return int(interface.ask("stats")["initiations"])


class _Stream:
    """A program on the moving machine that asks one on the gateway, through the tunnel, and is answered."""

    def __init__(self, asking: socket.socket, answering: socket.socket) -> None:
        self._asking, self._answering = asking, answering
        self.sent = self.answered = 0
        self.answered_at: list[float] = []

    def run(self, seconds: float) -> None:
        begin = time.monotonic()
        turn = 0
        while (passed := time.monotonic() - begin) < seconds:
            if turn < passed * RATE:
                self._ask()
                turn += 1
            self._carry(1 / RATE)

    def run_until_answered(self, patience: float) -> bool:
        """Ask until there is one more answer; whether it came in time."""
        before, end = self.answered, time.monotonic() + patience
        while self.answered == before and time.monotonic() < end:
            self._ask()
            self._carry(1 / RATE)
        return self.answered > before

    def _ask(self) -> None:
        try:
            self._asking.send(bytes(64))
            self.sent += 1
        except BlockingIOError:
            pass

    def _carry(self, seconds: float) -> None:
        """Answer what has come, and take what was answered."""
        for ready in select.select([self._asking, self._answering], [], [], seconds)[0]:
            data, source = ready.recvfrom(100)
            if ready is self._answering:
                ready.sendto(data, source)
            else:
                self.answered += 1
                self.answered_at.append(time.monotonic())


@contextmanager
def _programs(gateway: Namespace, moving: Namespace) -> Iterator[_Stream]:
    with (
        gateway.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as answering,
        moving.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):
        answering.bind((parties.address(parties.GATEWAY), PORT))
        asking.bind((parties.address(NUMBER), 0))
        asking.connect((parties.address(parties.GATEWAY), PORT))
        for each in (answering, asking):
            each.setblocking(False)
        yield _Stream(asking, answering)
