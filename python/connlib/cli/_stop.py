"""The signals of `connlib up`: one handler each, from before the heavy imports to the end of the process.

Whatever the first stop signal interrupts, the command ends in order and with exit code 0. Later ones change nothing:
whoever stops a service may well send two, and half of the way down must not become a failure.

SIGHUP asks to read the configuration again, as services are asked to; but where it says what it once meant, that the
terminal of a foreground process was closed, it stops too. Where it is ignored on entry (`nohup`), it stays ignored.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that are handled. Of SIGHUP, its cause decides whether it stops."""


class StopSignals:
    """Remembers the first stop signal of the process and the wish to reload, and tells whoever wants to know."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        """The first one that came, or None."""
        self._arrivals = itertools.count()
        self._tell: Callable[[], None] | None = _leave
        self._reload_wanted = False
        self._tell_reload: Callable[[], None] | None = None
        self._had_terminal = False

    def install(self) -> None:
        """Handle the signals from now on. Until `tell`, the first one raises `SystemExit` with 0, wherever it comes."""
        self._had_terminal = self._had_terminal or _has_terminal()
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            handler = self._hang_up if number is signal.SIGHUP else self._handle
            if before == handler or (number is signal.SIGHUP and before is signal.SIG_IGN):
                continue
            signal.signal(number, handler)
            # At its end, the interpreter takes its handlers out before the process is gone.
            atexit.register(_ignore, number)
        # Whoever started the process may have held them back until it had written down whom to stop.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def tell(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when the first signal comes, at once if it has come; None: only remember it."""
        self._tell = callback
        if self.first is not None and callback is not None:
            callback()

    def tell_reload(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever SIGHUP asks for it, at once if it has."""
        self._tell_reload = callback
        if self._reload_wanted:
            self._reload_wanted = False
            callback()

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        if self._had_terminal and not _has_terminal():
            self._handle(number, frame)
        elif self._tell_reload is None:
            self._reload_wanted = True
        else:
            self._tell_reload()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # One step, since another signal's handler may run between any two of this one.
        if next(self._arrivals):
            return
        self.first = signal.Signals(number)
        # Later ones stay with the kernel, out of the way of whoever is closing down: an event loop has a descriptor
        # that is told of every signal, and is closed at some point. A thread that waits for work takes them all the
        # same, so that nothing is told of them either.
        _block()
        signal.set_wakeup_fd(-1)
        if self._tell is not None:
            self._tell()


@contextmanager
def held_back() -> Iterator[None]:
    """Keep stop signals with the kernel for the length of the block.

    Only where no other thread would take them: those that are started inside the block do not.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal. The kernel takes it away before it sends its SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        # Of other errors, such as too many open files, the terminal is not the cause.
        return error.errno not in (errno.ENXIO, errno.EIO, errno.ENOENT, errno.ENODEV)
    return True


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _ignore(number: signal.Signals) -> None:
    # Blocked first: one that came in just now has its handler run, and none comes in between.
    _block()
    signal.signal(number, signal.SIG_IGN)


def _leave() -> None:
    raise SystemExit(0)


stop_signals = StopSignals()
"""Those of this process: there is one, as signals belong to processes."""
