"""What a tunnel refuses: values out of range, of the wrong type, and buffers that do not fit."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from connlib import DropReason, Limits, PrivateKey, PublicKey, RateLimiter, Timers
from two_tunnels import ALICE, START, connected, ipv4, only, tunnel


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1e-9, -1.0, 1e10, 1e300, 10**400])
def test_what_is_no_time_is_a_value_error(seconds: Any) -> None:
    alice = tunnel()
    calls: list[Any] = [
        lambda: alice.encapsulate(ipv4(), seconds),
        lambda: alice.decapsulate(b"", seconds),
        lambda: alice.handle_timeout(seconds),
        lambda: alice.initiate_handshake(seconds),
        lambda: alice.stats(seconds),
        lambda: alice.set_persistent_keepalive(25, seconds),
        lambda: alice.set_preshared_key(None, seconds),
        lambda: alice.set_unix_time(seconds, START),
        lambda: alice.encapsulate_batch(b"", [], seconds),
        lambda: alice.decapsulate_batch(b"", [], seconds),
        lambda: tunnel(now=seconds),
        lambda: RateLimiter(ALICE.public_key(), 1, seconds),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="a time must be") as raised:
            call()
        assert "\n" not in str(raised.value)
    assert alice.next_timeout() is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"persistent_keepalive": 0.5}, "persistent_keepalive"),
        ({"persistent_keepalive": 65_536}, "persistent_keepalive"),
        ({"persistent_keepalive": -1}, "persistent_keepalive"),
        ({"persistent_keepalive": math.nan}, "persistent_keepalive"),
        ({"mtu": 575}, "mtu"),
        ({"mtu": 65_536}, "mtu"),
        ({"mtu": -1}, "mtu"),
        ({"mtu": 2**70}, "mtu"),
    ],
)
def test_a_value_out_of_range_is_a_value_error_that_names_it(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        tunnel(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (Timers, {"rekey_timeout": 0}, "timers.rekey_timeout"),
        (Timers, {"rekey_timeout": 0.099}, "timers.rekey_timeout"),
        (Timers, {"keepalive_timeout": -1}, "timers.keepalive_timeout"),
        (Timers, {"reject_after_time": math.inf}, "timers.reject_after_time"),
        (Timers, {"rekey_attempt_time": math.nan}, "timers.rekey_attempt_time"),
        # Sessions would be renewed with every packet, or never.
        (Timers, {"rekey_after_time": 180}, r"timers.rekey_after_time .* timers.reject_after_time"),
        (Timers, {"rekey_after_time": 1, "reject_after_time": 15.333}, "timers.keepalive_timeout"),
        (Limits, {"queue_packets": -1}, "limits.queue_packets"),
        (Limits, {"queue_packets": 10**6}, "limits.queue_packets"),
        (Limits, {"rekey_after_messages": 1}, "limits.rekey_after_messages"),
        (Limits, {"reject_after_messages": 2**64}, "limits.reject_after_messages"),
    ],
)
def test_timers_and_limits_that_cannot_work_are_value_errors(
    kind: type[Any], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as raised:
        kind(**options)
    assert "\n" not in str(raised.value)


def test_a_rate_limiter_of_another_key_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="rate_limiter was made for another public key"):
        tunnel(rate_limiter=RateLimiter(PrivateKey.generate().public_key(), 10, 0.0))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"role": "responder"}, "role"),
        ({"mtu": 1420.5}, "mtu"),
        ({"timers": (1, 2, 3)}, "timers"),
        ({"limits": {}}, "limits"),
        ({"preshared_key": ALICE}, "preshared_key"),
        ({"indices": 7}, "indices"),
        ({"rate_limiter": 7}, "rate_limiter"),
        ({"persistent_keepalive": "25"}, "persistent_keepalive"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_value_of_the_wrong_type_is_a_type_error_that_names_it(options: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError) as raised:
        tunnel(**options)
    # The name may stand in a note (PEP 678), which Python 3.10 does not have.
    text = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert named in text or sys.version_info < (3, 11)


def test_the_values_at_the_edges_are_taken() -> None:
    for options in (
        {"persistent_keepalive": 1},
        {"persistent_keepalive": 65_535},
        {"persistent_keepalive": 0},
        {"mtu": 576},
        {"mtu": 65_535},
        {"limits": Limits(queue_packets=0)},
        {"limits": Limits()},
        {"timers": Timers(rekey_timeout=0.1)},
    ):
        tunnel(**options)


# The points of order 1, 2, 4 and 8 of Curve25519 and its twist, and their non-canonical encodings.
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_public_key_of_low_order_is_refused(point: str) -> None:
    with pytest.raises(ValueError, match="low order"):
        tunnel(peer=PublicKey.from_bytes(bytes.fromhex(point)))


def test_packets_and_datagrams_longer_than_there_can_be_are_a_value_error() -> None:
    alice, _ = connected()
    for length in (65_536, 1_000_000):
        with pytest.raises(ValueError, match="at most 65535"):
            alice.decapsulate(bytes(length), START)
        with pytest.raises(ValueError, match="at most 65535"):
            alice.decapsulate_batch(bytes(length), [length], START)
    for length in (65_473, 65_535, 1_000_000):
        with pytest.raises(ValueError, match="fit into a datagram has at most 65472"):
            alice.encapsulate(bytes(length), START)
        with pytest.raises(ValueError, match="fit into a datagram has at most 65472"):
            alice.encapsulate_batch(bytes(length), [length], START)
    # UDP over IPv4 carries 65,507 bytes.
    assert len(only(alice.encapsulate(bytes(65_472), START).datagrams)) == 65_504


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [([1], ValueError), ([20, 1], ValueError), ([-1], ValueError), ([2**64 - 1, 21], ValueError), ([1.5], TypeError),
     (["20"], TypeError), (None, TypeError), (20, TypeError)],
)  # fmt: skip
def test_lengths_that_do_not_fit_are_refused_before_anything_happens(
    lengths: Any, problem: type[Exception]
) -> None:
    alice = tunnel()
    for call in (alice.encapsulate_batch, alice.decapsulate_batch):
        with pytest.raises(problem):
            call(ipv4(), lengths, START)
    assert alice.stats(START).queued == 0 and alice.next_timeout() is None


@pytest.mark.parametrize(
    "source",
    [("192.0.2.1", 1), ("2001:db8::1", 65_535), ("fe80::1", 51820, 0, 3), ("fe80::1%3", 51820),
     ("fe80::1%eth0", 51820, 0, 3), ("192.0.2.1", 0)],
)  # fmt: skip
def test_a_source_is_what_a_socket_says(source: Any) -> None:
    assert tunnel().decapsulate(b"", START, source).error is DropReason.INVALID_PACKET


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (("example.com", 1), ValueError),
        (("192.0.2.1", 65_536), ValueError),
        (("192.0.2.1", -1), ValueError),
        (("192.0.2.1", "1"), ValueError),
        (("192.0.2.1",), ValueError),
        (("192.0.2.1", 1, 0, 0), ValueError),
        (("192.0.2.1%1", 1), ValueError),
        (("192.0.2.256", 1), ValueError),
        (("fe80::1%eth0", 1), ValueError),
        ((1, 2), TypeError),
        ("192.0.2.1:1", TypeError),
        (["192.0.2.1", 1], TypeError),
    ],
)
def test_a_source_that_is_no_address_is_refused(source: Any, problem: type[Exception]) -> None:
    with pytest.raises(problem) as raised:
        tunnel().decapsulate(b"", START, source)
    assert "\n" not in str(raised.value)


def test_packets_that_are_no_buffer_are_a_type_error() -> None:
    alice = tunnel()
    for packet in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError, match="bytes-like"):
            alice.encapsulate(packet, START)  # type: ignore[arg-type]
