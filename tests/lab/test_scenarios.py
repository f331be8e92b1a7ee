"""The forty scenarios as scripts: the patched engine does what is asked, and mixed pairs differ where it is said."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from connlib.cli._crosscheck_table import COLUMNS, EXCEPTIONS, Block, block, markdown
from connlib.cli.crosscheck import MARKS
from connlib.lab import (
    SCENARIOS,
    Asked,
    Comparison,
    Elsewhere,
    Engine,
    Measure,
    Scenario,
    Stage,
    Trace,
    compare,
    measure,
)

SCRIPTS = {scenario.number: scenario for scenario in SCENARIOS if isinstance(scenario, Scenario)}
# A simulated day of an engine that is polled four times a second takes seconds.
SLOW = {8, 15, 40}
DOCUMENT = Path(__file__).parents[2] / "docs" / "engine.md"

every_script = pytest.mark.parametrize("number", SCRIPTS)


@cache
def patched(number: int) -> Measure:
    """What two patched engines do; each script is played once for all tests."""
    return measure(SCRIPTS[number])[0]


def test_all_forty_are_there_in_order() -> None:
    assert [scenario.number for scenario in SCENARIOS] == list(range(1, 41))
    assert [s.number for s in SCENARIOS if isinstance(s, Elsewhere)] == [28, 29, 30, 31, 32, 39]


@every_script
def test_the_patched_engine_does_what_is_asked(number: int) -> None:
    assert patched(number).misses(SCRIPTS[number].asked) == []


@pytest.mark.parametrize("number", sorted(set(SCRIPTS) - SLOW - {35}))
def test_it_does_with_other_keys_and_other_jitter_too(number: int) -> None:
    for seed in (2, 3):
        assert measure(SCRIPTS[number], seed=seed)[0].misses(SCRIPTS[number].asked) == []


def test_only_chance_leaves_a_number_open() -> None:
    # Scenario 35 loses, copies and reorders at random.
    open_ones = {number for number, script in SCRIPTS.items() if None in fields_of(script.asked)}
    assert open_ones == {35}


def fields_of(asked: Asked) -> list[object]:
    return [getattr(asked, name) for name in asked.__slots__]


@every_script
def test_one_more_or_one_less_than_asked_is_found_in_every_column(number: int) -> None:
    asked, measured = SCRIPTS[number].asked, patched(number)
    for name in asked.__slots__:
        wanted = getattr(asked, name)
        if wanted is None:
            continue
        least, most = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        step = 0.001 if name == "without_session" else 1
        assert replace(measured, **{name: least}).misses(asked) == []
        assert replace(measured, **{name: most}).misses(asked) == []
        assert replace(measured, **{name: least - step}).misses(asked) == [name]
        assert replace(measured, **{name: most + step}).misses(asked) == [name]


def test_what_nobody_asks_for_is_never_missed() -> None:
    assert patched(35).misses(Asked()) == []


@pytest.mark.parametrize(
    "number",
    [
        number
        for number, script in SCRIPTS.items()
        if number not in SLOW and not script.needs_patched and script.asked.undelivered is not None
    ],
)
def test_with_upstream_on_one_side_what_is_lost_is_lost_for_a_reason_that_is_listed(number: int) -> None:
    pairs: dict[str, tuple[Engine, Engine]] = {"A": ("upstream", "patched"), "B": ("patched", "upstream")}
    worse = {
        (number, side)
        for side, pair in pairs.items()
        if measure(SCRIPTS[number], pair)[0].undelivered > patched(number).undelivered
    }
    assert worse == {exception for exception in EXCEPTIONS if exception[0] == number}


def test_equal_seeds_play_a_scenario_equally() -> None:
    traces = [SCRIPTS[35].run(seed=seed).trace.to_bytes() for seed in (3, 3, 4)]
    assert traces[0] == traces[1] != traces[2]


def test_a_comparison_measures_every_pair() -> None:
    compared = compare(SCRIPTS[2])
    # B's session is there from one latency after A's on, ends at 180 s of its own age, and comes 3 latencies after 185.
    assert compared.patched == Measure(
        initiations=1, keepalives=0, offered=1, undelivered=0, wakes=2, without_session=5.1
    )
    assert compared.upstream is not None and compared.upstream.keepalives == 1
    assert compared.upstream_as_a is not None and compared.upstream_as_b is not None
    assert compared.patched_trace.to_bytes() == SCRIPTS[2].run().trace.to_bytes()
    assert compared.upstream_trace is not None and compared.upstream_trace.counts()["K"] == 2


def test_what_upstream_cannot_run_is_not_compared() -> None:
    compared = compare(SCRIPTS[37])
    assert [compared.upstream, compared.upstream_as_a, compared.upstream_as_b] == [None] * 3
    assert compared.upstream_trace is None
    assert compared.side_by_side() == []


def test_each_pair_of_engines_is_played_once(monkeypatch: pytest.MonkeyPatch) -> None:
    played = []
    play = SCRIPTS[1].play

    def counted(stage: Stage) -> None:
        played.append((stage.a.engine, stage.b.engine))
        play(stage)

    compared = compare(replace(SCRIPTS[1], play=counted))
    assert compared.side_by_side()
    assert sorted(played) == sorted(
        (one, other) for one in ("patched", "upstream") for other in ("patched", "upstream")
    )


def test_an_own_script_is_compared_without_being_asked_anything() -> None:
    def play(stage: Stage) -> None:
        stage.send(stage.a, 0.0, 100.0)
        stage.lose(lambda sent: sent.kind == "D", 50.0, 101.0)

    compared = compare(Scenario(0, "a packet of two is lost", play, 120.0))
    assert compared.patched.undelivered == 1 and compared.upstream is not None
    assert block(compared).interoperates == "not compared"


def test_wakes_count_from_the_script_s_zero_on() -> None:
    # From 1 s of the world to 11 s, both ends included: 41 ticks on each side.
    assert measure(SCRIPTS[1], ("upstream", "upstream"))[0].wakes == 2 * 41


def test_the_two_runs_are_shown_from_the_first_difference_on_in_words_without_chance() -> None:
    compared = compare(SCRIPTS[11])
    lines = compared.side_by_side(context=1)
    # Both lose the sixth packet; upstream counts 15 s from the last tick before it received something.
    assert lines[0] == ("       6.000  A → B  data, lost: cut",) * 2
    upstream, ours = lines[1]
    assert upstream.startswith("      14.750  A → B  initiation, lost: cut")
    assert re.fullmatch(r"      16\.[0-3]\d\d  A → B  initiation, lost: cut", ours)
    assert len(compared.side_by_side()) == 2 + 1
    assert compared.side_by_side(context=100)[:4] == [
        (line, line)
        for line in (
            "      -0.040  A → B  initiation",
            "      -0.020  B → A  response",
            "       0.000  A → B  keepalive",
            "       1.000  A-B  cut",
        )
    ]


def test_where_both_did_the_same_nothing_is_shown_and_where_one_ends_sooner_the_rest_of_the_other() -> None:
    quiet = compare(SCRIPTS[6])
    assert quiet.side_by_side() == []
    shorter = replace(quiet, upstream_trace=Trace())
    assert shorter.side_by_side(most=1) == [("", "      -0.040  A → B  initiation")]


# The table.


def test_the_table_has_three_lines_a_scenario_and_names_what_is_not_in_it() -> None:
    compared: list[Comparison] = [compare(SCRIPTS[38])]
    lines = markdown([block(each) for each in compared]).splitlines()
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])
    assert lines[2].startswith(
        "| 38 | three hours of sleep, and a clock that is set | upstream | 1 | 1 | 1 of 2 |"
    )
    assert "upstream as A loses 1: upstream seals the first packet after a sleep" in lines[3]
    assert lines[4] == "|  |  | asked | 2 | 1-3 | 0 | 4 | 10,840.14 |  |"
    assert len([line for line in lines if line.startswith("- ")]) == 6


def test_what_is_not_as_asked_and_what_is_lost_without_a_reason_is_named() -> None:
    script = replace(SCRIPTS[1], number=99, asked=Asked(2, (3, 4), 0, None, 0.5))
    compared = compare(script)
    worse = replace(compared, upstream_as_b=replace(compared.patched, undelivered=1))
    made = block(worse)
    assert made.asked == ("asked", "2", "3-4", "0", "any", "0.50", "")
    assert made.misses == ("initiations", "keepalives", "without_session")
    assert made.interoperates == "upstream as B loses 1: unexplained"


def in_the_document() -> list[list[str]]:
    table = DOCUMENT.read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_table_of_the_documentation_is_that_of_today() -> None:
    head, _, *rows = in_the_document()
    assert head == list(COLUMNS)
    assert [(row[0], row[1]) for row in rows[::3]] == [
        (str(number), script.title) for number, script in SCRIPTS.items()
    ]
    for script, upstream, ours, asked in zip(
        SCRIPTS.values(), rows[::3], rows[1::3], rows[2::3], strict=True
    ):
        # What upstream does has its own chance in it, alone and on one side.
        fresh = block_of_ours(script)
        assert (upstream[2], upstream[3] == "-") == ("upstream", script.needs_patched is not None)
        assert tuple(ours[2:-1]) == fresh.patched[:-1], script.number
        assert tuple(asked[2:]) == fresh.asked, script.number
        if script.needs_patched is not None:
            assert ours[-1] == fresh.interoperates


def block_of_ours(script: Scenario) -> Block:
    return block(Comparison(script, patched(script.number), Trace(), None, None, None, None))


def test_the_list_of_the_documentation_is_that_of_today() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert markdown([]).partition("\n\n")[2] in text
