"""Cookies under load between the patched engine and upstream (paper, section 5.3; scenarios 29 and 31, mixed).

A world has no limiter to set, because the randomness of one is not the seed's. So the tunnels are called by hand here,
in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connlib import DropReason, RateLimiter, Tunn, upstream
from two_tunnels import ALICE, BOB, SOURCE, START, UNIX_TIME, ipv4, only, tunnel

OTHER_PORT = (SOURCE[0], SOURCE[1] + 1)
OTHER_ADDRESS = ("192.0.2.77", SOURCE[1])
INITIATION, RESPONSE, COOKIE_REPLY = 1, 2, 3
TICK = 0.25
Engine = Tunn | upstream.Tunn


def client() -> upstream.Tunn:
    return upstream.Tunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME)


def loaded(limit: int = 0) -> Tunn:
    """Bob, on the patched engine, who wants a cookie from everybody."""
    return tunnel(BOB, rate_limiter=RateLimiter(BOB.public_key(), limit, START))


def has_mac2(message: bytes) -> bool:
    return any(message[-16:])


def ticks(tunn: Engine, since: float, until: float) -> Iterator[tuple[float, bytes]]:
    """Poll as upstream's own device does, after `since` and up to `until`: what is sent, and when."""
    for number in range(1, round((until - since) / TICK) + 1):
        now = since + number * TICK
        for datagram in tunn.handle_timeout(now).datagrams:
            yield now, datagram


def test_upstream_completes_a_handshake_with_the_cookie_that_the_patched_engine_demands() -> None:
    alice, bob = client(), loaded()
    first = only(alice.encapsulate(ipv4(b"waits"), START).datagrams)
    refused = bob.decapsulate(first, START, SOURCE)
    assert refused.error is DropReason.COOKIE_REPLY_SENT
    cookie = only(refused.datagrams)
    assert (len(cookie), cookie[0]) == (64, COOKIE_REPLY)
    assert cookie[4:8] == first[4:8]
    assert bob.stats(START).sessions == 0
    assert alice.decapsulate(cookie, START) == ([], [], [], None)
    ((now, second),) = ticks(alice, START, START + 6)
    assert (now, second[0]) == (START + 5, INITIATION)
    assert not has_mac2(first) and has_mac2(second)
    answered = bob.decapsulate(second, now, SOURCE)
    assert answered.error is None
    response = only(answered.datagrams)
    assert response[0] == RESPONSE
    flushed = alice.decapsulate(response, now).datagrams
    received = [packet for datagram in flushed for packet in bob.decapsulate(datagram, now, SOURCE).packets]
    assert received == [ipv4(b"waits")]
    assert bob.stats(now).session_age is not None and alice.stats(now).session_age is not None


@pytest.mark.parametrize("elsewhere", [OTHER_PORT, OTHER_ADDRESS])
def test_upstream_s_cookie_is_worth_nothing_from_another_port_or_address(elsewhere: tuple[str, int]) -> None:
    alice, bob = client(), loaded()
    first = only(alice.initiate_handshake(START).datagrams)
    alice.decapsulate(only(bob.decapsulate(first, START, SOURCE).datagrams), START)
    ((now, second),) = ticks(alice, START, START + 6)
    refused = bob.decapsulate(second, now, elsewhere)
    assert refused.error is DropReason.COOKIE_REPLY_SENT
    assert only(refused.datagrams)[0] == COOKIE_REPLY
    # That is the cookie for where it is now.
    alice.decapsulate(only(refused.datagrams), now)
    ((now, third),) = ticks(alice, now + 1, now + 7)
    assert only(bob.decapsulate(third, now, elsewhere).datagrams)[0] == RESPONSE


