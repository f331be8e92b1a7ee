"""How values are written for people."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence

MOST_SHOWN = 8
"""How many elements of one list are named."""


def listed(elements: Sequence[object]) -> str:
    """The elements in a line; of many, the first ones and how many more there are."""
    more = len(elements) - MOST_SHOWN
    shown = ", ".join(str(element) for element in elements[:MOST_SHOWN])
    return f"{shown} and {more:,} more" if more > 0 else shown


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counts(numbers: Mapping[str, int]) -> str:
    """What was counted, each with its number."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def host_and_port(host: str, port: int) -> str:
    """An address or a host name with a port; IPv6 addresses in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 48 else f"{round(seconds / 86_400)} days"


def bug(error: BaseException) -> str:
    """What an exception that nobody has foreseen is called. Its own text could quote anything, a key too."""
    place = ""
    if frames := traceback.extract_tb(error.__traceback__):
        place = f", {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}"
    return f"internal error ({type(error).__name__}{place}); report it"
