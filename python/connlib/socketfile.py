"""The file of a socket by which an interface is controlled: only its owner gets to it, and it is removed at the end.

`wg` looks for `/var/run/wireguard/NAME.sock`, `connlib show` for `/run/connlib/NAME.sock` (`connlib.control`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import anyio

from connlib._errors import DeviceError
from connlib._wholefile import holder, lock
from connlib.config import check_interface_name

_log = logging.getLogger("connlib")

WG_DIRECTORY = "/var/run/wireguard"
BACKLOG = 128

_LOCK_PATIENCE = 1.0
_LOCK_PAUSE = 0.01
"""Seconds. Nobody who is right holds the lock for longer than a few system calls take."""

_PAUSE = 1.0
"""Seconds from look to look for a file that cannot be watched."""


class SocketFile:
    """A listening socket at `directory/NAME.sock`, which only the owner of the process may connect to (mode 0600).

    What a process that has ended left there is replaced. Raises `DeviceError` where a process that runs has it, where
    something else is in the way, a symbolic link say, and where others could write into the directory; `ConfigError`
    for what names no interface.
    """

    def __init__(self, name: str, directory: str = WG_DIRECTORY) -> None:
        self._file = f"{check_interface_name(name)}.sock"
        self._directory = directory
        self.path = os.path.join(directory, self._file)
        with ExitStack() as undo:
            self._folder = _open_directory(directory)
            undo.callback(os.close, self._folder)
            # Made before, because its own mode is the one that the file will have, from its first moment on.
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            undo.callback(self.socket.close)
            os.fchmod(self.socket.fileno(), 0o600)
            with _locked(self._folder, directory):
                self._clear_the_way()
                try:
                    self.socket.bind(self.path)
                    undo.callback(os.unlink, self._file, dir_fd=self._folder)
                    self.socket.listen(BACKLOG)
                    self._identity = _identity(self._stat())
                except OSError as error:
                    raise DeviceError.from_os(f"cannot make {self.path}", error, hint=_HINT) from error
            undo.pop_all()

    def __enter__(self) -> SocketFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def removed(self) -> bool:
        """Whether the file is not there any more, or is another one."""
        try:
            return _identity(self._stat()) != self._identity
        except OSError:
            return True

    async def wait_removed(self) -> None:
        """Until somebody removes or replaces the file. Where the kernel cannot tell, it is looked for every second."""
        try:
            watch = _Watch(self._directory)
        except DeviceError as error:
            # A user has 128 of what it takes, if nobody has changed that: no reason not to serve the next device.
            _log.info("%s; %s is looked for every second", error, self.path)
            while not self.removed:
                await anyio.sleep(_PAUSE)
            return
        with watch:
            while not self.removed:
                await watch.wait()

    def close(self) -> None:
        """Remove the file, if it is still ours, and close the socket."""
        if self.socket.fileno() < 0:
            return
        try:
            with _locked(self._folder, self._directory):
                if not self.removed:
                    # Who has given up root's rights meanwhile leaves it in root's folder; the next one replaces it.
                    with suppress(PermissionError):
                        os.unlink(self._file, dir_fd=self._folder)
        finally:
            self.socket.close()
            os.close(self._folder)

    def _stat(self) -> os.stat_result:
        return os.stat(self._file, dir_fd=self._folder, follow_symlinks=False)

    def _clear_the_way(self) -> None:
        try:
            found = self._stat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket"
            raise DeviceError(f"{self.path} is there already, and is {what}", hint="find out why; remove it")
        if answers(self.path):
            raise DeviceError(
                f"{self.path} belongs to a process that runs",
                hint="choose another name, or stop that process",
            )
        os.unlink(self._file, dir_fd=self._folder)


_HINT = "see what is there: ls -la"


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _open_directory(path: str) -> int:
    """A descriptor of the directory, made if need be, in which nobody else can put or replace a file."""
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise DeviceError(
                f"{path} is not a directory", hint="find out why; remove it, it is made again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise DeviceError(f"no permission to make {path}", hint="run as root") from error
        raise DeviceError.from_os(f"cannot make {path}", error, hint=_HINT) from error
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        os.close(folder)
        raise DeviceError(
            f"others can write into {path}, and so take the place of the control socket",
            hint=f"chown root {path}; chmod 700 {path}",
        )
    return folder


@contextmanager
def _locked(folder: int, path: str) -> Iterator[None]:
    """Of several processes, one at a time is in here: to look what is there and to replace it are two steps."""
    if not lock(folder, _LOCK_PATIENCE, _LOCK_PAUSE):
        # Whoever can read the directory can lock it.
        hint = f"end that process; chmod 700 {path} keeps others out"
        raise DeviceError(f"{holder(folder)} keeps {path} locked", hint=hint)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def answers(path: str) -> bool:
    """Whether a process listens behind a socket file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # Not connected means nobody there; that its backlog is full (EAGAIN) means somebody.
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


# linux/inotify.h
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_ONLYDIR = 0x0100_0000
_ENDS = _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_EVENT_BYTES = struct.calcsize("iIII") + 256


class _Watch:
    """Tells that something was removed from a directory, or replaced in it. Raises `DeviceError` where it cannot."""

    def __init__(self, directory: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), _ENDS) < 0:
            number = ctypes.get_errno()
            self.__exit__()
            hint = "raise fs.inotify.max_user_instances and max_user_watches (sysctl)"
            raise DeviceError(f"cannot watch {directory}: {os.strerror(number)}", hint=hint)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    async def wait(self) -> None:
        """Until something has happened since the last call."""
        await anyio.wait_readable(self._fd)
        try:
            while os.read(self._fd, 16 * _EVENT_BYTES):
                pass
        except BlockingIOError:
            pass
