"""The forty scenarios as scripts: the patched engine does what is asked, and mixed pairs differ where it is said."""

from __future__ import annotations

import pytest

from connlib.lab import (
    SCENARIOS,
    Comparison,
    Elsewhere,
    Measure,
    Scenario,
    compare,
    markdown,
    side_by_side,
    steps,
)
from connlib.lab._crosscheck import EXCEPTIONS, MIXED_PAIRS, measure, without_session

SCRIPTS = [scenario for scenario in SCENARIOS if isinstance(scenario, Scenario)]
# A simulated day of an engine that is polled four times a second takes seconds.
SLOW = {8, 15, 40}


def ids(scenario: Scenario) -> str:
    return f"{scenario.number}"


def test_all_forty_are_there_in_order() -> None:
    assert [scenario.number for scenario in SCENARIOS] == list(range(1, 41))
    assert [s.number for s in SCENARIOS if isinstance(s, Elsewhere)] == [28, 29, 30, 31, 32, 39]


@pytest.mark.parametrize("scenario", SCRIPTS, ids=ids)
def test_the_patched_engine_does_what_is_asked(scenario: Scenario) -> None:
    measured = measure(scenario.run(), scenario)
    asked = scenario.asked
    for name in ("initiations", "keepalives", "undelivered"):
        wanted = getattr(asked, name)
        assert wanted is None or getattr(measured, name) == wanted, name


@pytest.mark.parametrize(
    "scenario",
    [s for s in SCRIPTS if s.number not in SLOW and not s.needs_patched and s.asked.undelivered is not None],
    ids=ids,
)
def test_with_upstream_on_one_side_what_is_lost_is_lost_for_a_reason_that_is_listed(
    scenario: Scenario,
) -> None:
    alone = measure(scenario.run(), scenario).undelivered
    worse = set()
    for side, pair in zip("BA", MIXED_PAIRS, strict=True):
        if measure(scenario.run(pair), scenario).undelivered > alone:
            worse.add((scenario.number, side))
    listed = {exception for exception in EXCEPTIONS if exception[0] == scenario.number}
    assert worse == listed


def test_equal_seeds_play_a_scenario_equally() -> None:
    (bad_path,) = (s for s in SCRIPTS if s.number == 35)
    traces = [bad_path.run(seed=seed).trace.to_bytes() for seed in (3, 3, 4)]
    assert traces[0] == traces[1] != traces[2]


def test_the_time_without_a_session_is_counted_from_the_first_one_to_the_end() -> None:
    (idle,) = (s for s in SCRIPTS if s.number == 6)
    assert without_session(idle.run().trace, 1.0, 201.0) == 20.0
    (fresh,) = (s for s in SCRIPTS if s.number == 1)
    assert without_session(fresh.run().trace, 1.0, 11.0) == pytest.approx(0.04)


def test_a_comparison_measures_every_pair() -> None:
    (first,) = (s for s in SCRIPTS if s.number == 2)
    compared = compare(first)
    assert compared.patched == Measure(
        initiations=1, keepalives=0, offered=1, undelivered=0, wakes=2, without_session=5.04
    )
    assert compared.upstream is not None and compared.upstream.keepalives == 1
    assert all(mixed is not None for mixed in compared.mixed)
    (keepalive,) = (s for s in SCRIPTS if s.number == 37)
    assert compare(keepalive).upstream is None


def test_traces_are_shown_from_the_first_difference_on() -> None:
    one, other = list("abcdefg"), list("abcdXYZW")
    assert side_by_side(one, other, context=1) == [("d", "d"), ("e", "X"), ("f", "Y"), ("g", "Z"), ("", "W")]
    assert side_by_side(one, other, context=9, most=2) == [("a", "a"), ("b", "b")]
    assert side_by_side(one, one) == []
    assert side_by_side(one, one[:3], context=0, most=1) == [("d", "")]


def test_steps_say_what_happened_and_nothing_that_is_random() -> None:
    (first,) = (s for s in SCRIPTS if s.number == 11)
    told = steps(first.run().trace)
    assert told == steps(first.run(seed=1).trace)
    assert told[:4] == [
        "      -0.040  A → B  initiation",
        "      -0.020  B → A  response",
        "       0.000  A → B  keepalive",
        "       1.000  A-B  cut",
    ]
    assert "       1.000  A → B  data, lost: cut" in told


def test_the_table_in_markdown_has_three_lines_a_scenario_and_names_what_is_not_in_it() -> None:
    (first,) = (s for s in SCRIPTS if s.number == 38)
    compared: list[Comparison] = [compare(first)]
    lines = markdown(compared).splitlines()
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])
    assert lines[2].startswith(
        "| 38 | three hours of sleep, and a clock that is set | upstream | 1 | 1 | 1 of 2 |"
    )
    assert "upstream as A loses 1: upstream seals the first packet after a sleep" in lines[3]
    assert len([line for line in lines if line.startswith("- ")]) == 6
