"""The network around a device: MTU, addresses, and routes, by netlink.

What `wg-quick` does, except for default routes: to send everything through a tunnel, its own datagrams have to find
another way, which takes policy routing and a firewall mark. Those are not made here, so 0.0.0.0/0 and ::/0 get no
route.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Any, TypeVar

import anyio

from ._errors import DeviceError
from .config import InterfaceConfig

_log = logging.getLogger("connlib")

T = TypeVar("T")

DEFAULT_MTU = 1420

# linux/rtnetlink.h: what `ip route add` sets, so that our routes look like those of people and scripts.
_RTPROT_BOOT = 3
_RT_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class LinkState:
    """How a device is to be set up."""

    mtu: int | None = None
    """Bytes. None: as the kernel made it, and the device is down."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    routes: tuple[IPv4Network | IPv6Network, ...] = ()


def link_state(config: InterfaceConfig) -> LinkState:
    """What a configuration asks for. A prefix that an address of the device brings along needs no route of its own."""
    routes = dict.fromkeys(prefix for peer in config.peers for prefix in peer.allowed_ips if config.routes)
    return LinkState(
        mtu=config.mtu or DEFAULT_MTU,
        addresses=config.addresses,
        routes=tuple(
            prefix
            for prefix in routes
            if prefix.prefixlen > 0 and not any(_covers(address, prefix) for address in config.addresses)
        ),
    )


def _covers(address: IPv4Interface | IPv6Interface, prefix: IPv4Network | IPv6Network) -> bool:
    network = address.network
    if isinstance(network, IPv4Network):
        return isinstance(prefix, IPv4Network) and prefix.subnet_of(network)
    return isinstance(prefix, IPv6Network) and prefix.subnet_of(network)


def warn_of_default_routes(config: InterfaceConfig, name: str) -> None:
    """Log once for each default route that is asked for and not made."""
    for peer in config.peers:
        for prefix in peer.allowed_ips:
            if config.routes and prefix.prefixlen == 0:
                _log.warning(
                    "%s: no route is made for %s: default routes need policy routing, which connlib does not set up; "
                    "make narrower ones yourself, or route a namespace through the device",
                    name,
                    prefix,
                )


async def change_link(name: str, have: LinkState, want: LinkState) -> None:
    """Set a device up, or change how it is set up: everything, or, if it raises `DeviceError`, nothing.

    Takes a few milliseconds and cannot be cancelled, so that nobody sees half of it.
    """
    if have == want:
        return
    index = _index_of(name)

    def change() -> None:
        # Importing it takes longer than all of this file's work.
        from pyroute2 import IPRoute

        try:
            # It leaves an event loop half made behind, with a traceback, if it runs out of them half-way.
            _require_descriptors(_ROUTE_DESCRIPTORS)
            route_socket = IPRoute()
        except OSError as error:
            hint = "see what the kernel logged: dmesg"
            raise DeviceError.from_os(f"cannot configure {name}", error, hint=hint) from error
        with route_socket:
            try:
                _Link(route_socket, index, name).change(have, want)
            except BaseException:
                _Link(route_socket, index, name, best_effort=True).change(want, have)
                raise

    with anyio.CancelScope(shield=True):
        await _in_thread_of_its_own(change)


