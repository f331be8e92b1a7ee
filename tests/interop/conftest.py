"""Fixtures of the interop tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.machine import Launcher, missing
from interop.tunnels import OldTunnels


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips, with the reason, on a machine that cannot have tunnels."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def launcher(machine: None, tmp_path: Path) -> Iterator[Launcher]:
    """What a test starts peers with; everything is stopped and removed at its end."""
    with Launcher(tmp_path) as launcher:
        yield launcher


@pytest.fixture(scope="session", autouse=True)
def old_tunnels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OldTunnels]:
    """Tunnels that grow old beside the other tests, if test_renewal.py is to be run and the machine can."""
    with Launcher(tmp_path_factory.mktemp("old")) as launcher:
        tunnels = OldTunnels(launcher)
        if any(item.path.name == "test_renewal.py" for item in request.session.items) and not missing():
            tunnels.start()
        yield tunnels
