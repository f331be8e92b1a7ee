"""Links: what happens to a datagram on its way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from connlib.lab._errors import LabError
from connlib.lab._records import LossReason, Sent
from connlib.lab._time import SECOND, nanoseconds, probability
from connlib.lab._timeline import Timeline

if TYPE_CHECKING:
    from connlib.lab._host import Host

DEFAULT_LATENCY = 0.02
DEFAULT_QUEUE = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """What `Link.set` sets. Times are in nanoseconds."""

    latency: int = nanoseconds(DEFAULT_LATENCY, "latency")
    jitter: int = 0
    reorder: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    rate: float = math.inf
    queue: int = nanoseconds(DEFAULT_QUEUE, "queue")


class Direction:
    """One way of a link."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._free_at = 0
        self._latest = 0
        self.is_cut = False
        self.loses: Callable[[Sent], bool] | None = None
        self.settings = Settings()

    def carry(self, now: int, sent: Sent) -> list[int] | LossReason:
        """When the copies of a datagram arrive, or why none does."""
        if self.is_cut:
            return "cut"
        if self.loses is not None and self.loses(sent):
            return "loss"
        # Each chance is drawn only where there is one: a link's other chances stay what they were.
        settings = self.settings
        if settings.loss and self._random.random() < settings.loss:
            return "loss"
        leaves = now
        if settings.rate < math.inf:
            if self._free_at - now > settings.queue:
                return "full"
            leaves = max(now, self._free_at) + round(len(sent.data) * 8 * SECOND / settings.rate)
            self._free_at = leaves
        copies = 2 if settings.duplicate and self._random.random() < settings.duplicate else 1
        return [self._arrival(leaves) for _ in range(copies)]

    def _arrival(self, leaves: int) -> int:
        settings = self.settings
        arrival = leaves + settings.latency
        if settings.jitter:
            arrival += int(self._random.random() * settings.jitter)
        # In order, whatever the jitter says...
        self._latest = max(self._latest, arrival)
        arrival = self._latest
        # ... unless the link is one that reorders.
        if settings.reorder:
            arrival += int(self._random.random() * settings.reorder)
        return arrival


class Link:
    """The way between two hosts, in both directions alike unless `to` names one.

    From the start it takes 20 ms each way and loses nothing.
    """

    def __init__(self, timeline: Timeline, one: Host, other: Host) -> None:
        self._timeline = timeline
        self.name = f"{one.name}-{other.name}"
        self._to = {
            receiver.name: Direction(f"{timeline.seed}/link/{sender.name}>{receiver.name}")
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
    ) -> Link:
        """Change what is given, from now on; the rest stays. Returns the link.

        latency: one-way, in seconds. jitter: up to so many seconds more, evenly distributed, in order. reorder: up to
        so many seconds more, each datagram for itself, so that later ones overtake it. loss, duplicate: probabilities,
        0 to 1. rate: bits per second of UDP payload; infinity for no limit, as at the start. queue: how many seconds
        of traffic wait for `rate` at most; later datagrams are lost (`full`).

        Raises `LabError` for what is out of range, and then nothing is changed.
        """
        durations = {"latency": latency, "jitter": jitter, "reorder": reorder, "queue": queue}
        chances = {"loss": loss, "duplicate": duplicate}
        changed: dict[str, Any] = {
            **{name: nanoseconds(value, name) for name, value in durations.items() if value is not None},
            **{name: probability(value, name) for name, value in chances.items() if value is not None},
        }
        if rate is not None:
            if not rate > 0:
                raise LabError(f"rate must be a number of bits per second above 0, not {rate!r}")
            changed["rate"] = rate
        for direction in self._directions(to):
            direction.settings = replace(direction.settings, **changed)
        return self

    def cut(self, *, to: Host | None = None, at: float | None = None) -> None:
        """Nothing that is sent from then on arrives. at: seconds since the start of the world, or now."""
        self._change(to, at, is_cut=True)

    def heal(self, *, to: Host | None = None, at: float | None = None) -> None:
        """The end of `cut`."""
        self._change(to, at, is_cut=False)

    def _change(self, to: Host | None, at: float | None, *, is_cut: bool) -> None:
        directions = self._directions(to)

        def change() -> None:
            for direction in directions:
                direction.is_cut = is_cut
            towards = f" towards {to.name}" if to else ""
            self._timeline.note(self.name, ("cut" if is_cut else "healed") + towards)

        self._timeline.at(at, change)

    def lose(
        self, loses: Callable[[Sent], bool] | None, *, to: Host | None = None, at: float | None = None
    ) -> None:
        """Lose each datagram for which this says True; None ends that."""
        directions = self._directions(to)

        def apply() -> None:
            for direction in directions:
                direction.loses = loses

        self._timeline.at(at, apply)
