"""What `make gigabyte` does with a gigabyte, with less; and that it would notice."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from _pytest.mark import ParameterSet

import sections
from gigabyte import cells, datagrams, document, streams
from gigabyte.path import Setting
from gigabyte.progress import Progress
from interop.machine import missing_rights

MEGABYTE = 1_000_000


def _tested(setting: Setting) -> ParameterSet:
    return pytest.param(setting, marks=[pytest.mark.offloads] if setting.offload else [], id=str(setting))


@pytest.mark.parametrize("setting", [_tested(setting) for setting in cells.SETTINGS])
def test_what_goes_through_arrives_as_it_was(setting: Setting) -> None:
    if reason := missing_rights():
        pytest.skip(reason)
    found = list(cells.run(setting, tcp=32 * MEGABYTE, udp=8 * MEGABYTE))
    assert {each.kind: each.wrong for each in found} == dict.fromkeys(cells.KINDS, ())


def test_every_combination_is_there() -> None:
    on = {(each.mtu, each.loss) for each in cells.SETTINGS if each.offload}
    assert on == {(mtu, loss) for mtu in (1280, 1420, 8920, None) for loss in (0, 1)}
    assert any(not each.offload and each.mtu is None for each in cells.SETTINGS)


Change = Callable[[int, bytes], list[bytes]]


def through(change: Change, size: int = 60_000) -> tuple[datagrams.Sent, datagrams.Received]:
    """Send datagrams over the loopback, through somebody who does to each what `change` says."""
    receiver, path, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
    # So few that the loopback's queues hold them.
    progress, window, over = Progress(), datagrams.Window(64), threading.Event()
    progress.stop()

    def forward() -> None:
        count = 0
        while not over.is_set():
            try:
                datagram = path.recv(65_536)
            except TimeoutError:
                continue
            for one in change(count, datagram):
                path.sendto(one, receiver_at)
            count += 1

    for each in (receiver, path):
        each.bind(("127.0.0.1", 0))
    receiver_at = receiver.getsockname()
    path.settimeout(0.05)
    with path, ThreadPoolExecutor(3) as pool:
        pool.submit(forward)
        came = pool.submit(datagrams.receive, receiver, window, progress)
        left = pool.submit(datagrams.send, sender, path.getsockname(), [300], size, window, progress)
        try:
            return left.result(60), came.result(60)
        finally:
            over.set()


def flipped(datagram: bytes, at: int) -> bytes:
    return datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda count, datagram: [datagram], {}),
        (lambda count, datagram: [] if count == 5 else [datagram], {"lost": 1}),
        (lambda count, datagram: [datagram] * (1 + (count == 5)), {"duplicated": 1}),
        (
            lambda count, datagram: [flipped(datagram, -1) if count == 5 else datagram],
            {"lost": 1, "corrupted": 1},
        ),
        (
            lambda count, datagram: [flipped(datagram, 6) if count == 5 else datagram],
            {"lost": 1, "corrupted": 1},
        ),
        (
            lambda count, datagram: [datagram[:-1] if count == 5 else datagram],
            {"lost": 1, "corrupted": 1},
        ),
        (lambda count, datagram: [b"short", datagram] if count == 5 else [datagram], {"corrupted": 1}),
        (
            lambda count, datagram: (
                [(1 << 40).to_bytes(8, "big") + datagrams.checksum(1 << 40, b"x") + b"x", datagram]
                if count == 5
                else [datagram]
            ),
            {"unknown": 1},
        ),
    ],
)
def test_what_happens_to_a_datagram_is_counted(change: Change, expected: dict[str, int]) -> None:
    sent, received = through(change)
    counted = {
        "lost": sent.datagrams - received.datagrams,
        "duplicated": received.duplicated,
        "corrupted": received.corrupted,
        "unknown": received.unknown,
        "reordered": received.reordered,
    }
    assert {what: count for what, count in counted.items() if count} == expected
    assert sent.size >= 60_000 and (sent.size == received.size) == ("lost" not in expected)


def test_the_order_of_datagrams_is_looked_at() -> None:
    held: list[bytes] = []

    def swap(count: int, datagram: bytes) -> list[bytes]:
        if count == 5:
            held.append(datagram)
            return []
        return [datagram, held.pop()] if held else [datagram]

    sent, received = through(swap)
    assert (received.reordered, received.datagrams) == (1, sent.datagrams)


def test_nobody_waits_for_ever_for_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "_GONE", 0.01)
    window = datagrams.Window()
    first = [window.admit([1000] * 64) for _ in range(5)]
    assert first == [0, 64, 128, 192, 256]
    window.hear(10)
    assert window.admit([1000]) == 320


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_a_stream_is_compared_to_its_end(size: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    progress = Progress()
    progress.stop()
    place = listener.getsockname()
    with ThreadPoolExecutor(2) as pool:
        came = pool.submit(streams.receive, listener, progress)
        left = pool.submit(streams.send, socket.socket(), place, size, progress)
        sent, received = left.result(60), came.result(60)
    assert sent == received and sent.size == size
    assert sent.digest != streams.Passed(size, "").digest


def test_lengths_are_those_that_one_call_can_send() -> None:
    numbers = random.Random(1)
    for _ in range(2000):
        lengths = datagrams._lengths(numbers, 8892)
        assert len(lengths) <= 64 and sum(lengths) <= 65_507
        assert set(lengths[:-1]) <= {lengths[0]} and 16 <= lengths[-1] <= lengths[0] <= 8892


FOUND = cells.Found(
    kind="UDP, IPv4",
    setting=Setting(1280, 1),
    size=1_000_000_000,
    seconds=20.0,
    arrived=990_000_000,
    sent_datagrams=1_000_000,
    lost_datagrams=10_000,
    dropped=10_002,
    read=7,
    written=8,
    changes=0,
    wrong=(),
)


def test_what_is_wrong_is_in_the_document() -> None:
    wrong = replace(FOUND, wrong=("3 datagrams twice",))
    text = document.render({FOUND.setting: [wrong, replace(FOUND, kind="TCP, IPv4", sent_datagrams=0)]})
    row = "| 1,280 | 1 % | on | 1.00 GB, 10,000 of 1,000,000 lost, **wrong** | 1.00 GB, 10,002 dropped |"
    assert row in text.splitlines()
    assert "- 1280-1%, UDP, IPv4: 3 datagrams twice" in text.splitlines()
    assert "What did not hold" not in document.render({FOUND.setting: [FOUND]})


def test_only_what_is_between_the_marks_is_written() -> None:
    old = "# T\n\n<!-- make x: begin -->\nold\n<!-- make x: end -->\n\nThe end.\n"
    new = sections.filled(old, "make x", "new\n")
    assert new == "# T\n\n<!-- make x: begin -->\n\nnew\n\n<!-- make x: end -->\n\nThe end.\n"
    assert sections.filled(new, "make x", "new\n") == new
    with pytest.raises(ValueError, match="no place"):
        sections.filled(old, "make y", "new\n")


@pytest.mark.parametrize(
    ("lost", "dropped", "others", "fits"),
    [(5, 5, 0, True), (5, 6, 1, True), (5, 6, 0, False), (6, 5, 9, False), (0, 0, 0, False)],
)
def test_what_was_lost_must_have_been_dropped(lost: int, dropped: int, others: int, fits: bool) -> None:
    passed = cells._Passed(1, 1, (), datagrams=100, lost=lost)
    assert (not list(cells._accounted(passed, Setting(1280, 1), dropped, others))) is fits


def test_nothing_may_be_dropped_where_nothing_is_lost() -> None:
    passed = cells._Passed(1, 1, (), datagrams=100, lost=1)
    assert list(cells._accounted(passed, Setting(1280), 0, 0))
