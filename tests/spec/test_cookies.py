"""Cookies under load (paper, section 5.3; scenarios 29-31)."""

from __future__ import annotations

from typing import Any

import pytest

from connlib import DropReason, NodeConfig, PeerConfig, PrivateKey, RateLimiter, Role
from connlib._native import LabNode, LabTunn
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


class Limited:
    """A node that asks for cookies above `limit` handshakes a second, and knows SMALLER's key only."""

    def __init__(self, limit: int) -> None:
        peer = PeerConfig(public_key=SMALLER.public_key())
        config = NodeConfig(private_key=LARGER, peers=(peer,), handshake_limit=limit)
        self.node = LabNode(config, now=0.0, unix_time=UNIX_ORIGIN, seed=1)

    def hear(self, datagram: bytes, source: tuple[str, int], now: float) -> list[bytes]:
        """Receive a datagram; what is sent back to its source."""
        self.node.handle_datagrams(datagram, [len(datagram)], [source], now)
        transmits = self.node.drain().transmits
        assert {transmit.destination for transmit in transmits} <= {source}
        return [transmit.datagram for transmit in transmits]

    def drops(self, reason: DropReason) -> int:
        return self.node.stats(0.0).drops.get(reason, 0)

    def with_cookie(self, source: tuple[str, int], seed: int = 0) -> bytes:
        """The second initiation of somebody whose first one, at 0, was answered with a cookie."""
        stranger = LabTunn(STRANGER, LARGER.public_key(), now=0.0, unix_time=UNIX_ORIGIN, seed=seed)
        (first,) = stranger.initiate_handshake(0.0).datagrams
        (cookie,) = self.hear(first, source, 0.0)
        assert cookie[0] == 3 and stranger.decapsulate(cookie, 0.0).error is None
        (second,) = stranger.handle_timeout(6.0).datagrams
        assert mac2(second) is not None
        return second


STRANGER = PrivateKey.from_bytes(bytes([7] * 32))
HERE = ("192.0.2.7", 7777)


def test_a_source_with_a_cookie_has_five_messages_at_once_and_twenty_a_second() -> None:
    """Fault 3."""
    limited = Limited(0)
    initiation = limited.with_cookie(HERE)
    for _ in range(100):
        assert limited.hear(initiation, HERE, 10.0) == []
    # What was processed came from nobody that is known.
    assert limited.drops(DropReason.UNKNOWN_PEER) == 5
    assert limited.drops(DropReason.UNDER_LOAD) == 95
    for millisecond in range(1, 1001):
        limited.hear(initiation, HERE, 10.0 + millisecond / 1000)
    assert limited.drops(DropReason.UNKNOWN_PEER) == 25


def test_what_exceeds_the_share_of_a_source_makes_nobody_else_ask_for_a_cookie() -> None:
    """Fault 3."""
    limited = Limited(10)
    for number in range(10):
        # As many as are taken without a cookie, so that the next one gets one.
        limited.hear(initiation_of(STRANGER, seed=number), ("192.0.2.8", 1000 + number), 0.0)
    initiation = limited.with_cookie(HERE)
    for _ in range(1000):
        limited.hear(initiation, HERE, 10.0)
    (answer,) = limited.hear(initiation_of(SMALLER), ("192.0.2.1", 40_000), 10.0)
    assert answer[0] == 2, "a response"
    # Without a cookie they would have been load.
    for number in range(10):
        limited.hear(initiation_of(STRANGER, seed=number), ("192.0.2.8", 1000 + number), 20.0)
    (answer,) = limited.hear(initiation_of(SMALLER, at=20.0), ("192.0.2.1", 40_000), 20.0)
    assert answer[0] == 3, "a cookie"


@pytest.mark.parametrize(
    ("address", "processed"), [("2001:db8::{:x}", 5), ("2001:db8:0:{:x}::1", 40), ("192.0.2.{}", 40)]
)
def test_the_addresses_of_a_64_share_what_an_ipv4_address_has(address: str, processed: int) -> None:
    """Fault 4."""
    limited = Limited(0)
    sources = [(address.format(number), 4000) for number in range(1, 41)]
    initiations = [limited.with_cookie(source, seed) for seed, source in enumerate(sources)]
    for initiation, source in zip(initiations, sources, strict=True):
        limited.hear(initiation, source, 10.0)
    assert limited.drops(DropReason.UNKNOWN_PEER) == processed


def test_a_share_is_spent_with_a_cookie_only() -> None:
    """Nobody can spend the share of a source whose cookies go to somebody else."""
    limited = Limited(0)
    initiation = limited.with_cookie(HERE)
    wrong = initiation[:-1] + bytes([initiation[-1] ^ 1])
    for _ in range(100):
        (answer,) = limited.hear(wrong, HERE, 10.0)
        assert answer[0] == 3, "a cookie"
    limited.hear(initiation, HERE, 10.0)
    assert limited.drops(DropReason.UNKNOWN_PEER) == 1


def test_however_many_ask_a_thousand_cookies_leave_at_once_and_twenty_thousand_in_a_second() -> None:
    """Fault 2."""
    limited = Limited(0)
    initiation = initiation_of(STRANGER)
    source = ("198.51.100.1", 1)

    def flood(size: int, now: float) -> int:
        """How many of a batch are answered."""
        limited.node.handle_datagrams(initiation * size, [148] * size, [source] * size, now)
        return len(limited.node.drain().transmits)

    assert flood(3_000, 1.0) == 1_000
    assert limited.drops(DropReason.UNDER_LOAD) == 2_000
    # 40 a millisecond: half of them.
    assert sum(flood(40, 1.0 + millisecond / 1_000) for millisecond in range(1, 1_001)) == 20_000
    assert limited.drops(DropReason.COOKIE_REPLY_SENT) == 21_000
    assert limited.drops(DropReason.UNDER_LOAD) == 22_000
    # What is over is over.
    assert flood(3_000, 3.0) == 1_000


def test_in_a_flood_that_has_the_cookies_used_up_an_initiator_gets_one_by_asking_again() -> None:
    """Fault 2: of 40,000 messages a second half get a cookie, and so does half of what is asked."""
    limited = Limited(0)
    flood = initiation_of(STRANGER)
    initiator = LabTunn(SMALLER, LARGER.public_key(), now=0.0, unix_time=UNIX_ORIGIN, seed=1)
    asked = [(0.0, initiator.initiate_handshake(0.0).datagrams[0])]
    while True:
        at, initiation = asked[-1]
        # The flood of the last tenth of a second is all that matters.
        for before in range(100, 0, -1):
            limited.node.handle_datagrams(flood * 40, [148] * 40, [HERE] * 40, max(0.0, at - before / 1000))
            limited.node.drain()
        answers = limited.hear(initiation, HERE, at)
        if mac2(initiation) is not None:
            break
        for answer in answers:
            assert initiator.decapsulate(answer, at).error is None
        timeout = initiator.next_timeout()
        assert timeout is not None
        asked.append((timeout.at, initiator.handle_timeout(timeout.at).datagrams[0]))
    assert [answer[0] for answer in answers] == [2], "a response"
    assert len(asked) <= 6
    assert limited.drops(DropReason.UNDER_LOAD) > 0


def initiation_of(key: PrivateKey, *, at: float = 0.0, seed: int = 0) -> bytes:
    tunn = LabTunn(key, LARGER.public_key(), now=at, unix_time=UNIX_ORIGIN + at, seed=seed)
    (initiation,) = tunn.initiate_handshake(at).datagrams
    return initiation
