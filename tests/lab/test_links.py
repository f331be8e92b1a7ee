"""Links: latency, jitter, loss, copies, order, rate, cuts."""

from __future__ import annotations

from typing import Any

import pytest

from connlib.lab import Arrived, Changed, Delivered, Host, LabError, Link, Lost, Sent, World

SECOND = 1_000_000_000


def connected(**settings: Any) -> tuple[World, Host, Host, Link]:
    """A and B with a session, and a link that gets its settings afterwards."""
    world = World(5)
    a, b = world.host("A"), world.host("B")
    world.tunnel(a, b)
    a.send(at=0.0)
    world.run(0.5)
    return world, a, b, world.link(a, b).set(**settings)


def transits(world: World) -> list[float]:
    """Seconds that each D took, in the order of arrival."""
    sent = {record.datagram: record.at for record in world.trace.sent("D")[1:]}
    return [
        (record.at - sent[record.datagram]) / SECOND
        for record in world.trace
        if isinstance(record, Arrived) and record.datagram in sent
    ]


def numbers(world: World) -> list[int]:
    return [record.packet for record in world.trace if isinstance(record, Delivered)][1:]


def test_a_datagram_takes_the_latency_of_its_direction() -> None:
    world, a, b, link = connected()
    link.set(latency=0.1, to=b)
    link.set(latency=0.3, to=a)
    a.send(at=1.0)
    b.send(at=2.0)
    world.run(3.0)
    assert transits(world) == [0.1, 0.3]


def test_jitter_adds_up_to_so_much_and_keeps_the_order() -> None:
    world, a, b, _ = connected(jitter=0.05)
    world.traffic(a, b, every=0.001, count=1000, since=1.0)
    world.run(3.0)
    times = transits(world)
    assert min(times) >= 0.02
    assert 0.06 < max(times) < 0.07
    assert len(set(times)) > 500
    assert numbers(world) == list(range(1, 1001))


def test_reordering_lets_later_datagrams_overtake() -> None:
    world, a, b, _ = connected(reorder=0.05)
    world.traffic(a, b, every=0.001, count=1000, since=1.0)
    world.run(3.0)
    assert max(transits(world)) < 0.07
    assert numbers(world) != list(range(1, 1001))
    assert sorted(numbers(world)) == list(range(1, 1001))


def test_about_as_many_datagrams_are_lost_and_copied_as_was_asked_for() -> None:
    world, a, b, _ = connected(loss=0.2, duplicate=0.1)
    world.traffic(a, b, every=0.01, count=10_000, since=1.0)
    world.run(105.0)
    data = {sent.datagram for sent in world.trace.sent("D")}
    lost = sum(isinstance(record, Lost) and record.datagram in data for record in world.trace)
    arrived = len(transits(world))
    # Four standard deviations: 160 of 2,000, and 110 of 800.
    assert abs(lost - 2000) < 160
    assert abs(arrived - (10_000 - lost) * 1.1) < 110
    assert len(numbers(world)) == 10_000 - lost, "each one that came was delivered once"


def test_a_rate_spaces_datagrams_and_its_queue_is_bounded() -> None:
    # 96 bytes of UDP payload: 7.68 ms each at 100 kbit/s, so that 13 fit into 100 ms of queue.
    world, a, _, _ = connected(rate=100_000, queue=0.1)
    for _number in range(20):
        a.send(at=1.0)
    world.run(2.0)
    times = transits(world)
    assert [round(time, 5) for time in times] == [round(0.02 + 0.00768 * n, 5) for n in range(1, 15)]
    assert [record.why for record in world.trace if isinstance(record, Lost)] == ["full"] * 6
    a.send(at=3.0)
    world.run(4.0)
    assert round(transits(world)[-1], 5) == 0.02768


def test_a_cut_loses_one_direction_or_both_until_it_is_healed() -> None:
    world, a, b, link = connected()
    link.cut(to=b, at=1.0)
    for host, at in ((a, 2.0), (b, 2.0), (a, 4.0), (b, 4.0), (a, 6.0), (b, 6.0)):
        host.send(at=at)
    link.cut(at=3.0)
    link.heal(at=5.0)
    world.run(7.0)
    fates = [(f.offered.host, f.offered.at // SECOND, f.why) for f in world.trace.fates().values()]
    assert fates[1:] == [
        ("A", 2, "cut"),
        ("B", 2, None),
        ("A", 4, "cut"),
        ("B", 4, "cut"),
        ("A", 6, None),
        ("B", 6, None),
    ]
    changes = [(r.at, r.where, r.what) for r in world.trace if isinstance(r, Changed)]
    assert changes == [
        (1 * SECOND, "A-B", "cut towards B"),
        (3 * SECOND, "A-B", "cut"),
        (5 * SECOND, "A-B", "healed"),
    ]


def test_a_filter_loses_what_it_names() -> None:
    world, a, b, link = connected()

    def keepalives(sent: Sent) -> bool:
        return sent.kind == "K"

    link.lose(keepalives, at=0.5)
    a.send(at=1.0)
    world.run(12.0)
    (keepalive,) = world.trace.sent("K", host="B")
    assert [r.datagram for r in world.trace if isinstance(r, Lost)] == [keepalive.datagram]
    link.lose(None)
    b.send(at=13.0)
    world.run(14.0)
    assert numbers(world) == [1, 2]


def test_links_have_no_way_to_strangers() -> None:
    world, _, _, link = connected()
    c = world.host("C")
    with pytest.raises(LabError, match=r"^the link A-B does not lead to C$"):
        link.cut(to=c)


def test_settings_are_changed_all_or_none() -> None:
    world, a, b, link = connected()
    with pytest.raises(LabError, match=r"^loss must be a probability from 0 to 1, not 2$"):
        link.set(latency=0.5, loss=2)
    with pytest.raises(LabError, match=r"^jitter must be a number of seconds, 0 or more, not -1$"):
        link.set(duplicate=1.0, jitter=-1)
    a.send(b, at=1.0)
    world.run(2.0)
    assert transits(world) == [0.02]


def test_a_rate_ends_with_an_infinite_one() -> None:
    world, a, b, link = connected(rate=1000.0)
    link.set(rate=float("inf"))
    world.traffic(a, b, every=0.001, count=100, since=1.0)
    world.run(2.0)
    assert transits(world) == [0.02] * 100
