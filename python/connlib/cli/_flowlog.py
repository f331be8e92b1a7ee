"""`connlib up --flow-log`: what policies allow and deny, as lines of JSON in a file of their own."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone

import trio

from connlib._errors import ConnlibError
from connlib._flows import FlowRecord
from connlib._native import PublicKey
from connlib._policy import Protocol
from connlib._text import counted
from connlib.driver import Interface

log = logging.getLogger("connlib.up")

CAPACITY = 4096
"""How many records may come within `PAUSE`; more are dropped. Making objects of them takes the event loop's time."""
PAUSE = 0.25
"""Seconds between two writes."""
LAST_WRITE = 1.0
"""Seconds that a slow reader has at the end."""
ATOMIC = 4096
"""Bytes that a pipe takes as a whole or not at all (PIPE_BUF)."""

STANDARD_OUTPUT = "-"


class FlowLog:
    """Writes the flow log, or, without a file, does nothing. The file is closed at the end of the `with` block.

    Raises `ConnlibError` if the file cannot be opened.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._place = "standard output" if path == STANDARD_OUTPUT else str(path)
        self._descriptor: int | None = None
        self._names: dict[PublicKey, str | None] = {}
        self._reopens = False
        # The last line was cut off, and nothing may be joined to it: by a process that was killed, say.
        self._torn = False
        # Records that a thread has, lines that were dropped, and those of them that the log does not tell of yet.
        self._handed, self._dropped, self._unsaid = 0, 0, 0
        self._complaints: set[str] = set()
        self._one_writer = trio.CapacityLimiter(1)
        if path is not None:
            try:
                self._descriptor = _open(path)
                self._torn = _is_torn(self._descriptor)
            except OSError as error:
                raise ConnlibError(f"cannot write the flow log to {self._place}: {_why(error)}") from None

    def __enter__(self) -> FlowLog:
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits for a reader keeps its descriptor until the process ends.
        if self._descriptor is not None and not self._one_writer.borrowed_tokens:
            _close(self._descriptor)

    def start(self, interface: Interface) -> None:
        """From here on flows are logged."""
        if self._descriptor is None:
            return
        interface.log_flows(CAPACITY)
        log.info("%s: the flow log goes to %s", interface.name, self._place)
        if all(peer.policy is None for peer in interface.config.peers):
            log.warning("%s: no peer has rules, so that there are no flows to log", interface.name)

    def reopen(self) -> None:
        """Open the file anew before the next write: somebody has put it away."""
        self._reopens = self._path != STANDARD_OUTPUT

    async def follow(self, interface: Interface) -> None:
        """Write it now and then, until cancelled; then `finish` takes the rest."""
        while self._descriptor is not None:
            await trio.sleep(PAUSE)
            await self._write(interface)

    async def finish(self, interface: Interface) -> None:
        """Write what has come since, without waiting long for whoever reads it, and say how much was dropped."""
        if self._descriptor is None:
            return
        with trio.move_on_after(LAST_WRITE) as scope:
            scope.shield = True
            await self._write(interface)
        if dropped := self._dropped + self._handed:
            log.warning("%s: the flow log lacks %s", interface.name, counted(dropped, "line"))

    async def _write(self, interface: Interface) -> None:
        self._names.update({peer.public_key: peer.name for peer in interface.config.peers})
        records, missed = interface.take_flows()
        self._handed += len(records)
        # In a thread, because the packets of the tunnel do not wait for a disk or a reader.
        await trio.to_thread.run_sync(
            self._put, records, missed, abandon_on_cancel=True, limiter=self._one_writer
        )

    def _put(self, records: Sequence[FlowRecord], missed: int) -> None:
        if self._reopens:
            self._reopens = False
            self._open_again()
        self._drop(missed)
        whole = 0
        if self._told_of_drops():
            whole = self._put_lines(_line(record, self._names.get(record.peer)) for record in records)
        self._drop(len(records) - whole)
        self._handed -= len(records)

    def _told_of_drops(self) -> bool:
        """Have the log tell what it lacks, before it goes on. False if that cannot be written either."""
        if self._unsaid:
            told = self._unsaid
            if not self._put_lines(
                [_as_json({"time": _date(time.time()), "event": "dropped", "lines": told})]
            ):
                return False
            self._unsaid -= told
        return True

    def _put_lines(self, lines: Iterable[bytes]) -> int:
        """Write lines, until one cannot be written as a whole; how many could."""
        assert self._descriptor is not None
        whole = 0
        for chunk in _chunks(lines):
            data = b"\n" + chunk if self._torn else chunk
            try:
                written = os.write(self._descriptor, data)
            except OSError as error:
                self._complain("write to", error)
                break
            whole += data[:written].count(b"\n") - self._torn
            self._torn = not data[:written].endswith(b"\n")
            if written < len(data):
                # The next attempt finds out why.
                break
        return whole

    def _open_again(self) -> None:
        assert self._path is not None and self._descriptor is not None
        try:
            descriptor = _open(self._path)
            torn = self._torn if os.path.sameopenfile(self._descriptor, descriptor) else _is_torn(descriptor)
        except OSError as error:
            self._complain("reopen", error)
            return
        before, self._descriptor, self._torn = self._descriptor, descriptor, torn
        _close(before)

    def _drop(self, lines: int) -> None:
        self._unsaid += lines
        self._dropped += lines

    def _complain(self, what: str, error: OSError) -> None:
        complaint = f"cannot {what} the flow log {self._place}: {_why(error)}"
        if complaint not in self._complaints:
            self._complaints.add(complaint)
            log.warning("%s; what it lacks is counted (each kind is reported once)", complaint)


def _open(path: str) -> int:
    if path == STANDARD_OUTPUT:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.dup(sys.stdout.fileno())
    # Who talks to whom is nobody else's business. A pipe without a reader is an error, and a full one takes no time.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, 0o600)


def _is_torn(descriptor: int) -> bool:
    """Whether what is there ends within a line; of a pipe or a terminal, nobody knows."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return False
    # By another descriptor: the one that appends need not be one that reads, and is not.
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb", buffering=0) as again:
            again.seek(-1, os.SEEK_END)
            return again.read(1) != b"\n"
    except OSError:
        # Who may append may not always read. An empty line is better than two that are one.
        return True


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def _why(error: OSError) -> str:
    known = {
        errno.ELOOP: "it is a symbolic link; name the file itself",
        errno.ENXIO: "nobody reads from this pipe",
        errno.EAGAIN: "its reader is too slow",
    }
    return known.get(error.errno or 0) or error.strerror or str(error)


