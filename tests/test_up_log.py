"""What `connlib up` says of events, drops and errors."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address
from typing import cast, get_args

import pytest
import trio
from trio.testing import MockClock

from connlib import (
    Denied,
    Direction,
    DropReason,
    EndCounters,
    GaveUp,
    Interface,
    InterfaceStats,
    NodeEvent,
    PeerRoamed,
    Protocol,
    Verdict,
    VerdictReason,
)
from connlib._describe import describe_event
from connlib.cli.up import LOOK_AFTER, _watch_network, network_errors, summarize


def denied(
    *,
    protocol: Protocol | int | None = Protocol.TCP,
    port: int | None = None,
    icmp_type: int | None = None,
    verdict: Verdict | None = None,
    count: int = 1,
) -> Denied:
    source, destination = IPv4Address("10.0.0.2"), IPv4Address("10.9.0.1")
    verdict = verdict or Verdict(False, VerdictReason.DEFAULT)
    return Denied(Direction.FROM_PEER, protocol, source, destination, port, icmp_type, verdict, count)


def test_every_event_has_words() -> None:
    samples: dict[type, NodeEvent] = {
        PeerRoamed: PeerRoamed(("192.0.2.7", 51820), ("2001:db8::7", 51820)),
        Denied: denied(port=1),
    }
    for kind in get_args(NodeEvent):
        fields = {name: DropReason.ROLE if name == "reason" else 1 for name in kind.__slots__}
        level, text = describe_event(samples.get(kind) or kind(**fields))
        assert level and text.isprintable()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (PeerRoamed(None, ("192.0.2.7", 51820)), "now at 192.0.2.7:51820"),
        (
            PeerRoamed(("192.0.2.7", 51820), ("2001:db8::7", 4500)),
            "now at [2001:db8::7]:4500, was at 192.0.2.7:51820",
        ),
        (
            denied(port=22, verdict=Verdict(False, VerdictReason.RULE, 2, "no shell")),
            "denied by rule 2 (no shell): from 10.0.0.2 to 10.9.0.1:22/tcp",
        ),
        (
            denied(protocol=Protocol.ICMP, icmp_type=8, count=1234),
            "denied by default: from 10.0.0.2 to 10.9.0.1/icmp:8; 1,234 packets since the last such line",
        ),
        (
            denied(protocol=47, verdict=Verdict(False, VerdictReason.OUTBOUND)),
            "denied by outbound: from 10.0.0.2 to 10.9.0.1/47",
        ),
        (
            denied(protocol=None, verdict=Verdict(False, VerdictReason.UNPARSEABLE)),
            "denied: not a packet that can be judged: from 10.0.0.2 to 10.9.0.1",
        ),
        (
            denied(verdict=Verdict(False, VerdictReason.FRAGMENT)),
            "denied: a fragment without the first one: from 10.0.0.2 to 10.9.0.1",
        ),
    ],
)
def test_where_a_peer_is_and_what_it_may_not_is_said_at_the_usual_level(
    event: NodeEvent, expected: str
) -> None:
    assert describe_event(event) == (logging.INFO, expected)


@pytest.mark.parametrize(
    ("dropped", "lost"), [(0, ""), (1, "; 1 packet dropped"), (1_234, "; 1,234 packets dropped")]
)
def test_what_a_failed_attempt_lost_is_counted_in_words(dropped: int, lost: str) -> None:
    said = f"gave up: the peer does not answer{lost}"
    assert describe_event(GaveUp(dropped)) == (logging.WARNING, said)


def test_only_what_went_wrong_counts_as_an_error_of_the_network() -> None:
    stats = InterfaceStats(
        peers=(),
        tun={"packets_read": 7, "short_writes": 1, "EIO": 0, "EINVAL": 2, "bad_length": 3, "bad_kind": 0},
        udp={
            "sent": 3,
            "receive_buffer_ipv4": 9,
            "send_EMSGSIZE": 4,
            "backlog_dropped": 5,
            "receive_OTHER": 6,
        },
        timer_wakes=8,
    )
    assert network_errors(stats) == {
        "tun short writes": 1,
        "tun EINVAL": 2,
        "tun bad length": 3,
        "udp send EMSGSIZE": 4,
        "udp backlog dropped": 5,
        "udp receive OTHER": 6,
    }


class NetworkOf:
    """Stands for an interface whose counters are `counters`."""

    name = "wg0"

    def __init__(self, **counters: int) -> None:
        self.counters = counters

    def end_counters(self) -> EndCounters:
        # It has no others, as it might have ten thousand peers.
        return EndCounters(tun={}, udp=dict(self.counters))


@pytest.mark.trio
async def test_each_kind_of_network_error_is_reported_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    interface = NetworkOf(send_EPERM=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_network, cast(Interface, interface))
        for counters in ({"send_EPERM": 2}, {"send_EPERM": 5000}, {"send_EPERM": 5000, "backlog_dropped": 1}):
            await trio.sleep(10 * LOOK_AFTER)
            interface.counters = counters
        await trio.sleep(10 * LOOK_AFTER)
        nursery.cancel_scope.cancel()
    assert caplog.messages == [
        "wg0: network errors: udp send EPERM 2 (each kind is reported once)",
        "wg0: network errors: udp backlog dropped 1 (each kind is reported once)",
    ]


def test_packets_that_go_nowhere_do_not_read_like_a_fault() -> None:
    stats = InterfaceStats(peers=(), drops={DropReason.NO_ROUTE: 5}, tun={}, udp={}, timer_wakes=0)
    assert list(summarize(stats, {})) == ["dropped: no route (multicast and the like) 5"]
