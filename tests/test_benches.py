"""The benchmarks run and their report can be made, so that they cannot rot. Nothing is said about speed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import report

ROOT = Path(__file__).resolve().parent.parent


def test_the_python_benchmarks_run() -> None:
    command = [sys.executable, str(ROOT / "benches" / "run.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "connlib, Python: `Tunn`, batches of 64" in done.stdout


def test_a_ratio_compares_neighbours_and_faster_is_more() -> None:
    results = {("tunn", 64): [(100.0, 50.0), (220.0, 50.0), (100.0, 50.0)], ("ring", 64): [(90.0, 50.0)] * 3}
    results["ring", 64][1] = (198.0, 50.0)
    assert report.ratio(results, "tunn", "ring", 64, report.SEAL) == (0.9, 0.9, 0.9)
    assert report.gbits(results, "tunn", 64, report.OPEN) == 64 * 8 / 50
