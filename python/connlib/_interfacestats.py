"""What an interface counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ._types import NodeStats


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStats(NodeStats):
    """The counters of an interface: those of its node, and those of its ends."""

    tun: Mapping[str, int]
    """Packets and bytes in each direction; errors by what was done and the name of their errno."""
    udp: Mapping[str, int]
    """Datagrams and bytes in each direction, system calls, buffers granted; errors likewise."""
    timer_wakes: int
    """How often the driver woke for a deadline."""
    lookups: Mapping[str, int] = field(default_factory=dict)
    """How often host names of peers were `asked` for, how often that `failed`, and how often a peer that did not answer
    `moved` to another address by it."""
    unix_time: float = 0.0
    """The wall clock when this was counted, in seconds since 1970: what ages count back from."""
    now: float = 0.0
    """The interface's own clock then, in seconds, as `connlib.explain` takes it."""
    hook: Mapping[str, int] = field(default_factory=dict)
    """How often the hook (`decide`) was `asked` and how often it `failed`, raising or returning no bool, how many
    answers came too `late`, and how many questions were `skipped`, for too many calls. Empty without one."""


class EndCounters(NamedTuple):
    """`InterfaceStats.tun` and `InterfaceStats.udp` alone."""

    tun: Mapping[str, int]
    udp: Mapping[str, int]


def is_errno(counter: str) -> bool:
    """Whether a counter of `InterfaceStats.tun` or `.udp` is that of an error: their names alone have capitals."""
    return counter != counter.lower()
