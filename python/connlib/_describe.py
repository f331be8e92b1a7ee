"""Events in words."""

from __future__ import annotations

import logging

from ._types import (
    Dropped,
    Event,
    GaveUp,
    HandshakeStarted,
    PeerSilent,
    Poisoned,
    SessionEstablished,
    SessionExpired,
)


def describe_event(event: Event) -> tuple[int, str]:
    """The level at which an event is logged, and what is said."""
    match event:
        case HandshakeStarted():
            return logging.INFO, "handshake started"
        case SessionEstablished(initiator=initiator):
            return logging.INFO, f"session established, started by {'us' if initiator else 'the peer'}"
        case SessionExpired():
            return logging.INFO, "session expired"
        case GaveUp(dropped=dropped):
            return logging.WARNING, f"gave up: the peer does not answer; {dropped} packets dropped"
        case PeerSilent():
            return logging.WARNING, "the peer is silent"
        case Poisoned():
            return (
                logging.ERROR,
                "stopped: connlib failed in this peer's tunnel, which is a bug; restart to use it again",
            )
        case Dropped(reason=reason, count=count):
            return logging.DEBUG, f"dropped {count}: {reason.value}"
