"""Every wake does something, none comes too soon, and other calls change nothing (scenario 39).

`conftest.py` runs each scenario a second time with such calls; here is what that rests on.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from connlib import GaveUp, Output, Role, SessionExpired, Timeout
from connlib._native import LabTunn
from spec.pair import BOTH_ROLES, NOTHING, Pair, Polling, first_difference, watched
from spec.scenarios import shown

# Scenario 7 is about an unpolled side, 38 about sleep.
EXEMPT = {7, 38}
# In these B initiates too.
ONLY_EITHER = {7, 24}


def test_each_of_the_forty_scenarios_has_a_test() -> None:
    assert {each.number for each in shown()} == set(range(1, 41))


def test_all_scenarios_but_the_unpolled_and_the_sleeping_run_with_polls_in_addition() -> None:
    assert {each.number for each in shown() if each.polled} == set(range(1, 41)) - EXEMPT


def test_all_scenarios_in_which_only_a_initiates_run_in_both_pairs_of_roles() -> None:
    assert {each.number for each in shown() if each.both_roles} == set(range(1, 41)) - ONLY_EITHER


@pytest.mark.scenario(39)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_after_expiry_nothing_is_announced_and_nothing_happens(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.send(2, pair.b, 2)
    pair.run(180.1)
    for host in (pair.a, pair.b):
        assert len(host.happened(SessionExpired)) == 1
        assert host.tunn.next_timeout() is None
        for later in (180.1, 300, 540, 720, 86_400, 10**6):
            assert host.tunn.handle_timeout(10_000 + later) == NOTHING
            assert host.tunn.next_timeout() is None


@pytest.mark.scenario(39)
@pytest.mark.parametrize("role", [Role.EITHER, Role.INITIATOR])
@pytest.mark.parametrize("connected", [True, False])
def test_after_giving_up_nothing_is_announced_and_nothing_happens(role: Role, connected: bool) -> None:
    pair = Pair((role, Role.RESPONDER))
    if connected:
        pair.connect()
    pair.lose("IR")
    pair.initiate(100, pair.a)
    pair.run(200)
    assert pair.a.happened(GaveUp) == [190]
    assert pair.a.tunn.next_timeout() is None
    for later in (200, 740, 86_400):
        assert pair.a.tunn.handle_timeout(10_000 + later) == NOTHING
        assert pair.a.tunn.next_timeout() is None


@pytest.mark.scenario(39)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_mixture_of_everything_is_the_same_with_polls_in_addition(seed: int) -> None:
    pair = Pair(seed=seed, keepalive=(25, None)).connect()
    for k in range(80):
        pair.send(k * 7.3, pair.a if k % 3 else pair.b, k)
    pair.cut(130)
    pair.heal(300)
    pair.run(700)
    # It went through a dead peer, retries, expiries and keepalives of both kinds.
    assert len({reason for host in (pair.a, pair.b) for _, reason in host.wakes}) >= 5


def test_equal_seeds_give_equal_schedules_and_other_seeds_another_jitter() -> None:
    def initiations(seed: int) -> list[float]:
        pair = Pair(seed=seed)
        pair.lose("I")
        pair.initiate(0, pair.a)
        pair.run(30)
        return pair.a.times("I")

    assert initiations(1) == initiations(1)
    schedules = [initiations(seed) for seed in range(1, 6)]
    assert all(one[1] != other[1] for one, other in itertools.combinations(schedules, 2))


class Wrapped:
    """An engine with a fault: `LabTunn`, and what a subclass changes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.inner = LabTunn(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class TooSoon(Wrapped):
    """Acts up to a millisecond before its time."""

    def handle_timeout(self, now: float) -> Output:
        timeout = self.inner.next_timeout()
        soon = timeout is not None and now < timeout.at <= now + 0.0015
        return self.inner.handle_timeout(timeout.at if timeout and soon else now)


class Restless(Wrapped):
    """Announces an instant at which it does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle_until = options["now"] + 1

    def handle_timeout(self, now: float) -> Output:
        self.idle_until = max(self.idle_until, now + 1)
        return self.inner.handle_timeout(now)

    def next_timeout(self) -> Timeout | None:
        timeout = self.inner.next_timeout()
        return timeout and min(timeout, Timeout(self.idle_until, timeout.reason))


class Repeating(Wrapped):
    """Announces the instant that it has just served once more."""

    served: Timeout | None = None

    def handle_timeout(self, now: float) -> Output:
        self.served = self.inner.next_timeout()
        return self.inner.handle_timeout(now)

    def next_timeout(self) -> Timeout | None:
        return self.served or self.inner.next_timeout()


class Overdue(Wrapped):
    """Announces a second too late, in the past."""

    def next_timeout(self) -> Timeout | None:
        timeout = self.inner.next_timeout()
        return timeout and timeout._replace(at=timeout.at - 11)


class Postponing(Wrapped):
    """Counts from the last call, so that whoever polls puts the deadline off."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.called = 0.0

    def handle_timeout(self, now: float) -> Output:
        self.called = now
        return self.inner.handle_timeout(now)

    def next_timeout(self) -> Timeout | None:
        timeout = self.inner.next_timeout()
        return timeout and timeout._replace(at=max(timeout.at, self.called + 1))


@pytest.mark.parametrize(
    ("engine", "polling", "complaint"),
    [
        (TooSoon, Polling.IN_ADDITION, "polled at .* with nothing due"),
        (Restless, Polling.ANNOUNCED, "did nothing"),
        (Repeating, Polling.ANNOUNCED, "comes"),
        (Overdue, Polling.ANNOUNCED, "an instant that has passed"),
        (Postponing, Polling.IN_ADDITION, "changed what is announced"),
    ],
)
def test_an_engine_whose_wakes_are_wrong_is_noticed(
    engine: type[Wrapped], polling: Polling, complaint: str
) -> None:
    with watched(polling):
        pair = Pair(engine=engine)
    pair.initiate(0, pair.a)
    pair.send(1, pair.a, 1)
    with pytest.raises(AssertionError, match=complaint):
        pair.run(400)


def test_traces_that_differ_are_noticed() -> None:
    def run(number: int, until: float) -> Pair:
        pair = Pair().connect()
        pair.send(1, pair.a, number)
        pair.run(until)
        return pair

    assert first_difference([run(1, 20)], [run(1, 20)]) is None
    assert first_difference([run(1, 20)], [run(2, 20)]) is not None
    assert first_difference([run(1, 20)], [run(1, 2)]) is not None
