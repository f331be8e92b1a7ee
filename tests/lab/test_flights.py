"""Datagrams put together: which handshake each belongs to."""

from __future__ import annotations

import pytest

from connlib.lab import Engine, World
from connlib.lab._flights import flights, number_sessions

HANDSHAKES = 300
"""Upstream counts 256 receiver indices and begins again."""


@pytest.mark.parametrize("engine", ["patched", "upstream"])
def test_every_initiation_begins_another_session_though_its_index_was_used_before(engine: Engine) -> None:
    world = World(1)
    a, b = (world.host(name, engine=engine) for name in "AB")
    world.tunnel(a, b)
    for number in range(HANDSHAKES):
        a.initiate_handshake(at=number * 10.0)
        a.send(at=number * 10.0 + 1)
        b.send(at=number * 10.0 + 2)
    world.run(HANDSHAKES * 10.0)
    flying = flights(world.trace.records)
    assert len({flight.sent.index for flight in flying if flight.sent.kind == "I"}) == (
        256 if engine == "upstream" else HANDSHAKES
    )
    for number in range(HANDSHAKES):
        of_it = [flight.sent for flight in flying if number * 10 <= flight.sent.at / 1e9 < number * 10 + 3]
        assert [sent.kind for sent in of_it] == list("IRKDD")
    assert [flight.session for flight in flying if flight.sent.kind != "K"][: 4 * HANDSHAKES] == [
        number for number in range(1, HANDSHAKES + 1) for _ in range(4)
    ]


def test_a_retry_is_another_handshake_and_its_answer_belongs_to_it() -> None:
    world = World(1)
    a, b = world.host("A"), world.host("B")
    world.tunnel(a, b)
    world.link(a, b).lose(lambda sent: sent.kind == "R", at=0.0)
    world.link(a, b).lose(None, at=6.0)
    a.send(at=1.0)
    world.run(10.0)
    numbers = number_sessions(world.trace.sent())
    assert [(sent.kind, numbers[sent.datagram]) for sent in world.trace.sent()] == [
        ("I", 1),
        ("R", 1),
        ("I", 2),
        ("R", 2),
        ("D", 2),
    ]


def test_what_nobody_has_asked_for_belongs_to_no_session() -> None:
    world = World(1)
    a, b = world.host("A"), world.host("B")
    world.tunnel(a, b)
    a.send(at=0.0)
    world.run(1.0)
    assert set(number_sessions(world.trace.sent("RD")).values()) == {None}
