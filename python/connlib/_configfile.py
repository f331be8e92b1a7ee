"""What all configuration files have in common: how they are read, who may read them, and how their errors are shown."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import time
from collections.abc import Iterable
from typing import NamedTuple

from ._errors import ConfigError

_HINTS = {
    errno.EACCES: "run as its owner or as root",
    errno.EPERM: "run as its owner or as root",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
}


class ConfigFileError(ConfigError):
    """What is wrong with a file: as a `ConfigError` the first of its problems, and all of them in `problems`.

    After twenty problems of a wg-quick file, or a thousand of a TOML file, the rest is not read. Of a file that is not
    TOML, only the first is known.
    """

    def __init__(self, problems: tuple[ConfigError, ...], more: bool = False) -> None:
        first = problems[0]
        super().__init__(
            first.problem, path=first.path, line=first.line, column=first.column, hint=first.hint
        )
        self.problems = problems
        """One or more, in the order of their places."""
        self.more = more
        """Whether there may be others, because there are so many that the rest was not read."""

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problems, self.more))


class ConfigFile(NamedTuple):
    """A file as it was read."""

    name: str
    """What messages call it."""
    data: bytes
    mode: int

    @property
    def others_may_read(self) -> bool:
        """Whether every user of the machine can read it."""
        return stat.S_ISREG(self.mode) and bool(self.mode & stat.S_IROTH)

    @property
    def others_may_write(self) -> bool:
        """Whether every user of the machine can change it."""
        return stat.S_ISREG(self.mode) and bool(self.mode & stat.S_IWOTH)

    def require_private(self) -> None:
        """Raise `ConfigError` if every user of the machine can read or change the file, which holds a key."""
        if self.others_may_read or self.others_may_write:
            raise ConfigError(self.exposed("it holds a private key"), hint=EXPOSED_HINT, path=self.name)

    def exposed(self, why: str) -> str:
        """What is wrong with a file that others can read or change."""
        return f"every user of this machine can read or change it (mode {stat.S_IMODE(self.mode):04o}), and {why}"

    def text(self) -> str:
        """The text. Raises `ConfigError` for NUL bytes and for what is not UTF-8; a byte order mark is left out."""
        nul = self.data.find(b"\0")
        if nul >= 0:
            raise self._not_text("there is a NUL byte", nul)
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self._not_text("this is not UTF-8", error.start) from None

    def _not_text(self, problem: str, offset: int) -> ConfigError:
        start = self.data.rfind(b"\n", 0, offset) + 1
        line = self.data.count(b"\n", 0, offset) + 1
        column = len(self.data[start:offset].decode("utf-8-sig", "replace")) + 1
        hint = "save the file as plain UTF-8 text"
        return ConfigError(problem, hint=hint, path=self.name, line=line, column=column)


EXPOSED_HINT = "chmod 600 it, or pass --allow-world-readable"


def read_file(path: str, limit: int, *, kind: str) -> ConfigFile:
    """Read a file of at most `limit` bytes. Raises `ConfigError` if it is larger or cannot be read."""
    name = display_path(path)
    if not path:
        raise ConfigError("the path is empty", hint=f"name {kind}")
    if "\0" in path:
        raise ConfigError("this is not a path", hint=f"name {kind}", path=name)
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(limit + 1) if stat.S_ISREG(mode) else _read_slowly(file.fileno(), limit + 1)
    except OSError as error:
        raise failed("read", error, path, hint=f"name {kind}") from None
    if len(data) > limit:
        size = f"{limit // 1024 // 1024} MiB" if limit >= 1024 * 1024 else f"{limit} bytes"
        raise ConfigError(f"this file is larger than {size}", hint=f"is it {kind}?", path=name)
    return ConfigFile(name, data, mode)


def _read_slowly(descriptor: int, most: int) -> bytes:
    """Read from what may have nothing yet, a pipe say.

    Not by waiting in a call: a signal that comes just before it would be handled only when something can be read.
    """
    os.set_blocking(descriptor, False)
    data = b""
    while len(data) < most:
        try:
            piece = os.read(descriptor, most - len(data))
        except BlockingIOError:
            time.sleep(_PAUSE)
            continue
        if not piece:
            break
        data += piece
    return data


_PAUSE = 0.02


def failed(what: str, error: OSError, path: str, *, hint: str) -> ConfigError:
    """What is said of a file that one could not `what`. `hint` is what to do unless the kind of error says more."""
    reason = (error.strerror or type(error).__name__).lower()
    hint = _HINTS.get(error.errno or 0, hint)
    return ConfigError(f"cannot {what} it: {reason}", hint=hint, path=display_path(path))


KEY_FOR_A_PATH = "[A-Za-z0-9+/]{40,44}={0,2}"


def is_like_a_key(path: str) -> bool:
    """Whether a key may have been given where a path belongs."""
    return re.fullmatch(KEY_FOR_A_PATH, path.strip()) is not None


def display_path(path: str) -> str:
    """What messages call a file."""
    if is_like_a_key(path):
        return "(a path that is not shown: it may be a key)"
    return path if path.isprintable() else ascii(path)


def guess(word: str, known: Iterable[str]) -> str | None:
    """What was probably meant, or None."""
    if len(word) > 32:
        return None  # no slip of the finger, and slow to compare
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
