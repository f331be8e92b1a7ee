"""Why a peer is up or down, and what happens next, in one sentence.

    print(interface.explain(peer))
    # connecting: no reply from 192.0.2.7:51820 ...; next: another initiation in 3.1 s

All of it comes from what the engine counts and announces: nothing is sent to find out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from ._text import counted, duration, host_and_port
from ._types import PeerStats, Role, Timeout, TimeoutReason

__all__ = ["Explanation", "Obstacle", "PeerState", "explain"]


class PeerState(enum.Enum):
    """How a peer is."""

    UP = "up"
    """There is a session."""
    CONNECTING = "connecting"
    """There is none, and a handshake is under way."""
    WAITING = "waiting"
    """There is none, and this side cannot start one: packets, or everything, waits for the peer."""
    IDLE = "idle"
    """There is none, and nobody wants one."""
    DOWN = "down"
    """There is none, and the attempts to get one were given up."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` says; `str()` is one line."""

    state: PeerState
    why: str
    """Why it is so."""
    then: str
    """What happens next."""
    at: float | None
    """In how many seconds; None if that depends on something else."""

    def __str__(self) -> str:
        when = "" if self.at is None else " now" if self.at <= 0 else f" in {duration(self.at)}"
        # The time belongs to what happens, and not to its condition.
        what, comma, condition = self.then.partition(",")
        return f"{self.state.value}: {self.why}; next: {what}{when}{comma}{condition}"


class Obstacle(NamedTuple):
    """What keeps this side from sending to a peer, which its node does not know."""

    why: str
    then: str | None = None
    """What happens next; None where that does not depend on this."""
    at: float | None = None
    """In how many seconds."""


_NEXT = {
    TimeoutReason.HANDSHAKE_RETRY: "another initiation",
    TimeoutReason.GIVE_UP: "the attempt is given up",
    TimeoutReason.SESSION_EXPIRY: "the session ends",
    TimeoutReason.DEAD_PEER: "an initiation, if nothing is heard until then",
    TimeoutReason.PASSIVE_KEEPALIVE: "a keepalive, if nothing else is sent until then",
    TimeoutReason.PERSISTENT_KEEPALIVE: "the persistent keepalive",
    TimeoutReason.UNCONFIRMED_SESSION: "an initiation, if the peer does not use its session until then",
    TimeoutReason.QUEUE_TIMEOUT: "what waits is dropped",
}


def explain(
    peer: PeerStats, now: float, *, role: Role = Role.EITHER, obstacle: Obstacle | None = None
) -> Explanation:
    """Explain a peer of a node.

    peer: as `Node.stats(now)` has it. now: seconds on the same clock. role: ours towards the peer, as configured.
    obstacle: what else is known to be in the way.
    """
    tunnel = peer.tunnel
    if peer.poisoned:
        why = "connlib failed in this peer's tunnel, which is a bug"
        return Explanation(PeerState.DOWN, why, "nothing, until the peer is removed and added again", None)
    if tunnel.session_age is not None:
        return _planned(PeerState.UP, _why_up(peer, obstacle), peer.next_timeout, now, role)
    if tunnel.handshake_pending:
        return _planned(PeerState.CONNECTING, _why_no_session(peer, obstacle), peer.next_timeout, now, role)
    if _is_unconfirmed(peer):
        return _planned(PeerState.CONNECTING, _why_unused(peer), peer.next_timeout, now, role)
    if tunnel.queued:
        why = f"{counted(tunnel.queued, 'packet')} for it, and this side does not start sessions"
        return _planned(PeerState.WAITING, why, peer.next_timeout, now, role)
    return _without_attempt(peer, now, role, obstacle)


def _planned(state: PeerState, why: str, timeout: Timeout | None, now: float, role: Role) -> Explanation:
    if timeout is None:
        return Explanation(state, why, "nothing by itself", None)
    then = _NEXT[timeout.reason]
    if timeout.reason is TimeoutReason.DEAD_PEER and role is Role.RESPONDER:
        then = "the peer counts as silent, if nothing is heard until then"
    elif timeout.reason is TimeoutReason.SESSION_EXPIRY and state is not PeerState.UP:
        then = "what the peer has begun is forgotten"
    return Explanation(state, why, then, max(0.0, timeout.at - now))


