"""Clocks that stand, jump and go back (scenario 38)."""

import pytest

from connlib import Role
from spec.pair import BOTH_ROLES, LATENCY, NOTHING, ORIGIN, UNIX_ORIGIN, Pair, kind_of, packet

L = LATENCY
HOURS = 3_600.0


@pytest.mark.scenario(38, polled=False)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("both", [True, False])
def test_after_three_hours_asleep_the_first_packet_brings_one_handshake_and_arrives(
    roles: tuple[Role, Role], both: bool
) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.run(1.5)
    pair.a.polled, pair.b.polled = False, not both
    woken = 1.5 + 3 * HOURS
    pair.send(woken, pair.a, 2)
    pair.run(woken)
    pair.a.polled = pair.b.polled = True
    pair.a.wakes.clear()
    pair.run(woken + 5)
    assert pair.a.times("I") == [woken]
    assert pair.a.times_to(pair.b_index) == [1]
    assert pair.b.received[-1] == (round(woken + 3 * L, 6), 2)
    # What would have been due meanwhile is not made up for.
    assert pair.a.kinds() == "DID"
    assert pair.a.wakes == []


@pytest.mark.scenario(38, polled=False)
def test_a_clock_that_goes_back_ten_seconds_stands_still_and_the_next_initiation_is_taken() -> None:
    pair = Pair().connect()
    pair.a.tunn.handle_timeout(ORIGIN + 20)
    before = pair.a.tunn.next_timeout()
    assert pair.a.tunn.handle_timeout(ORIGIN + 10) == NOTHING
    assert pair.a.tunn.next_timeout() == before
    (datagram,) = pair.a.tunn.encapsulate(packet(1), ORIGIN + 10).datagrams
    assert kind_of(datagram) == "D"
    timeout = pair.a.tunn.next_timeout()
    # The packet counts as sent at 20, not at 10: 15 s and the jitter later the peer is silent, and not a moment sooner.
    assert timeout is not None and ORIGIN + 35 <= timeout.at <= ORIGIN + 35.333
    assert pair.a.tunn.handle_timeout(ORIGIN + 34.999) == NOTHING
    # Both of its clocks go back before each of five initiations.
    for n in range(1, 6):
        now = ORIGIN + 34 - n
        pair.a.tunn.set_unix_time(UNIX_ORIGIN + 34 - 10 * n, now)
        (initiation,) = pair.a.tunn.initiate_handshake(now).datagrams
        (response,) = pair.b.tunn.decapsulate(initiation, ORIGIN + 40 + n).datagrams
        (keepalive,) = pair.a.tunn.decapsulate(response, now).datagrams
        assert pair.b.tunn.decapsulate(keepalive, ORIGIN + 40 + n).error is None


@pytest.mark.parametrize("step", [-10 * 365 * 86_400.0, -10, 10, 10 * 365 * 86_400.0])
def test_initiations_are_accepted_after_every_step_of_the_wall_clock(step: float) -> None:
    pair = Pair().connect()
    for n in range(1, 4):
        pair.a.tunn.set_unix_time(UNIX_ORIGIN + step * n, pair.clock())
        pair.initiate(10 * n, pair.a)
        pair.run(10 * n + 1)
        assert len(pair.b.times("R")) == n
    assert pair.b.errors == []


def test_a_clock_of_before_1970_and_one_that_does_not_move_give_initiations_that_are_accepted() -> None:
    pair = Pair().connect()
    pair.a.tunn.set_unix_time(0, pair.clock())
    clock = pair.clock()
    for n in range(3):
        (initiation,) = pair.a.tunn.initiate_handshake(clock).datagrams
        (response,) = pair.b.tunn.decapsulate(initiation, clock + n).datagrams
        assert pair.a.tunn.decapsulate(response, clock).error is None
