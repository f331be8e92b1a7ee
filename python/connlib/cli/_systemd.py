"""What systemd and a service tell each other: descriptors that are passed on, and how the service is.

Of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), what `connlib up` needs. The variables are taken out of
the environment, since they are for this process alone.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections import deque
from collections.abc import MutableMapping, Sequence
from types import TracebackType

import trio

from connlib._errors import DeviceError
from connlib.tun import name_of
from connlib.udp import Sockets

log = logging.getLogger("connlib.up")

FIRST = 3
"""The first descriptor that is passed; the others follow it without a gap."""

RETRY_AFTER = 0.1
"""Seconds until the service manager is told again what its socket had no room for."""
_MOST_WAITING = 64


class Given:
    """What was opened before this process started, for it to use; closed at the end of the `with` block."""

    def __init__(self, udp: Sequence[socket.socket] = (), tun: int | None = None) -> None:
        self._sockets = tuple(udp)
        self.tun = tun
        """The descriptor of a TUN device; None: one is to be made."""

    @property
    def udp(self) -> Sockets | None:
        """Bound UDP sockets, one for each family; None: they are to be opened."""
        if not self._sockets:
            return None
        one, *others = self._sockets
        return (one, others[0]) if others else one

    def __enter__(self) -> Given:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what was given."""
        for one in self._sockets:
            one.close()
        if self.tun is not None:
            os.close(self.tun)
            self.tun = None


def take_descriptors(environment: MutableMapping[str, str]) -> Given:
    """What the environment says was passed to this process: UDP sockets and a TUN device, told apart by what they are.

    Raises `DeviceError` for anything else, for two of a kind, and for sockets that would not do what one opened here
    does.
    """
    for_whom = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if for_whom != str(os.getpid()) or not _is_number(count):
        return Given()
    sockets: dict[int, socket.socket] = {}
    tun: int | None = None
    try:
        for fd in range(FIRST, FIRST + int(count)):
            name = names[fd - FIRST] if fd - FIRST < len(names) else ""
            called = f"the descriptor {fd} that was passed" + (f" as {name!a}" if name else "")
            mode = _mode_of(fd, called)
            os.set_inheritable(fd, False)
            if stat.S_ISSOCK(mode):
                one = socket.socket(fileno=fd)
                if one.family in sockets:
                    one.close()
                    raise DeviceError(f"{called} is a second socket of its family", hint=_WHAT_TO_PASS)
                sockets[one.family] = one
                _check_socket(one, called)
            elif stat.S_ISCHR(mode) and tun is None:
                tun = fd
                if name_of(fd) is None:
                    raise DeviceError(f"{called} is no TUN device, or one without a name", hint=_WHAT_TO_PASS)
            else:
                os.close(fd)
                raise DeviceError(f"{called} is of no use", hint=_WHAT_TO_PASS)
    except BaseException:
        Given(tuple(sockets.values()), tun).close()
        raise
    return Given(tuple(sockets.values()), tun)


_WHAT_TO_PASS = "pass one bound UDP socket for each of IPv4 and IPv6, and at most one TUN device"


def _mode_of(fd: int, called: str) -> int:
    try:
        return os.fstat(fd).st_mode
    except OSError as error:
        raise DeviceError.from_os(f"cannot use {called}", error, hint=_WHAT_TO_PASS) from None


def _check_socket(one: socket.socket, called: str) -> None:
    if one.type != socket.SOCK_DGRAM or one.family not in (socket.AF_INET, socket.AF_INET6):
        raise DeviceError(f"{called} is no UDP socket", hint=_WHAT_TO_PASS)
    if one.getsockname()[1] == 0:
        raise DeviceError(f"{called} is not bound", hint=_WHAT_TO_PASS)
    if one.family == socket.AF_INET6 and not one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        hint = "set BindIPv6Only=ipv6-only, and listen on 0.0.0.0 by a ListenDatagram of its own"
        raise DeviceError(f"{called} is for IPv4 as well as IPv6", hint=hint)


class Notifier:
    """Tells a service manager how the service is, in order, and never waits for it; without a manager, nothing.

    watchdog: seconds within which the manager wants to hear of it; None if it does not. Nothing here raises: a tunnel
    is worth more than what is said of it.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._address = None if address is None else _at(address)
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._blocked = trio.Event()
        self._socket: socket.socket | None = None
        if self._address is not None:
            # Already now, so that it does not need a descriptor when there are none left.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """The one of the manager that started this process, if there is one."""
        address = environment.pop("NOTIFY_SOCKET", None)
        interval, for_whom = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", None)
        if address is None:
            return cls()
        if address[:1] not in ("/", "@"):
            log.warning("the service manager cannot be told how things are: NOTIFY_SOCKET is no such socket")
            return cls()
        wanted = for_whom in (None, str(os.getpid())) and _is_number(interval) and int(interval) > 0
        return cls(address, int(interval) / 1e6 if wanted else None)

    @property
    def is_heard(self) -> bool:
        """Whether there is a manager to be told."""
        return self._socket is not None

    def send(self, *assignments: str) -> None:
        """Say that: each is NAME=VALUE, in one line."""
        if self._socket is not None:
            self._waiting.append("\n".join(assignments).encode())
            self._flush()

    async def send_what_waits(self) -> None:
        """Say later what the manager's socket had no room for, until this is cancelled."""
        while True:
            await self._blocked.wait()
            while self._waiting:
                await trio.sleep(RETRY_AFTER)
                self._flush()
            self._blocked = trio.Event()

    def _flush(self) -> None:
        assert self._socket is not None and self._address is not None
        while self._waiting:
            try:
                # By its address each time: the manager may have made its socket anew.
                self._socket.sendto(self._waiting[0], self._address)
            except BlockingIOError:
                self._blocked.set()
                return
            except OSError as error:
                log.debug("the service manager cannot be told how things are: %s", error.strerror)
            self._waiting.popleft()

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _at(address: str) -> str:
    """Where that is: a path, or what is written with an @ in front, in the abstract namespace."""
    return "\0" + address[1:] if address.startswith("@") else address


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
