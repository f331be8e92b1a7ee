"""Links: what happens to a datagram on its way."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from connlib.lab._errors import LabError
from connlib.lab._records import LossReason, Sent
from connlib.lab._time import SECOND, nanoseconds, probability

if TYPE_CHECKING:
    from connlib.lab._host import Host
    from connlib.lab._world import World

DEFAULT_LATENCY = 0.02
DEFAULT_QUEUE = 0.1


class Direction:
    """One way of a link."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._free_at = 0
        self._latest = 0
        self.is_cut = False
        self.loses: Callable[[Sent], bool] | None = None
        self.latency = nanoseconds(DEFAULT_LATENCY, "latency")
        self.jitter = 0
        self.reorder = 0
        self.loss = 0.0
        self.duplicate = 0.0
        self.rate: float | None = None
        self.queue = nanoseconds(DEFAULT_QUEUE, "queue")

    def carry(self, now: int, sent: Sent) -> list[int] | LossReason:
        """When the copies of a datagram arrive, or why none does."""
        if self.is_cut:
            return "cut"
        if self.loses is not None and self.loses(sent):
            return "loss"
        # Each chance is drawn only where there is one: a link's other chances stay what they were.
        if self.loss and self._random.random() < self.loss:
            return "loss"
        leaves = now
        if self.rate is not None:
            if self._free_at - now > self.queue:
                return "full"
            leaves = max(now, self._free_at) + round(len(sent.data) * 8 * SECOND / self.rate)
            self._free_at = leaves
        copies = 2 if self.duplicate and self._random.random() < self.duplicate else 1
        return [self._arrival(leaves) for _ in range(copies)]

    def _arrival(self, leaves: int) -> int:
        arrival = leaves + self.latency
        if self.jitter:
            arrival += int(self._random.random() * self.jitter)
        # In order, whatever the jitter says...
        self._latest = max(self._latest, arrival)
        arrival = self._latest
        # ... unless the link is one that reorders.
        if self.reorder:
            arrival += int(self._random.random() * self.reorder)
        return arrival


class Link:
    """The way between two hosts, in both directions alike unless `to` names one."""

    def __init__(self, world: World, one: Host, other: Host) -> None:
        self._world = world
        self._hosts = (one, other)
        self.name = f"{one.name}-{other.name}"
        self._to = {
            receiver.name: Direction(f"{world.seed}/link/{sender.name}>{receiver.name}")
            for sender, receiver in ((one, other), (other, one))
        }

    def __repr__(self) -> str:
        return f"<Link {self.name}>"

    def towards(self, host: Host) -> Direction:
        """The direction that ends at a host. Raises `LabError` if the link does not."""
        try:
            return self._to[host.name]
        except KeyError:
            raise LabError(f"the link {self.name} does not lead to {host.name}") from None

    def _directions(self, to: Host | None) -> list[Direction]:
        return list(self._to.values()) if to is None else [self.towards(to)]

    def set(
        self,
        *,
        to: Host | None = None,
        latency: float | None = None,
        jitter: float | None = None,
        reorder: float | None = None,
        loss: float | None = None,
        duplicate: float | None = None,
        rate: float | None = None,
        queue: float | None = None,
    ) -> None:
        """Change what is given, from now on.

        latency: one-way, in seconds. jitter: up to so many seconds more, evenly distributed, in order. reorder: up to
        so many seconds more, each datagram for itself, so that later ones overtake it. loss, duplicate: probabilities,
        0 to 1. rate: bits per second of UDP payload. queue: how many seconds of traffic wait for `rate` at most; later
        datagrams are lost (`full`).

        Raises `LabError` for what is out of range.
        """
        if rate is not None and not rate > 0:
            raise LabError(f"rate must be a number of bits per second above 0, not {rate!r}")
        for direction in self._directions(to):
            if latency is not None:
                direction.latency = nanoseconds(latency, "latency")
            if jitter is not None:
                direction.jitter = nanoseconds(jitter, "jitter")
            if reorder is not None:
                direction.reorder = nanoseconds(reorder, "reorder")
            if loss is not None:
                direction.loss = probability(loss, "loss")
            if duplicate is not None:
                direction.duplicate = probability(duplicate, "duplicate")
            if rate is not None:
                direction.rate = rate
            if queue is not None:
                direction.queue = nanoseconds(queue, "queue")

    def cut(self, *, to: Host | None = None, at: float | None = None) -> None:
        """Nothing that is sent from then on arrives. at: seconds since the start of the world, or now."""
        self._world.at(at, lambda: self._cut(to, True))

    def heal(self, *, to: Host | None = None, at: float | None = None) -> None:
        """The end of `cut`."""
        self._world.at(at, lambda: self._cut(to, False))

    def _cut(self, to: Host | None, is_cut: bool) -> None:
        for direction in self._directions(to):
            direction.is_cut = is_cut
        towards = f" towards {to.name}" if to else ""
        self._world.note(self.name, ("cut" if is_cut else "healed") + towards)

    def lose(
        self, loses: Callable[[Sent], bool] | None, *, to: Host | None = None, at: float | None = None
    ) -> None:
        """Lose each datagram for which this says True; None ends that."""

        def apply() -> None:
            for direction in self._directions(to):
                direction.loses = loses

        self._world.at(at, apply)
