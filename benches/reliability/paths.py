"""Faults 9, 10 and 31: what may happen on the way between the two ends."""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interop.netns import Namespace, wait_for
from reliability import parties
from reliability.clients import Client, Crowd, checksum
from reliability.faults import Check, Missing, Run, at_least, at_most, count, note
from reliability.floods import GATEWAY, all_taken, drops_between, under_attack
from reliability.places import CABLES, child, cpu_seconds, yard

FULL = 1420
"""Bytes of the largest packet that the tunnel's device takes."""


def forged_icmp(run: Run) -> list[Check]:
    """Fault 9: somebody else tells the gateway that the client cannot be reached, or only with very small datagrams."""
    with under_attack() as place:
        (client,) = place.crowd.clients
        place.crowd.connect()
        sessions = place.gateway.ask("stats")["sessions"]
        port = client.socket.getsockname()[1]
        before = int(_counter(place.middle, "Icmp", "InDestUnreachs"))
        with place.attackers.make_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            forged = 0
            for _ in range(run.count(1000, 20)):
                for code, mtu in ((0, 0), (1, 0), (3, 0), (13, 0), (4, 68), (4, 576), (4, 1200)):
                    raw.sendto(_unreachable(code, mtu, port), (f"{CABLES[1]}.1", 0))
                    forged += 1
                # In between, packets as large as they come.
                client.send(FULL)
                place.crowd.serve(0.001)
        place.crowd.settle()
        stats = place.gateway.ask("stats")
        # Fragments would be carried; whole ones show that nothing had to be cut.
        cut = int(_counter(place.middle, "Ip", "FragCreates"))
        taken = int(_counter(place.middle, "Icmp", "InDestUnreachs")) - before
    return [
        note("forged messages", forged),
        at_least("of them that the gateway's kernel took", taken, 0.9 * forged, timed=False),
        count("sessions torn down", sessions - stats["sessions"], 0),
        count("packets of 1,420 bytes lost", client.sent - client.answered, 0),
        count("datagrams cut", cut, 0),
        count("handshakes besides the first", stats["responses"] - 1, 0),
    ]


def _unreachable(code: int, mtu: int, client_port: int) -> bytes:
    """ICMP type 3 about a datagram from the gateway to the client."""
    udp = struct.pack("!HHHH", parties.PORT, client_port, 1460, 0)
    inner = struct.pack("!BBHHHBBH", 0x45, 0, 1480, 0, 0x4000, 64, 17, 0)
    inner += socket.inet_aton(GATEWAY[0]) + socket.inet_aton(f"{CABLES[0]}.2")
    inner = inner[:10] + checksum(inner).to_bytes(2, "big") + inner[12:]
    message = struct.pack("!BBHHH", 3, code, 0, 0, mtu) + inner + udp
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def _counter(place: Namespace, group: str, name: str) -> str:
    lines = [line.split() for line in place.run("cat", "/proc/net/snmp").splitlines()]
    names, values = (line for line in lines if line[0] == f"{group}:")
    return values[names.index(name)]


def rewritten_source(run: Run) -> list[Check]:
    """Fault 10: between the client and the gateway is a box that gives the client another address now and then."""
    rewrites = run.count(200, 10)
    with under_attack() as place:
        (client,) = place.crowd.clients
        with _Box(place.friends, place.attackers) as box:
            moved = _through(client, box)
            with Crowd([moved]) as crowd:
                crowd.serve_until(lambda: box.turn() and moved.established > 0, 10)
                healed = 0
                for number in range(rewrites):
                    box.rewrite(number)
                    before = moved.answered
                    moved.send()
                    healed += crowd.serve_until(lambda b=before: box.turn() and moved.answered > b, 5)  # type: ignore[misc]
                before_copies = all_taken(place.gateway, crowd)
                # A copy of what the client sent, from somewhere else, moves nothing.
                copies = run.count(1000, 20)
                with place.attackers.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
                    for _ in range(copies):
                        elsewhere.sendto(box.last, (f"{CABLES[1]}.1", parties.PORT))
                after = all_taken(place.gateway, crowd)
                refused = drops_between(before_copies, after)["DUPLICATE_COUNTER"]
                unmoved = after["endpoints"][0] == before_copies["endpoints"][0]
    return [
        count(f"of {rewrites} rewrites healed by the first packet after them", healed, rewrites),
        count(f"of {copies:,} copies from elsewhere refused as copies", refused, copies),
        count("endpoints moved by them", int(not unmoved), 0),
    ]


