"""The table of `connlib crosscheck`, on the screen and in docs/engine.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connlib.lab import SCENARIOS, Comparison, Elsewhere, Measure, Scenario

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

# Why packets get lost with upstream on one side which do not without: (scenario, who is upstream) -> reason.
EXCEPTIONS = {
    (7, "B"): "upstream that nobody polls sends on a session of 200 s, which the other side has wiped",
    (19, "A"): "upstream's attempt that fails wipes the session that still works",
    (22, "B"): "upstream's unanswered responses push the session in use out of its ring of eight",
    (34, "B"): "upstream's replay window is 1,024 packets",
    (38, "A"): "upstream seals the first packet after a sleep with the session from before it",
}


@dataclass(frozen=True, slots=True)
class Block:
    """The lines of one scenario, each of them cells below `COLUMNS` from `engine` on."""

    number: int
    title: str
    upstream: tuple[str, ...]
    patched: tuple[str, ...]
    asked: tuple[str, ...]
    misses: tuple[str, ...]
    """Of which fields of a `Measure` the patched engine is not as asked."""

    @property
    def interoperates(self) -> str:
        """The last cell: yes, or why not."""
        return self.patched[-1]

    def lines(self) -> list[tuple[str, ...]]:
        """All cells of the three lines."""
        first = (str(self.number), self.title)
        return [(*first, *self.upstream), ("", "", *self.patched), ("", "", *self.asked)]


def block(comparison: Comparison) -> Block:
    """The lines of a comparison: upstream, patched, and what is asked."""
    scenario = comparison.scenario
    return Block(
        scenario.number,
        scenario.title,
        _cells("upstream", comparison.upstream, ""),
        _cells("patched", comparison.patched, _interoperation(comparison)),
        _asked(scenario),
        tuple(comparison.patched.misses(scenario.asked)),
    )


def _cells(engine: str, measured: Measure | None, interoperates: str) -> tuple[str, ...]:
    if measured is None:
        return (engine, *["-"] * 5, interoperates)
    return (
        engine,
        f"{measured.initiations:,}",
        f"{measured.keepalives:,}",
        f"{measured.undelivered:,} of {measured.offered:,}",
        f"{measured.wakes:,}",
        f"{measured.without_session:,.2f}",
        interoperates,
    )


def _asked(scenario: Scenario) -> tuple[str, ...]:
    asked = scenario.asked
    counts = (asked.initiations, asked.keepalives, asked.undelivered, asked.wakes)
    return (
        "asked",
        *(_in_words(count, ",") for count in counts),
        _in_words(asked.without_session, ",.2f"),
        "",
    )


def _in_words(wanted: float | tuple[float, float] | None, form: str) -> str:
    """As "1", "17-18", or "any"."""
    if wanted is None:
        return "any"
    ends = wanted if isinstance(wanted, tuple) else (wanted,)
    return "-".join(format(end, form) for end in ends)


def _interoperation(comparison: Comparison) -> str:
    """Whether mixed pairs deliver what a patched pair does, and if not, why."""
    scenario = comparison.scenario
    if scenario.needs_patched:
        return f"not run: {scenario.needs_patched}"
    if scenario.asked.undelivered is None:
        return "not compared"
    reasons = []
    for side, measured in (("B", comparison.upstream_as_b), ("A", comparison.upstream_as_a)):
        if measured is not None and measured.undelivered > comparison.patched.undelivered:
            reason = EXCEPTIONS.get((scenario.number, side), "unexplained")
            reasons.append(f"upstream as {side} loses {measured.undelivered:,}: {reason}")
    return "; ".join(reasons) or "yes"


def markdown(blocks: Sequence[Block]) -> str:
    """The table for docs/engine.md, and the list of what is not in it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for each in blocks:
        lines += [f"| {' | '.join(cells)} |" for cells in each.lines()]
    absent = [scenario for scenario in SCENARIOS if isinstance(scenario, Elsewhere)]
    lines += [
        "",
        "Not for two hosts and a link, and tested in `tests/spec`, 29 and 31 with upstream on one side in "
        "`tests/lab/test_cookies.py`:",
        "",
    ]
    lines += [f"- {scenario.number}, {scenario.title}: {scenario.why}." for scenario in absent]
    return "\n".join(lines) + "\n"
