"""Network namespaces for tests that need root, and running a test's body inside one.

A body is a function without arguments at the top of a test module. The test runs it in a process of its own, with its
name on the command line, inside a fresh namespace: whatever it leaves behind, it leaves there.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATIENCE = 120
"""Seconds for a body."""
_RAN = "the body has run"


def what_is_missing() -> str | None:
    """Why this machine cannot run these tests; None if it can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces and TUN devices"
    if shutil.which("ip") is None:
        return "needs ip (Debian: iproute2)"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun (modprobe tun)"
    return None


@contextmanager
def namespace() -> Iterator[str]:
    """A namespace with a loopback interface that is up; its name."""
    name = f"connlib-test-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"needs network namespaces: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def in_namespace(body: Callable[[], None]) -> Callable[[], None]:
    """Make a test of a body; the module's last line must be `run_body(globals())`."""

    # Not functools.wraps(): the module must keep the body itself under its own name for run_body to find.
    def test() -> None:
        if missing := what_is_missing():
            pytest.skip(missing)
        script = sys.modules[body.__module__].__file__
        with namespace() as name:
            command = ["ip", "netns", "exec", name, sys.executable, "-W", "error", str(script), body.__name__]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        # A module without its last line would end well, and have run nothing.
        assert ended.returncode == 0 and ended.stdout.endswith(f"{_RAN}\n"), (
            f"{body.__name__} failed in its namespace:\n{ended.stdout}{ended.stderr}"
        )

    functools.update_wrapper(test, body)
    del test.__wrapped__  # type: ignore[attr-defined]
    test.body = body  # type: ignore[attr-defined]
    return test


def run_body(module: dict[str, Any]) -> None:
    """In the process that was started for a body, run it."""
    if module["__name__"] == "__main__":
        module[sys.argv[1]].body()
        print(_RAN)


def ip(*arguments: str) -> str:
    """Run `ip` in the namespace of this process and return what it printed."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
