"""The network around a device: MTU, addresses and routes by netlink, firewall rules, and DNS.

What `wg-quick` does, except for default routes: to send everything through a tunnel, its own datagrams have to find
another way, which takes policy routing and a firewall mark. Those are not made here, so 0.0.0.0/0 and ::/0 get no
route.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Any, TypeVar

import anyio

from ._errors import DeviceError
from ._threads import ThreadCall
from .config import InterfaceConfig, address_identity
from .dns import Dns
from .firewall import Firewall, FirewallRules, firewall_rules, warn_of_forwarding

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
    firewall: FirewallRules = field(default_factory=FirewallRules)
    dns: tuple[str, ...] = ()


class Surroundings:
    """What is set up around one device, if it is `managed`: made here."""

    def __init__(self, *, managed: bool) -> None:
        self.managed = managed
        self.state = LinkState()
        self._index: int | None = None
        self.firewall = Firewall()
        self.dns = Dns()

    def gets_dns(self, config: InterfaceConfig) -> bool:
        """Whether there are name servers in this configuration, and none as yet."""
        return self.managed and bool(config.dns) and not self.state.dns

    async def change(self, name: str, config: InterfaceConfig) -> None:
        """Set up all that a configuration asks for, or, if it raises `DeviceError`, nothing."""
        want = link_state(config)
        if self.managed and want != self.state:
            if self._index is None:
                self._index = _index_of(name)
            await change_link(name, self._index, self.state, want, self)
            warn_of_default_routes(config, name)
            self.state = want

    async def revert(self, name: str, to: LinkState) -> None:
        """Go back to an earlier state, whatever cancels it."""
        if self._index is not None:
            await change_link(name, self._index, self.state, to, self, keep=True)
        self.state = to

    async def leave(self, name: str) -> None:
        """Give back the DNS, while there is a device. Not to be cancelled."""
        if self.dns.is_set:
            with anyio.CancelScope(shield=True):
                await _wait_for(ThreadCall(lambda: self.dns.unset(name), _THREAD))

    def close(self) -> None:
        """Remove the firewall rules, when there are no addresses any more that they protect."""
        self.firewall.close()


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
        firewall=firewall_rules(config),
        dns=config.dns,
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


async def change_link(
    name: str,
    index: int,
    have: LinkState,
    want: LinkState,
    surroundings: Surroundings,
    *,
    keep: bool = False,
) -> None:
    """Set a device up, or change how it is set up: everything, or, if it raises `DeviceError`, nothing.

    The device is the one that has `index`: names can be given to others. Takes a few milliseconds, and as long as the
    programs take where DNS changes. Whoever is cancelled meanwhile waits for its end, and then it is undone, so that
    nobody sees half of it; unless `keep`.
    """
    if have == want:
        return
    _require_device(index, name)

    def change(have: LinkState, want: LinkState, *, undoing: bool = False) -> None:
        with _route_socket(name) as route_socket:
            link = _Link(route_socket, index, name)
            try:
                # First, so that no address is ever without protection.
                if want.firewall != have.firewall:
                    surroundings.firewall.change(name, index, want.firewall)
                    warn_of_forwarding(name, want.firewall)
                link.change(have, want)
                # Last, because it takes the tunnel to ask a name server in it.
                if want.dns != have.dns:
                    surroundings.dns.change(name, want.dns)
            except BaseException:
                # What goes wrong while something is undone is left: there is nothing else to go back to.
                if not undoing:
                    link.undo(have)
                    with suppress(DeviceError):
                        surroundings.firewall.change(name, index, have.firewall)
                raise

    # pyroute2 wants an event loop of its own, so it cannot be called from this thread.
    changing = ThreadCall(lambda: change(have, want), _THREAD)
    try:
        await _wait_for(changing)
    except BaseException:
        if not (keep or changing.failed):
            undoing = ThreadCall(lambda: change(want, have, undoing=True), _THREAD)
            undoing.join()  # as short, and nobody must come between
            if undoing.failed:
                _log.warning("%s: what was cancelled could not be undone", name)
        raise
    changing.result()


@contextmanager
def _route_socket(name: str) -> Iterator[Any]:
    # Importing it takes longer than all of this file's work.
    from pyroute2 import IPRoute

    try:
        # It leaves an event loop half made behind, with a traceback, if it runs out of them half-way.
        _require_descriptors(_ROUTE_DESCRIPTORS)
        made = IPRoute()
    except OSError as error:
        hint = "see what the kernel logged: dmesg"
        raise DeviceError.from_os(f"cannot configure {name}", error, hint=hint) from error
    with made:
        yield made


def _require_device(index: int, name: str) -> None:
    try:
        socket.if_indextoname(index)
    except OSError:
        raise _gone(name) from None


def _index_of(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise _gone(name) from None


def _gone(name: str) -> DeviceError:
    return DeviceError(
        f"there is no network device {name!r} any more",
        hint="was it moved to another namespace?",
    )


_THREAD = "connlib-netlink"


async def _wait_for(call: ThreadCall[T]) -> None:
    """Wait for the end of a call, whatever cancels the waiting.

    A shield keeps anyio's and trio's cancellation away until it is over. asyncio's own (`Task.cancel`,
    `asyncio.timeout`) comes through it, so that it is held back here.
    """
    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while call.is_running:
            try:
                # With a limiter of its own: the application's worker threads may all be waiting for this interface.
                await anyio.to_thread.run_sync(call.join, limiter=anyio.CapacityLimiter(1))
            except anyio.get_cancelled_exc_class() as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled


class _Link:
    """One device, through an open netlink socket.

    It knows what it has done, and undoes that and nothing else: what somebody else has made is theirs.
    """

    def __init__(self, route_socket: Any, index: int, name: str) -> None:
        self._socket = route_socket
        self._index = index
        self._name = name
        self._done: list[Callable[[], None]] = []
        """What undoes each step, in the order in which they were taken."""
        self._removed_address = False

    def change(self, have: LinkState, want: LinkState) -> None:
        """From one state to the other. What is added comes first where it can, so that what stays reachable always is.

        Raises `DeviceError`; `undo` then goes back.
        """
        leaving = _without(have.addresses, want.addresses)
        # A device has an IPv6 address once: with another prefix length it has to go before it comes.
        identities = set(map(address_identity, want.addresses))
        colliding = [address for address in leaving if address_identity(address) in identities]
        # The network of an address that leaves has a route that leaves with it, and would be in the way until then.
        networks = {address.network for address in leaving}
        shrinks = None not in (have.mtu, want.mtu) and want.mtu < have.mtu  # type: ignore[operator]
        if not shrinks:
            self._change_mtu(have.mtu, want.mtu)
        for address in colliding:
            self._remove_address(address)
        for address in _without(want.addresses, have.addresses):
            self._add_address(address)
        if (want.mtu is None) != (have.mtu is None):
            self._change_up(want.mtu is not None)
        new = _without(want.routes, have.routes)
        for prefix in new:
            if prefix not in networks:
                self._add_route(prefix)
        for prefix in _without(have.routes, want.routes):
            self._remove_route(prefix)
        for address in leaving:
            if address not in colliding:
                self._remove_address(address)
        for prefix in new:
            if prefix in networks:
                self._add_route(prefix)
        if leaving:
            self._restore(want)
        if shrinks:
            # Below 1,280 bytes the kernel takes IPv6 away, with every address that was to be removed.
            self._change_mtu(have.mtu, want.mtu)

    def undo(self, have: LinkState) -> None:
        """Go back to the state before `change`, as far as the kernel allows."""
        for step in reversed(self._done):
            with suppress(DeviceError):
                step()
        if self._removed_address:
            with suppress(DeviceError):
                self._restore(have)

    def _restore(self, state: LinkState) -> None:
        """With an address, the kernel removes the other addresses of its prefix, and with the last one, all routes."""
        for address in state.addresses:
            self._address("add", address, again=True)
        for prefix in state.routes:
            self._route("add", prefix, again=True)

    def _change_mtu(self, have: int | None, want: int | None) -> None:
        if want is not None and want != have:
            self._set_mtu(want)
            if have is not None:
                self._done.append(partial(self._set_mtu, have))

    def _change_up(self, up: bool) -> None:
        self._set_up(up)
        self._done.append(partial(self._set_up, not up))

    def _add_address(self, address: IPv4Interface | IPv6Interface) -> None:
        self._address("add", address)
        self._done.append(partial(self._address, "del", address))

    def _remove_address(self, address: IPv4Interface | IPv6Interface) -> None:
        self._address("del", address)
        self._done.append(partial(self._address, "add", address, again=True))

    def _add_route(self, prefix: IPv4Network | IPv6Network) -> None:
        self._route("add", prefix)
        self._done.append(partial(self._route, "del", prefix))

    def _remove_route(self, prefix: IPv4Network | IPv6Network) -> None:
        self._route("del", prefix)
        self._done.append(partial(self._route, "add", prefix, again=True))

    def _set_mtu(self, mtu: int) -> None:
        with self._explained(f"set the MTU to {mtu}"):
            self._socket.link("set", index=self._index, mtu=mtu)

    def _set_up(self, up: bool) -> None:
        with self._explained(f"bring the device {'up' if up else 'down'}"):
            self._socket.link("set", index=self._index, state="up" if up else "down")

    def _address(self, verb: str, address: IPv4Interface | IPv6Interface, *, again: bool = False) -> None:
        self._removed_address |= verb == "del"
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


def _without(some: Sequence[T], others: Sequence[T]) -> list[T]:
    """In the order that they have."""
    excluded = set(others)
    return [each for each in some if each not in excluded]


_VERBS = {"add": "add", "del": "remove"}
# ENXIO: the device has no IPv6 any more.
_ABSENT = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)


def _family(what: IPv4Interface | IPv6Interface | IPv4Network | IPv6Network) -> int:
    return socket.AF_INET if what.version == 4 else socket.AF_INET6
