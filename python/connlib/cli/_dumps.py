"""Keeps the keys of a running tunnel out of core dumps, and out of the sight of other processes."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps() -> bool:
    """From now on nobody but root can dump or read this process's memory. False where that cannot be had.

    Linux only; a program that is executed in place of this one starts as if this had not been called.
    """
    if sys.platform != "linux":
        return False
    result: int = ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return result == 0
