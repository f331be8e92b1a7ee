"""The threads that move packets."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def threads() -> list[Path]:
    """The threads of this process that move packets."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (task / "comm").read_text().strip() == "connlib":
                found.append(task)
    return found


def expect_threads(count: int) -> list[Path]:
    """One gives itself its name when it begins, and one that was joined may be listed for another moment."""
    end = time.monotonic() + 10
    while len(found := threads()) != count:
        assert time.monotonic() < end, found
    return found
