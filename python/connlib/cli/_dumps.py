"""Keeps the keys of a running tunnel out of core dumps, and out of the sight of other processes."""

from __future__ import annotations

import ctypes
import logging
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps(log: logging.Logger) -> None:
    """From now on nobody but root can dump or read this process's memory. A warning where that cannot be had.

    Linux only; a program that is executed in place of this one starts as if this had not been called.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("core dumps of this process cannot be forbidden here: they would hold its keys")
