"""Faults 30, 34 and 35: what the system takes away."""

from __future__ import annotations

import resource
import secrets
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from connlib import format_config
from interop.netns import Background, Namespace, wait_for
from reliability import parties
from reliability.clients import Client, Crowd
from reliability.faults import Check, Run, at_least, at_most, count, note
from reliability.floods import GARBAGE, GATEWAY, PUBLIC
from reliability.places import (
    CABLES,
    COMMAND,
    MEGABYTE,
    Child,
    background,
    child,
    cpu_seconds,
    resident,
    yard,
)


@contextmanager
def up(place: Namespace, folder: Path, *options: str) -> Iterator[Background]:
    """`connlib up` with one peer, as somebody would start it."""
    file = folder / "wg0.conf"
    file.write_text(format_config(parties.gateway_config([parties.GATEWAY + 1])))
    file.chmod(0o600)
    with background(place, (*COMMAND, "up", *options, str(file)), folder) as running:
        wait_for(lambda: "is up" in running.output() or running.returncode is not None, "connlib up", 30)
        running.require_running()
        yield running


def deleted_device(run: Run) -> list[Check]:
    """Fault 30."""
    took, codes = [], []
    left = 0
    with yard(1) as hosts, TemporaryDirectory() as name:
        for _ in range(run.count(10, 1)):
            with up(hosts.middle, Path(name)) as running:
                control = Path(name, "wg0.sock")
                there = control.is_socket()
                begin = time.monotonic()
                hosts.middle.run("ip", "link", "delete", "dev", "wg0")
                wait_for(lambda r=running: r.returncode is not None, "its end", 30)  # type: ignore[misc]
                took.append(time.monotonic() - begin)
                codes.append(running.returncode)
                left += not there or control.exists()
            Path(name, "log").unlink()
    return [
        count("exit codes other than 1", sum(code != 1 for code in codes), 0),
        count("control sockets that were not there before, or are after it", left, 0),
        at_most("slowest end", max(took), 1, "s", timed=True),
    ]


def no_descriptors(run: Run) -> list[Check]:
    """Fault 34: not one descriptor more, and clients of the metrics that want some."""
    seconds = run.pick(10, 0.5)
    with yard(1) as hosts, child(hosts.middle, "gateway", {"peers": 2, "metrics": True}) as gateway:
        (friends,) = hosts.others
        made = friends.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        with Crowd([Client(parties.GATEWAY + 1, made, GATEWAY)]) as crowd:
            crowd.connect()
            start = cpu_seconds(gateway.pid)
            crowd.stream(seconds, 100)
            alone = cpu_seconds(gateway.pid) - start
            port = gateway.ask("port")
            before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (_next_descriptor(gateway.pid), before[1]))
            memory = resident(gateway.pid)
            callers = [_call(hosts.middle, port) for _ in range(20)]
            sent, answered = crowd.sent, crowd.answered
            start = cpu_seconds(gateway.pid)
            crowd.stream(seconds, 100)
            crowd.settle()
            used = cpu_seconds(gateway.pid) - start - alone
            delivered = (crowd.answered - answered) / (crowd.sent - sent)
            grown = resident(gateway.pid) - memory
            early = len(select.select(callers, [], [], 0)[0])
            resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
            served = sum(_was_served(caller) for caller in callers)
    return [
        at_least("the tunnel's requests answered", delivered * 100, 90, "%", timed=True),
        at_most("processor besides the tunnel's", used / seconds * 100, 5, "%", timed=True),
        at_most("memory grown by", grown / MEGABYTE, 1, "MB", timed=True),
        count("of 20 who called meanwhile served at once", early, 0),
        count("of 20 who called meanwhile served when there are descriptors again", served, 20),
    ]


def _next_descriptor(pid: int) -> int:
    """The number of the next descriptor that a process opens."""
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return min(set(range(len(used) + 1)) - used)


def _call(place: Namespace, port: int) -> socket.socket:
    made = place.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    made.connect(("127.0.0.1", port))
    made.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return made


def _was_served(caller: socket.socket) -> bool:
    with caller:
        caller.settimeout(10)
        return caller.recv(100).startswith(b"HTTP/1.1 200")


LIMIT = 64 * MEGABYTE
PEERS = 1000


