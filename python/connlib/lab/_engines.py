"""The engines that a host can run."""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol, TypeAlias

from connlib._native import LabTunn, PresharedKey, PrivateKey, PublicKey
from connlib._types import Limits, Output, Role, Timeout, Timers, TunnStats
from connlib.lab._errors import LabError
from connlib.upstream import Tunn as UpstreamTunn

Engine: TypeAlias = Literal["patched", "upstream"]
ENGINES: tuple[Engine, ...] = ("patched", "upstream")


class Tunnel(Protocol):
    """What the world needs of an engine: the methods that `connlib.Tunn` and `connlib.upstream.Tunn` share."""

    def encapsulate(self, packet: bytes, now: float, /) -> Output: ...
    def decapsulate(self, datagram: bytes, now: float, source: tuple[str, int] | None, /) -> Output: ...
    def handle_timeout(self, now: float, /) -> Output: ...
    def initiate_handshake(self, now: float, /) -> Output: ...
    def next_timeout(self) -> Timeout | None: ...
    def stats(self, now: float, /) -> TunnStats: ...


def derived(seed: int, *purpose: str) -> bytes:
    """32 bytes for a purpose: other purposes and other seeds have others."""
    return hashlib.sha256("/".join((str(seed), *purpose)).encode()).digest()


def check_engine(engine: str, role: Role, timers: Timers, limits: Limits) -> Engine:
    """Raises `LabError` for an engine that there is not, and for what upstream cannot do."""
    for known in ENGINES:
        if engine == known:
            break
    else:
        raise LabError(f"there is no engine {engine!r}: it is one of {', '.join(ENGINES)}")
    if known == "upstream":
        if role is not Role.EITHER:
            raise LabError(f"upstream has no roles: role={role.name} needs the patched engine")
        if timers != Timers() or limits != Limits():
            raise LabError("upstream's timers and limits are fixed: to change them needs the patched engine")
    return known


def make_tunnel(
    engine: Engine,
    private_key: PrivateKey,
    peer: PublicKey,
    *,
    now: float,
    unix_time: float,
    role: Role,
    preshared_key: PresharedKey | None,
    keepalive: float | None,
    timers: Timers,
    limits: Limits,
    seed: bytes,
) -> Tunnel:
    """A tunnel of an engine; `seed` is for the patched one, upstream draws its own randomness."""
    if engine == "upstream":
        return UpstreamTunn(
            private_key,
            peer,
            now=now,
            unix_time=unix_time,
            preshared_key=preshared_key,
            persistent_keepalive=keepalive,
        )
    return LabTunn(
        private_key,
        peer,
        now=now,
        unix_time=unix_time,
        role=role,
        preshared_key=preshared_key,
        persistent_keepalive=keepalive,
        timers=timers,
        limits=limits,
        seed=int.from_bytes(seed[:8], "big"),
    )
