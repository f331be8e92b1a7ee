"""Hosts: machines with tunnels to others, which sleep, move, and have clocks that are set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from connlib._native import LabTunn, PresharedKey, PrivateKey, PublicKey
from connlib._types import Dropped, DropReason, GaveUp, Limits, Output, Role, TimeoutReason, Timers, TunnStats
from connlib.lab._engines import Engine, Tunnel
from connlib.lab._errors import LabError
from connlib.lab._nat import Nat
from connlib.lab._packets import LARGEST, SMALLEST, index_of, kind_of, number_of, packet, sender_index_of
from connlib.lab._records import Address, Arrived, Delivered, Discarded, Happened, Offered, Sent, Woke
from connlib.lab._time import SECOND, UNIX_ORIGIN, nanoseconds
from connlib.lab._timeline import Rank, Timeline

DEFAULT_SIZE = 64
_FARTHEST_STEP = 1e9
"""Seconds by which a wall clock can be set: before 1970 there is no time."""
_ORIGIN = 10_000 * SECOND
"""What the engines' clock shows when the world begins: not 0, which would hide who takes a time for a duration."""


def check_size(size: int) -> None:
    """Raises `LabError` for a packet that there cannot be."""
    if type(size) is not int or not SMALLEST <= size <= LARGEST:
        raise LabError(f"a packet has {SMALLEST} to {LARGEST} bytes, not {size!r}")


def engine_clock(timeline: Timeline) -> float:
    """What the engines' clock shows now."""
    return (_ORIGIN + timeline.now) / SECOND


