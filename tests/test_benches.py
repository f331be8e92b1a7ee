"""The benchmarks run and their report can be made, so that they cannot rot. Nothing is said about speed here;
memory, which is the same every time, is held to its goal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import idle_peers
import report

ROOT = Path(__file__).resolve().parent.parent


def test_the_python_benchmarks_run() -> None:
    command = [sys.executable, str(ROOT / "benches" / "run.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "connlib, Python: `Tunn`, batches of 64" in done.stdout
    assert "10,000 idle peers" in done.stdout
    assert "| patched, idle | 0." in done.stdout


def test_a_ratio_compares_neighbours_and_faster_is_more() -> None:
    results = {("tunn", 64): [(100.0, 50.0), (220.0, 50.0), (100.0, 50.0)], ("ring", 64): [(90.0, 50.0)] * 3}
    results["ring", 64][1] = (198.0, 50.0)
    assert report.ratio(results, "tunn", "ring", 64, report.SEAL) == (0.9, 0.9, 0.9)
    assert report.gbits(results, "tunn", 64, report.OPEN) == 64 * 8 / 50


@pytest.mark.parametrize(
    ("values", "expected"),
    [((7.0,), (7.0, 7.0, 7.0)), ((3, 1, 2, 5, 4), (3, 2, 4)), ((8, 7, 6, 5, 4, 3, 2, 1), (4.5, 3, 6))],
)
def test_quartiles_are_values_that_were_measured(
    values: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert report.quartiles(values) == expected


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_ten_thousand_idle_peers_fit_into_forty_megabytes() -> None:
    with_config, without = idle_peers.measure()
    # That it grows at all shows that it was measured.
    assert 5_000_000 < without < with_config < idle_peers.GOAL
