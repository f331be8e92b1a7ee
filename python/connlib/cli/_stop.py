"""The signals that stop `connlib up`: one handler, from before the heavy imports to the end of the process.

Whatever the first signal interrupts, the command ends in order and with exit code 0. Later ones change nothing: whoever
stops a service may well send two, and half of the way down must not become a failure.

SIGHUP stops too, as when the terminal of a foreground process is closed; but where it is ignored on entry (`nohup`), it
stays ignored.
"""

from __future__ import annotations

import atexit
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Remembers the first stop signal of the process, and tells whoever wants to know."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        """The first one that came, or None."""
        self._arrivals = itertools.count()
        self._tell: Callable[[], None] | None = _leave

    def install(self) -> None:
        """Handle the signals from now on. Until `tell`, the first one raises `SystemExit` with 0, wherever it comes."""
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            if before == self._handle or (number is signal.SIGHUP and before is signal.SIG_IGN):
                continue
            signal.signal(number, self._handle)
            # At its end, the interpreter takes its handlers out before the process is gone.
            atexit.register(_ignore, number)
        # Whoever started the process may have held them back until it had written down whom to stop.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def tell(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when the first signal comes, at once if it has come; None: only remember it."""
        self._tell = callback
        if self.first is not None and callback is not None:
            callback()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # One step, since another signal's handler may run between any two of this one.
        if next(self._arrivals):
            return
        self.first = signal.Signals(number)
        # Later ones stay with the kernel, out of the way of whoever is closing down: an event loop has a descriptor
        # that is told of every signal, and is closed at some point.
        _block()
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
