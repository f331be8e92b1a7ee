"""The forty scenarios of docs/engine.md, as scripts for two hosts that run any engine.

Times are seconds since A's first session was made, or since the start where there is none yet. tests/spec tests when
the patched engine does what; here the same scripts run on every engine, to be counted and compared.

How the numbers that are asked come about where docs/engine.md does not say them: B makes its session one latency before
A and sends on it one latency after A, at 0.02 s, or at 0.06 s where the handshake begins at 0; it ends at 179.98 s. An
old session costs its side one wake, unless a call comes at that instant. A keepalive that confirms a session is needed
where no data waits, and optional where some does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from connlib._native import PresharedKey, PrivateKey
from connlib._types import Role
from connlib.lab._engines import Engine, derived
from connlib.lab._host import Host
from connlib.lab._links import Link
from connlib.lab._records import Sent
from connlib.lab._world import World

LATENCY = 0.02
BASE = 1.0
"""The world's time at the script's zero."""
_HOUR, _DAY = 3600.0, 86_400.0


class Stage:
    """What a script plays on: hosts `a` and `b` of a `world`, their `link` of 20 ms each way, and the script's clock.

    A has the smaller public key: where initiations cross, it is A that answers.

        def play(stage: Stage) -> None:
            stage.send(stage.a, 0.0, 100.0)
            stage.link.cut(at=stage.at(50.0))

        compared = compare(Scenario(0, "the path dies", play, until=200.0))
    """

    def __init__(self, engines: tuple[Engine, Engine], seed: int, scenario: Scenario) -> None:
        self.world = World(seed)
        keys = sorted(
            (PrivateKey.from_bytes(derived(seed, "scenario", name)) for name in "AB"),
            key=lambda key: key.public_key().to_bytes(),
        )
        self.a, self.b = (
            self.world.host(
                name,
                engine=engine,
                private_key=key,
                role=role if engine == "patched" else Role.EITHER,
            )
            for name, engine, key, role in zip("AB", engines, keys, scenario.roles, strict=True)
        )
        self.link: Link = self.world.link(self.a, self.b).set(latency=LATENCY)
        self.world.tunnel(
            self.a, self.b, preshared_key=scenario.preshared_keys, keepalive=scenario.keepalives
        )
        if scenario.connected:
            self.a.initiate_handshake(at=BASE - 2 * LATENCY)

    def send(self, host: Host, *times: float) -> None:
        """Have a host send packets."""
        for time in times:
            host.send(at=self.at(time))

    def at(self, time: float) -> float:
        """The world's time of an instant of the script."""
        return time + BASE

    def do(self, time: float, action: Callable[[], object]) -> None:
        """Do something."""
        self.world.at(self.at(time), action)

    def lose(self, loses: Callable[[Sent], bool], since: float = 0.0, until: float | None = None) -> None:
        """Lose what this names, both ways."""
        self.link.lose(loses, at=self.at(since))
        if until is not None:
            self.link.lose(None, at=self.at(until))

    def every(self, host: Host, interval: float, since: float, until: float) -> None:
        """Have a host send at intervals."""
        peer = self.b if host is self.a else self.a
        self.world.traffic(host, peer, every=interval, since=self.at(since), until=self.at(until))


