"""Scenario 39 for each of the others: run again, polled besides the announced instants, each gives the same trace."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator

import pytest

from spec.pair import Polling, first_difference, watched


@pytest.fixture(scope="package", autouse=True)
def _rarer_garbage_collection() -> Iterator[None]:
    """An hour of traffic is a million small objects that all stay: looking for garbage takes half of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(10_000, 10, 10)
    yield
    gc.set_threshold(*usual)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a scenario at the announced instants only, and again."""
    marks = list(pyfuncitem.iter_markers("scenario"))
    with watched(Polling.ANNOUNCED) as announced:
        result = yield
    if marks and all(mark.kwargs.get("polled", True) for mark in marks):
        # Shown if what follows fails.
        print(f"once more, polled {Polling.IN_ADDITION.value}")
        names = pyfuncitem._fixtureinfo.argnames
        with watched(Polling.IN_ADDITION) as polled:
            pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
        assert sum(pair.polls for pair in polled) > 0, "a scenario that nobody polled shows nothing"
        assert (difference := first_difference(announced, polled)) is None, difference
    return result
