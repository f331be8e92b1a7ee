"""Cookies under load (paper, section 5.3; scenarios 29-31)."""

import pytest

from connlib import DropReason, RateLimiter
from connlib._native import LabTunn
from spec.pair import LARGER, SMALLER, UNIX_ORIGIN, kind_of

SOURCE = ("192.0.2.1", 40_000)


def sides(limit: int) -> tuple[LabTunn, LabTunn]:
    """A client and a gateway with a handshake limit of its own, at time 0."""
    limiter = RateLimiter(LARGER.public_key(), limit, 0.0)
    a = LabTunn(SMALLER, LARGER.public_key(), now=0.0, unix_time=UNIX_ORIGIN, seed=1)
    b = LabTunn(LARGER, SMALLER.public_key(), now=0.0, unix_time=UNIX_ORIGIN, seed=2, rate_limiter=limiter)
    return a, b


@pytest.mark.parametrize("source", [SOURCE, ("2001:db8::1", 40_000)])
def test_under_load_the_retry_carries_the_cookie_and_is_answered(source: tuple[str, int]) -> None:
    a, b = sides(0)
    (first,) = a.initiate_handshake(0.0).datagrams
    reply = b.decapsulate(first, 0.02, source)
    assert reply.error is DropReason.COOKIE_REPLY_SENT
    (cookie,) = reply.datagrams
    assert (kind_of(cookie), len(cookie)) == ("C", 64)
    assert a.decapsulate(cookie, 0.04) == ([], [], [], None)
    retry = a.next_timeout()
    assert retry is not None and 5 <= retry.at <= 5.333
    (second,) = a.handle_timeout(retry.at).datagrams
    (response,) = b.decapsulate(second, retry.at + 0.02, source).datagrams
    assert kind_of(response) == "R"


@pytest.mark.parametrize("other", [("192.0.2.1", 40_001), ("192.0.2.9", 40_000)])
def test_a_cookie_is_worth_nothing_from_another_port_or_address(other: tuple[str, int]) -> None:
    a, b = sides(0)
    (first,) = a.initiate_handshake(0.0).datagrams
    (cookie,) = b.decapsulate(first, 0.02, SOURCE).datagrams
    a.decapsulate(cookie, 0.04)
    (second,) = a.handle_timeout(5.4).datagrams
    (again,) = b.decapsulate(second, 5.42, other).datagrams
    assert kind_of(again) == "C"


def test_of_eleven_initiations_in_a_second_ten_are_answered_and_the_next_second_starts_anew() -> None:
    _, b = sides(10)
    kinds = []
    for k in range(11):
        client = LabTunn(SMALLER, LARGER.public_key(), now=0.0, unix_time=UNIX_ORIGIN + 1 + k, seed=10 + k)
        (initiation,) = client.initiate_handshake(0.0).datagrams
        (answer,) = b.decapsulate(initiation, k * 0.05, SOURCE).datagrams
        kinds.append(kind_of(answer))
    assert kinds == ["R"] * 10 + ["C"]
    client = LabTunn(SMALLER, LARGER.public_key(), now=0.0, unix_time=UNIX_ORIGIN + 99, seed=99)
    (answer,) = b.decapsulate(client.initiate_handshake(0.0).datagrams[0], 1.5, SOURCE).datagrams
    assert kind_of(answer) == "R"


def test_without_a_source_address_there_is_no_cookie_and_no_answer() -> None:
    a, b = sides(0)
    (first,) = a.initiate_handshake(0.0).datagrams
    assert b.decapsulate(first, 0.02) == ([], [], [], DropReason.UNDER_LOAD)


@pytest.mark.parametrize(("age", "carries"), [(119.9, True), (120.0, False)])
def test_a_cookie_is_used_for_120_seconds(age: float, carries: bool) -> None:
    a, b = sides(0)
    (first,) = a.initiate_handshake(0.0).datagrams
    (cookie,) = b.decapsulate(first, 0.0, SOURCE).datagrams
    a.decapsulate(cookie, 0.0)
    a.handle_timeout(90.0)
    (later,) = a.initiate_handshake(age).datagrams
    assert (later[-16:] != bytes(16)) is carries
