"""Clocks that stand, jump and go back (scenario 38)."""

import pytest

from connlib import Role
from spec.pair import BOTH_ROLES, LATENCY, ORIGIN, Pair, kind_of, packet

L = LATENCY
HOURS = 3_600.0


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_after_three_hours_asleep_the_first_packet_brings_one_handshake_and_arrives(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    pair.send(1, pair.a, 1)
    pair.run(1.5)
    pair.a.polled = pair.b.polled = False
    woken = 1.5 + 3 * HOURS
    pair.send(woken, pair.a, 2)
    pair.run(woken)
    pair.a.polled = pair.b.polled = True
    pair.run(woken + 5)
    assert pair.a.times("I") == [woken]
    assert pair.b.received[-1] == (round(woken + 3 * L, 6), 2)


def test_a_clock_that_goes_back_stands_still() -> None:
    pair = Pair().connect()
    pair.a.tunn.handle_timeout(ORIGIN + 20)
    before = pair.a.tunn.next_timeout()
    assert pair.a.tunn.handle_timeout(ORIGIN + 10) == ([], [], [], None)
    assert pair.a.tunn.next_timeout() == before
    (datagram,) = pair.a.tunn.encapsulate(packet(1), ORIGIN + 10).datagrams
    assert kind_of(datagram) == "D"
    timeout = pair.a.tunn.next_timeout()
    # The packet counts as sent at 20, not at 10: 15 s and the jitter later the peer is silent.
    assert timeout is not None and ORIGIN + 35 <= timeout.at <= ORIGIN + 35.333


def test_an_initiation_is_accepted_after_the_wall_clock_was_set_back_ten_years() -> None:
    pair = Pair().connect()
    pair.a.tunn.set_unix_time(1_700_000_000.0 - 10 * 365 * 86_400, pair.clock())
    pair.initiate(10, pair.a)
    pair.run(11)
    assert len(pair.b.times("R")) == 1
    pair.a.tunn.set_unix_time(1_700_000_000.0 + 10 * 365 * 86_400, pair.clock())
    pair.initiate(20, pair.a)
    pair.run(21)
    assert len(pair.b.times("R")) == 2
