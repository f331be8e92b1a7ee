"""How values are written for people."""

from __future__ import annotations

from collections.abc import Sequence

MOST_SHOWN = 8
"""How many elements of one list are named."""


def listed(elements: Sequence[object]) -> str:
    """The elements in a line; of many, the first ones and how many more there are."""
    more = len(elements) - MOST_SHOWN
    shown = ", ".join(str(element) for element in elements[:MOST_SHOWN])
    return f"{shown} and {more:,} more" if more > 0 else shown
