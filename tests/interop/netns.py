"""Network namespaces: two hosts on one machine, joined by a cable.

Every name carries this process's pid and a counter, so that runs beside each other do not meet and nobody else's
namespace is ever touched. Sockets are made by switching only the calling thread into the namespace: a socket stays
where it was created, so that the tests can use it from their own process.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["Background", "Namespace", "Wire", "joined_namespaces", "shell", "unique_name", "wait_for"]

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_counter = itertools.count()


def unique_name(prefix: str) -> str:
    """A name that fits an interface name (15 characters) and that no other process uses."""
    name = f"{prefix}{os.getpid()}n{next(_counter)}"
    assert len(name) <= 15, name
    return name


def shell(*command: str, stdin: str | None = None, timeout: float = 20.0, check: bool = True) -> str:
    """Run a command to its end and return what it printed; an error shows the command's own words."""
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Wait until `condition` holds, at most `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout:g} s for: {what}"
        time.sleep(0.02)


class Background:
    """A process of ours that runs beside the test, with its output kept in a file."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.command = tuple(command)
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while the process runs."""
        return self._process.poll()

    def output(self) -> str:
        """Everything that the process printed so far."""
        return self.log.read_text(errors="replace")

    def require_running(self) -> None:
        """Fail with the process's output if it has ended."""
        assert self.returncode is None, f"{' '.join(self.command)}: exit {self.returncode}\n{self.output()}"

    def send(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.returncode is None:
            self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Ask the process to end and return its exit code; one that does not listen is killed, which is an error."""
        self.send(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(
                f"{' '.join(self.command)} ignored signal {number}\n{self.output()}"
            ) from None


class Namespace:
    """One network namespace, with its loopback up."""

    def __init__(self, name: str) -> None:
        self.name = name
        shell("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str, stdin: str | None = None, timeout: float = 20.0, check: bool = True) -> str:
        """Run a command in the namespace."""
        return shell(*self.command(*command), stdin=stdin, timeout=timeout, check=check)

    def command(self, *command: str) -> tuple[str, ...]:
        """The command line that runs `command` in the namespace (the pid is the command's own: it is exec'ed)."""
        return ("ip", "netns", "exec", self.name, *command)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread, and no other, into the namespace."""
        thread = threading.get_native_id()
        with open(f"/proc/self/task/{thread}/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def make_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that belongs to the namespace."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def has_link(self, device: str) -> bool:
        """Whether the namespace has a network device of that name."""
        with self.entered():
            return device in (name for _, name in socket.if_nameindex())

    def delete(self) -> None:
        """Remove the namespace; devices in it go with it."""
        shell("ip", "netns", "delete", self.name, check=False)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Wire:
    """Two namespaces joined by a veth pair with IPv4 and IPv6 addresses."""

    DEVICE = "cable"
    V4 = ("192.0.2.1", "192.0.2.2")
    V6 = ("2001:db8::1", "2001:db8::2")

    def __init__(self) -> None:
        self.hosts: list[Namespace] = []

    def open(self) -> None:
        self.hosts.append(Namespace(unique_name("clA")))
        self.hosts.append(Namespace(unique_name("clB")))
        one, other = self.hosts
        one.run(
            "ip", "link", "add", self.DEVICE, "type", "veth", "peer", "name", self.DEVICE, "netns", other.name
        )
        for host, v4, v6 in zip(self.hosts, self.V4, self.V6, strict=True):
            host.run("ip", "address", "add", f"{v4}/24", "dev", self.DEVICE)
            host.run("ip", "address", "add", f"{v6}/64", "dev", self.DEVICE, "nodad")
            host.run("ip", "link", "set", self.DEVICE, "up")
        for host in self.hosts:
            carrier = Path("/sys/class/net") / self.DEVICE / "operstate"
            wait_for(lambda h=host, c=carrier: h.run("cat", str(c)).strip() == "up", "the cable to come up")  # type: ignore[misc]

    def address(self, host: int, version: int) -> str:
        """The outer address of host 0 or 1 for IP version 4 or 6."""
        return (self.V4 if version == 4 else self.V6)[host]

    def close(self) -> None:
        for host in self.hosts:
            host.delete()


@contextlib.contextmanager
def joined_namespaces() -> Iterator[Wire]:
    """A `Wire` that is taken down whatever happens, also when it could only be built in part."""
    wire = Wire()
    try:
        wire.open()
        yield wire
    finally:
        wire.close()
