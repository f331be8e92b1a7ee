"""Cookies under load (paper, section 5.3; scenarios 29-31)."""

from __future__ import annotations

from typing import Any

import pytest

from connlib import DropReason, RateLimiter, Role
from connlib._native import LabTunn
from spec.node_end import NodeEnd
from spec.pair import (
    BOTH_ROLES,
    LARGER,
    LATENCY,
    ORIGIN,
    SMALLER,
    UNIX_ORIGIN,
    Pair,
    mac2,
    receiver_index,
    sender_index,
)

L = LATENCY
BEGIN = ORIGIN - 2 * L
"""When the tunnels of a pair are made."""


def loaded(roles: tuple[Role, Role], limit: int) -> Pair:
    """Two nodes of which B has a handshake limit. (A `RateLimiter` of its own would not follow the seed.)"""
    endpoint = ("192.0.2.2", 51820)
    return Pair(roles, engine=NodeEnd, for_a={"endpoint": endpoint}, for_b={"handshake_limit": limit})


@pytest.mark.scenario(29)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("address", [("192.0.2.1", 40_000), ("2001:db8::1", 40_000)])
def test_under_load_the_retry_carries_the_cookie_and_is_answered(
    roles: tuple[Role, Role], address: tuple[str, int]
) -> None:
    pair = loaded(roles, 0)
    pair.a.address = address
    pair.initiate(0, pair.a)
    pair.run(L + 0.001)
    assert pair.b.errors == [(L, DropReason.COOKIE_REPLY_SENT)]
    assert pair.b.tunn.stats(pair.clock()).sessions == 0
    pair.run(20)
    first, second = (sent for sent in pair.a.sent if sent.kind == "I")
    assert first.at == 0 and 5 <= second.at <= 5.333
    assert mac2(first.datagram) is None and mac2(second.datagram) is not None
    cookie, response = pair.b.sent
    assert (cookie.at, cookie.kind, len(cookie.datagram)) == (L, "C", 64)
    assert receiver_index(cookie.datagram) == sender_index(first.datagram)
    assert (response.at, response.kind) == (round(second.at + L, 6), "R")
    assert pair.a.kinds() == "IIK"
    assert pair.a.errors == []


@pytest.mark.scenario(29)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize("other", [("192.0.2.1", 40_001), ("192.0.2.9", 40_000)])
def test_a_cookie_is_worth_nothing_from_another_port_or_address(
    roles: tuple[Role, Role], other: tuple[str, int]
) -> None:
    pair = loaded(roles, 0)
    pair.a.address = ("192.0.2.1", 40_000)
    pair.initiate(0, pair.a)
    pair.run(1)
    pair.a.address = other
    pair.run(20)
    assert (pair.a.kinds(), pair.b.kinds()) == ("IIIK", "CCR")
    assert [mac2(sent.datagram) is not None for sent in pair.a.sent[:3]] == [False, True, True]


@pytest.mark.scenario(30)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_of_eleven_initiations_in_a_second_ten_are_answered_and_a_second_later_one_more(
    roles: tuple[Role, Role],
) -> None:
    pair = loaded(roles, 10)
    for k in range(11):
        pair.initiate(k * 0.09, pair.a)
    # The same machine, started anew: the first A waits with its retry.
    restarted = LabTunn(SMALLER, LARGER.public_key(), now=BEGIN, unix_time=UNIX_ORIGIN + 60, seed=30)
    (initiation,) = restarted.initiate_handshake(BEGIN).datagrams
    pair.deliver(0.9 + L + 1, pair.b, initiation)
    pair.run(2)
    assert [sent.kind for sent in pair.b.sent] == ["R"] * 10 + ["C", "R"]
    assert pair.b.times("CR")[-2:] == [0.9 + L, 1.9 + L]
    assert pair.b.wakes == []
    assert pair.a.times("I") == [round(k * 0.09, 6) for k in range(11)]


@pytest.mark.scenario(30)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_without_a_source_address_there_is_no_cookie_and_no_answer(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles, for_b={"rate_limiter": RateLimiter(LARGER.public_key(), 0, BEGIN)})
    pair.a.address = None
    pair.initiate(0, pair.a)
    pair.run(11)
    assert pair.b.kinds() == ""
    assert [reason for _, reason in pair.b.errors] == [DropReason.UNDER_LOAD] * len(pair.a.times("I"))
    assert len(pair.a.times("I")) >= 2
    assert pair.b.tunn.stats(pair.clock()).sessions == 0


@pytest.mark.scenario(31)
@pytest.mark.parametrize("roles", BOTH_ROLES)
@pytest.mark.parametrize(("age", "carries"), [(119.9, True), (120, False)])
def test_a_cookie_is_used_for_120_seconds(roles: tuple[Role, Role], age: float, carries: bool) -> None:
    pair = loaded(roles, 0)
    pair.initiate(-2 * L, pair.a)
    pair.run(119)
    # The cookie came at 0, and the first retry used it.
    assert (pair.a.kinds(), pair.b.kinds()) == ("IIK", "CR")
    pair.initiate(age, pair.a)
    pair.run(age + 3 * L)
    (again,) = (sent for sent in pair.a.sent if sent.kind == "I" and sent.at > 100)
    assert again.at == age
    assert (mac2(again.datagram) is not None) is carries
    assert pair.b.kinds()[2:] == ("R" if carries else "C")


def test_a_cookie_that_is_still_good_makes_the_next_handshake_a_plain_one() -> None:
    pair = loaded((Role.EITHER, Role.EITHER), 0)
    pair.initiate(0, pair.a)
    pair.initiate(36, pair.a)
    pair.run(37)
    assert (pair.a.kinds(), pair.b.kinds()) == ("IIKIK", "CRR")


def test_a_secret_is_drawn_anew_after_120_seconds() -> None:
    pair = loaded((Role.EITHER, Role.EITHER), 0)
    # Taken at 60 and still young at 125, when B has drawn another secret.
    pair.initiate(60, pair.a)
    pair.initiate(125, pair.a)
    pair.run(125.1)
    assert (pair.a.kinds(), pair.b.kinds()) == ("IIKI", "CRC")
    assert mac2(pair.a.sent[-1].datagram) is not None


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_response_is_limited_like_an_initiation(roles: tuple[Role, Role]) -> None:
    pair = Pair(roles, for_a={"rate_limiter": RateLimiter(SMALLER.public_key(), 0, BEGIN)})
    pair.initiate(0, pair.a)
    pair.run(11)
    # B's next response carries the cookie that A sent it for the first one.
    assert pair.a.kinds() == "ICIK"
    assert pair.b.kinds() == "RR"
    assert [mac2(sent.datagram) is not None for sent in pair.b.sent] == [False, True]


def test_a_cookie_reply_that_nobody_asked_for_is_unexpected_or_for_another_index() -> None:
    def answered(pair: Pair) -> Any:
        pair.initiate(0, pair.a)
        pair.run(1)
        return pair.b.sent[0].datagram

    cookie = answered(loaded((Role.EITHER, Role.EITHER), 0))
    fresh = Pair(seed=7)
    assert fresh.a.tunn.decapsulate(cookie, fresh.clock()).error is DropReason.UNEXPECTED
    fresh.a.tunn.initiate_handshake(fresh.clock())
    assert fresh.a.tunn.decapsulate(cookie, fresh.clock()).error is DropReason.WRONG_INDEX
