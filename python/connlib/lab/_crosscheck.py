"""The same scenario on two engines: what each did, in numbers and side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
from connlib.lab._scenarios import BASE, SCENARIOS, Elsewhere, Scenario
from connlib.lab._time import SECOND
from connlib.lab._trace import Trace
from connlib.lab._world import World

LIFETIME = 180.0
"""Seconds that a session lasts: REJECT_AFTER_TIME, paper section 6.1."""

MIXED_PAIRS: tuple[tuple[Engine, Engine], ...] = (("patched", "upstream"), ("upstream", "patched"))

# Why packets get lost with upstream on one side which do not without: (scenario, who is upstream) -> reason.
EXCEPTIONS = {
    (7, "B"): "upstream that nobody polls sends on a session of 200 s, which the other side has wiped",
    (19, "A"): "upstream's attempt that fails wipes the session that still works",
    (22, "B"): "upstream's unanswered responses push the session in use out of its ring of eight",
    (38, "A"): "upstream seals the first packet after a sleep with the session from before it",
    (34, "B"): "upstream's replay window is 1,024 packets",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """What one run came to, from the script's zero on. Both sides together."""

    initiations: int
    keepalives: int
    offered: int
    undelivered: int
    """Packets that were offered and did not come out."""
    wakes: int
    """How often engines were called because the time had come, from the world's start a second before the script's zero
    on; upstream wants it four times a second."""
    without_session: float
    """Seconds in which no handshake was younger than 180 s. A session that an engine wipes sooner is not noticed."""


def measure(world: World, scenario: Scenario) -> Measure:
    """Count what a run of a scenario did."""
    trace = world.trace
    fates = trace.fates().values()
    return Measure(
        initiations=len(trace.sent("I", since=BASE)),
        # The keepalive that may confirm the session from before zero is not counted.
        keepalives=sum(sent.at > (BASE + 1e-3) * SECOND for sent in trace.sent("K", since=BASE)),
        offered=len(fates),
        undelivered=sum(fate.outcome != "delivered" for fate in fates),
        wakes=sum(host.wakes for host in world.hosts.values()),
        without_session=without_session(trace, BASE, BASE + scenario.until),
    )


def without_session(trace: Trace, since: float, until: float) -> float:
    """Seconds between two instants in which no session was younger than 180 s.

    A session begins where a response is accepted, which is when its initiator can use it.
    """
    responses = {sent.datagram for sent in trace.sent("R")}
    covered_until, without = since, 0.0
    for record in trace:
        if isinstance(record, Arrived) and record.error is None and record.datagram in responses:
            begins = record.at / SECOND
            if begins > until:
                break
            without += max(0.0, begins - covered_until)
            covered_until = max(covered_until, begins + LIFETIME)
    return round(without + max(0.0, until - covered_until), 6)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A scenario on upstream and on the patched engine, and on one of each."""

    scenario: Scenario
    patched: Measure
    upstream: Measure | None
    """None where upstream cannot run it."""
    mixed: tuple[Measure | None, Measure | None]
    """Upstream as B, and as A."""


def compare(scenario: Scenario, *, seed: int = 1) -> Comparison:
    """Run a scenario on each pair of engines."""

    def run(engines: tuple[Engine, Engine]) -> Measure | None:
        if scenario.needs_patched and "upstream" in engines:
            return None
        return measure(scenario.run(engines, seed=seed), scenario)

    patched = run(("patched", "patched"))
    assert patched is not None, "the patched engine can run all of them"
    one, other = (run(pair) for pair in MIXED_PAIRS)
    return Comparison(scenario, patched, run(("upstream", "upstream")), (one, other))


# Side by side.


def steps(trace: Trace) -> list[str]:
    """What happened, a line each, in words that two engines share: no index, no number, nothing that is random."""
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


def side_by_side(
    left: Sequence[str], right: Sequence[str], *, context: int = 2, most: int = 40
) -> list[tuple[str, str]]:
    """Pairs of lines from the first difference on, with `context` lines before it; at most `most` of them."""
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


# The table.

COLUMNS = (
    "",
    "scenario",
    "engine",
    "initiations",
    "keepalives",
    "lost",
    "wakes",
    "no session, s",
    "interoperates",
)


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The lines of a scenario in a table of `COLUMNS`: upstream, patched, and what is asked."""
    scenario = comparison.scenario

    def cells(engine: str, measured: Measure, interoperates: str) -> tuple[str, ...]:
        return (
            engine,
            f"{measured.initiations:,}",
            f"{measured.keepalives:,}",
            f"{measured.undelivered:,} of {measured.offered:,}",
            f"{measured.wakes:,}",
            f"{measured.without_session:,.1f}",
            interoperates,
        )

    number, title = str(scenario.number), scenario.title
    asked = scenario.asked
    lines: list[tuple[str, ...]] = []
    if comparison.upstream is None:
        lines.append((number, title, "upstream", *["-"] * 5, ""))
    else:
        lines.append((number, title, *cells("upstream", comparison.upstream, "")))
    lines.append(("", "", *cells("patched", comparison.patched, interoperation(comparison))))
    wanted = ("any" if count is None else f"{count:,}" for count in (asked.initiations, asked.keepalives))
    lost = "any" if asked.undelivered is None else f"{asked.undelivered:,}"
    lines.append(("", "", "asked", *wanted, lost, "", "", ""))
    return lines


def interoperation(comparison: Comparison) -> str:
    """Whether mixed pairs deliver what a patched pair does, and if not, why."""
    scenario = comparison.scenario
    if scenario.needs_patched:
        return f"not run: {scenario.needs_patched}"
    if scenario.asked.undelivered is None:
        return "not compared"
    reasons = []
    for side, measured in zip("BA", comparison.mixed, strict=True):
        if measured is not None and measured.undelivered > comparison.patched.undelivered:
            reason = EXCEPTIONS.get((scenario.number, side), "unexplained")
            reasons.append(f"upstream as {side} loses {measured.undelivered:,}: {reason}")
    return "; ".join(reasons) or "yes"


def chosen(numbers: Iterable[int]) -> list[Scenario | Elsewhere]:
    """The scenarios of these numbers, or all."""
    wanted = set(numbers)
    return [scenario for scenario in SCENARIOS if not wanted or scenario.number in wanted]


def markdown(comparisons: Sequence[Comparison]) -> str:
    """The table for docs/engine.md, and the list of what is not in it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for comparison in comparisons:
        lines += [f"| {' | '.join(cells)} |" for cells in rows(comparison)]
    absent = [scenario for scenario in SCENARIOS if isinstance(scenario, Elsewhere)]
    lines += ["", "Not for two hosts and a link, and tested in `tests/spec` only:", ""]
    lines += [f"- {scenario.number}, {scenario.title}: {scenario.why}." for scenario in absent]
    return "\n".join(lines) + "\n"
