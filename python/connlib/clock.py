"""The clocks of the driver, and sleeping by them.

The engine's clock must go on while the machine is suspended, or a tunnel would think that its session is as young
after the night as before. The clocks that event loops sleep on stand still then. So `now` and deadlines are on one
clock, and only an `Alarm` knows how to sleep until a deadline.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Protocol

import anyio

from ._errors import DeviceError

_HAS_BOOTTIME = sys.platform == "linux"


class Clock(Protocol):
    """What the driver tells time by. Implement it to simulate; `BootClock` is the real one."""

    def now(self) -> float:
        """Seconds, never less than before; where it starts does not matter."""

    def unix_time(self) -> float:
        """Seconds since 1970, for the timestamps of handshakes. May step."""


class BootClock:
    """The system's clock that runs during suspend too: CLOCK_BOOTTIME on Linux, and its monotonic clock elsewhere."""

    def now(self) -> float:
        """Seconds since the machine started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if _HAS_BOOTTIME else time.monotonic()

    def unix_time(self) -> float:
        """What the system's wall clock shows."""
        return time.time()


class LoopClock:
    """The clock of the event loop, which may be a simulated one; its wall clock goes along with it.

    unix_time: what the wall clock shows when this object is made, in seconds since 1970; None for the system's time.
    Make it inside the event loop.
    """

    def __init__(self, unix_time: float | None = None) -> None:
        self._unix_epoch = (time.time() if unix_time is None else unix_time) - anyio.current_time()

    def now(self) -> float:
        """Seconds on the event loop's clock."""
        return anyio.current_time()

    def unix_time(self) -> float:
        """Seconds since 1970: it never steps."""
        return self._unix_epoch + anyio.current_time()


class Alarm(Protocol):
    """Sleeps until a deadline of a `Clock`, which can be moved meanwhile without waking the sleeper."""

    def set(self, at: float | None) -> None:
        """Make the deadline `at`, in seconds on the clock; None for never. One that has passed is due at once."""

    async def wait(self) -> None:
        """Return when the deadline has come. One task may wait at a time."""

    def close(self) -> None:
        """Give back what the alarm holds. Nobody may be waiting."""


def alarm_for(clock: Clock) -> Alarm:
    """The best way to sleep by this clock."""
    if _HAS_BOOTTIME and type(clock) is BootClock:
        return _BootAlarm(clock)
    return _LoopAlarm(clock)


class _LoopAlarm:
    """Sleeps on the event loop's clock.

    If the clock runs ahead of the event loop's (a simulated suspend), the sleep ends late: nothing wakes the process
    up. Whatever wakes the driver first, a packet for instance, finds out, because it sets the alarm anew.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: float | None = None
        self._scope = anyio.CancelScope()

    def set(self, at: float | None) -> None:
        self._at = at
        # The sleeper stays asleep: moving a deadline costs nothing like a switch of tasks.
        self._scope.deadline = self._loop_deadline()

    async def wait(self) -> None:
        while True:
            with anyio.CancelScope(deadline=self._loop_deadline()) as self._scope:
                await anyio.sleep_forever()
            if self._at is not None and self._clock.now() >= self._at:
                return

    def close(self) -> None:
        pass

    def _loop_deadline(self) -> float:
        if self._at is None:
            return math.inf
        if type(self._clock) is LoopClock:
            return self._at
        loop_now = anyio.current_time()
        deadline = loop_now + (self._at - self._clock.now())
        # What is left may be too little to show in a sum of this size; then the loop must still go forward.
        return deadline if deadline != loop_now else math.nextafter(loop_now, math.inf)


class _BootAlarm:
    """Sleeps on CLOCK_BOOTTIME by a timer of the kernel, so that a deadline that passes during suspend is due right
    after it. (Sleeping on the event loop's clock instead would be late by the whole suspend, or, with naps of a
    minute, be up to a minute late and wake an idle process every minute.)
    """

    def __init__(self, clock: BootClock) -> None:
        # Exists on Linux only.
        from connlib._native import BootTimer

        self._clock = clock
        try:
            self._timer = BootTimer()
        except OSError as error:
            raise DeviceError.from_os(
                "cannot make a timer", error, hint="see what the kernel logged: dmesg"
            ) from None
        self._at: float | None = None
        self._timer_at = math.inf
        """When the timer fires: at the deadline, or before it."""

    def set(self, at: float | None) -> None:
        self._at = at
        # A deadline that moves away, as most do with each packet, costs no system call: when the timer fires too early,
        # it is set anew, once. Setting one costs a virtual machine some 30 us.
        if at is not None and at < self._timer_at:
            self._timer.set(at)
            self._timer_at = at

    async def wait(self) -> None:
        while True:
            await anyio.wait_readable(self._timer.fileno())
            # Read even if the deadline was moved meanwhile: only that makes the timer unreadable again.
            if self._timer.fired():
                at, self._timer_at = self._at, math.inf
                if at is not None and self._clock.now() >= at:
                    self._at = None
                    return
                self.set(at)

    def close(self) -> None:
        self._timer.close()