def _why_up(peer: PeerStats, obstacle: Obstacle | None) -> str:
    age = peer.tunnel.session_age
    assert age is not None, "only asked where there is a session"
    heard = "not heard yet" if peer.last_heard is None else f"heard {duration(peer.last_heard)} ago"
    said = [f"a session of {duration(age)}, {heard}"]
    if count := peer.trouble.source_not_allowed:
        said.append(f"but {counted(count, 'packet')} came from addresses that are not among its allowed IPs")
    if count := peer.trouble.congestion_marks:
        said.append(
            f"but {counted(count, 'packet')} came marked for congestion, though of a sender that does not understand "
            "such marks (is there something on the way that writes the TOS byte?)"
        )
    if peer.policy is not None and (count := peer.policy.flows_pending):
        said.append(f"{counted(count, 'flow')} waiting for the hook")
    if peer.tunnel.handshake_pending:
        said.append(f"and a new one is sought: {_why_no_session(peer, obstacle)}")
    return ", ".join(said)


def _why_no_session(peer: PeerStats, obstacle: Obstacle | None) -> str:
    """Why an initiation of ours is unanswered."""
    if obstacle is not None:
        return obstacle.why
    if peer.trouble.unreadable:
        return f"what came from {_place(peer)} could not be decrypted: as a rule, the preshared keys differ"
    if _is_unconfirmed(peer):
        return _why_unused(peer)
    since = "ever" if peer.last_heard is None else f"for {duration(peer.last_heard)}"
    # When they came is not known. Whoever saw an initiation can have sent one, and it explains no silence but the one
    # after that.
    cookies = peer.trouble.cookie_replies
    load = f", but {counted(cookies, 'demand')} for a cookie" if cookies else ""
    return (
        f"no reply from {_place(peer)} {since}{load}: it is {'under load, ' if cookies else ''}off, does not know our "
        "public key, has another one than we believe, or something between drops UDP"
    )


def _is_unconfirmed(peer: PeerStats) -> bool:
    """Whether our answer to an initiation of the peer's made a session that it has not used yet."""
    return peer.tunnel.session_age is None and peer.tunnel.sessions > 0


def _why_unused(peer: PeerStats) -> str:
    """Why a peer that starts handshakes has no session. Of what it sends, nothing says which of the two it is."""
    heard = "" if peer.last_heard is None else f", heard {duration(peer.last_heard)} ago"
    return (
        "it starts handshakes and has not used our answers: the preshared keys differ, or the answers do not "
        f"reach it{heard}"
    )


def _without_attempt(peer: PeerStats, now: float, role: Role, obstacle: Obstacle | None) -> Explanation:
    if role is not Role.RESPONDER and obstacle is not None and obstacle.then is not None:
        return Explanation(PeerState.WAITING, obstacle.why, obstacle.then, obstacle.at)
    if role is Role.RESPONDER:
        then = "this side waits for the peer to start a session"
    elif peer.endpoint is None:
        then = "this side waits until the peer comes, for it knows no endpoint"
    else:
        then = "the next packet starts a handshake"
    waits = role is Role.RESPONDER or peer.endpoint is None
    if peer.trouble.gave_up:
        state, why = PeerState.DOWN, f"given up: {_why_no_session(peer, obstacle)}"
    elif peer.last_heard is None:
        state = PeerState.WAITING if waits else PeerState.IDLE
        why = "never heard" if waits else "never heard, and nothing was sent to it"
    elif peer.tunnel.last_handshake is None:
        state = PeerState.WAITING if waits else PeerState.IDLE
        why = _why_unused(peer)
    else:
        state, why = PeerState.IDLE, f"the last session has ended, heard {duration(peer.last_heard)} ago"
    if peer.next_timeout is not None:
        return _planned(state, why, peer.next_timeout, now, role)
    return Explanation(state, why, then, None)


def _place(peer: PeerStats) -> str:
    if peer.endpoint is None:
        return "the peer"
    return host_and_port(*peer.endpoint)
