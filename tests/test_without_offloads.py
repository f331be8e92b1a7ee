"""What `--offload off` does to the tests: wherever offloads are left to connlib, there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers_netns import in_namespace, run_body

TESTS = Path(__file__).resolve().parent
SAY = "from connlib.tun import offload_names as n; print(n(True), n(False), n(('tso4',)))"
EVERYTHING = ("checksum", "tso4", "tso6", "tso_ecn", "uso", "coalesce_tcp", "coalesce_udp")


def said(path: Sequence[Path], script: str) -> str:
    """What a process prints that has these folders before all others."""
    # Of this run, which may be one with `--offload off` itself.
    others = [each for each in sys.path if each and Path(each).name != "without_offloads"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *others])}
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@pytest.mark.parametrize("script", [SAY, f"import connlib.cli.wg\n{SAY}", f"import connlib.driver\n{SAY}"])
def test_what_is_left_to_connlib_is_nothing_in_each_process(script: str) -> None:
    assert said([TESTS / "without_offloads"], script) == "() () ('tso4',)"
    assert said([], script) == f"{EVERYTHING} () ('tso4',)"


def test_and_no_thread_moves_packets() -> None:
    script = "import connlib._mover as mover; print(mover.worker_for.__module__)"
    assert said([TESTS / "without_offloads"], script) == "sitecustomize"
    assert said([], script) == "connlib._pump"


@in_namespace
def test_a_device_has_what_the_option_says() -> None:
    """This one is run both ways: by itself, and by each run with `--offload off`."""
    import logging

    from connlib.tun import open_tun

    lines: list[str] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("connlib").addHandler(handler)
    logging.getLogger("connlib").setLevel(logging.DEBUG)
    open_tun(None, "made0").close()
    is_off = os.environ["TESTED_OFFLOAD"] == "off"
    assert (lines == ["made0: offloads: none"]) is is_off, lines


run_body(globals())
