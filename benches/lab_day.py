"""How long the laboratory takes for 24 hours of a pair that has nothing to say."""

from __future__ import annotations

import time
from collections.abc import Callable

from connlib.lab import World

DAY = 86_400.0
GOAL = 1.0
"""Seconds for an idle pair of the patched engine."""


def idle_pair(engine: str = "patched", keepalive: float | None = None) -> Callable[[], World]:
    """A pair with a session that nobody uses; A may have a keepalive."""

    def run() -> World:
        world = World(1)
        a, b = (world.host(name, engine=engine) for name in "AB")
        world.tunnel(a, b, keepalive=(keepalive, None))
        a.initiate_handshake(at=0.0)
        world.run(DAY)
        return world

    return run


CASES: dict[str, Callable[[], World]] = {
    "patched, idle": idle_pair(),
    "patched, a keepalive of 25 s": idle_pair(keepalive=25.0),
    "upstream, idle, polled every 250 ms": idle_pair("upstream"),
}


def measure(repetitions: int) -> dict[str, list[float]]:
    """Seconds that each case took, sorted."""
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repetitions):
        for name, run in CASES.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: sorted(seconds) for name, seconds in taken.items()}
