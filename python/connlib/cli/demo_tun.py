"""`connlib demo --tun`: a gateway and a client with real TUN devices, each in a network namespace of its own.

Two `connlib up` processes read generated wg-quick files; a veth pair joins the namespaces. The traffic is the
system's own: ICMP and TCP sockets inside the namespaces. Everything is removed at the end, whatever happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Interface, ip_network
from pathlib import Path
from typing import Any

from connlib._errors import ConnlibError
from connlib._native import PrivateKey
from connlib._types import PeerConfig, Role
from connlib.config import InterfaceConfig
from connlib.wgquick import format_config

from . import _packets
from ._namespace import Namespace
from ._stage import Show, rate
from ._stop import held_back

GATEWAY = IPv4Interface("10.77.0.1/24")
CLIENT = IPv4Interface("10.77.0.2/24")
# TEST-NET-1 (RFC 5737): the veth pair exists in the two namespaces only.
OUTER = {"gateway": "192.0.2.1", "client": "192.0.2.2"}
DEVICE = "outer"
PORT = 51820
PINGS = 5
PING_SIZE = 56
TRANSFER = 128 * 1024 * 1024
PATIENCE = 15.0
"""Seconds until something that takes milliseconds counts as failed."""


def run() -> None:
    """Show it. Raises `ConnlibError` if the machine cannot, and `SystemExit` with 1 if something failed."""
    _check_machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    show = Show("connlib demo --tun: a gateway and a client, two namespaces, two TUN devices")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="connlib-")))
        spaces = stack.enter_context(_namespaces())
        show.step("Two connlib up processes")
        sides = {}
        for side, config in _configs().items():
            # A signal between the start of a process and the note that it is to be stopped would leave it behind.
            with held_back():
                sides[side] = stack.enter_context(_Tunnel(spaces[side], folder / f"{side}.conf", config))
        for side, tunnel in sides.items():
            show.line(f"{side:8} {tunnel.wait_for(' is up: ').partition(', public key')[0]}")
        show.step("Handshake and pings")
        show.pings(str(GATEWAY.ip), _ping(spaces["client"]), PINGS, PING_SIZE + _packets.ICMP_HEADER)
        sides["client"].wait_for("session established, started by us")
        show.line("the first one waited for the handshake, which the client started")
        show.step("Bulk transfer over TCP, client to gateway")
        _transfer(show, spaces)
        show.step("Stop")
        summaries = {side: tunnel.stop() for side, tunnel in sides.items()}
        show.check(
            all(tunnel.process.returncode == 0 for tunnel in sides.values()), "both stopped cleanly on SIGINT"
        )
        show.line("the long sleep is left out: only a simulated clock can jump")
        show.step("Counters")
        fields = (
            "sessions",
            "initiations sent",
            "packets sent",
            "bytes sent",
            "packets received",
            "bytes received",
            "drops",
        )
        show.table(
            list(summaries), [(field, [summary[field] for summary in summaries.values()]) for field in fields]
        )
        show.check(summaries["gateway"]["initiations sent"] == "0", "the gateway never started a session")
    if show.failures:
        raise SystemExit(1)


def _check_machine() -> None:
    if sys.platform != "linux":
        raise ConnlibError("connlib demo --tun needs Linux; connlib demo runs everywhere")
    if os.geteuid() != 0:
        raise ConnlibError("connlib demo --tun needs root; connlib demo does without")
    if not os.path.exists("/dev/net/tun"):
        raise ConnlibError("connlib demo --tun needs /dev/net/tun (modprobe tun); connlib demo does without")


def _configs() -> dict[str, InterfaceConfig]:
    gateway, client = PrivateKey.generate(), PrivateKey.generate()
    return {
        "gateway": InterfaceConfig(
            private_key=gateway,
            listen_port=PORT,
            addresses=(GATEWAY,),
            name="gateway0",
            role=Role.RESPONDER,
            peers=(
                PeerConfig(
                    public_key=client.public_key(), allowed_ips=(ip_network(CLIENT.ip),), name="client"
                ),
            ),
        ),
        "client": InterfaceConfig(
            private_key=client,
            addresses=(CLIENT,),
            name="client0",
            role=Role.INITIATOR,
            peers=(
                PeerConfig(
                    public_key=gateway.public_key(),
                    allowed_ips=(ip_network(GATEWAY.ip),),
                    endpoint=(OUTER["gateway"], PORT),
                    name="gateway",
                ),
            ),
        ),
    }


@contextlib.contextmanager
def _namespaces() -> Iterator[dict[str, Namespace]]:
    """Two namespaces joined by a veth pair; side -> namespace."""
    with contextlib.ExitStack() as stack:
        try:
            spaces = {side: stack.enter_context(contextlib.closing(Namespace())) for side in OUTER}
            # Made inside: the pair never shows up in the namespace that this command runs in.
            peer = {"ifname": DEVICE, "net_ns_fd": spaces["client"].fileno()}
            spaces["gateway"].call(lambda: _netlink("link", "add", ifname=DEVICE, kind="veth", peer=peer))
            for side, space in spaces.items():
                space.call(lambda address=OUTER[side]: _set_up(address))  # type: ignore[misc]
        except OSError as error:
            raise ConnlibError(f"cannot make network namespaces: {error.strerror or error}") from None
        yield spaces


def _set_up(address: str) -> None:
    index = socket.if_nametoindex(DEVICE)
    _netlink("addr", "add", index=index, address=address, prefixlen=30)
    for device in (index, socket.if_nametoindex("lo")):
        _netlink("link", "set", index=device, state="up")


def _netlink(command: str, verb: str, **arguments: Any) -> None:
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as route_socket:
        try:
            getattr(route_socket, command)(verb, **arguments)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from None


class _Tunnel:
    """A `connlib up` process in a namespace, and its log. Gone at the end of the `with` block."""

    def __init__(self, namespace: Namespace, file: Path, config: InterfaceConfig) -> None:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(format_config(config))
        command = [sys.executable, "-m", "connlib", "up", str(file)]
        self.process = namespace.call(
            # A session of its own: Ctrl-C stops the demonstration, which then stops its children in order.
            lambda: subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
            ),
        )
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.ended = False
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self) -> _Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                with self.news:
                    self.lines.append(line.rstrip())
                    self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()

    def wait_for(self, text: str) -> str:
        """The first line of the log with `text` in it, without the time. Raises `ConnlibError` if none comes."""
        with self.news:
            self.news.wait_for(lambda: self.ended or any(text in line for line in self.lines), PATIENCE)
            for line in self.lines:
                if text in line:
                    return line.partition("  ")[2]
            last = self.lines[-1] if self.lines else "it said nothing"
        raise ConnlibError(f"connlib up did not work as expected: {last}")

    def stop(self) -> dict[str, str]:
        """Stop it by SIGINT. Returns what it counted, as its last lines say."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise ConnlibError("connlib up did not stop on SIGINT") from None
        self.reader.join()
        summary = dict.fromkeys(
            ("initiations sent", "packets sent", "bytes sent", "packets received", "bytes received"), "?"
        )
        for line in self.lines:
            if "in all: " in line:
                summary |= {name: count for count, name in re.findall(r"([\d,]+) ([a-z ]+)", line)}
        summary["sessions"] = str(sum("session established" in line for line in self.lines))
        drops = [line.partition("dropped: ")[2] for line in self.lines if "dropped: " in line]
        return summary | {"drops": ", ".join(drops) or "none"}


