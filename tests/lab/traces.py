"""Traces to look at in tables, diagrams and captures."""

from __future__ import annotations

import random

from connlib import PresharedKey
from connlib.lab import Host, Link, Trace, World

SECOND = 1_000_000_000


def pair(
    keepalive: float | None = None,
    preshared_key: PresharedKey | None = None,
    addresses: tuple[str, str] | tuple[None, None] = (None, None),
) -> tuple[World, Host, Host, Link]:
    """Hosts A and B, 20 ms apart, with a tunnel; the keepalive is A's."""
    world = World(1)
    a, b = world.host("A", address=addresses[0]), world.host("B", address=addresses[1])
    world.tunnel(a, b, keepalive=(keepalive, None), preshared_key=preshared_key)
    return world, a, b, world.link(a, b)


def run(world: World, until: float) -> Trace:
    """Let the time pass, and return what happened."""
    world.run(until)
    return world.trace


def idle_then_send() -> Trace:
    """A session that expires of idleness, and a packet at 185 s."""
    world, a, _, _ = pair()
    a.send(at=0.0)
    a.send(at=185.0)
    return run(world, 200)


def crossing() -> Trace:
    """Both sides start at once."""
    world, a, b, _ = pair()
    a.send(at=0.0)
    b.send(at=0.0)
    return run(world, 15)


def long_sleep() -> Trace:
    """A keepalive of 25 s, and a machine that sleeps for three hours and then sends."""
    world, a, _, _ = pair(keepalive=25)
    a.send(at=1.0)
    a.sleep(10_800, at=60.0)
    a.send(at=10_860.0)
    return run(world, 10_900)


def outage() -> Trace:
    """Packets that are lost, copied and dropped; initiations that are repeated."""
    world, a, _, link = pair()
    world.at(1.01, lambda: link.set(duplicate=1.0))
    world.at(1.9, lambda: link.set(duplicate=0.0))
    for n in range(4):
        a.send(at=1 + n / 2)
    link.cut(at=2.2)
    link.heal(at=32.2)
    return run(world, 40)


def chaos(seed: int) -> Trace:
    """Random faults and traffic."""
    rng = random.Random(seed)
    world, a, b, link = pair(keepalive=rng.choice([None, 7.0]))
    link.set(loss=0.3, duplicate=0.3, reorder=rng.choice([0.0, 0.05]))
    for _ in range(12):
        rng.choice([a, b]).send(at=rng.choice([0.0, 0.02, rng.random() * 20]))
    rng.choice([a, b]).sleep(rng.random() * 10, at=rng.random() * 20)
    return run(world, 60)
