"""What must hold of every trace of patched engines, whatever happens: checked record by record as the world goes on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from connlib import DropReason, GaveUp, Role, Timers
from connlib.lab import Arrived, Changed, Delivered, Discarded, Happened, Host, Offered, Record, Sent, World

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Ages:
    """What a host's timers ask for, in nanoseconds."""

    rekey_timeout: int
    reject_after_time: int
    last_data: int
    """Of a session's initiator: later, its data could arrive after the peer has wiped the session."""


# The paper's constants, written out again: REKEY_TIMEOUT, REJECT_AFTER_TIME, and that less KEEPALIVE_TIMEOUT.
OF_THE_PAPER = Ages(5 * SECOND, 180 * SECOND, 170 * SECOND)


def ages(host: Host) -> Ages:
    """The paper's, unless the host was given others."""
    timers = host.timers
    if timers == Timers():
        return OF_THE_PAPER
    last_data = timers.reject_after_time - timers.keepalive_timeout
    return Ages(*(round(s * SECOND) for s in (timers.rekey_timeout, timers.reject_after_time, last_data)))


@dataclass(slots=True)
class Session:
    """What one response makes."""

    initiator: str
    responder: str
    created: dict[str, int]
    """When each side got it, in nanoseconds; the initiator not before the response came."""


class Invariants:
    """Follows the trace of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen = 0
        self._sent: dict[int, Sent] = {}
        self._pending: dict[tuple[str, str], int] = {}
        self._gave_up: set[tuple[str, str, int]] = set()
        self._sessions: dict[tuple[str, int], Session] = {}
        """By receiver and receiver index."""
        self._current: dict[tuple[str, str], Session] = {}
        """Of each side: what it sends on."""
        self._unconfirmed: dict[tuple[str, str], Session] = {}
        """Of each side: the session of its latest answer, as long as the peer has not used it."""
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._drops: dict[str, Counter[DropReason]] = defaultdict(Counter)
        self._ended: set[int] = set()
        self.last_used: dict[tuple[str, str], Session] = {}
        """The session of the last transport packet that a host took from a peer."""

    def check(self) -> None:
        """Look at what has happened since the last call, and at the hosts."""
        records = self._world.trace.records
        new = records[self._seen :]
        # Of one call, the trace has the datagrams before the events, also where an attempt ended and another began.
        self._gave_up = {
            (record.host, record.peer, record.at)
            for record in new
            if isinstance(record, Happened) and isinstance(record.event, GaveUp)
        }
        for record in new:
            self._follow(record)
        self._seen = len(records)
        for host in self._world.hosts.values():
            counted: Counter[DropReason] = Counter()
            for peer in host.peers:
                counted.update(self._look_at(host, peer))
            assert counted == self._drops[host.name], "what is dropped is counted, and nothing else"

    def _look_at(self, host: Host, peer: Host) -> Mapping[DropReason, int]:
        """Check a tunnel's counters, and return those of its drops."""
        stats = host.stats(peer)
        if stats.queued and host.is_polled and not host.is_asleep:
            assert host.tunnel(peer).next_timeout() is not None, "packets wait, and nothing is due"
        assert stats.queued == self._waiting[host.name, peer.name], (
            "each packet is sent, waits, or was dropped"
        )
        if host.role is Role.RESPONDER:
            assert stats.initiations_sent == 0
        return stats.drops

    def _follow(self, record: Record) -> None:
        match record:
            case Offered():
                self._waiting[record.host, record.peer] += 1
            case Discarded():
                self._waiting[record.host, record.peer] -= 1
                self._drops[record.host][record.reason] += 1
                self._end(record.packet)
            case Delivered():
                self._end(record.packet)
            case Sent():
                self._follow_sent(record)
            case Arrived():
                if record.error is None:
                    self._follow_taken(record, self._sent[record.datagram])
                else:
                    self._drops[record.host][record.error] += 1
            case Changed(what="starts no handshake: role"):
                self._drops[record.where][DropReason.ROLE] += 1
            case Happened(event=GaveUp()):
                side = (record.host, record.peer)
                # Unless the next attempt began in the same call.
                if self._pending.get(side) != record.at:
                    self._pending.pop(side, None)
            case _:
                pass

    def _end(self, packet: int) -> None:
        assert packet not in self._ended, f"packet {packet} was delivered or dropped twice"
        self._ended.add(packet)

    def _follow_sent(self, sent: Sent) -> None:
        self._sent[sent.datagram] = sent
        side = (sent.host, sent.peer)
        host = self._world.hosts[sent.host]
        match sent.kind:
            case "I":
                assert host.role is not Role.RESPONDER
                before = self._pending.get(side)
                if (*side, sent.at) in self._gave_up:
                    before = None
                assert before is None or sent.at - before >= ages(host).rekey_timeout, (
                    "a second initiation while one is pending"
                )
                self._pending[side] = sent.at
            case "R":
                assert host.role is not Role.INITIATOR
                self._pending.pop(side, None)
                session = Session(sent.peer, sent.host, {sent.host: sent.at})
                self._sessions[sent.peer, sent.index] = session
                self._sessions[sent.host, int.from_bytes(sent.data[4:8], "little")] = session
                self._unconfirmed[side] = session
            case "D" | "K":
                if sent.packet is not None:
                    self._waiting[side] -= 1
                session = self._sessions[sent.peer, sent.index]
                assert session is self._current.get(side), (
                    f"{sent.host} sends on another session than its current one"
                )
                age = sent.at - session.created[sent.host]
                is_last = sent.kind == "D" and sent.host == session.initiator
                may_be = ages(host).last_data if is_last else ages(host).reject_after_time
                assert age < may_be, f"{sent.host} sealed on a session of {age / SECOND} s"
            case _:
                pass

    def _follow_taken(self, arrived: Arrived, sent: Sent) -> None:
        if sent.kind == "R":
            side = (arrived.host, sent.host)
            self._pending.pop(side, None)
            session = self._current[side] = self._sessions[arrived.host, sent.index]
            session.created[arrived.host] = arrived.at
            self._unconfirmed.pop(side, None)
        elif sent.kind in "DK":
            session = self._sessions[arrived.host, sent.index]
            age = arrived.at - session.created[arrived.host]
            may_be = ages(self._world.hosts[arrived.host]).reject_after_time
            assert age < may_be, f"{arrived.host} opened on a session of {age / SECOND} s"
            side = (arrived.host, sent.host)
            self.last_used[side] = session
            if self._unconfirmed.get(side) is session:
                self._current[side] = self._unconfirmed.pop(side)
