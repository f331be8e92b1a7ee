"""UDP sockets: binding one port on IPv4 and IPv6, and the driver's end of them."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Protocol

import anyio

from ._errors import ConfigError, DeviceError
from ._explain import Obstacle
from ._native import Node, UdpIo
from ._text import host_and_port
from ._types import Transmit
from .memory import MemoryHost, MemoryUdp
from .routes import forget_stale_sources, source_towards

_log = logging.getLogger("connlib")

Sockets = socket.socket | tuple[socket.socket, socket.socket]
"""One socket, or an IPv4 and an IPv6 socket (in any order)."""

# The chance that a port which is free on IPv4 is taken on IPv6 is small, and nil to happen so often in a row.
_ATTEMPTS = 32


class UdpEnd(Protocol):
    """What the driver needs of a socket, real or in memory."""

    @property
    def port(self) -> int:
        """The local port."""

    @property
    def families(self) -> tuple[int, ...]:
        """The address families; each is waited for and received from on its own."""

    async def wait_readable(self, family: int) -> None:
        """Until there is something to receive."""

    def receive(self, node: Node, now: float, budget: int, family: int) -> int:
        """Hand about `budget` datagrams to the node; how many they were."""

    def send(self, node: Node) -> None:
        """Send what waits in the node, where that is possible without Python objects."""

    def deliver(self, transmits: list[Transmit]) -> None:
        """Send what `send` left."""

    def blocked(self) -> tuple[int, ...]:
        """Descriptors that have to become writable before what waits for them can be sent."""

    def can_reach(self, address: str) -> bool:
        """Whether there is a socket for the family of this literal address."""

    def obstacle(self, remote: tuple[str, int]) -> Obstacle | None:
        """Why nothing can be sent to this literal address now, as far as this machine knows. Nothing is sent for it."""

    async def follow_routes(self, node: Node) -> None:
        """Have the node forget from where it sends when the routes change; returns if there are none to follow."""

    def set_mark(self, mark: int) -> None:
        """Mark what is sent from now on, or (0) do not. Raises `DeviceError`, and has changed nothing then."""

    def reopened(self, port: int, mark: int) -> UdpEnd:
        """Another end of this kind on another port (0: the system chooses); this one stays as it is.

        Raises `DeviceError` if the port cannot be had, and `ConfigError` if the socket is the caller's own.
        """

    def take_over(self, counters: dict[str, int]) -> None:
        """Count on from what the end that this one replaces had counted."""

    def stats(self) -> dict[str, int]:
        """Counters, and errors by what was done and the name of their errno."""

    def close(self) -> None:
        """Close what was opened here. What the caller brought stays open."""


def open_udp(
    udp: Sockets | MemoryUdp | MemoryHost | None, port: int, mark: int = 0, queues: int = 1
) -> UdpEnd:
    """Open the network side of an interface.

    udp: None binds sockets to `port` (0: the system chooses) on all addresses; sockets that the caller has bound are
    used as they are and left open afterwards; a network or host in memory opens `port` there.
    mark: what real sockets mark their datagrams with; 0 leaves the sockets as they are.
    queues: how many sockets of each family share the port, if they are bound here; the kernel keeps what comes from an
    address to one of them. Each has to be read (`sockets_of`).

    Raises `DeviceError` with one line if that cannot be done, and `TypeError` for anything else; nothing is left open
    then.
    """
    if isinstance(udp, MemoryUdp):
        return udp.next_host().open(port)
    if isinstance(udp, MemoryHost):
        return udp.open(port)
    if udp is None:
        return _marked(_SocketEnd(bind_pairs(port, queues), owned=True), mark)
    sockets = udp if isinstance(udp, tuple) else (udp,)
    for one in sockets or [udp]:
        if not isinstance(one, socket.socket):
            raise TypeError(
                "udp must be a UDP socket, a pair of them, a MemoryUdp, a MemoryHost or None, not "
                + ("an empty tuple" if one == () else type(one).__name__)
            )
    return _marked(_SocketEnd([_by_family(sockets)], owned=False), mark)


def _marked(end: _SocketEnd, mark: int) -> _SocketEnd:
    try:
        if mark:
            end.set_mark(mark)
    except BaseException:
        end.close()
        raise
    return end


def bind_pair(port: int) -> dict[int, socket.socket]:
    """Bind an IPv4 and an IPv6 socket to the same port of all addresses; address family -> socket.

    port: 0 lets the system choose one that is free on both. A family that the system does not have is left out.

    Raises `DeviceError` if the port is in use or not allowed, or if there is neither family.
    """
    for attempt in range(_ATTEMPTS):
        sockets: dict[int, socket.socket] = {}
        try:
            return _bind_pair(port, sockets)
        except OSError as error:
            for bound in sockets.values():
                bound.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < _ATTEMPTS - 1:
                continue
            raise _bind_error(port, error) from error
        except BaseException:
            for bound in sockets.values():
                bound.close()
            raise
    raise AssertionError("unreachable")


def bind_pairs(port: int, count: int) -> list[dict[int, socket.socket]]:
    """The same so many times, with one port for all of them (SO_REUSEPORT).

    Raises `DeviceError`.
    """
    # Alone at first: that fails where somebody else has the port, and be it to share it.
    pairs = [bind_pair(port)]
    try:
        for _ in range(1, count):
            pairs.append({})
            for family, first in pairs[0].items():
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                made = pairs[-1][family] = _unbound(family)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                made.bind(first.getsockname()[:2])
    except BaseException as error:
        for pair in pairs:
            for made in pair.values():
                made.close()
        if isinstance(error, OSError):
            raise _bind_error(port, error) from error
        raise
    return pairs


def _bind_pair(port: int, sockets: dict[int, socket.socket]) -> dict[int, socket.socket]:
    absent: OSError | None = None
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            made = sockets[family] = _unbound(family)
            made.bind((address, port))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            absent = error
            if (half := sockets.pop(family, None)) is not None:
                half.close()
            _log.info(
                "no %s on this system: %s", "IPv6" if family == socket.AF_INET6 else "IPv4", error.strerror
            )
        else:
            port = made.getsockname()[1]
    if absent is not None and not sockets:
        raise absent
    return sockets


def _unbound(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _bind_error(port: int, error: OSError) -> DeviceError:
    what = f"UDP port {port}" if port else "a UDP port"
    if error.errno == errno.EADDRINUSE:
        return DeviceError(
            f"{what} is in use",
            hint=f"choose another port, or see who has it: ss -ulpn 'sport = :{port}'",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceError(
            f"no permission to bind {what}", hint="choose a ListenPort of 1024 or more, or run as root"
        )
    return DeviceError.from_os(
        f"cannot bind {what}", error, hint="see whether the system has IPv4 or IPv6 at all"
    )


def _by_family(sockets: tuple[socket.socket, ...]) -> dict[int, socket.socket]:
    by_family: dict[int, socket.socket] = {}
    for given in sockets:
        if given.type != socket.SOCK_DGRAM or given.family not in (socket.AF_INET, socket.AF_INET6):
            raise DeviceError(
                "the socket is not a UDP socket", hint="make it with AF_INET or AF_INET6 and SOCK_DGRAM"
            )
        try:
            port = given.getsockname()[1]
        except OSError as error:
            raise DeviceError.from_os("cannot use the UDP socket", error, hint="is it closed?") from error
        if port == 0:
            raise DeviceError("the UDP socket is not bound", hint="bind it to an address and a port first")
        if given.family in by_family:
            raise DeviceError(
                "both UDP sockets are of one family", hint="give one of AF_INET and one of AF_INET6"
            )
        by_family[given.family] = given
    return by_family


def _set_mark(one: socket.socket, mark: int) -> None:
    number: int | None = getattr(socket, "SO_MARK", None)
    if number is None:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    # As a signed int: Python's setsockopt takes no unsigned one, and the kernel takes the 32 bits.
    one.setsockopt(socket.SOL_SOCKET, number, mark - 2**32 if mark >= 2**31 else mark)


def _mark_error(mark: int, error: OSError) -> DeviceError:
    what = f"the fwmark {mark:#x}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeviceError(f"no permission to set {what}", hint="run as root or with CAP_NET_ADMIN")
    return DeviceError.from_os(f"cannot set {what}", error, hint="only Linux has marks; leave it 0")


# In the order of `UdpIo.buffer_sizes`, IPv4 first.
_BUFFER_SIZES = ("receive_buffer_ipv4", "send_buffer_ipv4", "receive_buffer_ipv6", "send_buffer_ipv6")


def sockets_of(end: UdpEnd) -> Sequence[UdpIo]:
    """What moves the datagrams of real sockets, of one of each family at a time; nothing for one in memory."""
    return end._ios if isinstance(end, _SocketEnd) else ()


class _SocketEnd:
    """Real sockets: one of each family, or several that share a port."""

    def __init__(self, pairs: list[dict[int, socket.socket]], *, owned: bool) -> None:
        self._pairs = pairs
        self._sockets = pairs[0]
        self._owned = owned
        self.port = int(next(iter(self._sockets.values())).getsockname()[1])
        self._ios: list[UdpIo] = []
        try:
            for sockets in pairs:
                descriptors = {family: made.fileno() for family, made in sockets.items()}
                io = UdpIo(descriptors.get(socket.AF_INET), descriptors.get(socket.AF_INET6))
                self._ios.append(io)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                hint = "is it an open UDP socket, and not a wrapper of one?"
                raise DeviceError.from_os("cannot set the UDP socket up", error, hint=hint) from error
            raise

        self._mark = 0
        self._before: dict[str, int] = {}
        self._buffer_sizes: dict[str, int] = {}
        for family, names in ((socket.AF_INET, _BUFFER_SIZES[:2]), (socket.AF_INET6, _BUFFER_SIZES[2:])):
            if (sizes := self._ios[0].buffer_sizes(family)) is not None:
                self._buffer_sizes.update(zip(names, sizes, strict=True))

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(self._sockets)

    async def wait_readable(self, family: int) -> None:
        await anyio.wait_readable(self._sockets[family])

    def receive(self, node: Node, now: float, budget: int, family: int) -> int:
        return self._ios[0].receive(node, now, budget, family)

    def send(self, node: Node) -> None:
        self._ios[0].send(node)

    def deliver(self, transmits: list[Transmit]) -> None:
        assert not transmits, "send() takes everything"

    def blocked(self) -> tuple[int, ...]:
        return tuple(
            made.fileno()
            for io, sockets in zip(self._ios, self._pairs, strict=True)
            for family, made in sockets.items()
            if io.blocked(family)
        )

    def can_reach(self, address: str) -> bool:
        family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
        return family in self._sockets

    def obstacle(self, remote: tuple[str, int]) -> Obstacle | None:
        # Who has never failed to send need not be asked for each of ten thousand peers.
        if any(name.startswith("send_E") and count for name, count in self.stats().items()):
            try:
                source_towards(remote, self._mark_like_ours)
            except OSError as error:
                place = host_and_port(*remote)
                return Obstacle(f"this machine cannot send to {place}: {error.strerror or error}")
        return None

    async def follow_routes(self, node: Node) -> None:
        await forget_stale_sources(node, self._mark_like_ours)

    def _mark_like_ours(self, probe: socket.socket) -> None:
        if self._mark:
            _set_mark(probe, self._mark)

    def set_mark(self, mark: int) -> None:
        before, changed = self._mark, []
        try:
            for made in self._all_sockets():
                _set_mark(made, mark)
                changed.append(made)
        except OSError as error:
            for made in changed:
                _set_mark(made, before)
            raise _mark_error(mark, error) from error
        self._mark = mark

    def reopened(self, port: int, mark: int) -> UdpEnd:
        if not self._owned:
            raise ConfigError(
                f"the listen port cannot change from {self.port}: the sockets are the caller's",
                hint="leave the listen port as it is, or let connlib open the sockets",
            )
        return open_udp(None, port, mark, len(self._pairs))

    def take_over(self, counters: dict[str, int]) -> None:
        self._before = {name: count for name, count in counters.items() if name not in _BUFFER_SIZES}

    def stats(self) -> dict[str, int]:
        counters = Counter(self._before)
        for io in self._ios:
            counters.update(io.stats())
        return dict(counters) | self._buffer_sizes

    def close(self) -> None:
        for io in self._ios:
            io.close()
        if self._owned:
            for made in self._all_sockets():
                made.close()

    def _all_sockets(self) -> list[socket.socket]:
        return [made for sockets in self._pairs for made in sockets.values()]
