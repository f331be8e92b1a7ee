"""Events in words."""

from __future__ import annotations

import logging

from ._policy import Flow, VerdictReason
from ._text import counted, host_and_port
from ._types import (
    ConfigApplied,
    Denied,
    Dropped,
    GaveUp,
    HandshakeStarted,
    NodeEvent,
    PeerRoamed,
    PeerSilent,
    Poisoned,
    SessionEstablished,
    SessionExpired,
)


def describe_event(event: NodeEvent | ConfigApplied) -> tuple[int, str]:
    """The level at which an event is logged, and what is said."""
    match event:
        case HandshakeStarted():
            return logging.INFO, "handshake started"
        case SessionEstablished(initiator=initiator):
            return logging.INFO, f"session established, started by {'us' if initiator else 'the peer'}"
        case SessionExpired():
            return logging.INFO, "session expired"
        case GaveUp(dropped=dropped):
            lost = f"; {counted(dropped, 'packet')} dropped" if dropped else ""
            return logging.WARNING, f"gave up: the peer does not answer{lost}"
        case PeerSilent():
            return logging.WARNING, "the peer is silent"
        case Poisoned():
            return (
                logging.ERROR,
                "stopped: connlib failed in this peer's tunnel, which is a bug; restart to use it again",
            )
        case Dropped(reason=reason, count=count):
            return logging.DEBUG, f"dropped {count}: {reason.value}"
        case PeerRoamed(old=old, new=new):
            before = "" if old is None else f", was at {host_and_port(*old)}"
            return logging.INFO, f"now at {host_and_port(*new)}{before}"
        case Denied():
            return logging.INFO, _describe_denied(event)
        case ConfigApplied(diff=diff):
            peers = (("added", diff.added), ("removed", diff.removed), ("changed", diff.changed))
            said = [f"{counted(len(which), 'peer')} {verb}" for verb, which in peers if which]
            return logging.INFO, "another configuration: " + ", ".join([*said, *diff.node])


def _describe_denied(denied: Denied) -> str:
    """For people: "denied by rule 1 (the vault): from 10.7.0.4 to 192.168.10.9:443/tcp"."""
    destination = str(denied.destination)
    if denied.protocol is not None and denied.verdict.reason is not VerdictReason.FRAGMENT:
        # As `connlib policy test` takes it.
        destination = str(
            Flow(denied.destination, denied.protocol, denied.destination_port, denied.icmp_type)
        )
    more = f"; {denied.count:,} packets since the last such line" if denied.count > 1 else ""
    return f"{denied.verdict}: from {denied.source} to {destination}{more}"
