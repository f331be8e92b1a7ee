"""Changing a file as a whole or not at all, also where the process is killed or another one changes it too."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType

from ._configfile import display_path, failed, read_file
from ._errors import ConfigError
from ._wholefile import holder, lock, remove, sync_folder, write_new

LOCK_PATIENCE = 10.0
"""Seconds to wait for another process that changes the same file."""

_PAUSE = 0.05

KeyFiles = Callable[[bytes], Collection[str]]
"""The paths of the key files that a file of these bytes needs. Raises `ConfigError` if that cannot be said."""


class FileChange:
    """A change of a file, and of the key files that it names, in a `with` block. `commit` does it, in one step.

    The new text waits beside the file, in `.NAME.connlib-new`, and takes its place by a rename. A key file that comes
    or goes is called `.NAME.connlib-key` as well (a hard link) until the file has changed: by that, the next change
    finds what a killed one has left, and removes it unless the file needs it.

    Whoever changes a file has `.NAME.connlib-lock` locked meanwhile. Only the folder's owner and root can open that: a
    lock of the folder or of the file itself could be kept by everybody who may read them.

    Raises `ConfigError` for a file that is a symbolic link or no ordinary file, and for what cannot be read or written.
    """

    def __init__(self, path: str, limit: int, key_files: KeyFiles, *, kind: str, new: bool = False) -> None:
        """`limit` and `kind` are those of `read_file`; a `new` file must not be there yet."""
        self.path = path
        self._limit = limit
        self._kind = kind
        self._key_files = key_files
        self._new = new
        self.folder, name = os.path.split(path)
        self.staged = os.path.join(self.folder, f".{name}.connlib-new")
        """Where the new text waits."""
        self._key = os.path.join(self.folder, f".{name}.connlib-key")
        self._lock = os.path.join(self.folder, f".{name}.connlib-lock")
        self._made: list[str] = []
        self._staged_data = b""
        self._obsolete: str | None = None
        self._has_second_name = False
        self._before: os.stat_result | None = None
        self._stack = ExitStack()
        self.data = b""
        """What is in the file; nothing if it is new."""

    def __enter__(self) -> FileChange:
        with self._stack:
            self._stat()  # nothing is made beside what cannot be changed
            self._enter_lock()
            self._before = self._stat()
            if self._before is not None:
                self.data = read_file(self.path, self._limit, kind=self._kind).data
            self._clean()
            self._stack.callback(self._undo)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_key(self, name: str, text: str, like: str | None = None) -> str:
        """A new file with a key beside the file; its path.

        like: a file whose owner and group are to be able to read the key too, as far as the system allows it: a service
        that has another user than whoever changes its files would fail at its next start. None: nobody else can.
        """
        path = os.path.join(self.folder, name)
        with _saying("write", path):
            found = None if like is None else os.stat(like)
            write_new(self._key, text.encode(), None if found is None else partial(_share, like=found))
            self._has_second_name = True
            try:
                os.link(self._key, path)
            except FileExistsError:
                raise ConfigError(
                    "it is there already, and nothing is written over a key",
                    hint="remove it if no file needs it, or choose another name",
                    path=display_path(path),
                ) from None
            self._made.append(path)
            sync_folder(path)
        return path

    def add_output(self, path: str, data: bytes) -> None:
        """A new file anywhere, that its owner alone can read."""
        with _saying("write", path):
            try:
                write_new(path, data)
            except FileExistsError:
                hint = "choose another name, or remove it"
                raise ConfigError("it is there already", hint=hint, path=display_path(path)) from None
            self._made.append(path)
            sync_folder(path)

    def drop_key(self, path: str) -> bool:
        """Remove a key file when the change is made, whose text is staged already.

        False, and it stays, unless it is an ordinary file of one name that the new text does not need.
        """
        try:
            found = os.lstat(path)
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return False
        if self._needs(self._staged_data, path):
            return False
        with _saying("remove", path):
            os.link(path, self._key)
        self._has_second_name = True
        self._obsolete = path
        return True

    def stage(self, data: bytes) -> None:
        """Write the new text, with the mode and the owner of the old one, to `staged`."""
        with _saying("write", self.path):
            if self._before is not None and not os.access(self.path, os.W_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            before = self._before
            write_new(self.staged, data, None if before is None else partial(_take_over, like=before))
        self._staged_data = data

    def commit(self) -> None:
        """Put the staged text in the file's place. Raises `ConfigError` if somebody else has changed that meanwhile."""
        if _identity(self._stat()) != _identity(self._before):
            hint = "nothing is changed: do it again"
            raise ConfigError(
                "somebody else has changed it meanwhile", hint=hint, path=display_path(self.path)
            )
        with _saying("write", self.path):
            os.rename(self.staged, self.path)
        # It is done. What is left of it where this fails, the next change finds by its second name, and removes.
        self._made.clear()
        self._has_second_name = False
        with suppress(OSError):
            sync_folder(self.path)
            if self._obsolete is not None:
                remove(self._obsolete)
            remove(self._key)

    def _enter_lock(self) -> None:
        """Lock the file until the block ends."""
        with _saying("write", self.path):
            end = time.monotonic() + LOCK_PATIENCE
            while True:
                descriptor = self._open_lock()
                if descriptor is None:
                    continue
                try:
                    if not lock(descriptor, end - time.monotonic(), _PAUSE):
                        hint = "wait until it ends, or end it"
                        problem = f"{holder(descriptor)} is changing it"
                        raise ConfigError(problem, hint=hint, path=display_path(self.path))
                    if _is_at(descriptor, self._lock):
                        break
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # whoever had it has removed it, and so nobody else sees this one
        self._stack.callback(os.close, descriptor)
        self._stack.callback(self._remove_lock)

    def _open_lock(self) -> int | None:
        """The file to lock, made if it is not there; None if that has changed meanwhile.

        In a folder of another user's, any file of that user's choice may have its name: what was not made here is
        neither given away nor taken for a lock because of its name alone.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        owner = os.stat(self.folder or os.curdir).st_uid
        with suppress(FileExistsError):
            descriptor = os.open(self._lock, flags | os.O_CREAT | os.O_EXCL, 0o600)
            if owner != os.geteuid():
                # Else who owns the folder could not change the file any more, after a root that was killed.
                with suppress(PermissionError):
                    os.fchown(descriptor, owner, -1)
            return descriptor
        try:
            descriptor = os.open(self._lock, flags)
        except FileNotFoundError:
            return None
        found = os.fstat(descriptor)
        is_lock = stat.S_ISREG(found.st_mode) and found.st_size == 0 and found.st_nlink <= 1
        if not (is_lock and found.st_uid in (owner, os.geteuid())):
            os.close(descriptor)
            hint = "look at what it is, and remove it"
            raise ConfigError("it is in the way of changes", hint=hint, path=display_path(self._lock))
        return descriptor

    def _remove_lock(self) -> None:
        with suppress(OSError):
            os.unlink(self._lock)

    def _stat(self) -> os.stat_result | None:
        """What the file is; None for a new one that is not there."""
        name = display_path(self.path)
        try:
            found = os.lstat(self.path)
        except FileNotFoundError as error:
            if self._new:
                return None
            raise failed("read", error, self.path, hint=f"name {self._kind}") from None
        except (OSError, ValueError) as error:
            known = error if isinstance(error, OSError) else OSError(errno.EINVAL, "this is not a path")
            raise failed("read", known, self.path, hint=f"name {self._kind}") from None
        if self._new:
            raise ConfigError("it is there already", hint="choose another name, or remove it", path=name)
        if stat.S_ISLNK(found.st_mode):
            hint = "name the file that it leads to"
            raise ConfigError("a symbolic link is not written through", hint=hint, path=name)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError("this is not an ordinary file", hint=f"name {self._kind}", path=name)
        return found

    def _clean(self) -> None:
        """Remove what a change that was killed has left."""
        with _saying("remove what was left of an earlier change of", self.path):
            remove(self.staged)
            try:
                left = os.lstat(self._key)
            except FileNotFoundError:
                return
            try:
                needed = self._before is not None and self._needs(self.data, self._key)
            except ConfigError:
                return  # the file is to be corrected first
            if not needed:
                with os.scandir(self.folder or os.curdir) as entries:
                    names = [each.name for each in entries if each.inode() == left.st_ino]
                for name in names:
                    if name != os.path.basename(self._key):
                        os.unlink(os.path.join(self.folder, name))
            # Last: until then, the next change finds what is left.
            remove(self._key)

    def _needs(self, data: bytes, key: str) -> bool:
        """Whether a file of these bytes needs this key file, by whatever name it calls it. Raises `ConfigError`."""
        for path in self._key_files(data):
            try:
                if os.path.samefile(path, key):
                    return True
            except (OSError, ValueError):
                pass  # the file that is needed is not there, and so not this one
        return False

    def _undo(self) -> None:
        """Remove what is not needed, because the change was not made."""
        for path in (self.staged, *self._made, *([self._key] if self._has_second_name else [])):
            try:
                os.unlink(path)
            except OSError:
                pass  # not there, or left for the next change


def _is_at(descriptor: int, path: str) -> bool:
    """Whether what is open is still what the path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _identity(found: os.stat_result | None) -> tuple[int, ...] | None:
    return None if found is None else (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _take_over(descriptor: int, like: os.stat_result) -> None:
    """Give a new file the mode and the owner of another one."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))


def _share(descriptor: int, like: os.stat_result) -> None:
    """Let those read a new key file who can read another one: its owner, if that can be, and its group."""
    for owner in (like.st_uid, -1):
        with suppress(PermissionError):
            os.fchown(descriptor, owner, like.st_gid)
            os.fchmod(descriptor, 0o600 | like.st_mode & 0o040)
            return


@contextmanager
def _saying(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(what, error, path, hint="look at its folder") from None
