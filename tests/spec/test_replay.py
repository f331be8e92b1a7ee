"""The replay window (paper, section 5.4.6; scenario 34)."""

from connlib import DropReason
from spec.pair import Pair, number_of, packet

WINDOW = 8_192


def test_a_packet_8191_behind_is_taken_and_one_8192_behind_is_not() -> None:
    pair = Pair().connect()
    clock = pair.clock()
    sealed = [pair.a.tunn.encapsulate(packet(k), clock).datagrams[0] for k in range(WINDOW + 1)]
    opened = pair.b.tunn.decapsulate(sealed[WINDOW], clock)
    assert [number_of(p) for p in opened.packets] == [WINDOW]
    assert pair.b.tunn.decapsulate(sealed[0], clock).error is DropReason.INVALID_COUNTER
    for k in range(1, WINDOW):
        assert [number_of(p) for p in pair.b.tunn.decapsulate(sealed[k], clock).packets] == [k]
    for k in range(1, WINDOW + 1):
        assert pair.b.tunn.decapsulate(sealed[k], clock) == ([], [], [], DropReason.DUPLICATE_COUNTER)


def test_after_a_jump_of_three_windows_only_the_last_window_is_open() -> None:
    pair = Pair().connect()
    clock = pair.clock()
    sealed = [pair.a.tunn.encapsulate(packet(k), clock).datagrams[0] for k in range(3 * WINDOW + 1)]
    pair.b.tunn.decapsulate(sealed[0], clock)
    assert pair.b.tunn.decapsulate(sealed[3 * WINDOW], clock).error is None
    for k in (0, 1, WINDOW, 2 * WINDOW - 1, 2 * WINDOW):
        assert pair.b.tunn.decapsulate(sealed[k], clock).error is DropReason.INVALID_COUNTER
    for k in (2 * WINDOW + 1, 3 * WINDOW - 1):
        assert pair.b.tunn.decapsulate(sealed[k], clock).error is None
        assert pair.b.tunn.decapsulate(sealed[k], clock).error is DropReason.DUPLICATE_COUNTER


def test_order_does_not_matter_inside_the_window() -> None:
    pair = Pair().connect()
    clock = pair.clock()
    sealed = [pair.a.tunn.encapsulate(packet(k), clock).datagrams[0] for k in range(4)]
    for k in (3, 0, 1, 2):
        assert [number_of(p) for p in pair.b.tunn.decapsulate(sealed[k], clock).packets] == [k]
    assert pair.b.tunn.decapsulate(sealed[1], clock).error is DropReason.DUPLICATE_COUNTER
