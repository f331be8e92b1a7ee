"""Two or three hosts, all roles and faults, random traffic and sleeps: what must always hold, and that it always heals.

`make soak` runs 100,000 examples; `make test` a few hundred. A failing example ends with a script that repeats it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from connlib import Limits, PresharedKey, Role, Timers
from connlib.lab import Host, World
from lab.invariants import Invariants

EXAMPLES = int(os.environ.get("CONNLIB_SOAK_EXAMPLES", "200"))
LATENCY = 0.02

# Around the limits of the paper, and anything else.
PAUSES = st.sampled_from(
    (
        0.001,
        0.02,
        0.021,
        0.04,
        1,
        5,
        5.4,
        9.99,
        10,
        15,
        15.4,
        25,
        60,
        90,
        119.99,
        120,
        164.99,
        165,
        170,
        179.98,
        180,
        185,
    )
) | st.floats(0.001, 400.0)
SLEEPS = st.sampled_from([1.0, 10.0, 60.0, 100.0, 180.0, 200.0, 600.0, 3 * 3600.0, 86_400.0])
NAMES = ("a", "b", "c")
# The paper's; for a path that fails over in seconds; and with renewals by count, and a short queue.
SETTINGS = st.sampled_from(
    [
        "",
        "",
        "timers=Timers(rekey_timeout=2, rekey_attempt_time=20, keepalive_timeout=3, rekey_after_time=30, "
        "reject_after_time=50)",
        "limits=Limits(rekey_after_messages=50, queue_packets=16)",
    ]
)
PREAMBLE = """from connlib import Limits, PresharedKey, Role, Timers
from connlib.lab import World

world = World({seed})
"""


class Experiment:
    """A world that is driven by lines of Python, which are kept: together they are a script that repeats it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "Limits": Limits,
            "PresharedKey": PresharedKey,
            "Role": Role,
            "Timers": Timers,
            "world": World(seed),
        }
        self.world: World = self.names["world"]
        self.invariants = Invariants(self.world)

    def do(self, line: str) -> None:
        self.lines.append(line)
        exec(line, self.names)

    def script(self) -> str:
        return PREAMBLE.format(seed=self.seed) + "\n".join(self.lines) + "\nprint(world.trace.counts())\n"

    def repeated(self, *, polls: bool) -> World:
        """The same again, perhaps with calls beside the announced ones: 1 ms before each, and fifty others."""
        again = Experiment(self.seed)
        for line in self.lines:
            again.do(line)
            # Before it has tunnels: what is set later would change the order within an instant.
            if polls and " = world.host(" in line:
                for host in again.world.hosts.values():
                    host.poll_early = 0.001
                    host.poll_every = max(0.01, self.world.now / 50 * 1.01)
        return again.world


def can_have_a_session(one: Role, other: Role) -> bool:
    roles = {one, other}
    return roles != {Role.INITIATOR} and roles != {Role.RESPONDER}


