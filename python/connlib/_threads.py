"""Calls in threads of their own.

Network namespaces belong to threads: a new one is in that of the thread that starts it, while a pooled one keeps
that of whoever started it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadCall(Generic[T]):
    """A call of `function` in a new thread, which has started. Raises `OSError` (EAGAIN) where none can be had."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._call, name=name)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error

    def _call(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:
            self._errors.append(error)

    @property
    def is_running(self) -> bool:
        """Whether the call has not ended."""
        return self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether it has ended and raised something."""
        return bool(self._errors)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def result(self) -> T:
        """What it returned, or raise what it raised, once it has ended."""
        self.join()
        if self._errors:
            raise self._errors[0]
        return self._results[0]
