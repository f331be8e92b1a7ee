"""The world: hosts, links and NAT boxes, and everything that happens between them, in an order that a seed decides."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from ipaddress import ip_address

from connlib._native import LabTunn, PresharedKey, PrivateKey
from connlib._types import Limits, Role, Timers
from connlib.lab._engines import check_engine, derived, make_tunnel
from connlib.lab._errors import LabError
from connlib.lab._host import DEFAULT_SIZE, Host, check_size, engine_clock
from connlib.lab._links import Link
from connlib.lab._nat import DEFAULT_TIMEOUT, Nat
from connlib.lab._records import Address, Copied, LossReason, Lost, Sent
from connlib.lab._time import SECOND, nanoseconds
from connlib.lab._timeline import Rank, Timeline
from connlib.lab._trace import Trace

_PORT = 51820
_MOST_HOSTS = 200


class World:
    """Hosts, links and NAT boxes in virtual time. Equal seeds and equal calls give equal traces.

    Times are seconds since the start of the world. Only upstream engines differ from run to run, because they draw
    their own randomness. Raises `LabError` for what cannot be, and when a patched engine announces an instant in the
    past, is woken for nothing, or wants to be woken again at the same instant.
    """

    def __init__(self, seed: int = 0) -> None:
        self._timeline = Timeline(seed)
        self._hosts: dict[str, Host] = {}
        self._nats: dict[str, Nat] = {}
        self._links: dict[frozenset[str], Link] = {}
        self._owners: dict[str, Host | Nat] = {}
        """By address."""

    @property
    def seed(self) -> int:
        """What decides all chances."""
        return self._timeline.seed

    @property
    def trace(self) -> Trace:
        """What has happened so far."""
        return self._timeline.trace

    @property
    def now(self) -> float:
        """Seconds since the start of the world."""
        return self._timeline.now / SECOND

    @property
    def hosts(self) -> dict[str, Host]:
        """The machines by their names, in the order in which they were made."""
        return dict(self._hosts)

    def key_log(self) -> list[str]:
        """The keys of all patched tunnels, as lines of a WireGuard key log for `Trace.save_capture`."""
        tunnels = (host.tunnel(peer) for host in self._hosts.values() for peer in host.peers)
        return [line for tunnel in tunnels if isinstance(tunnel, LabTunn) for line in tunnel.key_log()]

    # What there is.

    def host(
        self,
        name: str,
        *,
        engine: str = "patched",
        role: Role = Role.EITHER,
        private_key: PrivateKey | None = None,
        address: str | None = None,
        timers: Timers | None = None,
        limits: Limits | None = None,
    ) -> Host:
        """A machine with tunnels of an engine, `patched` or `upstream`.

        private_key: from the seed and the name unless given. address: a literal IP address, else one of 192.0.2.0/24.
        """
        _check_name(name)
        if name in self._hosts:
            raise LabError(f"there is a host {name} already")
        number = len(self._hosts) + 1
        if number > _MOST_HOSTS:
            raise LabError(f"a world has {_MOST_HOSTS} hosts at most")
        timers, limits = timers or Timers(), limits or Limits()
        host = Host(
            self._timeline,
            name,
            engine=check_engine(engine, role, timers, limits),
            role=role,
            private_key=private_key or PrivateKey.from_bytes(derived(self.seed, "key", name)),
            address=(_literal(address or f"192.0.2.{number}"), _PORT),
            inner=f"10.0.0.{number}",
            timers=timers,
            limits=limits,
            carry=self._carry,
            settle=self._settle,
        )
        self._own(host.address[0], host)
        self._hosts[name] = host
        self.trace.hosts.append(name)
        return host

    def link(self, one: Host, other: Host) -> Link:
        """The way between two hosts, made by the first call. `Link.set` changes what it is like."""
        self._check_ours(one, other)
        if one is other:
            raise LabError(f"{one.name} needs no link to itself")
        for host in (one, other):
            _check_family(one.name, one.address[0], host.address[0], f"{host.name} has")
        return self._links.setdefault(frozenset((one.name, other.name)), Link(self._timeline, one, other))

    def nat(
        self,
        name: str,
        *hosts: Host,
        address: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Nat:
        """Put hosts behind a NAT, before they have tunnels. timeout: seconds until an unused mapping is forgotten."""
        _check_name(name)
        if name in self._nats:
            raise LabError(f"there is a NAT {name} already")
        self._check_ours(*hosts)
        nat = Nat(self._timeline, name, _literal(address or f"198.51.100.{len(self._nats) + 1}"), timeout)
        for host in hosts:
            if host.peers:
                raise LabError(f"{host.name} has tunnels already: make its NAT first")
            if host.nat is not None:
                raise LabError(f"{host.name} is behind the NAT {host.nat.name} already")
            _check_family(host.name, host.address[0], nat.address, f"the NAT {name} has")
        self._own(nat.address, nat)
        self._nats[name] = nat
        for host in hosts:
            host.nat = nat
        return nat

    def tunnel(
        self,
        one: Host,
        other: Host,
        *,
        preshared_key: PresharedKey | tuple[PresharedKey | None, PresharedKey | None] | None = None,
        keepalive: float | tuple[float | None, float | None] | None = None,
    ) -> None:
        """Make two hosts each other's peers. A pair of values is for the two of them in this order.

        Each knows where the other is, unless that is behind a NAT. Where there is no link yet, `link` makes one.
        """
        self.link(one, other)
        if other in one.peers:
            raise LabError(f"there is a tunnel between {one.name} and {other.name} already")
        keys = preshared_key if isinstance(preshared_key, tuple) else (preshared_key, preshared_key)
        intervals = keepalive if isinstance(keepalive, tuple) else (keepalive, keepalive)
        pairs = ((one, other), (other, one))
        # Both are made before either host gets its end: what is wrong with one leaves nothing behind.
        tunnels = [
            make_tunnel(
                host.engine,
                host.private_key,
                peer.public_key,
                now=engine_clock(self._timeline),
                unix_time=host.unix_time,
                role=host.role,
                preshared_key=key,
                keepalive=interval,
                timers=host.timers,
                limits=host.limits,
                seed=derived(self.seed, "tunnel", host.name, peer.name),
            )
            for (host, peer), key, interval in zip(pairs, keys, intervals, strict=True)
        ]
        for (host, peer), tunnel in zip(pairs, tunnels, strict=True):
            host._connect(peer, tunnel)

    def traffic(
        self,
        sender: Host,
        receiver: Host,
        *,
        every: float,
        since: float | None = None,
        until: float | None = None,
        count: int | None = None,
        size: int = DEFAULT_SIZE,
        random_intervals: bool = False,
    ) -> None:
        """Have a host send a packet of `size` bytes `every` so many seconds, the first one at `since`.

        Ends after `count` packets, or with the last one before or at `until`, whichever comes first; one must be
        given. random_intervals: exponentially distributed with that mean, from the seed. A host that sleeps sends
        nothing.
        """
        if until is None and count is None:
            raise LabError("traffic needs an end: until or count")
        interval = nanoseconds(every, "every")
        if interval == 0:
            raise LabError("every must be more than 0 seconds")
        check_size(size)
        if count is not None and (type(count) is not int or count < 0):
            raise LabError(f"count must be a whole number, 0 or more, not {count!r}")
        timeline = self._timeline
        first = timeline.now if since is None else timeline.instant(since, "since")
        last = None if until is None else nanoseconds(until, "until")
        end = sender._end(receiver)
        end.flows += 1
        chance = random.Random(f"{self.seed}/traffic/{sender.name}>{receiver.name}/{end.flows}")
        left = count

        def step() -> None:
            nonlocal left
            if left is not None:
                left -= 1
            end.offer(size)
            if left == 0:
                return
            pause = max(1, round(chance.expovariate(1 / interval))) if random_intervals else interval
            schedule(timeline.now + pause)

        def schedule(at: int) -> None:
            if last is None or at <= last:
                timeline.push(at, Rank.ACTION, step)

        if left != 0:
            schedule(first)

    def _check_ours(self, *hosts: Host) -> None:
        for host in hosts:
            if self._hosts.get(host.name) is not host:
                raise LabError(f"the host {host.name} is in another world")

    # Who is where.

    def _own(self, address: str, owner: Host | Nat) -> None:
        if self._owners.get(address, owner) is not owner:
            raise LabError(f"somebody has the address {address} already")
        self._owners[address] = owner

    def _settle(self, host: Host, address: Address) -> Address:
        literal, port = _literal(address[0]), address[1]
        if not 1 <= port <= 65_535:
            raise LabError(f"a port is a number from 1 to 65535, not {port}")
        _check_family(host.name, host.address[0], literal, "it would have")
        self._own(literal, host)
        if literal != host.address[0]:
            self._owners.pop(host.address[0])
        return (literal, port)

    # Time.

    def at(self, when: float | None, action: Callable[[], object]) -> None:
        """Do something at an instant, or, for None, now."""
        self._timeline.at(when, action)

    def run(self, until: float) -> None:
        """Let time pass up to and including an instant."""
        self._timeline.run(until)

    # The way of a datagram.

    def _carry(self, sender: Host, sent: Sent) -> None:
        if sent.destination is None:
            return self._lose(sent, "nobody")
        owner = self._owners.get(sent.destination[0])
        if isinstance(owner, Nat):
            inner = owner.behind(sent.destination[1])
            if inner is None:
                return self._lose(sent, "nat")
            owner = self._owners.get(inner[0])
        link = isinstance(owner, Host) and self._links.get(frozenset((sender.name, owner.name)))
        if not isinstance(owner, Host) or not link:
            return self._lose(sent, "nobody")
        fate = link.towards(owner).carry(self._timeline.now, sent)
        if isinstance(fate, str):
            return self._lose(sent, fate)
        for _copy in fate[1:]:
            self.trace.records.append(Copied(self._timeline.now, sent.host, sent.datagram))
        for arrival in fate:
            self._timeline.push(arrival, Rank.ACTION, lambda: self._arrive(sent))
        return None

    def _lose(self, sent: Sent, why: LossReason) -> None:
        self.trace.records.append(Lost(self._timeline.now, sent.host, sent.datagram, why))

    def _arrive(self, sent: Sent) -> None:
        assert sent.destination is not None, "what goes nowhere does not arrive"
        address: Address | None = sent.destination
        owner = self._owners.get(sent.destination[0])
        if isinstance(owner, Nat):
            address = owner.inward(sent.destination[1], sent.source)
            if address is None:
                return self._lose(sent, "nat")
            owner = self._owners.get(address[0])
        if not isinstance(owner, Host) or owner.address != address:
            return self._lose(sent, "nobody")
        if owner.is_asleep:
            return self._lose(sent, "asleep")
        if not owner.peers:
            return self._lose(sent, "nobody")
        owner._receive(sent)
        return None


def _check_name(name: str) -> None:
    # A hyphen joins the names of a link.
    if not re.fullmatch(r"\w[\w. ]*", name):
        raise LabError(f"a name is letters, digits, '_', '.' and spaces, not {name!r}")


def _literal(address: str) -> str:
    """An IP address in its usual spelling. Raises `LabError` for what is none."""
    try:
        return str(ip_address(address))
    except ValueError:
        raise LabError(f"an address is a literal IP address, not {address!r}") from None


def _check_family(name: str, address: str, other: str, whose: str) -> None:
    versions = ip_address(address).version, ip_address(other).version
    if versions[0] != versions[1]:
        raise LabError(f"{name} has an IPv{versions[0]} address, and {whose} an IPv{versions[1]} one")
