"""Between the seconds of users and the nanoseconds of the world."""

from __future__ import annotations

import math

from connlib.lab._errors import LabError

SECOND = 1_000_000_000
UNIX_ORIGIN = 1_700_000_000
"""What the wall clocks of a world show when it begins, in seconds since 1970."""


def nanoseconds(seconds: float, what: str) -> int:
    """Rounded to nearest. Raises `LabError` that names `what` for what is no time, or is negative."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise LabError(f"{what} must be a number of seconds, 0 or more, not {seconds!r}")
    return round(seconds * SECOND)


def probability(value: float, what: str) -> float:
    """Raises `LabError` that names `what` unless it is 0 to 1."""
    if not 0 <= value <= 1:
        raise LabError(f"{what} must be a probability from 0 to 1, not {value!r}")
    return value
