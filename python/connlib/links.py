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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Any, Literal, NamedTuple, TypeVar

import anyio

from ._errors import DeviceError
from ._rtnetlink import AT_ONCE, RouteSocket
from ._text import counted
from ._threads import ThreadCall
from ._types import PeerConfig
from .config import InterfaceConfig, address_identity, without_common
from .dns import Dns
from .firewall import Firewall, FirewallRules, firewall_rules, warn_of_forwarding

_log = logging.getLogger("connlib")

T = TypeVar("T")

DEFAULT_MTU = 1420


@dataclass(frozen=True, slots=True)
class LinkState:
    """How a device is to be set up."""

    mtu: int | None = None
    """Bytes. None: as the kernel made it, and the device is down."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    routes: Mapping[IPv4Network | IPv6Network, None] = field(default_factory=dict)
    """A dictionary as a set that keeps its order, and keeps the hashes, which take long for networks."""
    firewall: FirewallRules = field(default_factory=FirewallRules)
    dns: tuple[str, ...] = ()


class Surroundings:
    """What is set up around one device, if it is `managed`: made here."""

    def __init__(self, *, managed: bool) -> None:
        self.managed = managed
        self.state = LinkState()
        self._index: int | None = None
        # What the routes were worked out for last, which need not be what there is.
        self._routes_of: tuple[InterfaceConfig, Mapping[IPv4Network | IPv6Network, None]] | None = None
        self.firewall = Firewall()
        self.dns = Dns()

    def gets_dns(self, config: InterfaceConfig) -> bool:
        """Whether there are name servers in this configuration, and none as yet."""
        return self.managed and bool(config.dns) and not self.state.dns

    async def change(self, name: str, config: InterfaceConfig) -> None:
        """Set up all that a configuration asks for, or, if it raises `DeviceError`, nothing."""
        if not self.managed:
            return
        want = self._wanted(config)
        if want != self.state:
            if self._index is None:
                self._index = _index_of(name)
            await change_link(name, self._index, self.state, want, self)
            warn_of_default_routes(config, name)
            self.state = want

    def _wanted(self, config: InterfaceConfig) -> LinkState:
        routes = wanted_routes(config, self._routes_of)
        self._routes_of = config, routes
        return LinkState(
            mtu=config.mtu or DEFAULT_MTU,
            addresses=config.addresses,
            routes=routes,
            firewall=firewall_rules(config),
            dns=config.dns,
        )

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


def packets_at_once(mtu: int) -> int:
    """How many packets the kernel may hand us as one.

    They leave, sealed, in one buffer that the kernel cuts again: of at most 65,507 bytes and, before Linux 6.9, 64
    datagrams. What is more would be a second, short one. Each grows by 32 bytes.
    """
    return max(1, min(64, 65_507 // (mtu + 32)))


def wanted_routes(
    config: InterfaceConfig,
    known: tuple[InterfaceConfig, Mapping[IPv4Network | IPv6Network, None]] | None = None,
) -> Mapping[IPv4Network | IPv6Network, None]:
    """The routes that a configuration asks for. A prefix that an address of the device brings along needs none.

    known: those of an earlier configuration, to save what both have in common.
    """
    routes: dict[IPv4Network | IPv6Network, None] = {}
    gone: tuple[PeerConfig, ...] = ()
    come = config.peers
    if known is not None and (known[0].routes, known[0].addresses) == (config.routes, config.addresses):
        routes = dict(known[1])
        gone, come = without_common(known[0].peers, config.peers)
    # A prefix is of one peer, which may be another one now.
    for peer in gone:
        for prefix in peer.allowed_ips:
            routes.pop(prefix, None)
    on_link = [_span(address.network) for address in config.addresses]
    for peer in come if config.routes else ():
        for prefix in peer.allowed_ips:
            version, first, last = _span(prefix)
            if prefix.prefixlen > 0 and not any(
                version == of and low <= first and last <= high for of, low, high in on_link
            ):
                routes[prefix] = None
    return routes


def _span(network: IPv4Network | IPv6Network) -> tuple[int, int, int]:
    """The version, and the first and the last address: comparing these is several times cheaper than `subnet_of`."""
    first = int(network.network_address)
    return network.version, first, first + (1 << network.max_prefixlen - network.prefixlen) - 1


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
        with _Netlink.opened(name, have, want) as netlink:
            link = _Link(netlink, index, name)
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


class _Netlink(NamedTuple):
    """What a change, and its undoing, need."""

    links: Any
    """Pyroute2's socket, for the device and its addresses; None if these stay as they are."""
    routes: RouteSocket | None
    """None if all routes stay."""

    @classmethod
    @contextmanager
    def opened(cls, name: str, have: LinkState, want: LinkState) -> Iterator[_Netlink]:
        """Raises `DeviceError`."""
        with ExitStack() as stack:
            routes = links = None
            try:
                if (have.routes, have.addresses) != (want.routes, want.addresses):
                    routes = stack.enter_context(RouteSocket())
                if (have.mtu, have.addresses) != (want.mtu, want.addresses):
                    # Importing it takes longer than all of this file's work.
                    from pyroute2 import IPRoute

                    # It leaves an event loop half made behind, with a traceback, if it runs out of them half-way.
                    _require_descriptors(_ROUTE_DESCRIPTORS)
                    links = stack.enter_context(IPRoute())
            except OSError as error:
                hint = "see what the kernel logged: dmesg"
                raise DeviceError.from_os(f"cannot configure {name}", error, hint=hint) from error
            yield cls(links, routes)


