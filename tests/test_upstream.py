"""Pristine boringtun behind our interface: in virtual time, drained by each call, and open about what it cannot do."""

from __future__ import annotations

import math
from typing import Any

import pytest

from connlib import (
    DropReason,
    IndexTable,
    Limits,
    PresharedKey,
    RateLimiter,
    Role,
    TimeoutReason,
    Timers,
    Tunn,
    upstream,
)
from two_tunnels import ALICE, BOB, SOURCE, START, UNIX_TIME, ipv4, ipv6, nothing, only, tunnel

TICK = 0.25
Engine = Tunn | upstream.Tunn


def pristine(own: Any = ALICE, *, now: float = START, **options: Any) -> upstream.Tunn:
    peer = (BOB if own == ALICE else ALICE).public_key()
    return upstream.Tunn(own, peer, now=now, unix_time=UNIX_TIME, **options)


def shake_hands(initiator: Engine, responder: Engine, now: float = START) -> None:
    response = responder.decapsulate(only(initiator.initiate_handshake(now).datagrams), now, SOURCE)
    for datagram in initiator.decapsulate(only(response.datagrams), now, SOURCE).datagrams:
        assert responder.decapsulate(datagram, now, SOURCE).error is None


@pytest.mark.parametrize(("one", "other"), [(pristine, pristine), (tunnel, pristine), (pristine, tunnel)])
def test_sessions_carry_data_both_ways(one: Any, other: Any) -> None:
    alice, bob = one(ALICE), other(BOB)
    shake_hands(alice, bob)
    for packet in (ipv4(b"four"), ipv6(b"six")):
        for sender, receiver in ((alice, bob), (bob, alice)):
            datagram = only(sender.encapsulate(packet, START + 1).datagrams)
            assert receiver.decapsulate(datagram, START + 1).packets == [packet]


def test_one_call_returns_all_that_upstream_would_give_in_many() -> None:
    alice, bob = pristine(ALICE), pristine(BOB)
    first = alice.encapsulate(ipv4(b"0"), START)
    for n in range(1, 10):
        assert alice.encapsulate(ipv4(str(n).encode()), START).datagrams == []
    response = bob.decapsulate(only(first.datagrams), START)
    flushed = alice.decapsulate(only(response.datagrams), START)
    assert [len(datagram) for datagram in flushed.datagrams] == [32] + [53] * 10
    received = [bob.decapsulate(datagram, START).packets for datagram in flushed.datagrams]
    assert [packet for packets in received for packet in packets] == [
        ipv4(str(n).encode()) for n in range(10)
    ]


def test_time_is_virtual_and_each_tunnel_has_its_own() -> None:
    early, late = pristine(now=10.0), pristine(now=1_000_000.0)
    early.initiate_handshake(10.0)
    late.initiate_handshake(1_000_000.0)
    assert nothing(early.handle_timeout(14.999))
    assert len(only(early.handle_timeout(15.0).datagrams)) == 148
    assert nothing(late.handle_timeout(1_000_004.999))
    assert len(only(late.handle_timeout(1_000_005.0).datagrams)) == 148


def test_it_repeats_for_ninety_seconds_and_then_says_expired() -> None:
    alice = pristine()
    alice.encapsulate(ipv4(), START)
    sent, error, now = 1, None, START
    while error is None:
        timeout = alice.next_timeout()
        assert timeout is not None
        now = timeout.at
        output = alice.handle_timeout(now)
        sent, error = sent + len(output.datagrams), output.error
    assert (sent, error, now) == (18, DropReason.GAVE_UP, START + 90)
    assert alice.stats(now).initiations_sent == 18


def test_it_is_polled_every_quarter_of_a_second() -> None:
    alice = pristine()
    assert alice.next_timeout() == (START + TICK, TimeoutReason.TICK)
    alice.encapsulate(ipv4(), START + 0.1)
    assert alice.next_timeout() == (START + TICK, TimeoutReason.TICK)
    alice.handle_timeout(START + TICK)
    assert alice.next_timeout() == (START + 2 * TICK, TimeoutReason.TICK)
    alice.encapsulate(ipv4(), START + 100.1)
    assert alice.next_timeout() == (START + 100.1, TimeoutReason.TICK)


def test_time_that_goes_backwards_stands_still() -> None:
    alice = pristine()
    alice.handle_timeout(START + 100)
    assert nothing(alice.handle_timeout(0.0))
    assert alice.stats(0.0).last_handshake is None
    alice.initiate_handshake(0.0)
    assert nothing(alice.handle_timeout(START + 104.9))
    assert len(alice.handle_timeout(START + 105).datagrams) == 1


def test_batches_do_what_single_calls_do() -> None:
    alice, bob = pristine(ALICE), pristine(BOB)
    shake_hands(alice, bob)
    packets = [ipv4(bytes(n)) for n in range(64)]
    sealed = alice.encapsulate_batch(b"".join(packets), [len(p) for p in packets], START)
    opened = bob.decapsulate_batch(sealed.data + b"x", [*sealed.lengths, 1], START, SOURCE)
    assert opened.items() == packets
    assert opened.errors == [(64, DropReason.INVALID_PACKET)]
    assert bob.stats(START).drops == {DropReason.INVALID_PACKET: 1}


def test_it_counts_what_passes() -> None:
    alice, bob = pristine(ALICE, preshared_key=PresharedKey.from_bytes(bytes(32))), pristine(BOB)
    shake_hands(alice, bob)
    bob.decapsulate(only(alice.encapsulate(ipv4(b"12345"), START).datagrams), START)
    a, b = alice.stats(START + 2), bob.stats(START + 2)
    assert (a.initiations_sent, b.responses_sent, a.keepalives_sent) == (1, 1, 1)
    assert (a.tx_packets, a.tx_bytes, b.rx_packets, b.rx_bytes) == (1, 25, 1, 25)
    assert a.last_handshake == 2 and a.sessions == 1 and not a.handshake_pending


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"role": Role.RESPONDER}, "role"),
        ({"role": Role.INITIATOR}, "role"),
        ({"indices": IndexTable()}, "indices"),
        ({"rate_limiter": RateLimiter(ALICE.public_key(), 10, START)}, "rate_limiter"),
        ({"timers": Timers(rekey_timeout=1)}, "timers"),
        ({"limits": Limits(queue_packets=1)}, "limits"),
        ({"persistent_keepalive": 1.5}, "persistent_keepalive"),
        ({"mtu": 1}, "mtu"),
        ({"now": math.nan}, "time"),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        pristine(**options)


def test_defaults_that_are_spelled_out_are_taken() -> None:
    pristine(role=Role.EITHER, timers=Timers(), limits=Limits(), mtu=1280, persistent_keepalive=25)


def test_what_it_cannot_change_raises() -> None:
    alice = pristine()
    calls: list[Any] = [
        lambda: alice.set_persistent_keepalive(25, START),
        lambda: alice.set_preshared_key(None, START),
        lambda: alice.set_unix_time(UNIX_TIME, START),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match="upstream"):
            call()


def test_its_persistent_keepalive_makes_even_a_responder_initiate() -> None:
    """One of the differences that are the reason for the patched engine: there, a gateway keeps silent."""
    gateway = pristine(BOB, persistent_keepalive=25)
    assert len(only(gateway.handle_timeout(START + 25).datagrams)) == 148
    ours = tunnel(BOB, persistent_keepalive=25, role=Role.RESPONDER)
    assert nothing(ours.handle_timeout(START + 25))
