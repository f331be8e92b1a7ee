"""The timestamps of handshakes, in a file: what tells a replay (paper section 5.1) outlives the process.

    async with open_interface(config, timestamps=TimestampStore("/var/lib/gateway/wg0.json")) as interface:
        ...

The file holds the greatest timestamp of each peer, so that an initiation that somebody recorded gets no answer after a
restart, and the greatest one that was sent, so that peers take our initiations after the clock was set back. It is
written when something changed, at most once in `PAUSE`, and at the end. Where it is lost, or what came last was not
written yet when the process was killed, a replay gets one answer at most, which moves no endpoint and confirms no
session.

Nothing that is wrong with the file stops an interface: it is logged, in one warning, and the interface runs without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TypeVar

import anyio
import msgspec

from ._errors import ConnlibError
from ._native import Node, PublicKey
from ._wholefile import remove, sync_folder, write_new

__all__ = ["TimestampStore"]

_log = logging.getLogger("connlib")

PAUSE = 5.0
"""Seconds between two writes, at least."""

VERSION = 1
"""Of the file's form."""

LARGEST = 1 << 24
"""Bytes of a file that is read: more than 200,000 peers have."""

Timestamps = Mapping[PublicKey, bytes]
"""The 12 bytes of a TAI64N timestamp by public key."""

T = TypeVar("T")


class TimestampStore:
    """A file of timestamps, for one interface at a time; a lock beside it (`PATH.lock`) sees to that.

    path: of the file, which is made when there is something to keep, readable for its owner only, and so is its
    directory if that is missing. It is replaced as a whole, so that a crash leaves the old one or the new one.

    It says which public keys the peers have, and when they last began a session; there is no secret in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"TimestampStore({self._path!r})"

    @property
    def path(self) -> str:
        """The file."""
        return self._path

    def open(self) -> tuple[Timestamps, Timestamps]:
        """Take the file, and say what it holds: what was received from each peer, and what was sent with each own key.

        Raises `ConnlibError` if it cannot be had, is in use, or is of a later version, which is left as it is. One that
        cannot be understood is as good as none, and is logged.
        """
        # Not everywhere, unlike this module.
        import fcntl

        if self._lock is not None:
            raise self._in_use()
        try:
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConnlibError(f"{self._path}: cannot be had: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = self._parse(self._read())
        except BaseException as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise self._in_use() from None
            if isinstance(error, OSError):
                raise ConnlibError(f"{self._path}: cannot be read: {error.strerror}") from None
            raise
        self._lock = lock
        return kept

    def _in_use(self) -> ConnlibError:
        return ConnlibError(f"{self._path}: another interface uses it")

    def _read(self) -> bytes | None:
        try:
            # Not blocking, should it be a pipe.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            return file.read(LARGEST + 1)

    def _parse(self, data: bytes | None) -> tuple[Timestamps, Timestamps]:
        if data is None:
            return {}, {}
        try:
            if len(data) > LARGEST:
                raise ValueError
            version = msgspec.json.decode(data, type=_Version).version
            if version > VERSION:
                raise ConnlibError(f"{self._path}: was written by a later version of connlib")
            if version < VERSION:
                raise ValueError
            file = msgspec.json.decode(data, type=_File)
            return _from_text(file.received), _from_text(file.sent)
        except (ValueError, RecursionError):  # msgspec's own errors are among them
            _log.warning("%s: is damaged, and not used: timestamps of before are lost", self._path)
            return {}, {}

    def save(self, received: Timestamps, sent: Timestamps) -> None:
        """Write the file anew. Raises `OSError`; nothing has changed then."""
        text = msgspec.json.encode(_File(VERSION, _to_text(received), _to_text(sent)))
        temporary = f"{self._path}.new"
        # The lock makes the name ours: what is there, a crash has left.
        remove(temporary)
        write_new(temporary, msgspec.json.format(text, indent=1) + b"\n")
        try:
            os.replace(temporary, self._path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(self._path)

    def close(self) -> None:
        """Let go of the file. Once is enough, and more does no harm."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)


class _Version(msgspec.Struct):
    version: int


class _File(msgspec.Struct):
    version: int
    received: dict[str, str]
    sent: dict[str, str]


def _to_text(timestamps: Timestamps) -> dict[str, str]:
    return {key.to_base64(): timestamp.hex() for key, timestamp in timestamps.items()}


def _from_text(timestamps: Mapping[str, str]) -> Timestamps:
    """Raises `ValueError` for what is none."""
    kept = {PublicKey.from_base64(key): bytes.fromhex(text) for key, text in timestamps.items()}
    if any(len(timestamp) != 12 for timestamp in kept.values()):
        raise ValueError
    return kept


class Keeper:
    """Keeps the timestamps of a node in a store, or, without one, does nothing.

    In its block `run` writes what `notice` has found to be new; at the end of the block it writes what is left.

    now: the node's time.
    """

    def __init__(self, store: TimestampStore | None, node: Node, now: Callable[[], float]) -> None:
        self._store = store
        self._node = node
        self._now = now
        self._kept: tuple[Timestamps, Timestamps] = ({}, {})
        """What the file holds."""
        self._version = node.timestamps_version()
        """Of what it holds, or should hold soon."""
        self._changed = anyio.Event()
        self._failing = False

    async def __aenter__(self) -> Keeper:
        if self._store is None:
            return self
        try:
            self._kept = await _in_thread(self._store.open)
            received, sent = self._kept
            self._node.restore_timestamps(dict(received), dict(sent), self._now())
        except ConnlibError as error:
            _log.warning("timestamps of handshakes are not kept: %s", error)
            self._store = None
        except ValueError as error:
            _log.warning("%s: is damaged, and not used: %s", self._store.path, error)
        except BaseException:
            self._store.close()
            raise
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._store is not None:
            try:
                with anyio.CancelScope(shield=True):
                    await self._save()
            finally:
                self._store.close()

    @property
    def keeps(self) -> bool:
        """Whether there is anything to do."""
        return self._store is not None

    def notice(self) -> None:
        """The node was called: have what is new written, soon."""
        if self._store is not None and self._node.timestamps_version() != self._version:
            self._changed.set()

    async def run(self) -> None:
        """Write whenever there is something new."""
        while self._store is not None:
            await self._changed.wait()
            self._changed = anyio.Event()
            await self._save()
            await anyio.sleep(PAUSE)

    async def _save(self) -> None:
        assert self._store is not None
        version, kept = self._node.timestamps_version(), self._node.timestamps()
        if kept == self._kept:
            return
        try:
            await _in_thread(partial(self._store.save, *kept))
        except OSError as error:
            # It is tried again when the node is called next, and said once.
            if not self._failing:
                _log.warning("%s: cannot be written: %s", self._store.path, error.strerror)
            self._failing = True
        else:
            self._kept, self._version, self._failing = kept, version, False


async def _in_thread(function: Callable[[], T]) -> T:
    """Call a function that waits for a disk. Its thread is not one of those that the application may use up."""
    return await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))
