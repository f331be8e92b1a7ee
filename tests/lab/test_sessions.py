"""For how long both ends of a tunnel could not send: exact, though few instants are looked at, and without a trace."""

from __future__ import annotations

import pytest

from connlib.lab import SCENARIOS, Engine, Scenario, Stage, measure
from connlib.lab._sessions import SessionWatch

SCRIPTS = {scenario.number: scenario for scenario in SCENARIOS if isinstance(scenario, Scenario)}
LATENCY = 0.02
TICK = 0.25
LOOKS_EVERY = 0.04
"""Seconds; less than a tick."""
ALL_PAIRS: list[tuple[Engine, Engine]] = [
    ("patched", "patched"),
    ("patched", "upstream"),
    ("upstream", "patched"),
    ("upstream", "upstream"),
]


def without(number: int, engines: tuple[Engine, Engine] = ("patched", "patched")) -> float:
    return measure(SCRIPTS[number], engines)[0].without_session


def test_an_idle_session_is_gone_at_180_seconds_of_either_side_s_age() -> None:
    # B made its session 20 ms before A, and could send on it 20 ms after.
    assert without(6) == pytest.approx(LATENCY + 200 - (180 - LATENCY))
    assert without(1) == pytest.approx(3 * LATENCY)
    assert without(17) == 200


def test_one_that_nobody_wipes_because_nobody_calls_is_over_all_the_same() -> None:
    assert without(7) == pytest.approx(LATENCY + (200 + 3 * LATENCY) - (180 - LATENCY))


def test_what_upstream_wipes_too_soon_is_noticed() -> None:
    # Its attempt since 30 s is given up at the first tick 90 s after the one before 30 s, and wipes what worked.
    assert without(19, ("upstream", "upstream")) == pytest.approx(LATENCY + 179 - 119.75, abs=TICK)
    assert without(19, ("upstream", "patched")) == pytest.approx(LATENCY + 179 - 119.75, abs=TICK)
    assert without(19, ("patched", "upstream")) == LATENCY


def test_what_upstream_keeps_until_it_is_called_again_is_noticed() -> None:
    assert without(7, ("upstream", "upstream")) == pytest.approx(LATENCY + 5)


def test_upstream_may_take_a_session_that_nobody_has_confirmed_for_one_to_send_on() -> None:
    def play(stage: Stage) -> None:
        # B's session ends at 180 s. Of the next ones it gets initiations only; the eighth has the place of the first.
        stage.lose(lambda sent: sent.host == "A" and sent.kind != "I", 100.0)
        for number in range(8):
            stage.a.initiate_handshake(at=stage.at(200.0 + 10 * number))

    measured, _ = measure(Scenario(0, "nothing is confirmed", play, 280.0), ("patched", "upstream"))
    assert measured.without_session == pytest.approx(LATENCY + (270 + LATENCY) - 180)


def test_what_passes_between_other_hosts_is_nobody_s_session() -> None:
    def play(stage: Stage) -> None:
        # B has no session with A from 179.98 s on; C's packets reach it all the same.
        other = stage.world.host("C")
        stage.world.tunnel(other, stage.b)
        stage.world.traffic(other, stage.b, every=1.0, since=100.0, until=200.0)

    measured, _ = measure(Scenario(0, "a third", play, 200.0))
    assert measured.without_session == pytest.approx(LATENCY + 200 - (180 - LATENCY))


@pytest.mark.parametrize("engines", ALL_PAIRS)
@pytest.mark.parametrize(
    "number", [2, 4, 5, 6, 7, 11, 13, 14, 16, 18, 19, 20, 21, 22, 23, 24, 26, 27, 33, 36, 40]
)
def test_it_is_what_somebody_sees_who_looks_all_the_time(number: int, engines: tuple[Engine, Engine]) -> None:
    script, until = SCRIPTS[number], min(SCRIPTS[number].until, 450.0)
    watched, looked_at = script.stage(engines), script.stage(engines)
    watch = SessionWatch(watched.world, watched.a, watched.b)
    watch.run(until)
    seen = seconds_seen_without(looked_at, until)
    # Each change is seen up to one look late.
    changes = 2 * (1 + len(watched.world.trace.sent("R")))
    assert watch.without_session() == pytest.approx(seen, abs=LOOKS_EVERY * changes)


def seconds_seen_without(stage: Stage, until: float) -> float:
    seen = 0
    for number in range(1, round(until / LOOKS_EVERY) + 1):
        stage.world.run(number * LOOKS_EVERY)
        seen += None in [host.stats().session_age for host in (stage.a, stage.b)]
    return seen * LOOKS_EVERY


# An hour of ten packets a second, twice, takes long.
@pytest.mark.parametrize("number", sorted(set(SCRIPTS) - {15}))
def test_looking_does_not_change_what_happens(number: int) -> None:
    _, trace = measure(SCRIPTS[number], seed=5)
    assert trace.to_bytes() == SCRIPTS[number].run(seed=5).trace.to_bytes()
