"""The world: virtual time, hosts, and everything that happens between them, in an order that a seed decides."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from connlib._native import LabTunn, PresharedKey, PrivateKey
from connlib._types import Dropped, DropReason, GaveUp, Limits, Output, Role, Timers
from connlib.lab._engines import check_engine, derived, make_tunnel
from connlib.lab._errors import LabError
from connlib.lab._host import DEFAULT_SIZE, Host, TunnelEnd, check_size
from connlib.lab._links import Link
from connlib.lab._nat import DEFAULT_TIMEOUT, Nat
from connlib.lab._packets import index_of, kind_of, number_of, packet, sender_index_of
from connlib.lab._records import (
    Address,
    Arrived,
    Changed,
    Delivered,
    Discarded,
    Happened,
    LossReason,
    Lost,
    Offered,
    Sent,
    Woke,
)
from connlib.lab._time import SECOND, UNIX_ORIGIN, nanoseconds
from connlib.lab._trace import Trace

_ORIGIN = 10_000 * SECOND
"""What the engines' clock shows when the world begins: not 0, which would hide who takes a time for a duration."""
_PORT = 51820
_MOST_HOSTS = 200

# The order within an instant: machines wake up, what users and links do, deadlines, other polls.
_MORNING, _ACTION, _WAKE, _POLL = range(4)