@pytest.mark.parametrize(("age", "carries"), [(119.75, True), (120, False)])
def test_upstream_too_uses_a_cookie_for_120_seconds(age: float, carries: bool) -> None:
    alice, bob = client(), loaded()
    first = only(alice.initiate_handshake(START).datagrams)
    alice.decapsulate(only(bob.decapsulate(first, START, SOURCE).datagrams), START)
    ((now, second),) = ticks(alice, START, START + 6)
    response = only(bob.decapsulate(second, now, SOURCE).datagrams)
    confirmation = only(alice.decapsulate(response, now).datagrams)
    assert bob.decapsulate(confirmation, now, SOURCE).error is None
    now = START + age
    assert list(ticks(alice, START + 6, now)) == []
    again = only(alice.initiate_handshake(now).datagrams)
    assert has_mac2(again) is carries
    assert only(bob.decapsulate(again, now, SOURCE).datagrams)[0] == (RESPONSE if carries else COOKIE_REPLY)


def upstream_under_load() -> upstream.Tunn:
    """Bob, on upstream, after ten initiations: its own limiter has room for ten and then waits for a poll."""
    bob = upstream.Tunn(BOB, ALICE.public_key(), now=START, unix_time=UNIX_TIME)
    for number in range(10):
        earlier = Tunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME + number)
        initiation = only(earlier.initiate_handshake(START).datagrams)
        assert only(bob.decapsulate(initiation, START, SOURCE).datagrams)[0] == RESPONSE
    return bob


@pytest.mark.parametrize("source", [SOURCE, OTHER_PORT])
def test_the_patched_engine_completes_a_handshake_with_the_cookie_that_upstream_demands(
    source: tuple[str, int],
) -> None:
    # Upstream's cookies are for an address, whatever the port.
    bob = upstream_under_load()
    alice = Tunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME + 60)
    first = only(alice.encapsulate(ipv4(b"waits"), START).datagrams)
    cookie = only(bob.decapsulate(first, START, SOURCE).datagrams)
    assert (len(cookie), cookie[0]) == (64, COOKIE_REPLY)
    assert alice.decapsulate(cookie, START).error is None
    timeout = alice.next_timeout()
    assert timeout is not None and START + 5 <= timeout.at <= START + 5.333
    second = only(alice.handle_timeout(timeout.at).datagrams)
    assert not has_mac2(first) and has_mac2(second)
    response = only(bob.decapsulate(second, timeout.at, source).datagrams)
    assert response[0] == RESPONSE
    (data,) = alice.decapsulate(response, timeout.at).datagrams
    assert bob.decapsulate(data, timeout.at, source).packets == [ipv4(b"waits")]


def test_the_patched_engine_s_cookie_is_worth_nothing_to_upstream_from_another_address() -> None:
    bob = upstream_under_load()
    alice = Tunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME + 60)
    first = only(alice.initiate_handshake(START).datagrams)
    alice.decapsulate(only(bob.decapsulate(first, START, SOURCE).datagrams), START)
    timeout = alice.next_timeout()
    assert timeout is not None
    second = only(alice.handle_timeout(timeout.at).datagrams)
    assert only(bob.decapsulate(second, timeout.at, OTHER_ADDRESS).datagrams)[0] == COOKIE_REPLY


@pytest.mark.parametrize(("age", "carries"), [(119.9, True), (120, False)])
def test_the_patched_engine_uses_upstream_s_cookie_for_120_seconds(age: float, carries: bool) -> None:
    bob = upstream_under_load()
    alice = Tunn(ALICE, BOB.public_key(), now=START, unix_time=UNIX_TIME + 60)
    first = only(alice.initiate_handshake(START).datagrams)
    alice.decapsulate(only(bob.decapsulate(first, START, SOURCE).datagrams), START)
    timeout = alice.next_timeout()
    assert timeout is not None
    response = only(
        bob.decapsulate(only(alice.handle_timeout(timeout.at).datagrams), timeout.at, SOURCE).datagrams
    )
    alice.decapsulate(response, timeout.at)
    again = only(alice.initiate_handshake(START + age).datagrams)
    assert has_mac2(again) is carries
    answer = only(bob.decapsulate(again, START + age, SOURCE).datagrams)
    assert answer[0] == (RESPONSE if carries else COOKIE_REPLY)