def _index_of(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise DeviceError(
            f"there is no network device {name!r} any more",
            hint="was it renamed, or moved to another namespace?",
        ) from None


async def _in_thread_of_its_own(function: Callable[[], T]) -> T:
    """Call `function` in a new thread, which is in the network namespace of the caller's thread.

    A pooled worker thread may be in another one: namespaces belong to threads, and it keeps that of whoever started it.
    pyroute2 wants an event loop of its own, so it cannot be called from this thread.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="connlib-netlink")
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    if errors:
        raise errors[0]
    return results[0]


class _Link:
    """One device, through an open netlink socket."""

    def __init__(self, route_socket: Any, index: int, name: str, *, best_effort: bool = False) -> None:
        self._socket = route_socket
        self._index = index
        self._name = name
        self._best_effort = best_effort

    def change(self, have: LinkState, want: LinkState) -> None:
        """From one state to the other. What is added comes first, so that what stays reachable always is."""
        if want.mtu is not None and want.mtu != have.mtu:
            with self._explained(f"set the MTU to {want.mtu}"):
                self._socket.link("set", index=self._index, mtu=want.mtu)
        for address in want.addresses:
            if address not in have.addresses:
                self._address("add", address)
        if (want.mtu is None) != (have.mtu is None):
            with self._explained("bring the device up"):
                self._socket.link("set", index=self._index, state="down" if want.mtu is None else "up")
        for prefix in want.routes:
            if prefix not in have.routes:
                self._route("add", prefix)
        for prefix in have.routes:
            if prefix not in want.routes:
                self._route("del", prefix)
        leaving = [address for address in have.addresses if address not in want.addresses]
        for address in leaving:
            self._address("del", address)
        if leaving:
            # With an address, the kernel removes the other addresses of its prefix, and with the last one, all routes.
            for address in want.addresses:
                self._address("add", address, again=True)
            for prefix in want.routes:
                self._route("add", prefix, again=True)

    def _address(self, verb: str, address: IPv4Interface | IPv6Interface, *, again: bool = False) -> None:
        with self._explained(f"{_VERBS[verb]} the address {address}", again=again, removing=verb == "del"):
            self._socket.addr(
                verb,
                index=self._index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                family=_family(address),
            )

    def _route(self, verb: str, prefix: IPv4Network | IPv6Network, *, again: bool = False) -> None:
        scope = {"scope": _RT_SCOPE_LINK} if prefix.version == 4 else {}
        with self._explained(f"{_VERBS[verb]} the route to {prefix}", again=again, removing=verb == "del"):
            self._socket.route(
                verb, dst=str(prefix), oif=self._index, family=_family(prefix), proto=_RTPROT_BOOT, **scope
            )

    @contextmanager
    def _explained(self, what: str, *, again: bool = False, removing: bool = False) -> Iterator[None]:
        from pyroute2 import NetlinkError

        try:
            yield
        except (NetlinkError, OSError) as error:
            code = int(error.code if isinstance(error, NetlinkError) else error.errno or 0)
            # Somebody else may have removed it, and what is added again may still be there.
            if (removing and code in _ABSENT) or (again and code == errno.EEXIST):
                return
            if self._best_effort:
                _log.debug("%s: cannot %s: errno %s", self._name, what, code)
                return
            raise self._error(what, code) from error

    def _error(self, what: str, code: int) -> DeviceError:
        problem = f"{self._name}: cannot {what}"
        if code in (errno.EPERM, errno.EACCES):
            if os.geteuid() == 0 and what.startswith("add the ") and ":" in what:
                return DeviceError(
                    f"{problem}: not allowed",
                    hint="is IPv6 switched off (sysctl net.ipv6.conf.all.disable_ipv6)?",
                )
            return DeviceError(f"{problem}: no permission", hint="run as root or with CAP_NET_ADMIN")
        if code == errno.EEXIST:
            hint = "remove it (ip route), or leave the prefix out of AllowedIPs"
            if "address" in what:
                hint = "remove it (ip address), or leave it out of Address"
            return DeviceError(f"{problem}: there is one already", hint=hint)
        return DeviceError(f"{problem}: {os.strerror(code)}", hint="see how things are: ip address; ip route")


_ROUTE_DESCRIPTORS = 8
"""What a netlink socket and its event loop need at most."""


def _require_descriptors(count: int) -> None:
    """Raise `OSError` unless so many descriptors can be had."""
    had: list[int] = []
    try:
        for _ in range(count):
            had.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for fd in had:
            os.close(fd)


_VERBS = {"add": "add", "del": "remove"}
_ABSENT = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)


def _family(what: IPv4Interface | IPv6Interface | IPv4Network | IPv6Network) -> int:
    return socket.AF_INET if what.version == 4 else socket.AF_INET6
