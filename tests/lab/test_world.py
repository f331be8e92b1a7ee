"""The world: time, order, seeds, and what becomes of each packet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from connlib import DropReason, Output, Role, SessionEstablished, Timeout, TimeoutReason
from connlib.lab import (
    Arrived,
    Changed,
    Copied,
    Delivered,
    Discarded,
    Fate,
    Happened,
    Host,
    LabError,
    Lost,
    Offered,
    Sent,
    Woke,
    World,
)

MILLISECOND = 1_000_000
NOTHING = Output([], [], [], None)
SECOND = 1_000_000_000


def pair(seed: int = 1, **options: str) -> tuple[World, Host, Host]:
    """A, an initiator, and B, a responder, 20 ms apart."""
    world = World(seed)
    a = world.host("A", role=Role.INITIATOR)
    b = world.host("B", role=Role.RESPONDER)
    world.tunnel(a, b)
    return world, a, b


def outcomes(world: World) -> list[str]:
    return [fate.outcome for fate in world.trace.fates().values()]


def test_a_trace_tells_everything_that_a_packet_goes_through() -> None:
    world, a, _ = pair()
    a.send(at=1.0, size=100)
    world.run(2.0)
    records = [
        (record.at // MILLISECOND, type(record), getattr(record, "kind", None)) for record in world.trace
    ]
    assert records == [
        (1000, Offered, None),
        (1000, Sent, "I"),
        (1000, Happened, None),
        (1020, Arrived, None),
        (1020, Sent, "R"),
        (1040, Arrived, None),
        (1040, Sent, "D"),
        (1040, Happened, None),
        (1060, Arrived, None),
        (1060, Delivered, None),
        (1060, Happened, None),
    ]
    initiation, response, data = world.trace.sent()
    assert (initiation.host, initiation.peer, initiation.packet) == ("A", "B", None)
    assert (initiation.source, initiation.destination) == (("192.0.2.1", 51820), ("192.0.2.2", 51820))
    assert (len(initiation.data), len(response.data), len(data.data)) == (148, 92, 112 + 32)
    assert response.index == initiation.index, "a response names the sender index of its initiation"
    assert data.packet == 0
    assert world.trace.delivered("B") == [Delivered(1_060_000_000, "B", "A", 0, 100)]
    events = [record for record in world.trace if isinstance(record, Happened)]
    assert [(e.host, e.event) for e in events[1:]] == [
        ("A", SessionEstablished(initiator=True)),
        ("B", SessionEstablished(initiator=False)),
    ]


def test_deadlines_are_met_at_their_exact_instants() -> None:
    world, a, b = pair()
    a.send(at=1.0)
    world.run(300.0)
    wakes = [(r.at, r.host, r.reason) for r in world.trace if isinstance(r, Woke)]
    assert wakes == [
        (11_060_000_000, "B", TimeoutReason.PASSIVE_KEEPALIVE),
        (181_020_000_000, "B", TimeoutReason.SESSION_EXPIRY),
        (181_040_000_000, "A", TimeoutReason.SESSION_EXPIRY),
    ]
    assert (a.wakes, b.wakes) == (1, 2)
    assert world.now == 300.0


def busy(seed: int) -> World:
    """Three hosts, and a bit of everything."""
    world = World(seed)
    hosts = [world.host(name) for name in "ABC"]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        world.link(hosts[one], hosts[other]).set(jitter=0.01, loss=0.1, duplicate=0.1, reorder=0.05)
        world.tunnel(hosts[one], hosts[other], keepalive=(25, None))
        world.traffic(hosts[one], hosts[other], every=0.7, until=400, random_intervals=True)
        world.traffic(hosts[other], hosts[one], every=3.0, since=100, until=400)
    hosts[0].sleep(60, at=130)
    hosts[1].step_clock(-30, at=200)
    world.run(500)
    return world


def test_equal_seeds_give_equal_traces_and_other_seeds_others() -> None:
    one, again, other = busy(1), busy(1), busy(2)
    assert one.trace.to_bytes() == again.trace.to_bytes()
    assert one.trace.to_bytes() != other.trace.to_bytes()


def test_in_a_busy_world_each_packet_has_exactly_one_fate() -> None:
    world = busy(3)
    offered = [record.packet for record in world.trace if isinstance(record, Offered)]
    fates = world.trace.fates()
    assert list(fates) == offered == list(range(len(offered)))
    assert {fate.outcome for fate in fates.values()} == {"delivered", "lost"}
    assert all(fate.deliveries == (fate.outcome == "delivered") for fate in fates.values())
    assert {fate.why for fate in fates.values()} == {None, "loss", "asleep"}


def test_one_link_s_chances_do_not_depend_on_another_host() -> None:
    def losses(with_third: bool) -> list[int]:
        world, a, b = pair()
        world.link(a, b).set(loss=0.3)
        if with_third:
            c = world.host("C")
            world.link(c, b).set(loss=0.3)
            world.tunnel(c, b)
            world.traffic(c, b, every=0.1, count=100)
        world.traffic(a, b, every=1.0, count=100)
        world.run(110)
        return [r.at for r in world.trace if isinstance(r, Lost) and r.host == "A"]

    assert losses(False) == losses(True)


def test_a_packet_that_was_never_answered_for_is_discarded_when_its_tunnel_gives_up() -> None:
    world, a, b = pair()
    world.link(a, b).cut()
    a.send(at=0.0)
    world.run(89.0)
    assert outcomes(world) == ["waiting"]
    world.run(91.0)
    (fate,) = world.trace.fates().values()
    offered = Offered(0, "A", "B", 0, 64)
    assert fate == Fate(offered, "discarded", 90 * SECOND, "gave up")


def test_a_packet_beyond_the_queue_is_discarded_and_the_others_arrive_in_order() -> None:
    world, a, _ = pair()
    for _number in range(300):
        a.send(at=0.0)
    world.run(1.0)
    assert outcomes(world) == ["delivered"] * 256 + ["discarded"] * 44
    discarded = [record for record in world.trace if isinstance(record, Discarded)]
    assert {record.reason for record in discarded} == {DropReason.QUEUE_FULL}
    assert [record.packet for record in world.trace.delivered()] == list(range(256))


def test_a_packet_on_its_way_is_in_flight() -> None:
    world, a, _ = pair()
    a.send(at=0.0)
    world.run(0.05)
    assert outcomes(world) == ["in flight"]
    world.run(0.06)
    assert outcomes(world) == ["delivered"]


def test_a_machine_that_sleeps_sends_and_receives_nothing_and_is_called_for_nothing() -> None:
    world, a, b = pair()
    a.send(at=0.0)
    a.sleep(3 * 3600, at=1.0)
    a.send(at=100.0)
    b.send(at=5.0)
    a.send(at=1.0 + 3 * 3600)
    world.run(3 * 3600)
    during = [r for r in world.trace if r.at > SECOND and getattr(r, "host", None) == "A"]
    assert during == []
    assert [fate.why for fate in world.trace.fates().values()] == [None, "asleep"]
    world.run(1.0 + 3 * 3600)
    last = [record for record in world.trace if record.at == (1 + 3 * 3600) * SECOND]
    kinds = [type(record) for record in last]
    assert kinds[:3] == [Changed, Offered, Sent], "what is done on waking comes before the missed deadlines"


def test_what_is_polled_besides_is_called_more_often_and_does_the_same() -> None:
    def trace(every: float | None) -> bytes:
        world, a, b = pair()
        a.poll_every = b.poll_every = every
        world.traffic(a, b, every=7.0, until=400)
        world.run(500)
        return world.trace.to_bytes()

    assert trace(None) == trace(0.01)


def test_a_host_that_is_not_polled_misses_its_deadlines_until_it_is_polled_again() -> None:
    world, a, b = pair()
    a.send(at=0.0)
    b.is_polled = False
    world.run(14.0)
    assert world.trace.counts("B") == {"R": 1}, "the keepalive of 10.06 s was missed"
    b.is_polled = True
    world.run(14.0)
    assert world.trace.times("K", host="B") == [14.0]


@pytest.mark.parametrize(
    "engines", [("upstream", "upstream"), ("patched", "upstream"), ("upstream", "patched")]
)
def test_engines_are_pluggable_on_each_side(engines: tuple[str, str]) -> None:
    world = World(1)
    a, b = (world.host(name, engine=engine) for name, engine in zip("AB", engines, strict=True))
    world.tunnel(a, b)
    world.traffic(a, b, every=1.0, count=300)
    world.traffic(b, a, every=1.0, since=0.5, count=300)
    world.run(310.0)
    assert outcomes(world) == ["delivered"] * 600
    assert all(fate.deliveries == 1 for fate in world.trace.fates().values())


def test_upstream_is_called_at_its_ticks_which_do_not_fill_the_trace() -> None:
    world = World(1)
    a, b = (world.host(name, engine="upstream") for name in "AB")
    world.tunnel(a, b)
    world.run(10.0)
    assert (a.wakes, b.wakes) == (40, 40)
    assert len(world.trace) == 0


def test_a_responder_at_another_address_is_found_by_what_it_sends_and_by_nothing_else() -> None:
    world, a, b = pair()
    a.send(at=0.0)
    a.move(("203.0.113.7", 4500), at=30.0)
    b.send(at=31.0)
    world.run(31.5)
    assert b.endpoint() == ("192.0.2.1", 51820)
    assert [fate.why for fate in world.trace.fates().values()] == [None, "nobody"]
    a.send(at=32.0)
    b.send(at=33.0)
    world.run(34.0)
    assert b.endpoint() == ("203.0.113.7", 4500)
    assert outcomes(world) == ["delivered", "lost", "delivered", "delivered"]
    assert world.trace.counts()["I"] == 1


def test_a_clock_that_is_set_back_does_not_lock_the_peer_out() -> None:
    world, a, _ = pair()
    a.send(at=0.0)
    a.step_clock(-3600, at=100.0)
    a.send(at=200.0)
    world.run(201.0)
    assert outcomes(world) == ["delivered", "delivered"]
    assert world.trace.counts()["I"] == 2


def test_what_cannot_be_is_named() -> None:
    world, a, b = pair()
    world.run(5.0)
    for call, message in (
        (lambda: world.host("A"), "there is a host A already"),
        (
            lambda: world.host("X", engine="kernel"),
            "there is no engine 'kernel': it is one of patched, upstream",
        ),
        (
            lambda: world.host("X", engine="upstream", role=Role.RESPONDER),
            "upstream has no roles: role=RESPONDER needs the patched engine",
        ),
        (lambda: world.host("X", address="192.0.2.1"), "somebody has the address 192.0.2.1 already"),
        (lambda: world.tunnel(a, b), "there is a tunnel between A and B already"),
        (lambda: world.link(a, a), "A needs no link to itself"),
        (lambda: world.run(4.0), "it is 5.0 s already, which is later than 4.0 s"),
        (lambda: a.send(at=4.0), "it is 5.0 s already, which is later than 4.0 s"),
        (lambda: a.send(at=float("nan")), "at must be a number of seconds, 0 or more, not nan"),
        (lambda: a.send(size=31), "a packet has 32 to 65472 bytes, not 31"),
        (lambda: world.link(a, b).set(loss=1.5), "loss must be a probability from 0 to 1, not 1.5"),
        (lambda: world.link(a, b).set(rate=0), "rate must be a number of bits per second above 0, not 0"),
        (lambda: world.traffic(a, b, every=1.0), "traffic needs an end: until or count"),
        (lambda: world.traffic(a, b, every=1.0, count=-3), "count must be a whole number, 0 or more, not -3"),
        (
            lambda: world.traffic(a, b, every=1.0, count=2.5),  # type: ignore[arg-type]
            "count must be a whole number, 0 or more, not 2.5",
        ),
        (lambda: world.traffic(a, b, every=1.0, count=1, size=10), "a packet has 32 to 65472 bytes, not 10"),
        (lambda: a.send(size=64.5), "a packet has 32 to 65472 bytes, not 64.5"),  # type: ignore[arg-type]
        (lambda: a.send(size=True), "a packet has 32 to 65472 bytes, not True"),
        (
            lambda: world.traffic(a, b, every=1.0, count=1, since=4.0),
            "it is 5.0 s already, which is later than 4.0 s",
        ),
        (lambda: a.move(("192.0.2.2", 1)), "somebody has the address 192.0.2.2 already"),
        (lambda: world.traffic(a, b, every=0, count=1), "every must be more than 0 seconds"),
    ):
        with pytest.raises(LabError) as caught:
            call()
        assert str(caught.value) == message
    a.sleep(10)
    with pytest.raises(LabError, match=r"^A sleeps already$"):
        a.sleep(10)
    refusal = r"^A sleeps: nobody can change its tunnels before it wakes up$"
    with pytest.raises(LabError, match=refusal):
        a.set_persistent_keepalive(25.0)
    with pytest.raises(LabError, match=refusal):
        a.set_preshared_key(None)
    # None of this has changed anything.
    world.run(20.0)
    a.send(at=20.0)
    world.run(21.0)
    assert outcomes(world) == ["delivered"]


def test_polls_that_are_switched_on_again_do_not_come_twice() -> None:
    world, a, _ = pair()
    every: float | None
    for every in (1.0, None, 1.0):
        a.poll_every = every
    calls = []
    tunnel = a.tunnel()

    class Counting:
        def __getattr__(self, name: str) -> object:
            if name == "handle_timeout":
                calls.append(world.now)
            return getattr(tunnel, name)

    a._ends["B"].tunnel = Counting()  # type: ignore[assignment]
    world.run(10.0)
    assert calls == [float(second) for second in range(1, 11)]


def test_two_flows_of_random_packets_are_not_the_same_one() -> None:
    world, a, b = pair()
    for _flow in range(2):
        world.traffic(a, b, every=1.0, count=20, random_intervals=True)
    world.run(100.0)
    offered = [record.at for record in world.trace if isinstance(record, Offered)]
    assert len(set(offered[2:])) == 38


def test_a_host_without_tunnels_takes_nothing() -> None:
    world, a, b = pair()
    c = world.host("C")
    world.link(a, c)
    b.move(("203.0.113.9", 1))
    c.move(("192.0.2.2", 51820))
    a.send()
    world.run(1.0)
    assert [record.why for record in world.trace if isinstance(record, Lost)] == ["nobody"]


class Faulty:
    """An engine that lies: what is given by name takes the place of its own."""

    def __init__(self, tunnel: object, **lies: object) -> None:
        self._tunnel = tunnel
        self._lies = lies

    def __getattr__(self, name: str) -> object:
        return self._lies.get(name) or getattr(self._tunnel, name)


def with_lies(**lies: object) -> World:
    """B owes a keepalive at 11.06 s, and from 5 s on its engine lies."""
    world, a, b = pair()
    a.send(at=1.0)
    world.run(5.0)
    end = b._end(a)
    end.tunnel = Faulty(end.tunnel, **lies)  # type: ignore[assignment]
    return world


def test_a_wake_of_which_nothing_comes_is_an_error() -> None:
    world = with_lies(handle_timeout=lambda now: NOTHING)
    with pytest.raises(
        LabError, match=r"^B was woken for passive keepalive at 11\.06 s, and nothing came of it$"
    ):
        world.run(20.0)


def test_a_key_that_is_changed_when_a_session_should_be_gone_already_leaves_the_late_wake_something_to_tidy() -> (
    None
):
    world, a, b = pair()
    a.send(at=1.0)
    b.is_polled = False
    world.run(200.0)
    b.set_preshared_key(None)
    b.step_clock(1.0)
    assert b.stats().sessions == 0
    b.is_polled = True
    world.run(300.0)
    wakes = [(r.at, r.reason) for r in world.trace if isinstance(r, Woke) and r.host == "B"]
    assert wakes == [(200 * SECOND, TimeoutReason.SESSION_EXPIRY)]


def test_a_wake_after_which_the_same_instant_is_announced_is_an_error() -> None:
    announced = Timeout(10_011.06, TimeoutReason.HANDSHAKE_RETRY)
    world = with_lies(next_timeout=lambda: announced)
    with pytest.raises(
        LabError,
        match=r"^B was woken for passive keepalive at 11\.06 s and wants to be again, for handshake retry$",
    ):
        world.run(20.0)


def test_an_instant_that_has_passed_is_an_error() -> None:
    announced = Timeout(10_004.0, TimeoutReason.HANDSHAKE_RETRY)
    world = with_lies(next_timeout=lambda: announced)
    with pytest.raises(
        LabError, match=r"^B announces 4\.0 s for handshake retry, and it is 11\.06 s already$"
    ):
        world.run(20.0)


def test_a_tunnel_that_cannot_be_made_leaves_nothing_behind() -> None:
    world = World()
    a, b = world.host("A"), world.host("B")
    with pytest.raises(ValueError, match="keepalive"):
        world.tunnel(a, b, keepalive=(25, -1))
    assert (a.peers, b.peers) == ([], [])
    world.tunnel(a, b, keepalive=25)
    assert (a.peers, b.peers) == ([b], [a])


def test_a_host_of_another_world_is_refused() -> None:
    world, a, _ = pair()
    stranger = World().host("B")
    for call in (
        lambda: world.link(a, stranger),
        lambda: world.tunnel(stranger, a),
        lambda: world.nat("home", stranger),
    ):
        with pytest.raises(LabError, match=r"^the host B is in another world$"):
            call()
    with pytest.raises(LabError, match=r"^there is no tunnel between A and B$"):
        a.send(stranger)


def test_addresses_are_literal_and_of_one_family() -> None:
    world, a, _ = pair()
    c = world.host("C", address="2001:DB8::0:1")
    assert c.address == ("2001:db8::1", 51820), "in its usual spelling"
    for call, message in (
        (
            lambda: world.host("X", address="gateway.example"),
            "an address is a literal IP address, not 'gateway.example'",
        ),
        (lambda: world.nat("home", address="1.2.3"), "an address is a literal IP address, not '1.2.3'"),
        (lambda: a.move(("203.0.113.256", 1)), "an address is a literal IP address, not '203.0.113.256'"),
        (lambda: a.move(("203.0.113.5", 0)), "a port is a number from 1 to 65535, not 0"),
        (lambda: a.move(("2001:db8::5", 1)), "A has an IPv4 address, and it would have an IPv6 one"),
        (lambda: world.link(c, a), "C has an IPv6 address, and A has an IPv4 one"),
        (lambda: world.nat("home", c), "C has an IPv6 address, and the NAT home has an IPv4 one"),
    ):
        with pytest.raises(LabError) as caught:
            call()
        assert str(caught.value) == message
    # Nothing of that has taken an address.
    world.host("D", address="203.0.113.5")
    world.nat("home", address="198.51.100.1")


def test_a_refused_handshake_is_written_down() -> None:
    world, _, b = pair()
    b.initiate_handshake(at=1.0)
    world.run(2.0)
    assert list(world.trace) == [Changed(SECOND, "B", "starts no handshake: role")]


def test_as_long_as_one_copy_flies_a_packet_is_in_flight_though_the_other_was_lost() -> None:
    def copied() -> tuple[World, Host]:
        world, a, b = pair()
        a.send(at=0.0)
        world.run(0.5)
        world.link(a, b).set(duplicate=1.0, reorder=1.0)
        a.send(at=1.0)
        return world, b

    world, _ = copied()
    world.run(3.0)
    first, last = (r.at / SECOND for r in world.trace if isinstance(r, Arrived) and r.at > SECOND)
    between = (first + last) / 2
    world, b = copied()
    b.sleep(between - 0.9, at=0.9)
    world.run(between)
    assert sum(isinstance(record, Copied) for record in world.trace) == 1
    assert outcomes(world) == ["delivered", "in flight"]
    world.run(last)
    assert outcomes(world) == ["delivered", "delivered"]


def test_a_world_that_runs_cannot_be_run_by_what_happens_in_it() -> None:
    world, _, _ = pair()
    world.at(1.0, lambda: world.run(10.0))
    with pytest.raises(LabError, match=r"^the world runs already: what happens in it cannot run it$"):
        world.run(3.0)
    assert world.now == 1.0
    world.run(3.0)
    assert world.now == 3.0


@pytest.mark.parametrize("name", ["", " a", "a-b", "a/b", "a\nb", "a>b"])
def test_names_that_would_be_taken_for_two_are_refused(name: str) -> None:
    for call in (World().host, World().nat):
        with pytest.raises(LabError) as caught:
            call(name)
        assert str(caught.value) == f"a name is letters, digits, '_', '.' and spaces, not {name!r}"


def test_what_a_host_is_told_for_later_is_checked_now() -> None:
    _, a, _ = pair()
    calls: list[tuple[Callable[[], None], str]] = [
        (lambda: a.set_persistent_keepalive(-1, at=5), "a keepalive is 1 to 65535 seconds or None, not -1"),
        (lambda: a.step_clock(float("nan"), at=5), "a clock is set by 1000000000 seconds at most, not nan"),
        (
            lambda: a.step_clock(-1e10, at=5),
            "a clock is set by 1000000000 seconds at most, not -10000000000.0",
        ),
    ]
    for call, message in calls:
        with pytest.raises(LabError) as caught:
            call()
        assert str(caught.value) == message


def test_a_host_can_be_polled_just_before_each_announced_instant_and_nothing_comes_of_it() -> None:
    def played(early: float | None) -> tuple[bytes, list[float]]:
        world, a, b = pair()
        calls: list[float] = []

        def noted(handle: Callable[[float], Output]) -> Callable[[float], Output]:
            def call(now: float) -> Output:
                calls.append(world.now)
                return handle(now)

            return call

        for one, other in ((a, b), (b, a)):
            end = one._end(other)
            noting = Faulty(end.tunnel, handle_timeout=noted(end.tunnel.handle_timeout))
            end.tunnel = noting  # type: ignore[assignment]
            one.poll_early = early
        a.send(at=1.0)
        world.run(300.0)
        return world.trace.to_bytes(), calls

    (trace, calls), (again, more) = played(None), played(0.001)
    assert trace == again
    assert calls == [11.06, 181.02, 181.04]
    assert [round(at, 6) for at in more] == [11.059, 11.06, 181.019, 181.02, 181.039, 181.04]
