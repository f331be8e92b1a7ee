"""For how long the two ends of a tunnel were not both able to send, as their engines say.

Looking changes nothing: `stats` reads. It costs more than a tick of upstream does, so that it is not done after each of
them, but wherever a session can end. One begins with a response, or with the first packet on it: the trace shows that.

- A session of the patched engine ends with its age, at an instant that its age tells before.
- One of upstream ends in a tick: with its age, or when an attempt is given up, whose last retry was 5 s before.
"""

from __future__ import annotations

from collections import deque

from connlib.lab._host import Host
from connlib.lab._records import Arrived, Kind, Sent
from connlib.lab._time import SECOND
from connlib.lab._world import World

_TICK = SECOND // 4
"""How often upstream is called: at multiples of this from the world's start on, when the tunnels are made."""
_STRIDE = 60 * SECOND
"""Without a look. Less than the 90 s of an attempt, so that none begins and is given up meanwhile."""
_BUSY = 5 * SECOND + 2 * _TICK
"""After the last handshake message the next retry, or the end of the attempt, is due within this."""
_LIFE = 180 * SECOND


class SessionWatch:
    """Lets a world's time pass, and looks at both ends of a tunnel that was made at its start."""

    def __init__(self, world: World, one: Host, other: Host) -> None:
        self._world = world
        self._ends = {one.name: _End(one, other), other.name: _End(other, one)}
        self._kinds: dict[int, Kind] = {}
        self._read = 0
        self._start = self._look()

    def run(self, until: float) -> None:
        """As `World.run`."""
        now, end = self._now(), round(until * SECOND)
        while now < end:
            at = min(now + _STRIDE, *(each.next_look(now) for each in self._ends.values()))
            self._world.run(min(end, max(at, now + 1)) / SECOND)
            now = self._look()

    def without_session(self) -> float:
        """The seconds, since it watches, in which one end or both had no session to send on."""
        now, end, total = self._now(), self._start, 0
        for begin, until in sorted(gap for each in self._ends.values() for gap in each.gaps(now)):
            total += max(0, until - max(begin, end))
            end = max(end, until)
        return total / SECOND

    def _now(self) -> int:
        return round(self._world.now * SECOND)

    def _look(self) -> int:
        records = self._world.trace.records
        for record in records[self._read :]:
            match record:
                case Sent(host=host, peer=peer) if {host, peer} == self._ends.keys():
                    self._kinds[record.datagram] = record.kind
                    if record.kind == "I":
                        self._ends[host].sent_initiation(record.at)
                case Arrived(error=None) if record.datagram in self._kinds:
                    self._ends[record.host].took(record.at, self._kinds[record.datagram])
                case _:
                    pass
        self._read = len(records)
        now = self._now()
        for each in self._ends.values():
            each.look(now)
        return now


class _End:
    """One end: when it had no session that it sends on."""

    def __init__(self, host: Host, peer: Host) -> None:
        self.host = host
        self._peer = peer
        self._gaps: list[tuple[int, int]] = []
        self._since: int | None = None
        """Since when it has none."""
        self._expires = 0
        """Of the patched engine: when the session that it has ends."""
        self._is_overdue = False
        """Of upstream: the session is too old, and nobody has called since."""
        self._births: deque[int] = deque()
        """Of upstream: when sessions may have been made that have not come to their end."""
        self._busy_until = 0
        self._taken = 0

    def gaps(self, now: int) -> list[tuple[int, int]]:
        return self._gaps if self._since is None else [*self._gaps, (self._since, now)]

    def sent_initiation(self, at: int) -> None:
        self._busy_until = at + _BUSY

    def took(self, at: int, kind: Kind) -> None:
        """A datagram of the peer was accepted."""
        self._taken = at
        if kind in "IR":
            self._births.append(at)
            self._busy_until = at + _BUSY
        if kind in "RDK":
            self._found(at)

    def look(self, now: int) -> None:
        age = self.host.stats(self._peer).session_age
        if age is None:
            if self._since is None:
                self._since = now
            return
        # Upstream may take a session that nobody has confirmed for one to send on.
        self._found(self._taken)
        created = now - round(age * SECOND)
        self._expires = created + round(self.host.timers.reject_after_time * SECOND)
        self._is_overdue = now > created + _LIFE + _TICK

    def _found(self, at: int) -> None:
        if self._since is not None:
            self._gaps.append((self._since, max(self._since, at)))
            self._since = None

    def next_look(self, now: int) -> int:
        """When its session may end next; before that it can only get one."""
        never = now + _STRIDE
        if self.host.engine == "patched":
            return never if self._since is not None else self._expires
        tick = (now // _TICK + 1) * _TICK
        if now < self._busy_until or self._is_overdue:
            return tick
        while self._births and now > self._births[0] + _LIFE + 2 * _TICK:
            self._births.popleft()
        if not self._births:
            return never
        return max(tick, (self._births[0] + _LIFE) // _TICK * _TICK)
