"""NAT boxes: mappings, filtering, timeouts, rebinding."""

from __future__ import annotations

import math

import pytest

from connlib import Role
from connlib.lab import Host, LabError, Lost, Nat, World


def behind_nat(keepalive: float | None = None, timeout: float = 120.0) -> tuple[World, Host, Host, Nat]:
    """A client behind a NAT, and a gateway that does not know where it is."""
    world = World(9)
    a = world.host("A", role=Role.INITIATOR)
    b = world.host("B", role=Role.RESPONDER)
    nat = world.nat("home", a, timeout=timeout)
    world.tunnel(a, b, keepalive=(keepalive, None))
    return world, a, b, nat


def whys(world: World) -> list[str | None]:
    return [fate.why for fate in world.trace.fates().values()]


def test_the_gateway_sees_the_address_of_the_nat_and_answers_to_it() -> None:
    world, a, b, _ = behind_nat()
    a.send(at=0.0)
    b.send(at=1.0)
    world.run(2.0)
    assert b.endpoint() == ("198.51.100.1", 40_000)
    assert a.endpoint() == ("192.0.2.2", 51820)
    assert whys(world) == [None, None]


def test_what_was_not_asked_for_does_not_come_in() -> None:
    world, a, b, _ = behind_nat()
    c = world.host("C")
    world.tunnel(a, c)
    a.send(b, at=0.0)
    world.run(1.0)
    # C guesses the port that the NAT uses for A.
    c.initiate_handshake(at=1.0)
    world.run(1.5)
    assert [(r.host, r.why) for r in world.trace if isinstance(r, Lost)] == [("C", "nobody")]


def test_an_unused_mapping_is_forgotten_and_the_next_one_has_another_port() -> None:
    world, a, b, _ = behind_nat(timeout=30.0)
    a.send(at=0.0)
    b.send(at=50.0)
    world.run(51.0)
    assert whys(world) == [None, "nat"]
    a.send(at=60.0)
    b.send(at=61.0)
    world.run(62.0)
    assert b.endpoint() == ("198.51.100.1", 40_001)
    assert whys(world) == [None, "nat", None, None]


def test_a_keepalive_holds_the_mapping() -> None:
    world, a, b, _ = behind_nat(keepalive=25.0, timeout=30.0)
    a.send(at=0.0)
    b.send(at=100.0)
    b.send(at=1000.0)
    world.run(1001.0)
    assert whys(world) == [None, None, None]
    assert b.endpoint() == ("198.51.100.1", 40_000)


def test_after_the_nat_rebinds_the_gateway_follows_the_next_packet_without_a_handshake() -> None:
    world, a, b, nat = behind_nat()
    a.send(at=0.0)
    nat.rebind(at=10.0)
    b.send(at=11.0)
    a.send(at=12.0)
    b.send(at=13.0)
    world.run(14.0)
    assert whys(world) == [None, "nat", None, None]
    assert b.endpoint() == ("198.51.100.1", 40_001)
    assert world.trace.counts()["I"] == 1


def test_a_nat_is_made_before_the_tunnels_and_keeps_the_host_where_it_is() -> None:
    world, a, b, _ = behind_nat()
    with pytest.raises(LabError, match=r"^B has tunnels already: make its NAT first$"):
        world.nat("office", b)
    with pytest.raises(LabError, match=r"^A is behind a NAT: rebind that$"):
        a.move(("203.0.113.1", 1))
    with pytest.raises(LabError, match=r"^there is a NAT home already$"):
        world.nat("home")
    with pytest.raises(LabError, match=r"^timeout must be more than 0 seconds: no answer would come in$"):
        world.nat("hotel", timeout=0)
    with pytest.raises(LabError, match=r"^timeout must be a number of seconds, 0 or more, not nan$"):
        world.nat("hotel", timeout=math.nan)
    world.nat("hotel")


def test_ports_are_used_again_after_the_last_one_but_for_those_in_use() -> None:
    world, _, _, nat = behind_nat()
    outside = ("192.0.2.9", 1)
    assert nat.outward(("192.0.2.7", 1), outside) == ("198.51.100.1", 40_000)
    for port in range(40_001, 65_536):
        # Every one of these is in use for 120 s, by another port of the host inside.
        assert nat.outward(("192.0.2.8", port), outside) == ("198.51.100.1", port)
    world.run(60.0)
    nat.outward(("192.0.2.7", 1), outside)
    world.run(121.0)
    # The first is in use still: the next to be had is the second, whose owner is asked again.
    assert nat.outward(("192.0.2.8", 40_001), outside) == ("198.51.100.1", 40_001)
    assert nat.inward(40_000, outside) == ("192.0.2.7", 1)
