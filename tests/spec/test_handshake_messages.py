"""The messages one by one: what makes a handshake, and what each is refused for (paper, section 5.4)."""

from __future__ import annotations

import pytest

from connlib import (
    DropReason,
    GaveUp,
    PresharedKey,
    Role,
    SessionEstablished,
    SessionExpired,
    TimeoutReason,
    Timers,
)
from spec.pair import (
    BOTH_ROLES,
    LATENCY,
    NOTHING,
    ORIGIN,
    Pair,
    kind_of,
    number_of,
    packet,
    receiver_index,
    sender_index,
)

L = LATENCY


def flipped(datagram: bytes, at: int) -> bytes:
    """A datagram with one bit of a byte changed."""
    copy = bytearray(datagram)
    copy[at] ^= 1
    return bytes(copy)


def with_index(datagram: bytes, by: int) -> bytes:
    """Data to another receiver index, higher by so much."""
    index = (int.from_bytes(datagram[4:8], "little") + by) % 2**32
    return datagram[:4] + index.to_bytes(4, "little") + datagram[8:]


# The handshake.


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_forced_handshake_is_three_messages_and_carries_data_both_ways(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles)
    pair.initiate(0, pair.a)
    pair.send(1, pair.a, 1)
    pair.send(2, pair.b, 2)
    pair.run(2.5)
    assert [(s.at, s.kind, len(s.datagram)) for s in pair.a.sent] == [
        (0, "I", 148),
        (2 * L, "K", 32),
        (1, "D", 96),
    ]
    assert [(s.at, s.kind, len(s.datagram)) for s in pair.b.sent] == [(L, "R", 92), (2, "D", 96)]
    assert (pair.a.received, pair.b.received) == ([(2 + L, 2)], [(1 + L, 1)])
    initiation, keepalive, data = (s.datagram for s in pair.a.sent)
    response, answer = (s.datagram for s in pair.b.sent)
    assert receiver_index(response) == receiver_index(answer) == sender_index(initiation)
    assert receiver_index(keepalive) == receiver_index(data) == sender_index(response)
    # Type, and three reserved zeros; counters from 0 on.
    assert [d[:4] for d in (initiation, response, data)] == [bytes([kind, 0, 0, 0]) for kind in (1, 2, 4)]
    assert [int.from_bytes(d[8:16], "little") for d in (keepalive, data, answer)] == [0, 1, 0]


@pytest.mark.parametrize("side", [0, 1])
def test_a_preshared_key_at_one_side_only_makes_no_session(side: int) -> None:
    key = PresharedKey.from_bytes(bytes(range(32)))
    pair = Pair(psk=(key, None) if side == 0 else (None, key))
    pair.send(0, pair.a, 1)
    pair.run(4)
    assert pair.a.errors == [(2 * L, DropReason.INVALID_AEAD_TAG)]
    assert (pair.a.happened(SessionEstablished), pair.b.happened(SessionEstablished)) == ([], [])
    assert pair.b.received == []


def test_asked_again_while_it_waits_a_tunnel_sends_nothing_and_the_first_initiation_still_counts() -> None:
    pair = Pair()
    first = pair.lose("I", 1)
    pair.initiate(0, pair.a)
    pair.initiate(1, pair.a)
    pair.run(2)
    assert pair.a.kinds() == "I"
    pair.deliver(2, pair.b, first[0].datagram)
    pair.run(3)
    assert pair.a.happened(SessionEstablished) == [2 + L]
    assert pair.b.happened(SessionEstablished) == [2 + 2 * L]


def test_an_initiation_is_refused_for_what_is_wrong_with_it_and_taken_when_nothing_is() -> None:
    pair = Pair()
    clock = pair.clock()
    (initiation,) = pair.a.tunn.initiate_handshake(clock).datagrams
    refused = {
        DropReason.INVALID_MAC: [flipped(initiation, at) for at in (4, 8, 40, 100, 116, 131)],
        DropReason.INVALID_PACKET: [
            b"",
            initiation[:3],
            initiation[:147],
            initiation + b"\0",
            b"\5" + initiation[1:],
            b"\0" + initiation[1:],
            initiation[:1] + b"\1" + initiation[2:],
            bytes(148),
        ],
    }
    for reason, datagrams in refused.items():
        for datagram in datagrams:
            assert pair.b.tunn.decapsulate(datagram, clock) == ([], [], [], reason), datagram
    (response,) = pair.b.tunn.decapsulate(initiation, clock).datagrams
    assert kind_of(response) == "R"
    assert pair.b.tunn.decapsulate(initiation, clock + 1) == ([], [], [], DropReason.REPLAYED_INITIATION)
    # MAC1 is made with the other side's key: a message that comes back to its sender is not for it.
    assert pair.a.tunn.decapsulate(initiation, clock).error is DropReason.INVALID_MAC


