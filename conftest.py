"""What holds for every test: in CI nothing is skipped, and signals mean what they do for a command in a terminal."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


_WITHOUT_OFFLOADS = Path(__file__).parent / "tests" / "without_offloads"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--offload",
        choices=("on", "off"),
        default="on",
        help="off: TUN devices have no offloads in these tests, unless a configuration names some, and event loops"
        " move the packets",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start inherit what is ignored here: SIGHUP, for one, where the tests run under nohup."""
    # For the test of what follows, which runs in a process of its own.
    os.environ["TESTED_OFFLOAD"] = config.getoption("offload")
    if config.getoption("offload") == "off":
        # Here, and in each process that is started: some are given the path that this one has.
        sys.path.insert(0, str(_WITHOUT_OFFLOADS))
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_WITHOUT_OFFLOADS), inherited]))
        runpy.run_path(str(_WITHOUT_OFFLOADS / "sitecustomize.py"))
    # Nor do they keep anything outside of their test.
    os.environ["STATE_DIRECTORY"] = ""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about offloads, or about the thread that moves packets, has nothing to show without any."""
    if config.getoption("offload") == "off":
        about = [item for item in items if item.get_closest_marker("offloads")]
        items[:] = [item for item in items if item not in about]
        config.hook.pytest_deselected(items=about)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A skip is a courtesy to a machine that lacks something; where the checks count, it would hide a failure."""
    report: pytest.TestReport = yield
    if _IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI must skip nothing: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a module that skips itself while it is imported."""
    report: pytest.CollectReport = yield
    if _IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI must skip nothing: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    """The reason in what pytest keeps of a skip: (path, line, reason), or something that says it."""
    return str(longrepr[-1]) if isinstance(longrepr, tuple) else str(longrepr)
