"""A short run of every fault that `make reliability` causes: what is counted must hold; times are not asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.machine import missing_rights
from reliability import document, floods, system
from reliability.catalogue import FAULTS
from reliability.faults import Check, Fault, Run

ROOT = Path(__file__).resolve().parent.parent

MEASURED = [fault for fault in FAULTS if fault.measure is not None]
IN_MEMORY = {"4", "6", "14", "33", "37"}


@pytest.mark.parametrize("fault", MEASURED, ids=lambda fault: fault.number)
def test_what_is_counted_holds_in_a_short_run(fault: Fault) -> None:
    if fault.number not in IN_MEMORY and (reason := missing_rights()):
        pytest.skip(reason)
    assert fault.measure is not None
    checks = fault.measure(Run(quick=True))
    assert [str(check) for check in checks if not (check.held or check.timed)] == []
    assert any(not check.timed for check in checks)


def test_what_a_fault_starts_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("CONNLIB_RUN_DIR", str(tmp_path))
    system.deleted_device(Run(quick=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "held", "said"),
    [(450_000, True, "90,000/s of 100,000"), (205_000, False, "41,000/s of 100,000")],
)
def test_a_generator_that_does_not_make_the_rate_says_so(sent: int, held: bool, said: str) -> None:
    check = floods.at_the_rate(sent, 5.0, 100_000)
    assert (check.held, check.measured) == (held, said)


@pytest.mark.parametrize(
    ("refused", "received", "held"),
    [(1000, 1000, True), (998, 1000, False), (1002, 1000, False), (0, 0, False)],
)
def test_a_flood_is_refused_only_if_all_that_came_was(refused: int, received: int, held: bool) -> None:
    assert floods.refused_for("garbage", refused, received).held is held


def test_every_fault_is_in_the_list_with_what_shows_it() -> None:
    assert [fault.number for fault in FAULTS] == ["load", *(str(number) for number in range(1, 41))]
    assert all(fault.measure or fault.tests or fault.remark for fault in FAULTS)
    named = {test for fault in FAULTS for test in fault.tests}
    assert {test for test in named if not (ROOT / test).exists()} == set()


def test_what_is_missed_and_what_could_not_be_measured_is_said() -> None:
    faults = [
        Fault("1", "a flood", "nothing lost", ["tests/test_a.py"], lambda run: [], remark="Read this."),
        Fault("2", "an attack", "nothing told", ["tests/test_b.py"]),
        Fault("4", "a riddle", "nothing", [], remark="There is none."),
        Fault("3", "a trap", "nothing caught", [], lambda run: []),
    ]
    checks = [Check("lost", "7", held=False), Check("time each", "2 us", held=True, timed=True)]
    text = document.render(faults, {"1": checks, "3": "needs root"}, minutes=3.0)
    lines = text.splitlines()
    assert "| 1 | a flood | nothing lost | missed (1 of 2) | `tests/test_a.py` |" in lines
    assert "| 2 | an attack | nothing told | by its tests | `tests/test_b.py` |" in lines
    assert "| 4 | a riddle | nothing | does not apply |  |" in lines and "There is none." in lines
    assert "| 3 | a trap | nothing caught | not measured |  |" in lines
    assert "| lost | 7 | **missed** |" in lines
    assert "| time each | 2 us |  |" in lines
    assert "Read this." in lines
    assert "Not measured: needs root." in lines
