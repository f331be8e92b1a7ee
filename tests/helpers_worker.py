"""The threads that move packets."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path


def threads(name: str = "connlib") -> list[Path]:
    """The threads of this process that move packets; "connlib-team": those that share its encryption."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (task / "comm").read_text().strip().rstrip("-0123456789") == name:
                found.append(task)
    return found


def expect_threads(count: int, name: str = "connlib") -> list[Path]:
    """One gives itself its name when it begins, and one that was joined may be listed for another moment."""
    end = time.monotonic() + 10
    while len(found := threads(name)) != count:
        assert time.monotonic() < end, found
    return found


def output_of(script: str, seconds: float = 120) -> str:
    """What a Python program prints that ends well, with the tests' own modules."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