class Machine(RuleBasedStateMachine):
    """Rules are what users, machines and networks do; between them everything must hold."""

    @initialize(
        seed=st.integers(0, 2**32),
        count=st.integers(2, 3),
        roles=st.lists(st.sampled_from(Role), min_size=3, max_size=3),
        keepalives=st.lists(st.sampled_from([None, None, 25.0]), min_size=4, max_size=4),
        behind_nat=st.booleans(),
        settings=SETTINGS,
        long_days=st.sampled_from([False] * 7 + [True]),
    )
    def begin(
        self,
        seed: int,
        count: int,
        roles: list[Role],
        keepalives: list[float | None],
        behind_nat: bool,
        settings: str = "",
        long_days: bool = False,
    ) -> None:
        self.experiment = Experiment(seed)
        self.world = self.experiment.world
        self.hosts = NAMES[:count]
        self.roles = dict(zip(NAMES, roles, strict=True))
        # b is the peer of all the others.
        self.pairs = [(name, "b") for name in self.hosts if name != "b"]
        for name in self.hosts:
            self.do(f"{name} = world.host({', '.join((repr(name), f'role={self.roles[name]}', settings))})")
        # Nobody else knows where it is then: it must be one that may begin, and its peer one that answers.
        can_move = self.roles["a"] is not Role.RESPONDER and self.roles["b"] is not Role.INITIATOR
        self.nat, self.moves = can_move and behind_nat, can_move and not behind_nat
        self.was_unpolled = False
        if self.nat:
            self.do("nat = world.nat('nat', a, timeout=60)")
        for number, (one, other) in enumerate(self.pairs):
            self.do(f"{one}{other} = world.link({one}, {other})")
            interval = keepalives[2 * number], keepalives[2 * number + 1]
            self.do(f"world.tunnel({one}, {other}, keepalive={interval})")
        self.asleep_until = 0.0
        # Once a keepalive was on, a day is thousands of packets.
        self.longest_sleep = 86_400.0 if long_days else 600.0
        self.keeps = any(keepalives)
        self.sleep_left = 86_400.0

    def do(self, line: str) -> None:
        try:
            self.experiment.do(line)
            self.experiment.invariants.check()
        except BaseException as error:
            self.explain(error)
            raise

    def explain(self, error: BaseException) -> None:
        text = f"\nThis repeats it:\n\n{self.experiment.script()}"
        error.args = (f"{error.args[0] if error.args else ''}{text}", *error.args[1:])

    def host(self, name: str) -> Host:
        host: Host = self.experiment.names[name]
        return host

    def pick(self, number: int) -> tuple[str, str]:
        """One of the directions in which packets go."""
        ways = [way for one, other in self.pairs for way in ((one, other), (other, one))]
        return ways[number % len(ways)]

    @rule(way=st.integers(0, 3), count=st.integers(1, 3), size=st.sampled_from([32, 64, 1420]))
    def send(self, way: int, count: int, size: int) -> None:
        sender, receiver = self.pick(way)
        for _ in range(count):
            self.do(f"{sender}.send({receiver}, size={size})")

    @rule(way=st.integers(0, 3), every=st.sampled_from([0.5, 3.0, 20.0]), count=st.integers(1, 40))
    def keep_sending(self, way: int, every: float, count: int) -> None:
        sender, receiver = self.pick(way)
        self.do(f"world.traffic({sender}, {receiver}, every={every}, count={count}, random_intervals=True)")

    @rule(way=st.integers(0, 3), count=st.sampled_from([20, 60, 300]))
    def burst(self, way: int, count: int) -> None:
        sender, receiver = self.pick(way)
        self.do(f"for _ in range({count}): {sender}.send({receiver})")

    @rule(way=st.integers(0, 3))
    def initiate(self, way: int) -> None:
        sender, receiver = self.pick(way)
        self.do(f"{sender}.initiate_handshake({receiver})")

    @rule(seconds=PAUSES)
    def wait(self, seconds: float) -> None:
        self.do(f"world.run(world.now + {seconds!r})")

    @rule(pair=st.integers(0, 1), to=st.sampled_from([None, 0, 1]))
    def cut(self, pair: int, to: int | None) -> None:
        names = self.pairs[pair % len(self.pairs)]
        self.do(f"{''.join(names)}.cut({'' if to is None else f'to={names[to]}'})")

    @rule(
        pair=st.integers(0, 1),
        to=st.sampled_from([None, 0, 1]),
        kinds=st.sampled_from(["I", "R", "K", "DK", "IR"]),
    )
    def lose(self, pair: int, to: int | None, kinds: str) -> None:
        names = self.pairs[pair % len(self.pairs)]
        towards = "" if to is None else f", to={names[to]}"
        self.do(f"{''.join(names)}.lose(lambda sent: sent.kind in {kinds!r}{towards})")

    @rule(pair=st.integers(0, 1))
    def heal(self, pair: int) -> None:
        self.do(f"{''.join(self.pairs[pair % len(self.pairs)])}.heal()")

    @rule(
        pair=st.integers(0, 1),
        loss=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
        duplicate=st.sampled_from([0.0, 0.1, 1.0]),
        reorder=st.sampled_from([0.0, 0.05, 2.0, 12.0]),
        latency=st.sampled_from([0.0, LATENCY, 0.3, 6.0]),
        jitter=st.sampled_from([0.0, 0.0, 0.01, 1.0]),
        rate=st.sampled_from(["float('inf')", "float('inf')", "20_000.0"]),
        queue=st.sampled_from([0.0, 0.1, 5.0]),
    )
    def disturb(
        self,
        pair: int,
        loss: float,
        duplicate: float,
        reorder: float,
        latency: float,
        jitter: float = 0.0,
        rate: str = "float('inf')",
        queue: float = 0.1,
    ) -> None:
        self.do(
            f"{''.join(self.pairs[pair % len(self.pairs)])}.set(loss={loss}, duplicate={duplicate}, "
            f"reorder={reorder}, latency={latency}, jitter={jitter}, rate={rate}, queue={queue})"
        )

    @rule(host=st.integers(0, 2), seconds=SLEEPS)
    def sleep(self, host: int, seconds: float) -> None:
        name = self.hosts[host % len(self.hosts)]
        if self.keeps:
            seconds = min(seconds, self.longest_sleep)
        if not self.host(name).is_asleep and seconds <= self.sleep_left:
            self.sleep_left -= seconds
            self.do(f"{name}.sleep({seconds})")
            self.asleep_until = max(self.asleep_until, self.world.now + seconds)

    @rule(host=st.integers(0, 2), seconds=st.sampled_from([-1e7, -10.0, 10.0, 1e7]))
    def step_clock(self, host: int, seconds: float) -> None:
        self.do(f"{self.hosts[host % len(self.hosts)]}.step_clock({seconds})")

    @rule(way=st.integers(0, 3), seconds=st.sampled_from([None, 10.0, 25.0]))
    def change_keepalive(self, way: int, seconds: float | None) -> None:
        host, peer = self.pick(way)
        if not self.host(host).is_asleep:
            self.keeps = self.keeps or seconds is not None
            self.do(f"{host}.set_persistent_keepalive({seconds}, {peer})")

    @rule(way=st.integers(0, 3), number=st.integers(0, 2))
    def change_key(self, way: int, number: int) -> None:
        host, peer = self.pick(way)
        if not self.host(host).is_asleep:
            self.do(f"{host}.set_preshared_key(PresharedKey.from_bytes(bytes([{number}] * 32)), {peer})")

    @rule(host=st.integers(0, 2), polled=st.booleans())
    def poll(self, host: int, polled: bool) -> None:
        name = self.hosts[host % len(self.hosts)]
        if self.host(name).is_polled is not polled:
            self.was_unpolled = True
            self.do(f"{name}.is_polled = {polled}")

    @precondition(lambda self: self.nat)
    @rule()
    def rebind(self) -> None:
        self.do("nat.rebind()")

    @precondition(lambda self: self.moves)
    @rule(place=st.integers(1, 254), port=st.sampled_from([51820, 4500]))
    def move(self, place: int, port: int) -> None:
        self.do(f"a.move(('203.0.113.{place}', {port}))")

    @rule(first=st.integers(0, 2))
    def recover(self, first: int = 0) -> None:
        """After the last fault, a first packet; 16 s later, everything arrives within three latencies.

        first: 0, both sides of each pair send that packet; else one of those that can start a session.
        """
        for pair in self.pairs:
            link = "".join(pair)
            self.do(f"{link}.heal()")
            self.do(f"{link}.lose(None)")
            self.do(
                f"{link}.set(loss=0, duplicate=0, reorder=0, latency={LATENCY}, jitter=0, rate=float('inf'))"
            )
        for name in self.hosts:
            if not self.host(name).is_polled:
                self.do(f"{name}.is_polled = True")
        # What is on its way still may take 24 s.
        self.do(f"world.run({max(self.asleep_until, self.world.now) + 24.0!r})")
        for pair in self.pairs:
            for host, peer in (pair, pair[::-1]):
                self.do(f"{host}.set_preshared_key(None, {peer})")
        ways = [
            way
            for one, other in self.pairs
            if can_have_a_session(self.roles[one], self.roles[other])
            for way in ((one, other), (other, one))
        ]
        for sender, receiver in self.first_ways(ways, first):
            self.do(f"{sender}.send({receiver})")
        self.do("world.run(world.now + 16.0)")
        since = self.world.now
        for sender, receiver in ways:
            self.do(f"{sender}.send({receiver})")
        self.do(f"world.run(world.now + {3 * LATENCY})")
        # Those packets may have renewed a session; the next ones are on one session, unless they are what renews it.
        for _ in range(2):
            self.do("world.run(world.now + 0.2)")
            for sender, receiver in ways:
                self.do(f"{sender}.send({receiver})")
            self.do(f"world.run(world.now + {LATENCY})")
            if self.agree(ways):
                break
        try:
            self.check_recovery(ways, since)
        except AssertionError as error:
            self.explain(error)
            raise

    def first_ways(self, ways: list[tuple[str, str]], first: int) -> list[tuple[str, str]]:
        """Who sends the first packet: all, or one of each pair that can start a session."""
        if first == 0:
            return ways
        chosen = {}
        for one, other in ways:
            # Where a is, after it has moved, the others only learn from itself.
            hidden = other == "a" and (self.nat or self.moves)
            can_start = self.roles[one] is not Role.RESPONDER and self.roles[other] is not Role.INITIATOR
            pair = frozenset((one, other))
            if can_start and not hidden and (first == 2 or pair not in chosen):
                chosen[pair] = (one, other)
        return list(chosen.values())

    def agree(self, ways: list[tuple[str, str]]) -> bool:
        """Whether what was last taken came on the same session both ways."""
        used = self.experiment.invariants.last_used
        return all(used.get((one, other)) is used.get((other, one)) for one, other in ways)

    def check_recovery(self, ways: list[tuple[str, str]], since: float) -> None:
        # Traffic goes on: what was offered a moment ago may be on its way.
        until = self.world.now - 3 * LATENCY
        for fate in self.world.trace.fates().values():
            expected = since <= fate.offered.at / 1e9 <= until
            if expected and (fate.offered.host, fate.offered.peer) in ways:
                late = fate.at - fate.offered.at > 3 * LATENCY * 1e9
                assert fate.outcome == "delivered" and not late, f"{fate} 16 s after the first packet"
        assert self.agree(ways), "two sides use different sessions"

    def teardown(self) -> None:
        if not hasattr(self, "experiment"):
            return
        try:
            self.check_the_whole()
        except Exception as error:
            self.explain(error)
            raise

    def check_the_whole(self) -> None:
        for fate in self.world.trace.fates().values():
            assert fate.deliveries == (fate.outcome == "delivered"), fate
            assert fate.outcome not in ("discarded", "dropped", "lost") or fate.why, f"{fate}: for no reason"
        again = self.experiment.repeated(polls=not self.was_unpolled)
        assert again.trace == self.world.trace, (
            "calls that were early did something, or equal seeds were not enough"
        )


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def test_a_failing_example_ends_with_a_script_that_repeats_it() -> None:
    machine = Machine()
    machine.begin(1, 2, [Role.EITHER] * 3, [None] * 4, behind_nat=False)
    machine.send(0, 1, 64)
    with pytest.raises(AttributeError) as caught:
        machine.do("a.fly()")
    script = str(caught.value).partition("This repeats it:\n\n")[2]
    assert script.splitlines()[:4] == [
        "from connlib import Limits, PresharedKey, Role, Timers",
        "from connlib.lab import World",
        "",
        "world = World(1)",
    ]
    names: dict[str, Any] = {}
    exec(script.replace("a.fly()", ""), names)
    assert names["world"].trace.to_bytes() == machine.world.trace.to_bytes()