class World:
    """Hosts, links and NAT boxes in virtual time. Equal seeds and equal calls give equal traces.

    Times are seconds since the start of the world. Only upstream engines differ from run to run, because they draw
    their own randomness. Raises `LabError` for what cannot be, and when a patched engine announces an instant in the
    past or is woken for nothing.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.trace = Trace()
        self._now = 0
        self._queue: list[tuple[int, int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._packets = itertools.count()
        self._datagrams = itertools.count()
        self._hosts: dict[str, Host] = {}
        self._nats: dict[str, Nat] = {}
        self._links: dict[frozenset[str], Link] = {}
        self._owners: dict[str, Host | Nat] = {}

    @property
    def now(self) -> float:
        """Seconds since the start of the world."""
        return self._now / SECOND

    @property
    def hosts(self) -> dict[str, Host]:
        """The machines by their names, in the order in which they were made."""
        return dict(self._hosts)

    def key_log(self) -> list[str]:
        """The keys of all patched tunnels, as lines of a WireGuard key log for `Trace.save_capture`."""
        tunnels = (end.tunnel for host in self._hosts.values() for end in host._ends.values())
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
        if name in self._hosts:
            raise LabError(f"there is a host {name} already")
        number = len(self._hosts) + 1
        if number > _MOST_HOSTS:
            raise LabError(f"a world has {_MOST_HOSTS} hosts at most")
        timers, limits = timers or Timers(), limits or Limits()
        host = Host(
            self,
            name,
            engine=check_engine(engine, role, timers, limits),
            role=role,
            private_key=private_key or PrivateKey.from_bytes(derived(self.seed, "key", name)),
            address=(address or f"192.0.2.{number}", _PORT),
            inner=f"10.0.0.{number}",
            timers=timers,
            limits=limits,
        )
        self._own(host.address[0], host)
        self._hosts[name] = host
        self.trace.hosts.append(name)
        return host

    def link(
        self,
        one: Host,
        other: Host,
        *,
        latency: float | None = None,
        jitter: float | None = None,
        reorder: float | None = None,
        loss: float | None = None,
        duplicate: float | None = None,
        rate: float | None = None,
        queue: float | None = None,
    ) -> Link:
        """The way between two hosts, made by the first call, with these settings in both directions (`Link.set`).

        Without settings it takes 20 ms each way and loses nothing.
        """
        if one is other:
            raise LabError(f"{one.name} needs no link to itself")
        link = self._links.setdefault(frozenset((one.name, other.name)), Link(self, one, other))
        link.set(
            latency=latency,
            jitter=jitter,
            reorder=reorder,
            loss=loss,
            duplicate=duplicate,
            rate=rate,
            queue=queue,
        )
        return link

    def nat(
        self,
        name: str,
        *hosts: Host,
        address: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Nat:
        """Put hosts behind a NAT, before they have tunnels. timeout: seconds until an unused mapping is forgotten."""
        if name in self._nats:
            raise LabError(f"there is a NAT {name} already")
        for host in hosts:
            if host._ends:
                raise LabError(f"{host.name} has tunnels already: make its NAT first")
            if host.nat is not None:
                raise LabError(f"{host.name} is behind the NAT {host.nat.name} already")
        nat = Nat(self, name, address or f"198.51.100.{len(self._nats) + 1}", timeout)
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
        if other.name in one._ends:
            raise LabError(f"there is a tunnel between {one.name} and {other.name} already")
        self.link(one, other)
        keys = preshared_key if isinstance(preshared_key, tuple) else (preshared_key, preshared_key)
        intervals = keepalive if isinstance(keepalive, tuple) else (keepalive, keepalive)
        for host, peer, key, interval in zip((one, other), (other, one), keys, intervals, strict=True):
            tunnel = make_tunnel(
                host.engine,
                host.private_key,
                peer.public_key,
                now=self._clock(),
                unix_time=self._unix_time(host),
                role=host.role,
                preshared_key=key,
                keepalive=interval,
                timers=host.timers,
                limits=host.limits,
                seed=derived(self.seed, "tunnel", host.name, peer.name),
            )
            end = TunnelEnd(host, peer, tunnel, None if peer.nat else peer.address)
            host._ends[peer.name] = end
        for host, peer in ((one, other), (other, one)):
            self._reschedule(host._ends[peer.name])

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
        if count is not None and count < 0:
            raise LabError(f"count must be 0 or more, not {count}")
        first = self._now if since is None else nanoseconds(since, "since")
        if first < self._now:
            raise LabError(f"it is {self.now} s already, which is later than {since} s")
        last = None if until is None else nanoseconds(until, "until")
        end = sender._end(receiver)
        end.flows += 1
        chance = random.Random(f"{self.seed}/traffic/{sender.name}>{receiver.name}/{end.flows}")
        left = count

        def step() -> None:
            nonlocal left
            if left is not None:
                left -= 1
            self._offer(end, size)
            if left == 0:
                return
            pause = max(1, round(chance.expovariate(1 / interval))) if random_intervals else interval
            schedule(self._now + pause)

        def schedule(at: int) -> None:
            if last is None or at <= last:
                self._push(at, _ACTION, step)

        if left != 0:
            schedule(first)

    def _own(self, address: str, owner: Host | Nat) -> None:
        if self._owners.get(address, owner) is not owner:
            raise LabError(f"somebody has the address {address} already")
        self._owners[address] = owner

    # Time.

    def at(self, when: float | None, action: Callable[[], None]) -> None:
        """Do something at an instant, or, for None, now."""
        if when is None:
            action()
            return
        at = nanoseconds(when, "at")
        if at < self._now:
            raise LabError(f"it is {self.now} s already, which is later than {when} s")
        self._push(at, _ACTION, action)

    def run(self, until: float) -> None:
        """Let time pass up to and including an instant."""
        end = nanoseconds(until, "until")
        if end < self._now:
            raise LabError(f"it is {self.now} s already, which is later than {until} s")
        queue = self._queue
        while queue and queue[0][0] <= end:
            self._now, _, _, action = heapq.heappop(queue)
            action()
        self._now = end

    def _push(self, at: int, rank: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (at, rank, next(self._order), action))

    def _clock(self) -> float:
        return (_ORIGIN + self._now) / SECOND

    def _unix_time(self, host: Host) -> float:
        return UNIX_ORIGIN + (self._now + host._clock_step) / SECOND

    def note(self, where: str, what: str) -> None:
        """Write a change of the world into the trace."""
        self.trace.records.append(Changed(self._now, where, what))

    # What hosts do.

    def _offer(self, end: TunnelEnd, size: int) -> None:
        host, peer = end.host, end.peer
        if host.is_asleep:
            return
        number = next(self._packets)
        self.trace.records.append(Offered(self._now, host.name, peer.name, number, size))
        end.waiting.append(number)
        output = end.tunnel.encapsulate(packet(number, host.inner, peer.inner, size), self._clock())
        if output.error is not None:
            # It is the newest one that was refused.
            self._discard(end, end.waiting.pop(), output.error)
        self._absorb(end, output)

    def _initiate(self, end: TunnelEnd) -> None:
        if not end.host.is_asleep:
            self._absorb(end, end.tunnel.initiate_handshake(self._clock()))

    def _patched(self, end: TunnelEnd, what: str) -> LabTunn:
        if not isinstance(end.tunnel, LabTunn):
            raise LabError(f"upstream cannot {what}: {end.host.name} needs the patched engine")
        return end.tunnel

    def _awake_or_refused(self, host: Host) -> None:
        if host.is_asleep:
            raise LabError(f"{host.name} sleeps: nobody can change its tunnels before it wakes up")

    def _set_keepalive(self, end: TunnelEnd, seconds: float | None) -> None:
        self._awake_or_refused(end.host)
        tunnel = self._patched(end, "change its keepalive")
        self.note(end.host.name, f"keepalive {'off' if seconds is None else f'{seconds:g} s'}")
        self._absorb(end, tunnel.set_persistent_keepalive(seconds, self._clock()))

    def _set_preshared_key(self, end: TunnelEnd, key: PresharedKey | None) -> None:
        self._awake_or_refused(end.host)
        tunnel = self._patched(end, "change its preshared key")
        self.note(end.host.name, "another preshared key")
        tunnel.set_preshared_key(key, self._clock())
        self._reschedule(end)

    def _sleep(self, host: Host, length: int) -> None:
        if host.is_asleep:
            raise LabError(f"{host.name} sleeps already")
        host._is_asleep = True
        self.note(host.name, f"sleeps for {length / SECOND:g} s")
        self._push(self._now + length, _MORNING, lambda: self._awake(host))

    def _awake(self, host: Host) -> None:
        host._is_asleep = False
        self.note(host.name, "wakes up")
        self._wake_again(host)

    def _step_clock(self, host: Host, step: int) -> None:
        host._clock_step += step
        self.note(host.name, f"clock set by {step / SECOND:+g} s")
        for end in host._ends.values():
            if isinstance(end.tunnel, LabTunn):
                end.tunnel.set_unix_time(self._unix_time(host), self._clock())

    def _move(self, host: Host, address: Address) -> None:
        if host.nat is not None:
            raise LabError(f"{host.name} is behind a NAT: rebind that")
        self._own(address[0], host)
        if address[0] != host.address[0]:
            self._owners.pop(host.address[0])
        host.address = address
        self.note(host.name, f"moves to {address[0]}:{address[1]}")

    # Deadlines.

    def _reschedule(self, end: TunnelEnd) -> None:
        timeout = end.tunnel.next_timeout()
        if timeout is None:
            if end.due is not None:
                end.due = end.reason = None
                end.version += 1
            return
        due = round(timeout.at * SECOND) - _ORIGIN
        if due < self._now:
            raise LabError(
                f"{end.host.name} announces {due / SECOND} s for {timeout.reason.value}, and it is {self.now} s already"
            )
        end.reason = timeout.reason
        if due != end.due:
            end.due = due
            end.version += 1
            self._push_wake(end)

    def _push_wake(self, end: TunnelEnd) -> None:
        if end.due is not None:
            version = end.version
            self._push(max(end.due, self._now), _WAKE, lambda: self._wake(end, version))

    def _wake_again(self, host: Host) -> None:
        for end in host._ends.values():
            end.version += 1
            self._push_wake(end)

    def _wake(self, end: TunnelEnd, version: int) -> None:
        host = end.host
        if version != end.version or host.is_asleep or not host.is_polled:
            return
        host.wakes += 1
        due, reason = end.due, end.reason
        assert due is not None and reason is not None, "a version without a deadline is not scheduled"
        output = end.tunnel.handle_timeout(self._clock())
        if host.engine == "patched":
            self.trace.records.append(Woke(self._now, host.name, end.peer.name, reason))
        # Its wake is used up: the same instant again is another one.
        end.due = None
        self._absorb(end, output)
        # Upstream is polled whether anything is due or not.
        if host.engine == "patched" and end.due == due and end.reason == reason and due == self._now:
            raise LabError(f"{host.name} was woken for {reason.value} at {self.now} s and wants it again")

    def _poll_later(self, host: Host) -> None:
        if host._poll_every is not None:
            version = host._poll_version
            self._push(self._now + host._poll_every, _POLL, lambda: self._poll(host, version))

    def _poll(self, host: Host, version: int) -> None:
        if version != host._poll_version:
            return
        if not host.is_asleep:
            for end in list(host._ends.values()):
                self._absorb(end, end.tunnel.handle_timeout(self._clock()))
        self._poll_later(host)

    # What comes of it.

    def _absorb(self, end: TunnelEnd, output: Output, source: Address | None = None) -> None:
        host, peer, records = end.host, end.peer, self.trace.records
        for event in output.events:
            if isinstance(event, GaveUp):
                self._discard_oldest(end, event.dropped, DropReason.GAVE_UP)
            elif isinstance(event, Dropped):
                self._discard_oldest(end, event.count, event.reason)
        for datagram in output.datagrams:
            # A response, or a cookie reply, goes to where what it answers came from.
            answers = source is not None and datagram[0] in (2, 3)
            self._send(end, datagram, source if answers else end.endpoint)
        for data in output.packets:
            records.append(Delivered(self._now, host.name, peer.name, number_of(data), len(data)))
        for event in output.events:
            records.append(Happened(self._now, host.name, peer.name, event))
        self._reschedule(end)

    def _discard(self, end: TunnelEnd, number: int, reason: DropReason) -> None:
        self.trace.records.append(Discarded(self._now, end.host.name, end.peer.name, number, reason))

    def _discard_oldest(self, end: TunnelEnd, count: int, reason: DropReason) -> None:
        for _ in range(count):
            self._discard(end, end.waiting.popleft(), reason)

    def _send(self, end: TunnelEnd, data: bytes, destination: Address | None) -> None:
        host = end.host
        kind = kind_of(data)
        number = None
        if kind == "D" and host.engine == "patched":
            if not end.waiting:
                raise LabError(f"{host.name} sends data that nobody offered, at {self.now} s")
            number = end.waiting.popleft()
        elif kind in "IR":
            host._by_index[sender_index_of(data)] = end
        source = host.address
        if host.nat is not None and destination is not None:
            source = host.nat.outward(self._now, source, destination)
        sent = Sent(
            at=self._now,
            host=host.name,
            peer=end.peer.name,
            datagram=next(self._datagrams),
            kind=kind,
            index=index_of(data),
            packet=number,
            source=source,
            destination=destination,
            data=data,
        )
        self.trace.records.append(sent)
        self._carry(host, sent)

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
        fate = link.towards(owner).carry(self._now, sent)
        if isinstance(fate, str):
            return self._lose(sent, fate)
        for arrival in fate:
            self._push(arrival, _ACTION, lambda: self._arrive(sent))
        return None

    def _lose(self, sent: Sent, why: LossReason) -> None:
        self.trace.records.append(Lost(self._now, sent.host, sent.datagram, why))

    def _arrive(self, sent: Sent) -> None:
        assert sent.destination is not None, "what goes nowhere does not arrive"
        address: Address | None = sent.destination
        owner = self._owners.get(sent.destination[0])
        if isinstance(owner, Nat):
            address = owner.inward(self._now, sent.destination[1], sent.source)
            if address is None:
                return self._lose(sent, "nat")
            owner = self._owners.get(address[0])
        if not isinstance(owner, Host) or owner.address != address:
            return self._lose(sent, "nobody")
        if owner.is_asleep:
            return self._lose(sent, "asleep")
        if not owner._ends:
            return self._lose(sent, "nobody")
        self._receive(owner, sent)
        return None

    def _receive(self, host: Host, sent: Sent) -> None:
        end = self._recipient(host, sent)
        output = end.tunnel.decapsulate(sent.data, self._clock(), sent.source)
        self.trace.records.append(Arrived(self._now, host.name, sent.datagram, sent.source, output.error))
        if output.error is None and sent.kind in "RDK":
            # Authenticated, and no initiation, which could be replayed (spec: scenario 36).
            end.endpoint = sent.source
        for data in output.packets:
            if sent.packet is not None and number_of(data) != sent.packet:
                raise LabError(f"{sent.host} sent packet {number_of(data)} in place of {sent.packet}")
        self._absorb(end, output, sent.source)

    def _recipient(self, host: Host, sent: Sent) -> TunnelEnd:
        """Whose a datagram is: by receiver index, and an initiation by the static key inside, which the world knows."""
        end = host._by_index.get(sent.index) if sent.kind != "I" else host._ends.get(sent.host)
        return end or host._ends.get(sent.host) or next(iter(host._ends.values()))
