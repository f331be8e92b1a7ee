"""What a fault is, and what a run of it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


class Missing(Exception):
    """This machine cannot do a fault, for the reason given."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    measured: str
    held: bool
    timed: bool = False
    """Whether it is a time or a rate, which a busy machine changes: the tests assert the others only."""

    def __str__(self) -> str:
        return f"{self.what}: {self.measured}" + ("" if self.held else " (missed)")


@dataclass(frozen=True)
class Run:
    """How thorough to be."""

    quick: bool

    def pick(self, full: float, quick: float) -> float:
        """A duration in seconds."""
        return quick if self.quick else full

    def count(self, full: int, quick: int) -> int:
        """A number of repetitions."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Fault:
    """A line of the list. Without `measure`, its tests say all there is to say; without those too, the remark does."""

    number: str
    what: str
    expected: str
    tests: Sequence[str]
    """Files of the suite, with what shows it."""
    measure: Callable[[Run], list[Check]] | None = None
    remark: str = ""
    """What a reader must know to read the figures, or why something cannot be met."""


def count(what: str, found: int, expected: int) -> Check:
    """A number that has to be met exactly."""
    return Check(what, f"{found:,}", found == expected)


def at_most(what: str, found: float, bound: float, unit: str = "", *, timed: bool) -> Check:
    """A number with an upper bound."""
    return Check(what, _quantity(found, unit), found <= bound, timed)


def at_least(what: str, found: float, bound: float, unit: str = "", *, timed: bool) -> Check:
    """A number with a lower bound."""
    return Check(what, _quantity(found, unit), found >= bound, timed)


def note(what: str, found: float | str, unit: str = "") -> Check:
    """A number that nothing was promised about."""
    return Check(what, found if isinstance(found, str) else _quantity(found, unit), held=True, timed=True)


def _quantity(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{text} {unit}".rstrip()