Count: TypeAlias = int | tuple[int, int] | None
"""How many: a number, from one to another inclusive, or nothing is asked."""
Seconds: TypeAlias = float | tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the paper, or where it leaves room docs/engine.md, asks of both sides together: what `Measure` measures."""

    initiations: Count = None
    keepalives: Count = None
    undelivered: Count = None
    wakes: Count = None
    """Of engines that are called when they want it, not polled."""
    without_session: Seconds = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One script."""

    number: int
    title: str
    play: Callable[[Stage], None]
    until: float
    """When it ends."""
    asked: Asked = Asked()
    connected: bool = True
    """Whether A has made a session at 0."""
    keepalives: tuple[float | None, float | None] = (None, None)
    preshared_keys: tuple[PresharedKey | None, PresharedKey | None] = (None, None)
    roles: tuple[Role, Role] = (Role.EITHER, Role.EITHER)
    """Of patched engines; upstream has none."""
    needs_patched: str | None = None
    """Why upstream cannot run it, on either side."""

    def stage(self, engines: tuple[Engine, Engine] = ("patched", "patched"), *, seed: int = 1) -> Stage:
        """Set it up: nothing has happened yet, and all of the script is scheduled."""
        stage = Stage(engines, seed, self)
        self.play(stage)
        return stage

    def run(self, engines: tuple[Engine, Engine] = ("patched", "patched"), *, seed: int = 1) -> World:
        """Play it. Upstream engines draw their own randomness: their runs differ a little."""
        stage = self.stage(engines, seed=seed)
        stage.world.run(stage.at(self.until))
        return stage.world


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A scenario that two hosts and a link cannot show."""

    number: int
    title: str
    why: str


def _nothing(stage: Stage) -> None:
    del stage


def _sends(host: str, *times: float) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.send(stage.a if host == "A" else stage.b, *times)

    return play


def _unpolled(stage: Stage) -> None:
    stage.do(0.1, lambda: _poll(stage, False))
    stage.send(stage.b, 200.0)
    stage.do(200.0, lambda: _poll(stage, True))


def _poll(stage: Stage, polled: bool) -> None:
    stage.a.is_polled = stage.b.is_polled = polled


def _one_way(stage: Stage) -> None:
    stage.every(stage.a, 0.7, 0.0, 157 * 0.7 + 0.01)


def _cut_and_send(stage: Stage) -> None:
    stage.link.cut(at=stage.at(1.0))
    stage.send(stage.a, *range(1, 7))


def _answer(stage: Stage) -> None:
    stage.send(stage.b, 60.0)
    stage.send(stage.a, 61.0 + LATENCY)


def _duplex(stage: Stage) -> None:
    stage.every(stage.a, 0.1, 0.0, _HOUR - 0.05)
    stage.every(stage.b, 0.1, 0.05, _HOUR)


def _unanswered(*times: float) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.link.cut(at=stage.at(0.0))
        stage.send(stage.a, *times)

    return play


def _failed_renewal(stage: Stage) -> None:
    stage.lose(lambda sent: sent.kind in "IR", 29.0)
    stage.a.initiate_handshake(at=stage.at(30.0))
    stage.every(stage.a, 5.0, 31.0, 168.0)
    stage.every(stage.b, 5.0, 33.0, 178.0)


def _first_lost(kind: str) -> Callable[[Stage], None]:
    def play(stage: Stage) -> None:
        stage.lose(lambda sent: sent.kind == kind, 0.0, 4.0)
        stage.send(stage.a, 0.0)

    return play


def _many_responses_lost(stage: Stage) -> None:
    stage.lose(lambda sent: sent.kind == "R", 1.0)
    stage.a.initiate_handshake(at=stage.at(5.0))
    stage.every(stage.b, 1.0, 6.0, 90.0)


def _late_response(stage: Stage) -> None:
    # On its way for six seconds: the second initiation has left by then, and the second response comes after it.
    stage.link.set(to=stage.a, latency=6.0)
    stage.send(stage.a, 0.0)
    stage.do(1.0, lambda: stage.link.set(to=stage.a, latency=1.0))


def _crossing(stage: Stage) -> None:
    stage.send(stage.a, 0.0)
    stage.send(stage.b, 0.0)
    stage.send(stage.a, 130.0)
    stage.send(stage.b, 130.1)


def _unconfirmed(stage: Stage) -> None:
    stage.a.initiate_handshake(at=stage.at(0.0))
    stage.lose(lambda sent: sent.host == "A" and sent.kind == "K", 0.0, 1.0)
    stage.send(stage.b, 0.03, 0.031, 0.032)
    stage.send(stage.a, 2.0)


def _copies(stage: Stage) -> None:
    stage.link.set(duplicate=1.0)
    stage.every(stage.a, 5.0, 1.0, 300.0)
    stage.every(stage.b, 7.0, 2.0, 300.0)


def _shuffled(stage: Stage) -> None:
    # 4,000 packets in a second, each up to 900 ms late: 3,600 behind at most, within a window of 8,192, not of 1,024.
    stage.do(0.9, lambda: stage.link.set(reorder=0.9))
    stage.every(stage.a, 0.000_25, 1.0, 2.0)


def _bad_path(stage: Stage) -> None:
    stage.link.set(loss=0.2, reorder=0.05, duplicate=0.1)
    stage.every(stage.a, 0.5, 0.1, _HOUR)
    stage.every(stage.b, 0.5, 0.3, _HOUR)
    stage.do(_HOUR, lambda: stage.link.set(loss=0.0, reorder=0.0, duplicate=0.0))
    stage.every(stage.a, 0.5, _HOUR + 16.0, _HOUR + 60.0)


def _moves(stage: Stage) -> None:
    stage.a.move(("203.0.113.9", 51820), at=stage.at(30.0))
    stage.send(stage.a, 31.0)
    stage.send(stage.b, 32.0)


def _keepalive_on(stage: Stage) -> None:
    stage.a.set_persistent_keepalive(25.0, at=stage.at(50.0))
    stage.send(stage.a, 80.0)
    stage.a.set_persistent_keepalive(None, at=stage.at(130.0))


def _sleeps(stage: Stage) -> None:
    stage.a.sleep(3 * _HOUR, at=stage.at(60.0))
    stage.send(stage.a, 60.0 + 3 * _HOUR)
    stage.a.step_clock(-10.0, at=stage.at(61.0 + 3 * _HOUR))
    stage.send(stage.a, 400.0 + 3 * _HOUR)


_ONE_KEY = PresharedKey.from_bytes(bytes([7] * 32))
_OTHER_KEY = PresharedKey.from_bytes(bytes([8] * 32))

SCENARIOS: tuple[Scenario | Elsewhere, ...] = (
    Scenario(1, "fresh, one packet", _sends("A", 0.0), 10.0, Asked(1, (0, 1), 0, 0, 0.06), connected=False),
    Scenario(2, "idle 185 s, then a packet", _sends("A", 185.0), 190.0, Asked(1, (0, 1), 0, 2, 5.1)),
    Scenario(3, "a packet at 169.9 s", _sends("A", 169.9), 175.0, Asked(1, 1, 0, 0, 0.02)),
    Scenario(4, "a packet at 170 s", _sends("A", 170.0), 175.0, Asked(1, (0, 1), 0, 0, 0.02)),
    Scenario(5, "the responder sends at 179.9 s", _sends("B", 179.9), 185.0, Asked(1, 1, 0, (1, 2), 0.02)),
    Scenario(6, "nothing, past 180 s", _nothing, 200.0, Asked(0, 0, 0, 2, 20.04)),
    Scenario(
        7,
        "unpolled until 200 s, then the responder sends",
        _unpolled,
        205.0,
        Asked(1, (0, 1), 0, (1, 2), 20.1),
    ),
    Scenario(8, "24 idle hours", _nothing, _DAY, Asked(0, 0, 0, 2, _DAY - 179.96)),
    Scenario(9, "one packet without an answer", _sends("A", 1.0), 60.0, Asked(0, 1, 0, 1, 0.02)),
    Scenario(10, "one way, a packet each 0.7 s", _one_way, 118.0, Asked(0, 11, 0, 11, 0.02)),
    Scenario(11, "the path dies, six packets", _cut_and_send, 17.0, Asked(1, 0, 6, 1, 0.02)),
    Scenario(12, "quiet for 60 s, then a question and an answer", _answer, 100.0, Asked(0, 1, 0, 1, 0.02)),
    Scenario(13, "a packet, then 600 idle seconds", _sends("A", 1.0), 600.0, Asked(0, 1, 0, 3, 420.04)),
    Scenario(14, "packets at 119 s and 121 s", _sends("A", 119.0, 121.0), 130.0, Asked(1, 1, 0, 0, 0.02)),
    Scenario(
        15, "an hour both ways, ten packets a second", _duplex, _HOUR + 5.0, Asked(29, 29, 0, (0, 58), 0.02)
    ),
    Scenario(16, "the responder sends at 165.98 s", _sends("B", 165.98), 170.0, Asked(1, 1, 0, 0, 0.02)),
    Scenario(
        17,
        "fresh, the path is dead",
        _unanswered(0.0),
        200.0,
        Asked((17, 18), 0, 1, (17, 18), 200.0),
        connected=False,
    ),
    Scenario(
        18,
        "the same, another packet at 80 s",
        _unanswered(0.0, 80.0),
        250.0,
        Asked((32, 34), 0, 2, (32, 34), 250.0),
        connected=False,
    ),
    Scenario(
        19, "handshakes are lost from 29 s on", _failed_renewal, 179.0, Asked((28, 30), 0, 0, (27, 29), 0.02)
    ),
    Scenario(
        20,
        "the first initiation is lost",
        _first_lost("I"),
        10.0,
        Asked(2, (0, 1), 0, 1, (5.06, 5.393)),
        connected=False,
    ),
    Scenario(
        21,
        "the first response is lost",
        _first_lost("R"),
        10.0,
        Asked(2, (0, 1), 0, 1, (5.06, 5.393)),
        connected=False,
    ),
    Scenario(
        22,
        "all responses are lost for 90 s",
        _many_responses_lost,
        95.0,
        Asked((17, 18), 0, 0, (17, 18), 0.02),
    ),
    Scenario(
        23,
        "the response comes after the retry",
        _late_response,
        12.0,
        Asked(2, (1, 2), (0, 1), 1, (6.04, 6.373)),
        connected=False,
    ),
    Scenario(24, "both initiate at once", _crossing, 140.0, Asked(3, 2, 0, 1, (0.06, 0.08)), connected=False),
    Scenario(
        25,
        "fresh, 300 packets",
        _sends("A", *(0.0 for _ in range(300))),
        9.0,
        Asked(1, (0, 1), 44, 0, 0.06),
        connected=False,
    ),
    Scenario(
        26,
        "the responder queues before the confirmation",
        _unconfirmed,
        4.0,
        Asked(1, 1, 0, 0, 2.02),
        connected=False,
    ),
    Scenario(
        27,
        "different preshared keys",
        _sends("A", 0.0),
        100.0,
        Asked((17, 18), 0, 1, (17, 18), 100.0),
        connected=False,
        preshared_keys=(_ONE_KEY, _OTHER_KEY),
    ),
    Elsewhere(28, "a static key that is not the peer's", "a world knows whose each datagram is"),
    Elsewhere(
        29,
        "under load from the first initiation on",
        "a world has no limit to set",
    ),
    Elsewhere(30, "eleven initiations in a second", "eleven clients of one node, which upstream has none of"),
    Elsewhere(31, "a cookie of 120 s", "a world has no limit to set"),
    Elsewhere(32, "receiver indices over 600 renewals", "a property of a node's index table"),
    Scenario(33, "everything arrives twice", _copies, 305.0, Asked(2, 2, 0, 4, 0.02)),
    Scenario(34, "4,000 packets, shuffled", _shuffled, 9.0, Asked(0, 0, 0, 0, 0.02)),
    Scenario(35, "an hour of loss, copies and disorder", _bad_path, _HOUR + 70.0),
    Scenario(36, "the initiator moves", _moves, 40.0, Asked(0, 0, 0, 0, 0.02)),
    Scenario(
        37,
        "a keepalive is switched on and off",
        _keepalive_on,
        170.0,
        Asked(0, 4, 0, 3, 0.02),
        needs_patched="upstream's keepalive is set for life",
    ),
    Scenario(
        38,
        "three hours of sleep, and a clock that is set",
        _sleeps,
        410.0 + 3 * _HOUR,
        Asked(2, (1, 3), 0, 4, 10_840.14),
    ),
    Elsewhere(39, "woken at the announced instants only", "how all of these run; upstream announces none"),
    Scenario(
        40,
        "a day with a keepalive of 25 s",
        _nothing,
        _DAY,
        Asked(690, 4144, 0, 4834, 0.0),
        keepalives=(25.0, None),
    ),
)
"""All forty, in order."""
