"""`connlib up` as a service: what the manager gives it and hears of it, and which rights it keeps."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Callable
from types import TracebackType

import trio

from connlib._configfile import display_path
from connlib._errors import ConfigError
from connlib.config import InterfaceConfig
from connlib.driver import Interface, InterfaceStats

from ._dumps import forbid_dumps
from ._privileges import User, acting_as, drop, find_user, narrow, needed
from ._state import StateFile
from ._systemd import Given, Notifier, take_descriptors

log = logging.getLogger("connlib.up")

STATUS_PAUSE = 1.0
"""Seconds between two lines of status at least."""

LATE = 1.0
"""Seconds by which a deadline of the engine may have passed while the interface counts as alive."""

_WOULD_FAIL = "a reload would fail, as rights were given up"


class Service:
    """The process around an interface. Its methods come in this order: `narrow`, `open_state`, `is_up`, `follow`,
    `is_stopping`.

    user: the name of the user to become; None stays who it is. Raises `ConfigError` if there is none of that name, and
    `DeviceError` for descriptors that are of no use.
    """

    def __init__(self, user: str | None) -> None:
        self._user: User | None = None if user is None else find_user(user)
        self.given: Given = take_descriptors(os.environ)
        """What is used instead of being opened here."""
        self._notifier = Notifier.from_environment(os.environ)
        self._state: StateFile | None = None
        self._said = ""

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state is not None:
            self._state.close()  # where there was no interface to do so
        self._notifier.close()
        self.given.close()

    def narrow(self, config: InterfaceConfig, metrics_port: int) -> None:
        """Give up the rights that nothing here needs. To be called while there is one thread.

        metrics_port: a TCP port that is to be opened, 0 if it is none or any.
        """
        if sys.platform == "linux":
            narrow(self._user, needed((self._port(config), metrics_port)))

    def open_state(self, store: StateFile) -> None:
        """Open it as the user to become, who is to write it. To be called while there is one thread."""
        if sys.platform == "linux" and self._user is not None:
            self._state = store
            with acting_as(self._user):
                store.open_early()
            # The kernel forgets it when somebody changes who they are.
            forbid_dumps(log)

    def is_up(self, interface: Interface) -> None:
        """Give up the rights that were needed to get here, and say that the interface is up."""
        if sys.platform == "linux":
            # Where the device is somebody else's, so are its addresses and routes.
            later = needed((self._port(interface.config),)) if self.given.tun is None else ()
            drop(self._user, later)
            interface.give_up_rights()
            # As above.
            forbid_dumps(log)
        self._say(interface, "READY=1")

    def _port(self, config: InterfaceConfig) -> int:
        return config.listen_port if self.given.udp is None else 0

    def is_reloading(self) -> None:
        """Say that a file is read again."""
        self._notifier.send(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def has_reloaded(self, interface: Interface) -> None:
        """Say that this has ended, one way or the other."""
        self._say(interface, "READY=1")

    def is_stopping(self) -> None:
        """Say that the interface is about to go down."""
        self._notifier.send("STOPPING=1")

    async def follow(self, interface: Interface, file: str, load_file: Callable[[], InterfaceConfig]) -> None:
        """Say how the interface is, until this is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._warn_if_unreadable, interface.name, file, load_file)
            if self._notifier.is_heard:
                nursery.start_soon(self._notifier.send_what_waits)
                nursery.start_soon(self._tell_status, interface)
            if self._notifier.watchdog is not None:
                nursery.start_soon(feed_watchdog, self._notifier, self._notifier.watchdog, interface.lateness)

    async def _warn_if_unreadable(
        self, name: str, file: str, load_file: Callable[[], InterfaceConfig]
    ) -> None:
        """Where rights to read files were given up, read this one as a reload will. A pipe can be read but once."""
        try:
            known = os.stat(file)
            if stat.S_ISREG(known.st_mode) and (self._user is not None or known.st_uid != os.geteuid()):
                await trio.to_thread.run_sync(load_file, abandon_on_cancel=True)
        except ConfigError as error:
            log.warning("%s: %s: %s", name, _WOULD_FAIL, error)
        except OSError as error:
            log.warning("%s: %s: %s: %s", name, _WOULD_FAIL, display_path(file), error.strerror)

    async def _tell_status(self, interface: Interface) -> None:
        """Say how many peers are up when that has changed, but not more often than a person can read."""
        while True:
            # What happens from here on, and not what was said already.
            stream = interface.events()
            self._say(interface)
            await anext(stream)
            await trio.sleep(STATUS_PAUSE)

    def _say(self, interface: Interface, *assignments: str) -> None:
        status = describe_peers(interface.stats())
        if assignments or status != self._said:
            self._said = status
            self._notifier.send(*assignments, f"STATUS={status}")


def describe_peers(stats: InterfaceStats) -> str:
    """How many peers there are, and how many of them have a session, in a line."""
    up = sum(peer.tunnel.session_age is not None for peer in stats.peers)
    return f"{up} of {len(stats.peers)} peers up"


async def feed_watchdog(notifier: Notifier, interval: float, late: Callable[[], float]) -> None:
    """Tell the manager twice in every `interval` seconds that all is well, and not while it is not.

    late: by how many seconds the interface is behind.
    """
    while True:
        # After a suspend everybody is late, and this may be the first to be woken.
        while late() > LATE:
            await trio.sleep(min(LATE, interval / 8))
        notifier.send("WATCHDOG=1")
        await trio.sleep(interval / 2)