class _Box:
    """Passes datagrams on between a socket on the client's host and one of many on another."""

    def __init__(self, inside: Namespace, outside: Namespace) -> None:
        self._outside = outside
        outside.run("ip", "address", "add", f"{CABLES[1]}.3/24", "dev", "cable1")
        self._front = inside.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._front.getsockname()
        self._back: socket.socket | None = None
        self._client: tuple[str, int] | None = None
        self.last = b""
        self.rewrite(0)

    def rewrite(self, number: int) -> None:
        """From now on the client has another address, and its old one belongs to nobody."""
        back = self._outside.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        back.bind((f"{CABLES[1]}.{2 + number % 2}", 0))
        back.connect((f"{CABLES[1]}.1", parties.PORT))
        if self._back is not None:
            self._back.close()
        self._back = back

    def turn(self) -> bool:
        """Pass on what is there. Always true, so that it can be part of a condition."""
        assert self._back is not None
        while ready := select.select([self._front, self._back], [], [], 0)[0]:
            if self._front in ready:
                self.last, self._client = self._front.recvfrom(65_536)
                self._back.send(self.last)
            elif self._client is not None:
                self._front.sendto(self._back.recv(65_536), self._client)
        return True

    def __enter__(self) -> _Box:
        return self

    def __exit__(self, *_: object) -> None:
        self._front.close()
        if self._back is not None:
            self._back.close()


def _through(client: Client, box: _Box) -> Client:
    """The same client, who takes the box for the gateway."""
    made = Client(client.number, client.socket.dup(), box.address)
    made.initiate()
    return made


def failing_sends(run: Run) -> list[Check]:
    """Fault 31: for a while the kernel refuses everything that the gateway sends."""
    checks = []
    for name, refusing in (("ENETUNREACH", _no_route), ("ENOBUFS", _full_queue), ("EPERM", forbidding)):
        try:
            with refusing() as refusal:
                checks += _failing(run, name, refusal)
        except Missing as missing:
            checks.append(note(name, f"not here: {missing}"))
    return checks


@dataclass
class Refusal:
    """How the kernel is brought to refuse what the gateway sends by `cable0`, and to take it again."""

    begin: Callable[[Namespace], object]
    end: Callable[[Namespace], object]
    wrapper: Sequence[str] = ()
    """What the gateway is started with."""


def _failing(run: Run, name: str, refusal: Refusal) -> list[Check]:
    seconds = run.pick(30, 0.5)
    options = {"peers": 2, "udp": "recverr"}
    with yard(1) as hosts, child(hosts.middle, "gateway", options, wrapper=refusal.wrapper) as gateway:
        (friends,) = hosts.others
        made = friends.make_socket(socket.AF_INET, socket.SOCK_DGRAM)
        client = Client(parties.GATEWAY + 1, made, GATEWAY)
        with Crowd([client]) as crowd, hosts.middle.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            crowd.connect()
            stream = _Stream(program, parties.address(client.number), 1000)
            refusal.begin(hosts.middle)
            before, start = gateway.ask("stats")["udp"], cpu_seconds(gateway.pid)
            stream.run(seconds)
            used = cpu_seconds(gateway.pid) - start
            refused = gateway.ask("stats")["udp"].get(f"send_{name}", 0) - before.get(f"send_{name}", 0)
            # What the queue held back comes now, before it is gone.
            crowd.serve(0)
            refusal.end(hosts.middle)
            lifted = time.monotonic()
            received = _received(client)
            healed = crowd.serve_until(lambda: stream.once() and _received(client) > received, 30)
            took = time.monotonic() - lifted
    return [
        at_least(f"{name}: sends refused", refused, 1, timed=False),
        at_most(f"{name}: processor", used / seconds * 100, 20, "%", timed=True),
        count(f"{name}: recovered", int(healed), 1),
        at_most(f"{name}: after", took, 1, "s", timed=True),
    ]