def _chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in pieces that a pipe takes as a whole or not at all, as far as a line is none too long for that."""
    chunk = b""
    for line in lines:
        if chunk and len(chunk) + len(line) >= ATOMIC:
            yield chunk
            chunk = b""
        chunk += line
    if chunk:
        yield chunk


def _line(record: FlowRecord, name: str | None) -> bytes:
    verdict, end = record.verdict, record.end
    protocol = record.protocol
    fields: dict[str, object] = {
        "time": _date(record.time),
        "event": "denied" if record.id is None else "began" if end is None else "ended",
        "id": record.id,
        "peer": name,
        "key": record.peer.to_base64(),
        "direction": record.direction.value,
        "protocol": protocol.value if isinstance(protocol, Protocol) else protocol,
        "source": str(record.source),
        "source_port": record.source_port,
        "destination": str(record.destination),
        "destination_port": record.destination_port,
        "icmp_type": record.icmp_type,
        "decided_by": verdict.reason.value,
        "rule": verdict.rule,
        "rule_name": verdict.name,
        "refused": record.refused or None,
    }
    if end is not None:
        fields |= {
            "why": end.why.value,
            "start": _date(end.start),
            "seconds": round(end.seconds, 6),
            "packets_from_peer": end.packets_from_peer,
            "bytes_from_peer": end.bytes_from_peer,
            "packets_to_peer": end.packets_to_peer,
            "bytes_to_peer": end.bytes_to_peer,
        }
    return _as_json({field: value for field, value in fields.items() if value is not None})


def _as_json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _date(unix_time: float) -> str:
    """As RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(unix_time, timezone.utc).isoformat(timespec="microseconds")[:-6] + "Z"
