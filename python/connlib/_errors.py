"""The exceptions of connlib, one class per condition.

Misuse by the caller raises one of these, `TypeError` or `ValueError`. What arrives from the network never raises: it
is counted, and named by a `DropReason`.
"""

from __future__ import annotations

import errno


class ConnlibError(Exception):
    """The base of every exception that connlib defines."""


class KeyFormatError(ConnlibError, ValueError):
    """A key is not 32 bytes, or not the base64 that `wg` writes. The message never contains the key."""


class ConfigError(ConnlibError, ValueError):
    """A configuration is wrong. `str()` is one line: `FILE:LINE:COLUMN: problem; hint`, without what is unknown."""

    def __init__(
        self,
        problem: str,
        *,
        path: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        """What is wrong."""
        self.path = path
        """The file that says so, or None where the configuration did not come from a file."""
        self.line = line
        """The line in that file, counted from 1."""
        self.column = column
        """The column in that line, in characters, counted from 1."""
        self.hint = hint
        """What to do about it."""

    def __str__(self) -> str:
        numbers = [str(number) for number in (self.line, self.column) if number is not None]
        place = ""
        if self.path is not None:
            place = ":".join((self.path, *numbers)) + ": "
        elif self.line is not None:
            place = f"line {':'.join(numbers)}: "
        return place + self.problem + (f"; {self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[object, ...]:
        known = {"path": self.path, "line": self.line, "column": self.column, "hint": self.hint}
        return (type(self), (self.problem,), known)


class DeviceError(ConnlibError):
    """A TUN device, a socket or a route could not be set up. `str()` is one line: `problem; hint`."""

    def __init__(self, problem: str, *, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        """What went wrong."""
        self.hint = hint
        """What to do about it."""

    def __str__(self) -> str:
        return self.problem + (f"; {self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problem,), {"hint": self.hint})

    @classmethod
    def from_os(cls, what: str, error: OSError, *, hint: str) -> DeviceError:
        """`what` failed because of `error`. `hint` is what to do, unless it is that there are no descriptors left."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "raise the limit of open files: ulimit -n"
        return cls(f"{what}: {error.strerror or error}", hint=hint)


class CaptureError(ConnlibError):
    """A capture cannot begin or cannot go on. `str()` is one line."""


class ClosedError(ConnlibError):
    """The interface is closed."""


class ForkedError(ConnlibError):
    """The object was made before `fork()` and is used in the child: going on would repeat nonces of the parent."""


class EngineError(ConnlibError):
    """An internal error of the engine: a bug in connlib. The object that raised it refuses every later call."""