class Host:
    """A machine. `World.host` makes one."""

    def __init__(
        self,
        timeline: Timeline,
        name: str,
        *,
        engine: Engine,
        role: Role,
        private_key: PrivateKey,
        address: Address,
        inner: str,
        timers: Timers,
        limits: Limits,
        carry: Callable[[Host, Sent], None],
        settle: Callable[[Host, Address], Address],
    ) -> None:
        self._timeline = timeline
        self._carry = carry
        """What becomes of a datagram that it sends."""
        self._settle = settle
        """Says whether it can have an address, and registers it there."""
        self.name = name
        self.engine = engine
        self.role = role
        self.private_key = private_key
        self.address = address
        """Where it is, as it sees itself."""
        self.inner = inner
        """Its IPv4 address inside the tunnels."""
        self.timers = timers
        self.limits = limits
        self.nat: Nat | None = None
        self.wakes = 0
        """How often an engine was called because a deadline that it had announced was reached."""
        self._ends: dict[str, TunnelEnd] = {}
        self._by_index: dict[int, TunnelEnd] = {}
        """By the receiver indices that it has handed out."""
        self._is_asleep = False
        self._is_polled = True
        self._poll_every: int | None = None
        self._poll_version = 0
        self._poll_early: int | None = None
        self._clock_step = 0

    def __repr__(self) -> str:
        return f"<Host {self.name}, {self.engine}, {self.role.value}>"

    @property
    def public_key(self) -> PublicKey:
        """Its static public key."""
        return self.private_key.public_key()

    @property
    def peers(self) -> list[Host]:
        """The hosts to which it has a tunnel, in the order in which those were made."""
        return [end.peer for end in self._ends.values()]

    @property
    def is_asleep(self) -> bool:
        """Whether the machine is suspended."""
        return self._is_asleep

    @property
    def is_polled(self) -> bool:
        """Whether the engines are called when a deadline is reached. Can be set; True from the start."""
        return self._is_polled

    @is_polled.setter
    def is_polled(self, polled: bool) -> None:
        self._is_polled = polled
        self._schedule_wakes()

    @property
    def poll_every(self) -> float | None:
        """Seconds between calls that are made beside the announced ones, or None. Can be set."""
        return None if self._poll_every is None else self._poll_every / SECOND

    @poll_every.setter
    def poll_every(self, seconds: float | None) -> None:
        every = None if seconds is None else nanoseconds(seconds, "poll_every")
        if every == 0:
            raise LabError("poll_every must be more than 0 seconds")
        self._poll_every = every
        # The calls that were planned are not made.
        self._poll_version += 1
        self._poll_later()

    @property
    def poll_early(self) -> float | None:
        """Seconds before each announced instant at which the engine is called as well, or None. Can be set."""
        return None if self._poll_early is None else self._poll_early / SECOND

    @poll_early.setter
    def poll_early(self, seconds: float | None) -> None:
        self._poll_early = None if seconds is None else nanoseconds(seconds, "poll_early")
        self._schedule_wakes()

    @property
    def unix_time(self) -> float:
        """What its wall clock shows, in seconds since 1970."""
        return UNIX_ORIGIN + (self._timeline.now + self._clock_step) / SECOND

    def stats(self, peer: Host | None = None) -> TunnStats:
        """What the engine counted, of its only tunnel or of that to `peer`, now."""
        return self._end(peer).tunnel.stats(engine_clock(self._timeline))

    def tunnel(self, peer: Host | None = None) -> Tunnel:
        """The engine itself, to look at."""
        return self._end(peer).tunnel

    def endpoint(self, peer: Host | None = None) -> Address | None:
        """Where this host believes its peer to be."""
        return self._end(peer).endpoint

    def _end(self, peer: Host | None) -> TunnelEnd:
        if peer is None and len(self._ends) == 1:
            (end,) = self._ends.values()
            return end
        if peer is None:
            raise LabError(f"{self.name} has {len(self._ends)} tunnels: say to whom")
        found = self._ends.get(peer.name)
        if found is None or found.peer is not peer:
            raise LabError(f"there is no tunnel between {self.name} and {peer.name}")
        return found

    # What can be made to happen. `at` is seconds since the start of the world, or None for now.

    def send(self, peer: Host | None = None, *, at: float | None = None, size: int = DEFAULT_SIZE) -> None:
        """Hand a packet of `size` bytes (32 to 65,472) to the tunnel. A host that sleeps then does not."""
        end = self._end(peer)
        check_size(size)
        self._timeline.at(at, lambda: end.offer(size))

    def initiate_handshake(self, peer: Host | None = None, *, at: float | None = None) -> None:
        """Ask the engine for a handshake, packets or not. A host that sleeps then does not."""
        self._timeline.at(at, self._end(peer).initiate)

    def set_persistent_keepalive(
        self, seconds: float | None, peer: Host | None = None, *, at: float | None = None
    ) -> None:
        """Switch the keepalive of a tunnel of the patched engine on, off (None), or to another interval."""
        end = self._end(peer)
        if seconds is not None and not 1 <= seconds <= 65_535:
            raise LabError(f"a keepalive is 1 to 65535 seconds or None, not {seconds!r}")
        self._timeline.at(at, lambda: end.set_keepalive(seconds))

    def set_preshared_key(
        self, key: PresharedKey | None, peer: Host | None = None, *, at: float | None = None
    ) -> None:
        """Change the preshared key of a tunnel of the patched engine."""
        end = self._end(peer)
        self._timeline.at(at, lambda: end.set_preshared_key(key))

    def sleep(self, seconds: float, *, at: float | None = None) -> None:
        """Suspend the machine: no engine is called, and what arrives is lost. Clocks run on.

        What is scheduled for the instant of waking comes before the deadlines that were missed.
        """
        length = nanoseconds(seconds, "a sleep")

        def sleep() -> None:
            if self._is_asleep:
                raise LabError(f"{self.name} sleeps already")
            self._is_asleep = True
            self._timeline.note(self.name, f"sleeps for {length / SECOND:g} s")
            self._timeline.push(self._timeline.now + length, Rank.MORNING, self._wake_up)

        self._timeline.at(at, sleep)

    def _wake_up(self) -> None:
        self._is_asleep = False
        self._timeline.note(self.name, "wakes up")
        self._schedule_wakes()

    def step_clock(self, seconds: float, *, at: float | None = None) -> None:
        """Set the wall clock by so many seconds, forward or back. The monotonic clock runs on."""
        if not abs(seconds) <= _FARTHEST_STEP:
            raise LabError(f"a clock is set by {_FARTHEST_STEP:.0f} seconds at most, not {seconds!r}")
        step = round(seconds * SECOND)

        def set_clock() -> None:
            self._clock_step += step
            self._timeline.note(self.name, f"clock set by {step / SECOND:+g} s")
            for end in self._ends.values():
                end.set_unix_time(self.unix_time)

        self._timeline.at(at, set_clock)

    def move(self, address: Address, *, at: float | None = None) -> None:
        """Have another address of the same family, or another port, from then on."""

        def move() -> None:
            if self.nat is not None:
                raise LabError(f"{self.name} is behind a NAT: rebind that")
            self.address = self._settle(self, address)
            self._timeline.note(self.name, f"moves to {self.address[0]}:{self.address[1]}")

        self._timeline.at(at, move)

    # Calls beside those for deadlines.

    def _schedule_wakes(self) -> None:
        for end in self._ends.values():
            end.schedule_wake()

    def _poll_later(self) -> None:
        if self._poll_every is not None:
            version = self._poll_version
            self._timeline.push(self._timeline.now + self._poll_every, Rank.POLL, lambda: self._poll(version))

    def _poll(self, version: int) -> None:
        if version != self._poll_version:
            return
        if not self._is_asleep:
            for end in list(self._ends.values()):
                end.poll()
        self._poll_later()

    # What the world and the tunnels call.

    def _connect(self, peer: Host, tunnel: Tunnel) -> TunnelEnd:
        """Get an end of a tunnel to another host."""
        end = TunnelEnd(self, peer, tunnel, None if peer.nat else peer.address)
        self._ends[peer.name] = end
        end.reschedule()
        return end

    def _send(self, sent: Sent, end: TunnelEnd) -> None:
        if sent.kind in "IR":
            self._by_index[sender_index_of(sent.data)] = end
        self._timeline.trace.records.append(sent)
        self._carry(self, sent)

    def _receive(self, sent: Sent) -> None:
        """Take a datagram, which is whose receiver index it names; of an initiation the world knows it."""
        end = None if sent.kind == "I" else self._by_index.get(sent.index)
        (end or self._ends.get(sent.host) or next(iter(self._ends.values()))).receive(sent)