class _Link:
    """One device, through an open netlink socket.

    It knows what it has done, and undoes that and nothing else: what somebody else has made is theirs.
    """

    def __init__(self, netlink: _Netlink, index: int, name: str) -> None:
        self._socket = netlink.links
        self._routes = netlink.routes
        self._index = index
        self._name = name
        self._done: list[Callable[[], object]] = []
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
        new = _missing(want.routes, have.routes)
        self._change_routes("add", [prefix for prefix in new if prefix not in networks])
        self._change_routes("del", _missing(have.routes, want.routes))
        for address in leaving:
            if address not in colliding:
                self._remove_address(address)
        self._change_routes("add", [prefix for prefix in new if prefix in networks])
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
        self._tell_routes("add", list(state.routes), again=True)

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

    def _change_routes(
        self, verb: Literal["add", "del"], prefixes: Sequence[IPv4Network | IPv6Network]
    ) -> None:
        for start in range(0, len(prefixes), AT_ONCE):
            several = prefixes[start : start + AT_ONCE]
            try:
                failed = self._tell_routes(verb, several, keep=True)
            except DeviceError:
                # The kernel's answer is lost. Some may have changed, and which is not known: somebody else's route of
                # the same prefix into this device would go along.
                self._undo_routes(verb, several)
                raise
            self._undo_routes(verb, [prefix for prefix in several if prefix not in failed])
            for prefix, code in failed.items():
                self._failed(f"{_VERBS[verb]} the route to {prefix}", code, None, removing=verb == "del")

    def _undo_routes(
        self, verb: Literal["add", "del"], prefixes: Sequence[IPv4Network | IPv6Network]
    ) -> None:
        """Have it undone that these were changed."""
        if verb == "add":
            self._done.append(partial(self._tell_routes, "del", prefixes))
        else:
            self._done.append(partial(self._tell_routes, "add", prefixes, again=True))

    def _set_mtu(self, mtu: int) -> None:
        with self._explained(f"set the MTU to {mtu}"):
            self._socket.link("set", index=self._index, mtu=mtu, gso_max_segs=packets_at_once(mtu))

    def _set_up(self, up: bool) -> None:
        with self._explained(f"bring the device {'up' if up else 'down'}"):
            self._socket.link("set", index=self._index, state="up" if up else "down")

    def _address(self, verb: str, address: IPv4Interface | IPv6Interface, *, again: bool = False) -> None:
        with self._explained(f"{_VERBS[verb]} the address {address}", again=again, removing=verb == "del"):
            self._socket.addr(
                verb,
                index=self._index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                family=_family(address),
            )

    def _tell_routes(
        self,
        verb: Literal["add", "del"],
        prefixes: Sequence[IPv4Network | IPv6Network],
        *,
        again: bool = False,
        keep: bool = False,
    ) -> dict[IPv4Network | IPv6Network, int]:
        """What failed, with its errno; unless `keep`, the first failure is raised."""
        if self._routes is None or not prefixes:
            return {}
        try:
            failed = dict(self._routes.change(verb, self._index, prefixes))
        except OSError as error:
            what = f"{_VERBS[verb]} {counted(len(prefixes), 'route')}"
            raise self._error(what, error.errno or errno.ETIMEDOUT) from error
        if not keep:
            for prefix, code in failed.items():
                what = f"{_VERBS[verb]} the route to {prefix}"
                self._failed(what, code, None, again=again, removing=verb == "del")
        return failed

    @contextmanager
    def _explained(self, what: str, *, again: bool = False, removing: bool = False) -> Iterator[None]:
        from pyroute2 import NetlinkError

        try:
            yield
        except (NetlinkError, OSError) as error:
            code = int(error.code if isinstance(error, NetlinkError) else error.errno or 0)
            self._failed(what, code, error, again=again, removing=removing)

    def _failed(
        self, what: str, code: int, error: Exception | None, *, again: bool = False, removing: bool = False
    ) -> None:
        """Raise `DeviceError`, unless it is no failure."""
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


def _without(some: Sequence[T], others: Sequence[T]) -> list[T]:
    """In the order that they have."""
    excluded = set(others)
    return [each for each in some if each not in excluded]


def _missing(
    routes: Mapping[IPv4Network | IPv6Network, None], others: Mapping[IPv4Network | IPv6Network, None]
) -> list[IPv4Network | IPv6Network]:
    """Those of `routes` that are not among the others."""
    # A set of a dictionary takes its hashes over.
    return sorted(set(routes).difference(others), key=_span)


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
# ENXIO: the device has no IPv6 any more.
_ABSENT = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)


def _family(what: IPv4Interface | IPv6Interface | IPv4Network | IPv6Network) -> int:
    return socket.AF_INET if what.version == 4 else socket.AF_INET6
