"""What was measured, and its arithmetic: runs in turns, ratios of neighbours in time, medians, goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A bound for a median: of the ratio to the other, or of what connlib has."""

    bound: float
    least: bool = True
    """Whether it is a lower bound."""
    ratio: bool = True

    def __str__(self) -> str:
        return f"{'at least' if self.least else 'at most'} {self.bound:g}" + (" times" if self.ratio else "")


@dataclass(frozen=True)
class Series:
    """Runs of connlib and, in turns with them, of somebody else: a pair each, neighbours in time."""

    what: str
    unit: str
    ours: tuple[float, ...] = ()
    against: str = ""
    """Who the other is; empty if there is none."""
    theirs: tuple[float, ...] = ()
    goal: Goal | None = None
    failed: str = ""
    """Why the runs ended early."""

    def ratios(self) -> list[float]:
        """Of each pair: what connlib has over what the other has. A pair in which the other has nothing has none."""
        if not self.theirs:
            return []
        return [our / their for our, their in zip(self.ours, self.theirs, strict=True) if their]

    def met(self) -> bool | None:
        """Whether the goal is met; None without one. What could not be measured is missed."""
        if self.goal is None:
            return None
        found = self.ratios() if self.goal.ratio else list(self.ours)
        if self.failed or not found:
            return False
        # As it is shown: 1.4996 is no miss of 1.5.
        median = round(statistics.median(found), 3)
        return median >= self.goal.bound if self.goal.least else median <= self.goal.bound


@dataclass(frozen=True)
class Found:
    """What a cell found."""

    series: tuple[Series, ...] = ()
    profile: tuple[tuple[str, str, float], ...] = ()
    """Where the processor's time goes: (part, function, share in percent), the largest first."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


Measured = Mapping[str, float]
"""What one run found: each figure by a key."""


def in_turns(
    pairs: int, ours: Callable[[], Measured], theirs: Callable[[], Measured]
) -> tuple[list[tuple[Measured, Measured]], str]:
    """So many pairs of runs, and why they ended early, if they did.

    Who is first changes from pair to pair: what drifts meanwhile is for and against each equally often.
    """
    done: list[tuple[Measured, Measured]] = []
    for number in range(pairs):
        try:
            if number % 2 == 0:
                first = ours()
                done.append((first, theirs()))
            else:
                second = theirs()
                done.append((ours(), second))
        except RunFailed as error:
            return done, str(error)
    return done, ""


class RunFailed(Exception):
    """One run came to nothing, for the reason given: the others go on."""


def compared(
    runs: tuple[list[tuple[Measured, Measured]], str],
    key: str,
    what: str,
    unit: str,
    against: str,
    goal: Goal | None = None,
) -> Series:
    """One figure of the runs of `in_turns`."""
    pairs, failed = runs
    ours, theirs = (tuple(pair[number][key] for pair in pairs) for number in (0, 1))
    return Series(what, unit, ours, against, theirs, goal, failed)


def as_json(found: Found) -> dict[str, Any]:
    """For a file, with the digits that were measured."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, (list, tuple)):
            return [rounded(each) for each in value]
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        return value

    return dict(rounded(asdict(found)))


def from_json(data: Mapping[str, Any]) -> Found:
    """What `as_json` made."""
    series = tuple(
        Series(
            **{
                **each,
                "ours": tuple(each["ours"]),
                "theirs": tuple(each["theirs"]),
                "goal": Goal(**each["goal"]) if each["goal"] else None,
            }
        )
        for each in data["series"]
    )
    profile = tuple((part, function, share) for part, function, share in data["profile"])
    return Found(series, profile)
