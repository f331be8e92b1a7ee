"""Network namespaces without a name: the kernel removes them with whatever was in them, so nothing can be left over."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import TypeVar

from connlib._threads import ThreadCall

T = TypeVar("T")

# linux/sched.h
_CLONE_NEWNET = 0x4000_0000


class Namespace:
    """A network namespace, with nothing in it but a loopback device that is down.

    It lasts until it is closed and every process and socket in it is gone. Raises `OSError` if it may not be made.
    """

    def __init__(self) -> None:
        self._fd = ThreadCall(_make, "namespace").result()

    def fileno(self) -> int:
        """The descriptor that netlink wants where a device is to be moved here."""
        return self._fd

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` inside the namespace.

        Namespaces belong to threads: this one stays where it is, and what is opened or started inside stays inside.
        """

        def call() -> T:
            _check(_libc().setns(self._fd, _CLONE_NEWNET))
            return function()

        return ThreadCall(call, "namespace").result()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def _make() -> int:
    _check(_libc().unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _libc() -> ctypes.CDLL:
    # os.unshare and os.setns came with Python 3.12.
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
