"""The name servers of an interface: told to systemd-resolved (`resolvectl`), or to `resolvconf`, whichever works.

As wg-quick has it, all names are asked of them while the interface is up. Where they cannot be set, that is an error:
the names would be asked of others, and nobody would notice.

systemd-resolved forgets what it was told of a device as soon as that is gone, also where the process was killed. What
`resolvconf` was told then stays until an interface of the same name starts or ends.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import anyio
import anyio.lowlevel

from ._errors import DeviceError
from ._groups import WithoutGroup
from ._text import listed

_log = logging.getLogger("connlib")

PATIENCE = 10.0
"""Seconds for a program, which may have to wait for a service."""

LAST_PATIENCE = 2.0
"""Seconds for one that gives back what there was: whoever waits for that is leaving, and may not have long."""

_LOOK = 0.05
"""Seconds until somebody who does not want to wait any more is noticed."""

_INTERFACE_ORDER = Path("/etc/resolvconf/interface-order")
"""Which names Debian's resolvconf knows: tun.wg0 among them, but not wg0."""


class _Program(Protocol):
    """What sets name servers. Raises `DeviceError`."""

    name: str

    def set(self, device: str, servers: Sequence[str], domains: Sequence[str], patience: _Patience) -> None:
        """In place of those that the device has."""

    def unset(self, device: str) -> None:
        """Remove those that the device has, if there are any."""


class _Patience:
    """How long a program is waited for. An event ends it before."""

    def __init__(self, seconds: float, ends: threading.Event | None = None) -> None:
        self._seconds = seconds
        self._ends = ends

    def wait(self, process: subprocess.Popen[str], said: str) -> tuple[str, str]:
        """What the program prints, to its end. Raises `_Ended`, with the reason, if it is not waited for so long."""
        end = time.monotonic() + self._seconds
        while True:
            try:
                return process.communicate(said, _LOOK)
            except subprocess.TimeoutExpired:
                if self._ends is not None and self._ends.is_set():
                    raise _Ended("was interrupted") from None
                if time.monotonic() > end:
                    raise _Ended(f"took longer than {self._seconds:g} s") from None


class _Ended(Exception):
    """A program was not waited for any longer."""


class Dns:
    """The name servers of one device. Not for two threads at once; each call takes as long as a program does."""

    def __init__(self) -> None:
        self._program: _Program | None = None
        self._entries: tuple[str, ...] = ()
        self._interrupted = threading.Event()

    async def interrupt_when_cancelled(self) -> None:
        """Wait until this is cancelled, and then have a `change` that waits for a program fail.

        Whoever waits for the thread of such a change cannot be cancelled, and the programs wait for services.
        """
        try:
            await anyio.sleep_forever()
        finally:
            self._interrupted.set()

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """The same for the length of the block. It may be cancelled at its end as well, when the change is done."""
        try:
            with WithoutGroup():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.interrupt_when_cancelled)
                    try:
                        yield
                    except DeviceError:
                        # What fails because it was interrupted is no failure.
                        await anyio.lowlevel.checkpoint_if_cancelled()
                        raise
                    tasks.cancel_scope.cancel()
        finally:
            self._interrupted.clear()

    @property
    def is_set(self) -> bool:
        """Whether there is anything to give back."""
        return self._program is not None

    def change(self, device: str, entries: tuple[str, ...]) -> None:
        """Have these name servers and domains, or none, or, if it raises `DeviceError`, those that there were."""
        if not entries:
            self.unset(device)
            return
        errors: list[str] = []
        # Who was cancelled before this begins is leaving, and undoes something.
        leaves = self._interrupted.is_set()
        patience = _Patience(LAST_PATIENCE) if leaves else _Patience(PATIENCE, self._interrupted)
        for program in (self._program,) if self._program is not None else _programs():
            try:
                _set(program, device, entries, patience)
            except DeviceError as error:
                errors.append(error.problem)
                self._restore(program, device)
                if self._interrupted.is_set():
                    _log.warning("%s: its DNS is not set: %s", device, error)
                    break
            else:
                self._program, self._entries = program, entries
                _log.info("%s: names are looked up by %s (%s)", device, listed(entries), program.name)
                return
        raise DeviceError(
            f"{device}: cannot set its DNS: {'; '.join(errors) or 'there is neither resolvectl nor resolvconf'}",
            hint="have systemd-resolved run, install openresolv, or leave DNS out: names would be asked elsewhere",
        )

    def _restore(self, program: _Program, device: str) -> None:
        try:
            if self._entries:
                _set(program, device, self._entries, _Patience(LAST_PATIENCE))
            else:
                program.unset(device)
        except DeviceError as error:
            _log.debug("%s: its DNS could not be restored: %s", device, error)

    def unset(self, device: str) -> None:
        """Give back what was set. Never raises: what cannot be given back is logged."""
        program, self._program, self._entries = self._program, None, ()
        if program is not None:
            try:
                program.unset(device)
            except DeviceError as error:
                _log.warning("%s: its DNS could not be given back: %s", device, error)


def _set(program: _Program, device: str, entries: Sequence[str], patience: _Patience) -> None:
    entries = tuple(dict.fromkeys(entries))
    servers = [entry for entry in entries if _is_address(entry)]
    program.set(device, servers, [entry for entry in entries if entry not in servers], patience)


def _is_address(entry: str) -> bool:
    try:
        return bool(ip_address(entry).packed)
    except ValueError:
        return False


def _programs() -> list[_Program]:
    """Those that there are, the better one first."""
    kinds: tuple[type[_Program], ...] = (_Resolvectl, _Resolvconf)
    return [kind() for kind in kinds if shutil.which(kind.name) is not None]


class _Resolvectl:
    name = "resolvectl"

    def set(self, device: str, servers: Sequence[str], domains: Sequence[str], patience: _Patience) -> None:
        # An empty argument stands for none. The dot is the domain of all names, which the tilde keeps from the search.
        _run(patience, self.name, "dns", device, *(servers or [""]))
        _run(patience, self.name, "domain", device, *domains, *(["~."] if servers else []))

    def unset(self, device: str) -> None:
        try:
            socket.if_nametoindex(device)
        except OSError:
            return  # it has forgotten it
        _run(_Patience(LAST_PATIENCE), self.name, "revert", device)


class _Resolvconf:
    name = "resolvconf"

    def set(self, device: str, servers: Sequence[str], domains: Sequence[str], patience: _Patience) -> None:
        lines = [f"nameserver {server}\n" for server in servers]
        if domains:
            lines.append(f"search {' '.join(domains)}\n")
        # The first of all, and the only ones, where the program knows that.
        _run(patience, self.name, "-a", self._record(device), "-m", "0", "-x", said="".join(lines))

    def unset(self, device: str) -> None:
        _run(_Patience(LAST_PATIENCE), self.name, "-d", self._record(device))

    def _record(self, device: str) -> str:
        return f"tun.{device}" if _INTERFACE_ORDER.exists() else device


def _run(patience: _Patience, program: str, *arguments: str, said: str = "") -> None:
    try:
        with subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            # A group of its own, which can be ended as a whole.
            start_new_session=True,
        ) as process:
            try:
                out, err = patience.wait(process, said)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    except _Ended as ended:
        raise DeviceError(f"{program} {arguments[0]} {ended}") from None
    except OSError as error:
        raise DeviceError(f"{program}: {error.strerror}") from None
    if process.returncode != 0:
        words = " ".join((err or out).split())[:200]
        raise DeviceError(f"{program} {arguments[0]}: {words or f'exit code {process.returncode}'}")
