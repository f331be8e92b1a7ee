"""Hosts in network namespaces, processes in them, and what the kernel says about a process."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interop.machine import missing_rights
from interop.netns import Background, Namespace, unique_name, wait_for
from reliability.faults import Missing

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "connlib")
WG_COMMAND = (sys.executable, "-c", "from connlib.cli.wg import main; main()")
MEGABYTE = 1 << 20

CABLES = ("192.0.2", "198.51.100", "203.0.113")
"""The network of each cable; the host in the middle has .1 on all of them, and the other one .2."""
MIDDLE = "middle"
_PATIENCE = 60.0
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_CPUCLOCK_SCHED = 2


class Yard:
    """A host in the middle, with a cable to each of the others."""

    def __init__(self, middle: Namespace, others: Sequence[Namespace]) -> None:
        self.middle = middle
        self.others = tuple(others)

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        return (self.middle, *self.others)


@contextmanager
def yard(others: int) -> Iterator[Yard]:
    """Make one, and remove it whatever happens. The cable of host k is called `cable<k>` at both ends."""
    if reason := missing_rights():
        raise Missing(reason)
    made: list[Namespace] = []
    try:
        for _ in range(1 + others):
            made.append(Namespace(unique_name("rl")))
            # What a new namespace starts with depends on the machine.
            made[-1].run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=0")
        middle, *rest = made
        for number, other in enumerate(rest):
            lay_cable(middle, other, number)
        yield Yard(middle, rest)
    finally:
        for each in made:
            each.delete()


def lay_cable(middle: Namespace, other: Namespace, number: int) -> None:
    """Join two hosts by a veth pair `cable<number>` with IPv4 and IPv6 addresses."""
    device = f"cable{number}"
    middle.run("ip", "link", "add", device, "type", "veth", "peer", "name", device, "netns", other.name)
    for host, last in ((middle, 1), (other, 2)):
        host.run("sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0")
        host.run("ip", "address", "add", f"{CABLES[number]}.{last}/24", "dev", device)
        host.run("ip", "address", "add", f"2001:db8:{number}::{last}/64", "dev", device, "nodad")
        host.run("ip", "link", "set", device, "up")
    for host in (middle, other):
        wait_for(lambda h=host: "state UP" in h.run("ip", "-o", "link", "show", device), f"{device} to be up")  # type: ignore[misc]


class Child:
    """A process of ours in a namespace: lines of JSON in, lines of JSON out. It ends when its input does.

    module: of this package, or of another one if there is a dot in it.
    """

    def __init__(
        self, place: Namespace, module: str, options: dict[str, Any], *, wrapper: Sequence[str] = ()
    ) -> None:
        path = module if "." in module else f"reliability.{module}"
        command = place.command(sys.executable, "-m", path, json.dumps(options))
        self._module = module
        self._process = subprocess.Popen(
            # Outside of what `ip netns exec` mounts anew.
            [*wrapper, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            text=True,
            bufsize=1,
        )
        self.pid = self._process.pid

    def ask(self, command: str, patience: float = _PATIENCE, **options: Any) -> Any:
        """Send a command and wait for what comes back."""
        self.tell(command, **options)
        return self.read(patience)

    def tell(self, command: str, **options: Any) -> None:
        """Send a command; `read` has its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self._process.stdin.flush()

    def read(self, patience: float = _PATIENCE) -> Any:
        """The next line."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise RuntimeError(f"{self._module} said nothing for {patience:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with exit code {self._process.wait(10)}")
        return json.loads(line)

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def child(
    place: Namespace, module: str, options: dict[str, Any], *, wrapper: Sequence[str] = ()
) -> Iterator[Child]:
    """Start one, wait until it says that it is ready, and end it whatever happens."""
    started = Child(place, module, options, wrapper=wrapper)
    try:
        assert started.read() == "ready"
        yield started
    finally:
        started.close()


@contextmanager
def background(place: Namespace, command: Sequence[str], folder: Path) -> Iterator[Background]:
    """Run a command of ours in a namespace, and end it. What it says is in `folder`, and so is its control socket; it
    keeps nothing anywhere."""
    environment = {"STATE_DIRECTORY": "", "CONNLIB_RUN_DIR": str(folder)}
    running = Background(place.command(*command), folder / "log", environment)
    try:
        yield running
    finally:
        running.stop()


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors, its calls into the kernel included, to the nanosecond.

    Its CPU-time clock (clock_getcpuclockid(3)): /proc counts in ticks, of which a flood of half a second has few.
    """
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Tap:
    """Counts the IPv4 packets that come in at a device, whoever they are for."""

    def __init__(self, place: Namespace, device: str) -> None:
        # ETH_P_IP: a socket for one protocol sees only what comes in.
        self._socket = place.make_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._socket.bind((device, 0x0800))
        self._socket.setblocking(False)
        self.packets()

    def packets(self) -> int:
        """How many since the last call."""
        seen, _ = _two_integers(self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return seen

    def longest_datagram(self) -> int:
        """The largest UDP payload among those that the socket had room for."""
        longest = 0
        while True:
            try:
                longest = max(longest, len(self._socket.recv(65_536)) - 28)
            except BlockingIOError:
                return longest

    def close(self) -> None:
        self._socket.close()


def _two_integers(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:4], sys.byteorder), int.from_bytes(data[4:8], sys.byteorder)
