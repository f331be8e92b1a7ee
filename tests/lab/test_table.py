"""`format_table`: a trace as text."""

from __future__ import annotations

import pytest

from connlib import Dropped, DropReason, Event, GaveUp, Limits, PeerSilent
from connlib._types import Poisoned
from connlib.lab import Trace, World
from connlib.lab._records import Arrived, Delivered, Happened, Record, Sent
from connlib.lab._table import format_table
from lab.traces import crossing, idle_then_send, long_sleep, outage, pair, run


def rows(trace: Trace, **options: object) -> list[str]:
    """The lines without the header, blanks squeezed."""
    table = format_table(trace.hosts, trace.records, **options)  # type: ignore[arg-type]
    return [" ".join(line.split()) for line in table.splitlines()[1:]]


def test_a_trace_reads_as_what_happened() -> None:
    assert rows(idle_then_send(), until=20) == [
        "0.000000 A packet 0 for B, 64 B",
        "0.000000 A -> B I #1 148 B at 0.020000",
        "0.000000 A handshake started with B",
        "0.020000 B -> A R #1 92 B at 0.040000",
        "0.040000 A -> B D #1 96 B at 0.060000, packet 0",
        "0.040000 A session established, as initiator with B",
        "0.060000 B session established, as responder with A",
        "10.060000 B wake: passive keepalive for A",
        "10.060000 B -> A K #1 32 B at 10.080000",
    ]


def test_a_session_has_one_number_in_both_directions_and_the_next_one_another() -> None:
    assert rows(idle_then_send(), kinds="IRDK", since=100) == [
        "185.000000 A -> B I #2 148 B at 185.020000",
        "185.020000 B -> A R #2 92 B at 185.040000",
        "185.040000 A -> B D #2 96 B at 185.060000, packet 1",
        "195.060000 B -> A K #2 32 B at 195.080000",
    ]


def test_what_a_host_drops_is_told_with_the_reason() -> None:
    assert "0.000000 B -> A I #2 148 B at 0.020000, dropped: crossed initiation" in rows(crossing())


def test_what_is_lost_or_copied_is_told() -> None:
    told = rows(outage())
    assert "2.500000 A -x B D #1 96 B lost: cut" in told
    assert "1.500000 A -> B D #1 96 B at 1.520000, packet 1" in told
    assert "1.500000 A -> B D #1 96 B copy, at 1.520000, dropped: duplicate counter" in told
    assert "2.200000 A-B cut" in told


def test_a_datagram_that_finds_a_machine_asleep_is_lost_when_it_comes_there() -> None:
    world, a, b, _ = pair()
    a.send(at=0.0)
    b.sleep(5, at=0.01)
    assert "0.000000 A -x B I #1 148 B lost: asleep at 0.020000" in rows(run(world, 1))


def test_what_is_under_way_at_the_end_is_said_to_be() -> None:
    world, a, _, _ = pair()
    a.send(at=0.0)
    assert "0.000000 A -? B I #1 148 B under way" in rows(run(world, 0.01))


def test_a_packet_that_its_tunnel_drops_is_told_with_the_reason() -> None:
    world = World()
    a, b = world.host("A", limits=Limits(queue_packets=0)), world.host("B")
    world.tunnel(a, b)
    a.send(at=0.0)
    assert "0.000000 A packet 0 for B dropped: queue full" in rows(run(world, 1))


def test_since_and_until_are_both_included() -> None:
    assert rows(idle_then_send(), since=0.02, until=0.04, kinds="IRD") == [
        "0.020000 B -> A R #1 92 B at 0.040000",
        "0.040000 A -> B D #1 96 B at 0.060000, packet 0",
    ]


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("offered", "1.000000 A packet 0 for B, 64 B"),
        ("delivered", "1.020000 B packet 0 of A, 64 B"),
        ("event", "0.000000 A handshake started with B"),
        ("wake", "0.000000 A wake: persistent keepalive for B"),
        ("change", "60.000000 A sleeps for 10800 s"),
    ],
)
def test_kinds_choose_the_lines(kind: str, first: str) -> None:
    told = rows(long_sleep(), kinds=[kind])
    assert told[0] == first
    assert len(told) < len(rows(long_sleep()))


def test_a_packet_is_told_by_itself_if_its_datagram_is_not_shown() -> None:
    assert rows(idle_then_send(), since=0.05, until=1, kinds=["D", "delivered"]) == [
        "0.060000 B packet 0 of A, 64 B"
    ]


def test_a_packet_is_told_with_the_copy_that_it_came_out_of() -> None:
    source = ("192.0.2.1", 1)
    records: list[Record] = [
        Sent(0, "A", "B", 1, "D", 1, 7, source, source, bytes(96)),
        Arrived(1000, "B", 1, source, DropReason.INVALID_AEAD_TAG),
        Arrived(2000, "B", 1, source, None),
        Delivered(2000, "B", "A", 7, 64),
    ]
    assert [" ".join(line.split()) for line in format_table("AB", records).splitlines()[1:]] == [
        "0.000000 A -> B D 96 B at 0.000001, dropped: invalid aead tag",
        "0.000000 A -> B D 96 B copy, at 0.000002, packet 7",
    ]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines of kind X; kinds: I, R, C, K, D"):
        format_table(("A", "B"), (), kinds="DX")


def test_columns_are_aligned_and_lines_short() -> None:
    trace = outage()
    table = format_table(trace.hosts, trace.records)
    header, *lines = table.splitlines()
    assert table.endswith("\n") and not any(line != line.rstrip() for line in lines)
    for name in ("host", "what"):
        column = header.index(name)
        assert {line[column - 2 : column] for line in lines} == {"  "}
        assert all(line[column] != " " for line in lines)
    assert {line.index(".") for line in lines} == {header.index("e") - 6}
    assert max(map(len, lines)) <= 100


def test_times_are_exact() -> None:
    source = ("192.0.2.1", 1)
    sent = Sent(10**18 + 1_500, "A", "B", 1, "I", 1, None, source, source, bytes(148))
    assert format_table(["A", "B"], [sent]).splitlines()[1].split()[0] == "1000000000.000002"


def test_an_empty_trace_is_a_header() -> None:
    assert format_table(("A", "B"), ()).split() == ["time", "host", "what", "outcome"]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (GaveUp(2), "gave up, 2 packets dropped"),
        (GaveUp(0), "gave up"),
        (Dropped(DropReason.QUEUE_TIMEOUT, 1), "1 packet dropped: queue timeout"),
        (PeerSilent(), "peer silent"),
        (Poisoned(), "poisoned by an internal error"),
    ],
)
def test_events_are_told_in_words(event: Event, words: str) -> None:
    table = format_table("AB", [Happened(0, "A", "B", event)])
    assert " ".join(table.splitlines()[1].split()) == f"0.000000 A {words} with B"
