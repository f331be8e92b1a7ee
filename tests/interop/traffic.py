"""What the tests send through a tunnel, and what they see on the cable under it."""

from __future__ import annotations

import ctypes
import hashlib
import random
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from interop.netns import Background, Namespace

__all__ = ["Handshakes", "Pinger", "arrives", "exchange_datagrams", "is_lost", "ping", "transfer"]

_CHUNK = 1 << 16


def ping(host: Namespace, address: str, timeout: float = 10.0, size: int = 56) -> None:
    """Ping `address` until an answer comes, at most `timeout` seconds.

    The first packet is sent at once and one every 0.2 s after it, so that a handshake that goes on is waited for.
    """
    end = time.monotonic() + timeout
    while True:
        answer = host.run("ping", "-n", "-c", "1", "-W", "1", "-s", str(size), address, check=False)
        if " 0% packet loss" in answer:
            return
        assert time.monotonic() < end, f"no answer from {address} in {timeout:g} s:\n{answer}"
        time.sleep(0.2)


def arrives(host: Namespace, address: str, *options: str) -> None:
    """Ping once: the first packet has to be answered, nothing is repeated."""
    answer = host.run("ping", "-n", "-c", "1", "-W", "5", *options, address, check=False)
    assert " 0% packet loss" in answer, answer


def is_lost(host: Namespace, address: str, *options: str) -> None:
    """Ping once: no answer may come within a second."""
    answer = host.run("ping", "-n", "-c", "1", "-W", "1", *options, address, check=False)
    assert " 100% packet loss" in answer, answer


class Pinger:
    """A ping that runs beside the test, one packet every 0.2 s."""

    def __init__(self, host: Namespace, address: str, log: Path) -> None:
        self._process = Background(host.command("ping", "-n", "-i", "0.2", address), log)

    def losses(self) -> tuple[int, int]:
        """Stop and return (packets sent, packets lost); the one on its way at the end does not count as lost."""
        self._process.stop(signal.SIGINT)
        counts = re.search(r"(\d+) packets transmitted, (\d+) received", self._process.output())
        assert counts is not None, self._process.output()
        sent, received = int(counts[1]), int(counts[2])
        return sent, max(0, sent - received - 1)

    def close(self) -> None:
        """Stop, whatever came of it."""
        self._process.stop(signal.SIGINT)


def transfer(
    sender: Namespace, receiver: Namespace, address: str, size: int = 20_000_000, timeout: float = 40.0
) -> float:
    """Send `size` random bytes by TCP to `address`, compare SHA-256 on both sides, return bytes a second.

    Both ends live in this process, on sockets that belong to their namespaces. The receiver answers with the digest of
    what it got.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    data = random.Random(size).randbytes(size)
    digests: list[bytes] = []
    with (
        receiver.make_socket(family, socket.SOCK_STREAM) as listener,
        sender.make_socket(family, socket.SOCK_STREAM) as out,
    ):
        listener.settimeout(timeout)
        out.settimeout(timeout)
        listener.bind((address, 0))
        listener.listen(1)
        thread = threading.Thread(target=_receive, args=(listener, timeout, digests), daemon=True)
        thread.start()
        start = time.monotonic()
        out.connect((address, listener.getsockname()[1]))
        out.sendall(data)
        out.shutdown(socket.SHUT_WR)
        answer = out.recv(32)
        seconds = time.monotonic() - start
        thread.join(timeout)
    assert not thread.is_alive()
    assert digests == [answer] == [hashlib.sha256(data).digest()]
    return size / seconds


def _receive(listener: socket.socket, timeout: float, digests: list[bytes]) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(timeout)
        digest = hashlib.sha256()
        while chunk := connection.recv(_CHUNK):
            digest.update(chunk)
        digests.append(digest.digest())
        connection.sendall(digest.digest())


def exchange_datagrams(
    sender: Namespace, receiver: Namespace, address: str, size: int, count: int = 128, timeout: float = 20.0
) -> None:
    """Send `count` datagrams of `size` random bytes to `address`, which answers each; all have to come, unchanged.

    At most a window of them is under way, so that no queue on the path may be the reason for a loss.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    window = 8
    data = random.Random(size).randbytes(size + count)
    with (
        receiver.make_socket(family, socket.SOCK_DGRAM) as there,
        sender.make_socket(family, socket.SOCK_DGRAM) as here,
    ):
        for one in (here, there):
            one.settimeout(timeout)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        there.bind((address, 0))
        here.connect(there.getsockname()[:2])
        for start in range(0, count, window):
            batch = [data[number : number + size] for number in range(start, min(start + window, count))]
            for datagram in batch:
                here.send(datagram)
            for datagram in batch:
                received, back = there.recvfrom(1 << 16)
                assert received == datagram
                there.sendto(received, back)
            assert [here.recv(1 << 16) for _ in batch] == batch


