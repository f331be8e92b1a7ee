"""`connlib crosscheck --record`: what comes into the tunnels of a live interface, line by line into a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

import trio

from connlib._errors import ConnlibError
from connlib.config import InterfaceConfig
from connlib.driver import Interface

log = logging.getLogger("connlib.up")

CAPACITY = 1 << 18
"""How many inputs may come within `PAUSE`; more are counted as missed."""
PAUSE = 0.5
"""Seconds between two writes."""


class Recorder:
    """Writes a recording, or, without a file, does nothing. The file is closed at the end of the `with` block.

    Raises `ConnlibError` if the file cannot be made, or is there already.
    """

    def __init__(self, path: str | None, config: InterfaceConfig) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._started = False
        if path is None:
            return
        from connlib.lab import RecordingWriter

        self._writer = RecordingWriter(config.peers)
        try:
            # Who talks when is nobody else's business.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = open(descriptor, "w", encoding="ascii")  # noqa: SIM115
        except FileExistsError:
            raise ConnlibError(f"{path} is there already; name another file to record to") from None
        except OSError as error:
            raise ConnlibError(f"cannot record to {path}: {error.strerror}") from None
        self._put([self._writer.header()])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._path is not None and not self._started:
            # The interface did not come up.
            with suppress(OSError):
                os.unlink(self._path)

    def start(self, interface: Interface) -> None:
        """From here on what comes in is written down."""
        if self._file is not None:
            self._started = True
            interface.record(CAPACITY)
            log.info("%s: recording to %s", interface.name, self._path)

    async def follow(self, interface: Interface) -> None:
        """Write it into the file now and then, until cancelled; then `write` takes the rest."""
        while self._file is not None:
            await trio.sleep(PAUSE)
            self.write(interface)

    def write(self, interface: Interface) -> None:
        """Write down what has come in since the last call."""
        if self._file is not None:
            self._put(self._writer.lines(*interface.take_recorded()))

    def _put(self, lines: Iterable[str]) -> None:
        assert self._file is not None
        try:
            self._file.writelines(lines)
            self._file.flush()
        except OSError as error:
            # The tunnel matters more than its recording.
            log.warning("the recording ends: cannot write to %s: %s", self._path, error.strerror)
            self._end()

    def _end(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                file.close()