def _received(client: Client) -> int:
    (gateway,) = client.node.stats(time.monotonic()).peers
    return gateway.tunnel.rx_packets


class _Stream:
    """A program on the gateway that sends to a peer's inner address."""

    def __init__(self, made: socket.socket, address: str, rate: float) -> None:
        self._socket = made
        self._to = (address, 9)
        self._rate = rate

    def once(self) -> bool:
        """Send one datagram; always true."""
        self._socket.sendto(bytes(100), self._to)
        return True

    def run(self, seconds: float) -> None:
        begin = time.monotonic()
        sent = 0
        while (passed := time.monotonic() - begin) < seconds:
            while sent < passed * self._rate:
                self.once()
                sent += 1
            time.sleep(0.005)


@contextmanager
def _no_route() -> Iterator[Refusal]:
    route = (f"{CABLES[0]}.0/24", "dev", "cable0")
    yield Refusal(
        lambda place: place.run("ip", "route", "delete", *route),
        lambda place: place.run("ip", "route", "add", *route),
    )


@contextmanager
def _full_queue() -> Iterator[Refusal]:
    queue = ("tbf", "rate", "8kbit", "burst", "1600", "limit", "1600")
    yield Refusal(
        lambda place: place.run("tc", "qdisc", "add", "dev", "cable0", "root", *queue),
        lambda place: place.run("tc", "qdisc", "delete", "dev", "cable0", "root"),
    )


@contextmanager
def forbidding() -> Iterator[Refusal]:
    """A program in the kernel forbids the sockets of a group to send, as a firewall on the way out does."""
    group = _make_group()
    try:
        program, descriptor = _load_refusal(), os.open(group, os.O_RDONLY)
        attachment = struct.pack("=IIII", descriptor, program, _BPF_CGROUP_UDP4_SENDMSG, 0)
        try:
            yield Refusal(
                lambda _: _bpf(_BPF_PROG_ATTACH, attachment),
                lambda _: _bpf(_BPF_PROG_DETACH, attachment),
                # A socket belongs to the group that it was made in.
                wrapper=("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"),
            )
        finally:
            os.close(descriptor)
            os.close(program)
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the end of what was in the group")
        group.rmdir()


# linux/bpf.h
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH = 5, 8, 9
_BPF_PROG_TYPE_CGROUP_SOCK_ADDR, _BPF_CGROUP_UDP4_SENDMSG = 18, 14
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_UNIFIED = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


def _make_group() -> Path:
    for root in _UNIFIED:
        if (root / "cgroup.controllers").exists():
            made = root / f"connlib-reliability-{secrets.token_hex(4)}"
            try:
                made.mkdir()
            except OSError as error:
                raise Missing(f"needs a control group: {error.strerror}") from None
            return made
    raise Missing("needs control groups of version 2")


def _load_refusal() -> int:
    # r0 = 0; exit
    code = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    code_buffer, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"BSD")
    pointers = (ctypes.addressof(code_buffer), ctypes.addressof(licence))
    # Type, number of instructions, where they are, the licence; no log; no flags; and what it is to be attached to.
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        _BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        2,
        *pointers,
        0,
        0,
        0,
        0,
        0,
        b"",
        0,
        _BPF_CGROUP_UDP4_SENDMSG,
    )
    return _bpf(_BPF_PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    if os.uname().machine not in _SYS_BPF:
        raise Missing("knows the system call on x86-64 and ARM64 only")
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(libc.syscall(_SYS_BPF[os.uname().machine], command, held, len(attributes)))
    if result < 0:
        raise Missing(f"needs BPF for control groups: {os.strerror(ctypes.get_errno())}")
    return result