def _ping(namespace: Namespace) -> list[float]:
    """Round-trip times in milliseconds of the pings that were answered."""
    times = []
    sender = namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with sender:
        identifier = secrets.randbelow(1 << 16)
        for sequence in range(1, PINGS + 1):
            echo = _packets.Echo(
                CLIENT.ip, GATEWAY.ip, _packets.ECHO_REQUEST, identifier, sequence, os.urandom(PING_SIZE)
            )
            start = time.perf_counter()
            sender.sendto(_packets.build_echo(echo)[_packets.IPV4_HEADER :], (str(GATEWAY.ip), 0))
            if _await_reply(sender, echo, start + 2.0):
                times.append((time.perf_counter() - start) * 1e3)
    return times


def _await_reply(sender: socket.socket, echo: _packets.Echo, until: float) -> bool:
    while (left := until - time.perf_counter()) > 0:
        if select.select([sender], [], [], left)[0]:
            reply = _packets.parse(sender.recv(2048))
            if (
                isinstance(reply, _packets.Echo)
                and reply.kind == _packets.ECHO_REPLY
                and reply[3:] == echo[3:]
            ):
                return True
    return False


def _transfer(show: Show, spaces: dict[str, Namespace]) -> None:
    listener = spaces["gateway"].call(lambda: socket.create_server((str(GATEWAY.ip), 0)))
    sender = spaces["client"].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    block = os.urandom(1024 * 1024)
    expected = hashlib.sha256()
    with listener, sender, show.progress() as progress:
        bar = progress.add_task("", total=TRANSFER)
        sender.settimeout(PATIENCE)
        listener.settimeout(PATIENCE)
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        received = hashlib.sha256()
        start = time.perf_counter()

        def send() -> None:
            with contextlib.suppress(OSError):  # the receiver's count says that something is missing
                for number in range(TRANSFER // len(block)):
                    piece = struct.pack("!Q", number) + block[8:]
                    expected.update(piece)
                    sender.sendall(piece)
                sender.shutdown(socket.SHUT_WR)

        with receiver:
            receiver.settimeout(PATIENCE)
            thread = threading.Thread(target=send)
            thread.start()
            count = 0
            with contextlib.suppress(TimeoutError):
                while piece := receiver.recv(1 << 18):
                    received.update(piece)
                    count += len(piece)
                    progress.update(bar, completed=count)
        thread.join()
        seconds = time.perf_counter() - start
    show.line(f"{count:,} bytes in {seconds:.2f} s: {rate(count, seconds)}")
    show.check(received.digest() == expected.digest() and count == TRANSFER, "SHA-256 equal on both sides")