def test_a_response_is_refused_for_what_is_wrong_with_it_and_taken_when_nothing_is() -> None:
    pair = Pair()
    clock = pair.clock()
    (initiation,) = pair.a.tunn.initiate_handshake(clock).datagrams
    (response,) = pair.b.tunn.decapsulate(initiation, clock).datagrams
    for at in (4, 8, 12, 44, 60, 75):
        assert pair.a.tunn.decapsulate(flipped(response, at), clock).error is DropReason.INVALID_MAC
    for datagram in (response[:91], response + b"\0"):
        assert pair.a.tunn.decapsulate(datagram, clock).error is DropReason.INVALID_PACKET
    assert Pair(seed=9).a.tunn.decapsulate(response, clock).error is DropReason.UNEXPECTED
    (confirmation,) = pair.a.tunn.decapsulate(response, clock).datagrams
    assert kind_of(confirmation) == "K"
    assert pair.a.tunn.decapsulate(response, clock) == ([], [], [], DropReason.UNEXPECTED)


# Data.


def test_data_is_refused_for_what_is_wrong_with_it_and_taken_when_nothing_is() -> None:
    pair = Pair().connect()
    pair.run(1)
    clock = pair.clock()
    (data,) = pair.a.tunn.encapsulate(packet(7), clock).datagrams
    for at in (9, 16, 50, -1):
        assert pair.b.tunn.decapsulate(flipped(data, at), clock) == ([], [], [], DropReason.INVALID_AEAD_TAG)
    for by in (1, 6, 8, 256, 2**31):
        assert pair.b.tunn.decapsulate(with_index(data, by), clock).error is DropReason.WRONG_INDEX
        assert Pair().b.tunn.decapsulate(with_index(data, by), clock).error is DropReason.NO_SESSION
    assert pair.b.tunn.decapsulate(data[:31], clock).error is DropReason.INVALID_PACKET
    assert pair.b.tunn.decapsulate(data[:32], clock).error is DropReason.INVALID_AEAD_TAG
    assert [number_of(p) for p in pair.b.tunn.decapsulate(data, clock).packets] == [7]


def test_a_packet_that_is_shorter_than_it_says_is_refused_unless_padding_makes_up_for_it() -> None:
    pair = Pair().connect()
    pair.run(1)
    clock = pair.clock()

    def arrives(what: bytes) -> tuple[list[bytes], DropReason | None]:
        (data,) = pair.a.tunn.encapsulate(what, clock).datagrams
        output = pair.b.tunn.decapsulate(data, clock)
        return output.packets, output.error

    assert arrives(packet(1, 66)[:64]) == ([], DropReason.INVALID_PACKET)
    # What is sealed is filled up with zeros to 16 bytes: there nobody can tell.
    assert arrives(packet(1, 64)[:62]) == ([packet(1, 64)], None)
    # And what is more than it says is cut off.
    assert arrives(packet(1, 40) + bytes(13)) == ([packet(1, 40)], None)


def test_until_a_packet_confirms_the_new_session_the_responder_stays_on_the_old_one() -> None:
    pair = Pair().connect()
    withheld = pair.lose("K", 1)
    pair.initiate(10, pair.a)
    pair.send(11, pair.b, 1)
    pair.run(12)
    assert pair.b.times_to(pair.a_index) == [11]
    pair.deliver(12, pair.b, withheld[0].datagram)
    pair.send(13, pair.b, 2)
    pair.run(14)
    assert pair.b.times_to(pair.a_index) == [11]
    assert pair.b.times("D") == [11, 13]
    assert pair.b.happened(SessionEstablished)[-1] == 12
    assert pair.a.numbers() == [1, 2]


def test_packets_that_arrive_on_the_old_session_do_not_undo_the_new_one() -> None:
    pair = Pair().connect()
    late = pair.lose("D", 1)
    pair.send(9, pair.a, 1)
    pair.initiate(10, pair.a)
    pair.run(11)
    pair.deliver(11, pair.b, late[0].datagram)
    pair.send(12, pair.b, 2)
    pair.run(13)
    assert pair.b.received == [(11, 1)]
    assert pair.b.times_to(pair.a_index) == []
    assert pair.a.received == [(12 + L, 2)]


