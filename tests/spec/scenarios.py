"""Which test shows which of the forty scenarios: `python -m spec.scenarios` prints the table."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import pytest

from spec.pair import BOTH_ROLES


class Shown(NamedTuple):
    """A scenario's number and a test for it."""

    number: int
    test: str
    polled: bool
    """Whether the test runs again with polls besides the announced instants (scenario 39)."""
    both_roles: bool
    """Whether it runs as EITHER with EITHER and as INITIATOR with RESPONDER."""


def shown() -> list[Shown]:
    """In the order of the numbers."""
    return sorted(
        shown_by for path in Path(__file__).parent.glob("test_*.py") for shown_by in _marks(path.stem)
    )


def _marks(module: str) -> Iterator[Shown]:
    for name, function in vars(importlib.import_module(f"spec.{module}")).items():
        if name.startswith("test_") and isinstance(function, FunctionType):
            marks: list[pytest.Mark] = getattr(function, "pytestmark", [])
            both = any(mark.name == "parametrize" and mark.args == ("roles", BOTH_ROLES) for mark in marks)
            for mark in marks:
                if mark.name == "scenario":
                    for number in mark.args:
                        yield Shown(number, name, mark.kwargs.get("polled", True), both)


def main() -> None:
    """Print a Markdown table."""
    print("| scenario | test | polled in addition | in both pairs of roles |\n|---|---|---|---|")
    for number, test, polled, both in shown():
        sentence = test.removeprefix("test_").replace("_", " ")
        print(f"| {number} | {sentence} | {'yes' if polled else 'no'} | {'yes' if both else 'no'} |")


if __name__ == "__main__":
    main()