# Kind of message: length of the UDP payload.
_LENGTHS = {1: 148, 2: 92, 3: 64}


class Handshakes:
    """Counts handshake messages on a cable: what the peers really sent, whatever they say of themselves."""

    INITIATION, RESPONSE, COOKIE_REPLY = 1, 2, 3
    # Socket filter: keep what may be a handshake message, whose first byte is at most 3. Data messages would fill the
    # socket's queue before anybody reads it.
    _FILTER = (
        (0x30, 0, 0, 0),  # load the first byte: the IP version
        (0x54, 0, 0, 0xF0),
        (0x15, 0, 2, 0x40),
        (0x30, 0, 0, 28),  # IPv4: the first byte behind the UDP header
        (0x05, 0, 0, 1),
        (0x30, 0, 0, 48),  # IPv6
        (0x25, 0, 1, 3),
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFF),  # keep
    )
    _SO_ATTACH_FILTER, _ETH_P_ALL = 26, 3

    def __init__(self, host: Namespace, device: str) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()
        self._socket = host.make_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(self._ETH_P_ALL))
        code = b"".join(struct.pack("HBBI", *line) for line in self._FILTER)
        buffer = bytearray(code)
        self._attach(buffer, len(self._FILTER))
        with host.entered():
            self._socket.bind((device, self._ETH_P_ALL))
        self._socket.setblocking(False)

    def _attach(self, code: bytearray, count: int) -> None:
        keep = (ctypes.c_char * len(code)).from_buffer(code)
        program = struct.pack("HL", count, ctypes.addressof(keep))
        self._socket.setsockopt(socket.SOL_SOCKET, self._SO_ATTACH_FILTER, program)

    def count(self, source: str, kind: int) -> int:
        """How many messages of that kind `source` (an outer IP address) has sent so far."""
        self._drain()
        return self._counts[source, kind]

    def total(self, kind: int) -> int:
        """How many messages of that kind both sides have sent so far."""
        self._drain()
        return sum(n for (_, k), n in self._counts.items() if k == kind)

    def _drain(self) -> None:
        while True:
            try:
                packet = self._socket.recv(512)
            except BlockingIOError:
                return
            self._note(packet)

    def _note(self, packet: bytes) -> None:
        if packet[:1] and packet[0] >> 4 == 4:
            header, protocol = (packet[0] & 15) * 4, packet[9:10]
            source = socket.inet_ntop(socket.AF_INET, packet[12:16])
        elif packet[:1] and packet[0] >> 4 == 6:
            header, protocol = 40, packet[6:7]
            source = socket.inet_ntop(socket.AF_INET6, packet[8:24])
        else:
            return
        payload = packet[header + 8 :]
        if protocol == b"\x11" and payload[:4] == bytes([payload[0] if payload else 0, 0, 0, 0]):
            kind = payload[0]
            if _LENGTHS.get(kind) == len(payload):
                self._counts[source, kind] += 1

    def __enter__(self) -> Handshakes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