class TunnelEnd:
    """One host's end of a tunnel: an engine, what it is given, and what comes of it."""

    __slots__ = (
        "_due",
        "_is_settled",
        "_reason",
        "_timeline",
        "_version",
        "_waiting",
        "endpoint",
        "flows",
        "host",
        "peer",
        "tunnel",
    )

    def __init__(self, host: Host, peer: Host, tunnel: Tunnel, endpoint: Address | None) -> None:
        self.host = host
        self.peer = peer
        self.tunnel = tunnel
        self.endpoint = endpoint
        self.flows = 0
        """How often traffic was scheduled on it."""
        self._is_settled = True
        """Whether the engine did what was due in its last call."""
        self._timeline = host._timeline
        self._due: int | None = None
        """When the engine wants to be called, on the world's clock in nanoseconds."""
        self._reason: TimeoutReason | None = None
        self._version = 0
        """Counts the changes of that, so that a wake that was set for an earlier one is known."""
        self._waiting: deque[int] = deque()
        """Numbers of the packets that were offered and not sealed yet. Only the patched engine keeps their order."""

    # What it is given.

    def offer(self, size: int) -> None:
        """Hand a packet to the tunnel, unless the machine sleeps."""
        host, peer = self.host, self.peer
        if host.is_asleep:
            return
        number = next(self._timeline.packets)
        self._timeline.trace.records.append(Offered(self._timeline.now, host.name, peer.name, number, size))
        self._waiting.append(number)
        output = self.tunnel.encapsulate(packet(number, host.inner, peer.inner, size), self._clock())
        if output.error is not None:
            # It is the newest one that was refused.
            self._discard(self._waiting.pop(), output.error)
        self._absorb(output)

    def initiate(self) -> None:
        """Ask for a handshake, unless the machine sleeps."""
        if self.host.is_asleep:
            return
        output = self.tunnel.initiate_handshake(self._clock())
        if output.error is not None:
            self._timeline.note(self.host.name, f"starts no handshake: {output.error.value}")
        self._absorb(output)

    def set_keepalive(self, seconds: float | None) -> None:
        """Change the persistent keepalive."""
        tunnel = self._to_change("keepalive")
        output = tunnel.set_persistent_keepalive(seconds, self._clock())
        self._timeline.note(self.host.name, f"keepalive {'off' if seconds is None else f'{seconds:g} s'}")
        self._absorb(output)

    def set_preshared_key(self, key: PresharedKey | None) -> None:
        """Change the preshared key."""
        tunnel = self._to_change("preshared key")
        tunnel.set_preshared_key(key, self._clock())
        self._is_settled = False
        self._timeline.note(self.host.name, "another preshared key")
        self.reschedule()

    def set_unix_time(self, unix_time: float) -> None:
        """Tell the engine what the wall clock shows, now that it was set. Upstream's reads its own."""
        if isinstance(self.tunnel, LabTunn):
            self.tunnel.set_unix_time(unix_time, self._clock())
            self._is_settled = False

    def _to_change(self, what: str) -> LabTunn:
        name = self.host.name
        if self.host.is_asleep:
            raise LabError(f"{name} sleeps: nobody can change its tunnels before it wakes up")
        if not isinstance(self.tunnel, LabTunn):
            raise LabError(f"upstream cannot change its {what}: {name} needs the patched engine")
        return self.tunnel

    def receive(self, sent: Sent) -> None:
        """Take a datagram that reached the host."""
        output = self.tunnel.decapsulate(sent.data, self._clock(), sent.source)
        self._timeline.trace.records.append(
            Arrived(self._timeline.now, self.host.name, sent.datagram, sent.source, output.error)
        )
        if output.error is None and sent.kind in "RDK":
            # Authenticated, and no initiation, which could be replayed (spec: scenario 36).
            self.endpoint = sent.source
        for data in output.packets:
            if sent.packet is not None and number_of(data) != sent.packet:
                raise LabError(f"{sent.host} sent packet {number_of(data)} in place of {sent.packet}")
        self._absorb(output, sent.source)

    def poll(self) -> None:
        """Call the engine though nothing is due."""
        self._absorb(self.tunnel.handle_timeout(self._clock()))

    # Deadlines.

    def reschedule(self) -> None:
        """See when the engine wants to be called."""
        timeout = self.tunnel.next_timeout()
        if timeout is None:
            if self._due is not None:
                self._due = self._reason = None
                self._version += 1
            return
        due = round(timeout.at * SECOND) - _ORIGIN
        now = self._timeline.now
        if due < now:
            raise LabError(
                f"{self.host.name} announces {due / SECOND} s for {timeout.reason.value}, "
                f"and it is {now / SECOND} s already"
            )
        self._reason = timeout.reason
        if due != self._due:
            self._due = due
            self.schedule_wake()

    def schedule_wake(self) -> None:
        """Set the alarm for what is announced, now that it or the machine has changed."""
        self._version += 1
        if self._due is not None:
            version, now = self._version, self._timeline.now
            self._timeline.push(max(self._due, now), Rank.WAKE, lambda: self._wake(version))
            early = self.host._poll_early
            if early is not None and self._due - early > now:
                self._timeline.push(self._due - early, Rank.POLL, lambda: self._poll_early(version))

    def _wake(self, version: int) -> None:
        host, now = self.host, self._timeline.now
        if version != self._version or host.is_asleep or not host.is_polled:
            return
        host.wakes += 1
        if host.engine == "upstream":
            # Polled whether anything is due or not: its ticks do not fill the trace.
            self._due = None
            self.poll()
            return
        due, reason, state = self._due, self._reason, self._state()
        assert due is not None and reason is not None, "a version without a deadline is not scheduled"
        output = self.tunnel.handle_timeout(self._clock())
        self._timeline.trace.records.append(Woke(now, host.name, self.peer.name, reason))
        # After a call that settles nothing, what is overdue does not count as there any more: a wake only tidies up.
        if self._is_settled and not any(output) and self._state() == state:
            raise LabError(
                f"{host.name} was woken for {reason.value} at {now / SECOND} s, and nothing came of it"
            )
        # Its wake is used up: the same instant again is another one.
        self._due = None
        self._absorb(output)
        if self._due is not None and self._due <= now:
            raise LabError(
                f"{host.name} was woken for {reason.value} at {now / SECOND} s and wants to be again, for "
                f"{self._reason and self._reason.value}"
            )

    def _poll_early(self, version: int) -> None:
        if version == self._version and not self.host.is_asleep and self.host.is_polled:
            self.poll()

    def _state(self) -> tuple[int, int, bool]:
        """What a wake may change without a word, as of the last call: time that goes backwards stands still."""
        stats = self.tunnel.stats(0.0)
        return stats.sessions, stats.queued, stats.handshake_pending

    # What comes of it.

    def _clock(self) -> float:
        return engine_clock(self._timeline)

    def _absorb(self, output: Output, source: Address | None = None) -> None:
        host, peer, now, records = self.host, self.peer, self._timeline.now, self._timeline.trace.records
        self._is_settled = True
        for event in output.events:
            if isinstance(event, GaveUp):
                self._discard_oldest(event.dropped, DropReason.GAVE_UP)
            elif isinstance(event, Dropped):
                self._discard_oldest(event.count, event.reason)
        for datagram in output.datagrams:
            # A response, or a cookie reply, goes to where what it answers came from.
            answers = source is not None and datagram[0] in (2, 3)
            self._send(datagram, source if answers else self.endpoint)
        for data in output.packets:
            records.append(Delivered(now, host.name, peer.name, number_of(data), len(data)))
        for event in output.events:
            records.append(Happened(now, host.name, peer.name, event))
        self.reschedule()

    def _discard(self, number: int, reason: DropReason) -> None:
        self._timeline.trace.records.append(
            Discarded(self._timeline.now, self.host.name, self.peer.name, number, reason)
        )

    def _discard_oldest(self, count: int, reason: DropReason) -> None:
        for _ in range(count):
            self._discard(self._waiting.popleft(), reason)

    def _send(self, data: bytes, destination: Address | None) -> None:
        host, now = self.host, self._timeline.now
        kind = kind_of(data)
        number = None
        if kind == "D" and host.engine == "patched":
            if not self._waiting:
                raise LabError(f"{host.name} sends data that nobody offered, at {now / SECOND} s")
            number = self._waiting.popleft()
        source = host.address
        if host.nat is not None and destination is not None:
            source = host.nat.outward(source, destination)
        sent = Sent(
            at=now,
            host=host.name,
            peer=self.peer.name,
            datagram=next(self._timeline.datagrams),
            kind=kind,
            index=index_of(data),
            packet=number,
            source=source,
            destination=destination,
            data=data,
        )
        host._send(sent, self)