# Attempts, and how long they go on.


def test_in_18_seconds_without_an_answer_there_are_four_initiations() -> None:
    pair = Pair()
    pair.lose("I")
    pair.initiate(0, pair.a)
    pair.run(18)
    assert len(pair.a.times("I")) == 4


def test_after_giving_up_a_handshake_that_is_asked_for_succeeds_when_the_line_is_back() -> None:
    pair = Pair()
    pair.lose("I")
    pair.send(0, pair.a, 1)
    pair.heal(95)
    pair.initiate(95, pair.a)
    pair.send(96, pair.a, 2)
    pair.run(97)
    assert pair.a.happened(GaveUp) == [90]
    assert pair.a.happened(SessionEstablished) == [95 + 2 * L]
    assert pair.b.numbers() == [2]


@pytest.mark.parametrize("when", [179.99, 180, 539.99, 540, 540.01, 720])
def test_a_packet_after_a_long_time_is_delivered_whatever_instant_is_passed_meanwhile(when: float) -> None:
    pair = Pair().connect()
    pair.lose("I", 1)
    pair.send(when, pair.a, 1)
    pair.run(when + 7)
    ((at, number),) = pair.b.received
    assert number == 1 and when + 5 + 3 * L <= at <= when + 5.333 + 3 * L + 1e-6


def test_timers_of_a_tunnel_hold_for_that_tunnel() -> None:
    timers = Timers(rekey_timeout=1, rekey_attempt_time=10, keepalive_timeout=2)
    pair = Pair(for_a={"timers": timers})
    pair.lose("I")
    pair.initiate(0, pair.a)
    pair.run(5)
    assert 4 <= len(pair.a.times("I")) <= 5
    pair.run(30)
    assert 8 < pair.a.times("I")[-1] < 10
    assert pair.a.happened(GaveUp) == [10]
    # A peer that does not answer for 2 s and 1 s is silent.
    pair = Pair(for_a={"timers": timers}).connect()
    pair.cut(1)
    pair.send(1, pair.a, 1)
    pair.run(4.9)
    (at, *_) = pair.a.times("I")
    assert 4 <= at <= 4.333
    # And what it sends is acknowledged after 2 s.
    pair = Pair(for_a={"timers": timers}).connect()
    pair.send(1, pair.b, 1)
    pair.run(20)
    assert pair.a.times("K") == [3 + L]


# Quiet sessions.


def test_what_the_answering_side_sends_once_renews_nothing() -> None:
    pair = Pair().connect()
    pair.send(1, pair.b, 1)
    pair.run(161)
    assert (pair.a.kinds(), pair.b.kinds()) == ("K", "D")
    assert pair.a.times("K") == [11 + L]


def test_a_quiet_session_ends_on_a_dead_line_without_a_word() -> None:
    pair = Pair().connect()
    pair.send(1, pair.a, 1)
    pair.cut(30)
    pair.run(1_000)
    assert (pair.a.kinds(), pair.b.kinds()) == ("D", "K")
    assert pair.a.errors == pair.b.errors == []
    assert pair.b.tunn.stats(pair.clock()).sessions == 0


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_one_late_call_ends_what_is_over_and_announces_nothing(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles).connect()
    pair.a.polled = pair.b.polled = False
    pair.run(720)
    for host in (pair.a, pair.b):
        timeout = host.tunn.next_timeout()
        assert timeout is not None and timeout.reason is TimeoutReason.SESSION_EXPIRY
        assert host.tunn.handle_timeout(ORIGIN + 720) == ([], [], [SessionExpired()], None)
        assert host.tunn.next_timeout() is None
        assert host.tunn.handle_timeout(ORIGIN + 721) == NOTHING


def test_what_is_announced_after_a_late_packet_is_not_in_the_past() -> None:
    pair = Pair().connect()
    pair.a.polled = pair.b.polled = False
    pair.send(121, pair.a, 1)
    pair.run(121)
    timeout = pair.a.tunn.next_timeout()
    assert timeout is not None and timeout.at > ORIGIN + 121
    # Overdue and not called: now, and not then.
    pair.b.tunn.handle_timeout(ORIGIN + 121)
    pair.run(140)
    (datagram,) = pair.b.tunn.encapsulate(packet(2), pair.clock()).datagrams
    timeout = pair.b.tunn.next_timeout()
    assert kind_of(datagram) == "D" and timeout is not None and timeout.at >= pair.clock()
