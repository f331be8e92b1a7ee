"""Fixtures of the interop tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from interop.devices import End, configured_ends
from interop.machine import Launcher, missing
from interop.netns import Wire, joined_namespaces
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


@pytest.fixture
def wire(machine: None) -> Iterator[Wire]:
    """Two namespaces that are gone at the end of the test."""
    with joined_namespaces() as wire:
        yield wire


@pytest.fixture
def stack(wire: Wire) -> Iterator[ExitStack]:
    """What is started in those namespaces is stopped before they go."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ends(stack: ExitStack, wire: Wire, tmp_path: Path) -> tuple[End, End]:
    """Two devices that know each other's keys and endpoints, with addresses, and up."""
    return configured_ends(stack, wire, tmp_path)


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
