"""What is done, and what must hold of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from connlib._interfacestats import is_errno
from gigabyte import MTUS, datagrams, streams
from gigabyte.changes import COUNT, changes
from gigabyte.end import inner
from gigabyte.path import Setting, Tunnel, tunnel
from gigabyte.progress import Progress

PORT = 9
KINDS = ("TCP, IPv4", "TCP, IPv6", "UDP, IPv4", "UDP, IPv6")
_HEADERS = {4: 28, 6: 48}
"""Of IP and UDP."""
_RECEIVE_BUFFER = 16 << 20
_SO_RCVBUFFORCE = 33
_PATIENCE = 180.0
"""Seconds for what ends by itself; the sockets wait for less."""

SETTINGS = tuple(
    Setting(mtu, loss, offload)
    for offload in (True, False)
    for loss in (0, 1)
    for mtu in (*MTUS, None)
    # Without offloads, a few.
    if offload or (mtu, loss) in ((1420, 0), (8920, 1), (None, 0), (None, 1))
)


@dataclass(frozen=True)
class Found:
    """What came of one transfer."""

    kind: str
    setting: Setting
    size: int
    """Bytes that left."""
    seconds: float
    arrived: int
    """Bytes that arrived as they were, each once."""
    sent_datagrams: int
    lost_datagrams: int
    dropped: int
    """Datagrams of the tunnel that the cable has lost meanwhile, on their way from near to far."""
    read: int
    """Superpackets that the near end has read."""
    written: int
    """Superpackets that the far end has written."""
    changes: int
    """Of the MTU, meanwhile."""
    wrong: tuple[str, ...]
    """What did not hold, in words."""


def run(setting: Setting, tcp: int, udp: int) -> Iterator[Found]:
    """Send so many bytes of each kind, one after the other, through a tunnel that is like this."""
    with tunnel(setting) as made:
        for kind in KINDS:
            yield _transfer(made, kind, tcp if kind.startswith("TCP") else udp)


def _transfer(made: Tunnel, kind: str, size: int) -> Found:
    """Send, change the MTU meanwhile if that is asked for, and compare."""
    protocol, _, family = kind.partition(", ")
    version = int(family.removeprefix("IPv"))
    before, dropped = made.stats(), made.dropped()
    start = time.monotonic()
    send = _stream if protocol == "TCP" else _datagrams
    passed = send(made, version, size)
    seconds = time.monotonic() - start
    dropped = made.dropped() - dropped
    after = made.stats()
    near, far = (_difference(old, new) for old, new in zip(before, after, strict=True))
    wrong = [*passed.wrong, *_accounted(passed, made.setting, dropped, near["others"])]
    wrong += _quiet(near, far)
    read, written = near["tun"]["superpackets_read"], far["tun"]["superpackets_written"]
    if bool(read) != made.setting.offload or bool(written) != made.setting.offload:
        wrong.append(f"{read:,} superpackets read, {written:,} written")
    return Found(
        kind=kind,
        setting=made.setting,
        size=passed.size,
        seconds=seconds,
        arrived=passed.arrived,
        sent_datagrams=passed.datagrams,
        lost_datagrams=passed.lost,
        dropped=dropped,
        read=read,
        written=written,
        changes=0 if made.setting.mtu else COUNT,
        wrong=tuple(wrong),
    )


@dataclass(frozen=True)
class _Passed:
    """What both programs say."""

    size: int
    arrived: int
    wrong: tuple[str, ...]
    datagrams: int = 0
    lost: int = 0
    ends: int = 0
    """Datagrams besides that have not arrived."""
    packets: int = 1
    """Into how many packets a datagram was cut at most."""


def _stream(made: Tunnel, version: int, size: int) -> _Passed:
    listener, sender = _sockets(made, version, socket.SOCK_STREAM)
    listener.listen(1)
    progress = Progress()
    with ThreadPoolExecutor(2) as pool:
        came = pool.submit(streams.receive, listener, progress)
        left = pool.submit(streams.send, sender, (inner(2, version), PORT), size, progress)
        _meanwhile(made, size, progress, (came, left))
        sent, received = left.result(_PATIENCE), came.result(_PATIENCE)
    wrong = () if sent == received else (f"{sent} left, {received} came",)
    return _Passed(sent.size, received.size, wrong)


def _datagrams(made: Tunnel, version: int, size: int) -> _Passed:
    receiver, sender = _sockets(made, version, socket.SOCK_DGRAM)
    mtus = (made.setting.mtu,) if made.setting.mtu else MTUS
    sizes = [mtu - _HEADERS[version] for mtu in mtus]
    progress, window = Progress(), datagrams.Window()
    place = (inner(2, version), PORT)
    with ThreadPoolExecutor(2) as pool:
        came = pool.submit(datagrams.receive, receiver, window, progress)
        left = pool.submit(datagrams.send, sender, place, sizes, size, window, progress)
        _meanwhile(made, size, progress, (came, left))
        sent, received = left.result(_PATIENCE), came.result(_PATIENCE)
    counted = {
        "corrupted": received.corrupted,
        "twice": received.duplicated,
        "never sent": received.unknown,
    }
    return _Passed(
        size=sent.size,
        arrived=received.size,
        wrong=tuple(f"{count:,} datagrams {what}" for what, count in counted.items() if count),
        datagrams=sent.datagrams,
        lost=sent.datagrams - received.datagrams,
        ends=sent.ends - received.ends,
        packets=1 if made.setting.mtu else -(-MTUS[-1] // (MTUS[0] - 88)),
    )


def _sockets(made: Tunnel, version: int, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """One that is bound at the far end, and one at the near end."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with ExitStack() as stack:
        far = stack.enter_context(made.far.make_socket(family, kind))
        far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Larger than the machine lets everybody have: none may be lost behind the tunnel.
        far.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        far.bind((inner(2, version), PORT))
        near = made.near.make_socket(family, kind)
        stack.pop_all()
    return far, near


