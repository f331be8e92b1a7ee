"""The same scenario on two engines: what each did, in numbers and side by side."""

from __future__ import annotations

from dataclasses import dataclass, fields

from connlib.lab._engines import Engine
from connlib.lab._flights import KINDS
from connlib.lab._records import (
    Arrived,
    Changed,
    Copied,
    Delivered,
    Discarded,
    Happened,
    Lost,
    Offered,
    Record,
    Sent,
    Woke,
)
from connlib.lab._scenarios import BASE, Asked, Scenario
from connlib.lab._sessions import SessionWatch
from connlib.lab._time import SECOND
from connlib.lab._trace import Trace


@dataclass(frozen=True, slots=True)
class Measure:
    """What one run came to, from the script's zero on. Both sides together."""

    initiations: int
    keepalives: int
    offered: int
    undelivered: int
    """Packets that were offered and did not come out."""
    wakes: int
    """How often engines were called because the time had come; upstream wants it four times a second."""
    without_session: float
    """Seconds in which one side or both had no session to send on, as their engines say: of the patched one to the
    nanosecond, of upstream to its tick."""

    def misses(self, asked: Asked) -> list[str]:
        """The names of the fields that are not as asked."""
        return [
            field.name
            for field in fields(asked)
            if (wanted := getattr(asked, field.name)) is not None
            and not _within(getattr(self, field.name), wanted)
        ]


def _within(measured: float, wanted: float | tuple[float, float]) -> bool:
    least, most = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    # Seconds are rounded to microseconds.
    return least - 1e-6 <= measured <= most + 1e-6


def measure(
    scenario: Scenario, engines: tuple[Engine, Engine] = ("patched", "patched"), *, seed: int = 1
) -> tuple[Measure, Trace]:
    """Play a scenario, and count what its engines did. The trace is that of `Scenario.run`."""
    stage = scenario.stage(engines, seed=seed)
    world, hosts = stage.world, (stage.a, stage.b)
    # Up to the script's zero, and not what happens at it.
    world.run(BASE - 1 / SECOND)
    wakes_before = sum(host.wakes for host in hosts)
    watch = SessionWatch(world, *hosts)
    watch.run(stage.at(scenario.until))
    trace = world.trace
    fates = trace.fates().values()
    measured = Measure(
        initiations=len(trace.sent("I", since=BASE)),
        # The keepalive that may confirm the session from before zero is not counted.
        keepalives=sum(sent.at > (BASE + 1e-3) * SECOND for sent in trace.sent("K", since=BASE)),
        offered=len(fates),
        undelivered=sum(fate.outcome != "delivered" for fate in fates),
        wakes=sum(host.wakes for host in hosts) - wakes_before,
        without_session=round(watch.without_session(), 6),
    )
    return measured, trace


@dataclass(frozen=True, slots=True)
class Comparison:
    """A scenario on upstream and on the patched engine, and on one of each."""

    scenario: Scenario
    patched: Measure
    patched_trace: Trace
    upstream: Measure | None
    """None where upstream cannot run it."""
    upstream_trace: Trace | None
    upstream_as_b: Measure | None
    """A is patched."""
    upstream_as_a: Measure | None
    """B is patched."""

    def side_by_side(self, *, context: int = 2, most: int = 40) -> list[tuple[str, str]]:
        """What happened on upstream and on the patched engine, a line each, from the first difference on.

        The lines are in words that both share: no index, no number, nothing that is random. `context` lines come before
        the first difference; there are at most `most`, and none if both did the same or upstream cannot run it.
        """
        if self.upstream_trace is None:
            return []
        return _from_the_first_difference(
            _steps(self.upstream_trace), _steps(self.patched_trace), context, most
        )


def compare(scenario: Scenario, *, seed: int = 1) -> Comparison:
    """Play a scenario once on each pair of engines."""
    patched, patched_trace = measure(scenario, seed=seed)
    if scenario.needs_patched:
        return Comparison(scenario, patched, patched_trace, None, None, None, None)
    upstream, upstream_trace = measure(scenario, ("upstream", "upstream"), seed=seed)
    as_b, _ = measure(scenario, ("patched", "upstream"), seed=seed)
    as_a, _ = measure(scenario, ("upstream", "patched"), seed=seed)
    return Comparison(scenario, patched, patched_trace, upstream, upstream_trace, as_b, as_a)


# Side by side.


def _steps(trace: Trace) -> list[str]:
    arrivals: dict[int, Record] = {}
    for record in trace:
        if isinstance(record, Arrived | Lost):
            arrivals.setdefault(record.datagram, record)
    return [line for record in trace if (line := _step(record, arrivals))]


def _step(record: Record, arrivals: dict[int, Record]) -> str | None:
    at = f"{record.at / SECOND - BASE:12.3f}  "
    match record:
        case Offered():
            return f"{at}{record.host}  has a packet"
        case Discarded():
            return f"{at}{record.host}  drops a packet: {record.reason.value}"
        case Sent():
            fate = arrivals.get(record.datagram)
            ending = ""
            if isinstance(fate, Lost):
                ending = f", lost: {fate.why}"
            elif isinstance(fate, Arrived) and fate.error is not None:
                ending = f", refused: {fate.error.value}"
            return f"{at}{record.host} → {record.peer}  {KINDS[record.kind]}{ending}"
        case Delivered():
            return f"{at}{record.host}  receives a packet"
        case Changed():
            return f"{at}{record.where}  {record.what}"
        # Upstream reports no events, and its wakes are ticks.
        case Happened() | Woke() | Copied() | Lost() | Arrived():
            return None


def _from_the_first_difference(
    left: list[str], right: list[str], context: int, most: int
) -> list[tuple[str, str]]:
    first = next(
        (place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other),
        min(len(left), len(right)),
    )
    if first == len(left) == len(right):
        return []
    start = max(0, first - context)
    length = min(most, max(len(left), len(right)) - start)
    return [
        (
            left[place] if place < len(left) else "",
            right[place] if place < len(right) else "",
        )
        for place in range(start, start + length)
    ]
