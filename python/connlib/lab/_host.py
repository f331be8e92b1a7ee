"""Hosts: machines with tunnels to others, which sleep, move, and have clocks that are set."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from connlib._native import PresharedKey, PrivateKey, PublicKey
from connlib._types import Limits, Role, TimeoutReason, Timers, TunnStats
from connlib.lab._engines import Engine, Tunnel
from connlib.lab._errors import LabError
from connlib.lab._nat import Nat
from connlib.lab._packets import LARGEST, SMALLEST
from connlib.lab._records import Address
from connlib.lab._time import SECOND, nanoseconds

if TYPE_CHECKING:
    from connlib.lab._world import World

DEFAULT_SIZE = 64


def check_size(size: int) -> None:
    """Raises `LabError` for a packet that there cannot be."""
    if not SMALLEST <= size <= LARGEST:
        raise LabError(f"a packet has {SMALLEST} to {LARGEST} bytes, not {size}")


class TunnelEnd:
    """One host's end of a tunnel."""

    __slots__ = ("due", "endpoint", "flows", "host", "peer", "reason", "tunnel", "version", "waiting")

    def __init__(self, host: Host, peer: Host, tunnel: Tunnel, endpoint: Address | None) -> None:
        self.host = host
        self.peer = peer
        self.tunnel = tunnel
        self.endpoint = endpoint
        self.due: int | None = None
        self.reason: TimeoutReason | None = None
        self.version = 0
        """Counts the changes of `due`, so that a wake that was set for an earlier one is known."""
        self.flows = 0
        """How often traffic was scheduled on it."""
        self.waiting: deque[int] = deque()
        """Numbers of the packets that were offered and not sealed yet. Only the patched engine keeps their order."""


class Host:
    """A machine. `World.host` makes one."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        engine: Engine,
        role: Role,
        private_key: PrivateKey,
        address: Address,
        inner: str,
        timers: Timers,
        limits: Limits,
    ) -> None:
        self._world = world
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
        self._is_asleep = False
        self._is_polled = True
        self._poll_every: int | None = None
        self._poll_version = 0
        self._clock_step = 0

    def __repr__(self) -> str:
        return f"<Host {self.name}, {self.engine}, {self.role.value}>"

    @property
    def public_key(self) -> PublicKey:
        """Its static public key."""
        return self.private_key.public_key()

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
        self._world._wake_again(self)

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
        self._world._poll_later(self)

    def stats(self, peer: Host | None = None) -> TunnStats:
        """What the engine counted, of its only tunnel or of that to `peer`, now."""
        return self._end(peer).tunnel.stats(self._world._clock())

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
        try:
            return self._ends[peer.name]
        except KeyError:
            raise LabError(f"there is no tunnel between {self.name} and {peer.name}") from None

    # What can be made to happen. `at` is seconds since the start of the world, or None for now.

    def send(self, peer: Host | None = None, *, at: float | None = None, size: int = DEFAULT_SIZE) -> None:
        """Hand a packet of `size` bytes (32 to 65,472) to the tunnel. A host that sleeps then does not."""
        end = self._end(peer)
        check_size(size)
        self._world.at(at, lambda: self._world._offer(end, size))

    def initiate_handshake(self, peer: Host | None = None, *, at: float | None = None) -> None:
        """Ask the engine for a handshake, packets or not."""
        end = self._end(peer)
        self._world.at(at, lambda: self._world._initiate(end))

    def set_persistent_keepalive(
        self, seconds: float | None, peer: Host | None = None, *, at: float | None = None
    ) -> None:
        """Switch the keepalive of a tunnel of the patched engine on, off (None), or to another interval."""
        end = self._end(peer)
        self._world.at(at, lambda: self._world._set_keepalive(end, seconds))

    def set_preshared_key(
        self, key: PresharedKey | None, peer: Host | None = None, *, at: float | None = None
    ) -> None:
        """Change the preshared key of a tunnel of the patched engine."""
        end = self._end(peer)
        self._world.at(at, lambda: self._world._set_preshared_key(end, key))

    def sleep(self, seconds: float, *, at: float | None = None) -> None:
        """Suspend the machine: no engine is called, and what arrives is lost. Clocks run on.

        What is scheduled for the instant of waking comes before the deadlines that were missed.
        """
        length = nanoseconds(seconds, "a sleep")
        self._world.at(at, lambda: self._world._sleep(self, length))

    def step_clock(self, seconds: float, *, at: float | None = None) -> None:
        """Set the wall clock by so many seconds, forward or back. The monotonic clock runs on."""
        self._world.at(at, lambda: self._world._step_clock(self, round(seconds * SECOND)))

    def move(self, address: Address, *, at: float | None = None) -> None:
        """Have another address from then on."""
        self._world.at(at, lambda: self._world._move(self, address))