def _meanwhile(made: Tunnel, size: int, progress: Progress, running: Sequence[Future[Any]]) -> None:
    """Change the MTU, if it is to change, each time when some more has arrived; then it may end."""
    try:
        if made.setting.mtu is None:
            for step, change in enumerate(changes(made), 1):
                target = progress.arrived + size // (COUNT + 1) if step > 1 else 1
                progress.wait_for(target, streams.PATIENCE, running)
                change()
    finally:
        progress.stop()


def _accounted(passed: _Passed, setting: Setting, dropped: int, others: int) -> Iterator[str]:
    """What was lost is what the cable has lost."""
    if setting.loss and not dropped:
        yield "the cable has lost nothing"
    if not passed.datagrams:
        return
    most = passed.lost * passed.packets + passed.ends + others
    if not passed.lost <= dropped <= most:
        yield f"{passed.lost:,} datagrams lost, {dropped:,} dropped on the way ({most:,} at most)"


def _quiet(*ends: dict[str, Any]) -> Iterator[str]:
    """Neither end has refused or dropped anything."""
    for name, end in zip(("near", "far"), ends, strict=True):
        counts = {f"{part} {what}": count for part in ("tun", "udp") for what, count in end[part].items()}
        for what, count in counts.items():
            _, _, counter = what.partition(" ")
            if count and (counter in _LOSSES or counter.startswith("bad_") or is_errno(counter)):
                yield f"{name}: {what} {count:,}"
        # The kernel asks for routers when something about a device changes, and there is no way for that.
        drops = {reason: count for reason, count in end["drops"].items() if count and reason != "NO_ROUTE"}
        yield from (f"{name}: dropped {reason} {count:,}" for reason, count in drops.items())


_LOSSES = (
    "backlog_dropped",
    "short_writes",
    "superpackets_refused",
    "segmentation_refused",
    "source_refused",
)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was counted between two moments."""
    return {
        name: _difference(old.get(name, {}), value) if isinstance(value, dict) else value - old.get(name, 0)
        for name, value in new.items()
    }
