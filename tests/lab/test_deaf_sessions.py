"""The report that sessions of boringtun 0.7.1 go deaf 15 to 30 s after each handshake (cloudflare/boringtun#495).

As it was reported: a client with a keepalive of 25 s that fetches something every three seconds, and is polled every
250 ms. Were a session deaf, fetches would go unanswered and the client would start a session every 30 s or so.
"""

from __future__ import annotations

from typing import Any

import pytest

from connlib.lab import Lost, World

PATHS: dict[str, dict[str, Any]] = {
    "clean": {},
    "jitter": {"jitter": 0.01},
    "reordering": {"reorder": 0.02},
    "copies": {"duplicate": 0.1},
    "loss": {"loss": 0.02},
    "bad": {"loss": 0.05, "reorder": 0.02, "duplicate": 0.1},
}
FETCHES = 50


def fetched(client: str, server: str, path: str) -> World:
    """Fifty fetches: a question, then twenty full packets, each acknowledged."""
    world = World(1)
    a, b = world.host("client", engine=client), world.host("server", engine=server)
    world.link(a, b).set(latency=0.015, **PATHS[path])
    world.tunnel(a, b, keepalive=(25, None))
    for number in range(FETCHES):
        start = 1.0 + 3.0 * number
        a.send(at=start, size=500)
        for packet in range(20):
            b.send(at=start + 0.06 + packet / 1000, size=1420)
            a.send(at=start + 0.09 + packet / 1000)
    world.run(1.0 + 3.0 * FETCHES + 5.0)
    return world


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("server", ["patched", "upstream"])
def test_a_fetch_every_three_seconds_never_meets_a_deaf_session(server: str, path: str) -> None:
    world = fetched("upstream", server, path)
    data = {sent.datagram: sent for sent in world.trace.sent("D")}
    lost = {record.datagram for record in world.trace if isinstance(record, Lost)} & set(data)
    arrived = len(world.trace.delivered())
    # What is missing was lost on the link, where the other copy of a datagram may have come through.
    assert len(data) - len(lost) <= arrived <= len(world.trace.fates())
    assert arrived >= (0.9 if "loss" in PATHS[path] else 1.0) * len(world.trace.fates())
    # A session is renewed after 120 s, and a handshake of which a part was lost is repeated after 5 s.
    initiations = world.trace.times("I", host="client")
    handshakes = {sent.datagram for sent in world.trace.sent("IR")}
    repeated = sum(record.datagram in handshakes for record in world.trace if isinstance(record, Lost))
    assert len([at for at in initiations if at > 2.0]) <= 1 + repeated
