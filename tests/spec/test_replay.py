"""What comes twice or late (paper, sections 5.1 and 5.4.6; scenarios 33 and 34)."""

import random

import pytest

from connlib import DropReason, Role
from spec.pair import BOTH_ROLES, Pair, number_of, packet

WINDOW = 8_192


def counter_of(datagram: bytes) -> int:
    """The counter of a data message."""
    return int.from_bytes(datagram[8:16], "little")


@pytest.mark.scenario(33)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_of_everything_that_arrives_twice_the_copy_is_named_and_dropped(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    pair.copies = lambda host, sent: 2
    for k in range(50):
        pair.send(k, pair.a, k)
        pair.send(k + 0.5, pair.b, k)
    pair.run(60)
    assert pair.a.numbers() == pair.b.numbers() == list(range(50))
    assert len(pair.b.times("R")) == len(pair.a.times("I")) == 1
    to_b, to_a = len(pair.a.times("DK")), len(pair.b.times("DK"))
    reasons = [reason for _, reason in pair.b.errors]
    assert reasons == [DropReason.REPLAYED_INITIATION] + [DropReason.DUPLICATE_COUNTER] * to_b
    reasons = [reason for _, reason in pair.a.errors]
    assert reasons == [DropReason.UNEXPECTED] + [DropReason.DUPLICATE_COUNTER] * to_a


@pytest.mark.scenario(34)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_packets_shuffled_up_to_8191_behind_arrive_and_one_8192_behind_does_not(
    roles: tuple[Role, Role],
) -> None:
    pair = Pair(roles).connect()
    order = list(range(WINDOW + 1))
    random.Random(34).shuffle(order)
    # The newest packet comes first. Counter 0 was the keepalive that confirmed the session.
    newest, oldest = WINDOW + 1, 1
    pair.delay = lambda host, sent: (
        0
        if host is pair.b or counter_of(sent.datagram) == newest
        else order[counter_of(sent.datagram) - 1] / 1e4 + 0.01
    )
    for k in range(WINDOW + 1):
        pair.send(1, pair.a, k)
    pair.run(20)
    assert pair.b.numbers()[0] == newest - 1
    assert pair.b.numbers()[1:] != sorted(pair.b.numbers()[1:])
    assert sorted(pair.b.numbers()) == list(range(oldest, newest))
    assert [reason for _, reason in pair.b.errors] == [DropReason.INVALID_COUNTER]


@pytest.mark.scenario(34)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_jump_of_three_windows_moves_the_window_once(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    sealed = pair.lose("D")
    for k in range(3 * WINDOW + 1):
        pair.send(1, pair.a, k)
    pair.run(1)
    pair.drop = lambda host, sent: False
    refused = (0, 1, WINDOW, 2 * WINDOW - 1, 2 * WINDOW)
    taken = (2 * WINDOW + 1, 2 * WINDOW + 2, 3 * WINDOW - 1)
    # The first, the last, then what is too old, what is not, and all of it again.
    for n, k in enumerate((0, 3 * WINDOW, *refused, *taken, *taken, *refused, 3 * WINDOW)):
        pair.deliver(2 + n / 1000, pair.b, sealed[k].datagram)
    pair.run(14)
    assert pair.b.numbers() == [0, 3 * WINDOW, *taken]
    old, copy = DropReason.INVALID_COUNTER, DropReason.DUPLICATE_COUNTER
    assert [reason for _, reason in pair.b.errors] == [old] * 5 + [copy] * 3 + [old] * 5 + [copy]


def test_every_packet_of_the_window_is_taken_once_in_any_order() -> None:
    pair = Pair().connect()
    clock = pair.clock()
    sealed = [pair.a.tunn.encapsulate(packet(k), clock).datagrams[0] for k in range(2 * WINDOW)]
    # Odd ones first, upwards; then the even ones of the last window, downwards.
    for k in range(1, 2 * WINDOW, 2):
        assert [number_of(p) for p in pair.b.tunn.decapsulate(sealed[k], clock).packets] == [k]
    for k in range(2 * WINDOW - 2, WINDOW - 1, -2):
        assert [number_of(p) for p in pair.b.tunn.decapsulate(sealed[k], clock).packets] == [k]
    assert pair.b.tunn.decapsulate(sealed[WINDOW - 2], clock).error is DropReason.INVALID_COUNTER
    for k in range(WINDOW, 2 * WINDOW):
        assert pair.b.tunn.decapsulate(sealed[k], clock).error is DropReason.DUPLICATE_COUNTER


def test_order_does_not_matter_inside_the_window() -> None:
    pair = Pair().connect()
    clock = pair.clock()
    sealed = [pair.a.tunn.encapsulate(packet(k), clock).datagrams[0] for k in range(4)]
    for k in (3, 0, 1, 2):
        assert [number_of(p) for p in pair.b.tunn.decapsulate(sealed[k], clock).packets] == [k]
    assert pair.b.tunn.decapsulate(sealed[1], clock).error is DropReason.DUPLICATE_COUNTER