def little_memory(run: Run) -> list[Check]:
    """Fault 35: floods from outside, and from inside to peers that are not there, for whom packets wait."""
    checks = []
    cases = (
        ("256 packets of 84 bytes for each peer", 84, 256),
        ("256 packets of 1,420 bytes for each peer", 1420, 256),
    )
    for what, size, queue in cases[: run.count(len(cases), 1)]:
        checks += _in_a_group(run, what, size, queue)
    return checks


def _in_a_group(run: Run, what: str, size: int, queue: int) -> list[Check]:
    seconds = run.pick(5, 0.2)
    peers = run.count(PEERS, 50)
    options = {
        "peers": peers,
        # Those who answer nothing: what is for them waits.
        "config": {"role": "either", "endpoint": (f"{CABLES[0]}.2", 9), "queue_packets": queue},
    }
    flood = {
        "kind": "garbage",
        "rate": 20_000,
        "destination": f"{CABLES[1]}.1",
        "port": parties.PORT,
        "public_key": PUBLIC.to_bytes().hex(),
    }
    with (
        _group() as group,
        yard(2) as hosts,
        child(hosts.middle, "gateway", options, wrapper=group.wrapper()) as gateway,
        child(hosts.others[1], "generator", flood) as generator,
    ):
        start = resident(gateway.pid)
        generator.tell("flood", seconds=seconds)
        try:
            _fill(hosts.middle, 1, size, queue + 44)
            of_one = _queued_until_full(gateway)
            _fill(hosts.middle, peers, size, queue + 44)
            said = gateway.ask("stats")
            queued, waited_for, grown, killed = (
                said["queued"],
                said["waited for"],
                resident(gateway.pid) - start,
                0,
            )
            garbage = sum(said["drops"].get(reason, 0) for reason in GARBAGE)
        except (RuntimeError, OSError):
            # Its device has gone with it, or it answers nothing.
            of_one, queued, waited_for, grown, killed, garbage = 0, 0, 0, 0, 1, 0
        generator.read()
        most = group.most(f"{what}: most of 64 MB")
    return [
        count(f"{what}: killed for want of memory", killed, 0),
        count(f"{what}: waiting for one of them, alone", of_one, queue),
        count(f"{what}: of {peers:,} peers have some waiting", waited_for, peers),
        at_most(f"{what}: longest queue", queued, queue, timed=False),
        at_least(f"{what}: garbage refused meanwhile", garbage, run.count(1000, 100), timed=False),
        note(f"{what}: grown by", grown / MEGABYTE, "MB"),
        most,
    ]


def _queued_until_full(gateway: Child) -> int:
    """How many packets wait for a peer once more of them are refused; what comes from the device takes a moment."""
    end = time.monotonic() + 10
    while True:
        said = gateway.ask("stats")
        if said["drops"].get("QUEUE_FULL", 0) or time.monotonic() > end:
            return int(said["queued"])


def _fill(place: Namespace, peers: int, size: int, each: int) -> None:
    """So many packets for each of the peers, in turns, no faster than a device's queue takes them."""
    with place.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        payload = bytes(size - 28)
        for _ in range(each):
            for number in range(parties.GATEWAY + 1, parties.GATEWAY + 1 + peers):
                program.sendto(payload, (parties.address(number), 9))
                if number % 100 == 0:
                    time.sleep(0.001)


@dataclass
class _Group:
    """A control group with little memory; without a folder, nothing is limited."""

    folder: Path | None
    peak: str = ""
    """The file that says how much it needed at most."""

    def wrapper(self) -> tuple[str, ...]:
        """What puts a command into it."""
        if self.folder is None:
            return ()
        return ("sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh")

    def most(self, what: str) -> Check:
        """How much it needed."""
        if self.folder is None:
            return note(what, "not here: needs control groups for memory")
        return note(what, int((self.folder / self.peak).read_text()) / MEGABYTE, "MB")


@contextmanager
def _group() -> Iterator[_Group]:
    roots = (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
    )
    for root, limit, peak in roots:
        made = root / f"connlib-reliability-{secrets.token_hex(4)}"
        try:
            made.mkdir()
        except OSError:
            continue
        if (made / limit).exists() and (made / peak).exists():
            break
        made.rmdir()
    else:
        yield _Group(None)
        return
    try:
        (made / limit).write_text(str(LIMIT))
        yield _Group(made, peak)
    finally:
        wait_for(lambda: not (made / "cgroup.procs").read_text(), "the end of what was in the group")
        made.rmdir()
