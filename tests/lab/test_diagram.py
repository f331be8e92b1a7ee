"""`draw_svg` and `draw_png`: a trace as a sequence diagram."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest

from connlib import ConnlibError, DropReason
from connlib.lab import Trace, _png
from connlib.lab._diagram import MOST_INSTANTS, draw_png, draw_svg
from connlib.lab._flights import KINDS
from connlib.lab._png import PictureError
from connlib.lab._records import Arrived, Changed, Discarded, LossReason, Lost, Record, Sent
from connlib.lab._svg import Box, text_width
from lab.traces import SECOND, chaos, crossing, idle_then_send, long_sleep, outage, pair, run

SVG = "{http://www.w3.org/2000/svg}"
ALARM = "#c81e1e"


def draw(trace: Trace, **options: float) -> ElementTree.Element:
    return ElementTree.fromstring(draw_svg(trace.hosts, trace.records, title="A title", **options))


def texts(picture: ElementTree.Element) -> dict[str, list[tuple[float, float]]]:
    """Where each text is."""
    found: dict[str, list[tuple[float, float]]] = {}
    for text in picture.iter(f"{SVG}text"):
        found.setdefault(text.text or "", []).append((float(text.attrib["x"]), float(text.attrib["y"])))
    return found


def text_boxes(picture: ElementTree.Element) -> list[tuple[str, Box]]:
    boxes = []
    for text in picture.iter(f"{SVG}text"):
        size, x, y = (float(text.attrib[name]) for name in ("font-size", "x", "y"))
        content = text.text or ""
        width = text_width(content, size, bold=text.get("font-weight") == "bold")
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "start")]
        boxes.append((content, Box(left + 0.5, y - 0.75 * size, left + width - 0.5, y + 0.2 * size)))
    return boxes


def lines(picture: ElementTree.Element, color: str) -> list[list[tuple[float, float]]]:
    """The points of the strokes of a colour."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.attrib["d"])]
        for path in picture.iter(f"{SVG}path")
        if path.get("stroke") == color
    ]


def rectangles(picture: ElementTree.Element, fill: str) -> list[Box]:
    found = []
    for rect in picture.iter(f"{SVG}rect"):
        if rect.get("fill") == fill:
            x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
            found.append(Box(x, y, x + width, y + height))
    return found


CASES: dict[str, Callable[[], Trace]] = {
    "idle": idle_then_send,
    "crossing": crossing,
    "sleep": long_sleep,
    "outage": outage,
    **{f"chaos {seed}": partial(chaos, seed) for seed in range(25)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_text_lies_on_another_or_outside(case: Callable[[], Trace]) -> None:
    picture = draw(case())
    boxes = text_boxes(picture)
    assert len(boxes) > 20
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} and {other!r}"
    page = Box(0, 0, float(picture.attrib["width"]), float(picture.attrib["height"]))
    for text, box in boxes:
        assert page.left <= box.left and box.right <= page.right, text
        assert page.top <= box.top and box.bottom <= page.bottom, text


def test_equal_traces_make_equal_documents() -> None:
    first, second = (draw_svg(r.hosts, r.records) for r in (chaos(3), chaos(3)))
    assert first == second
    assert first != draw_svg(("A", "B"), chaos(4).records)


def test_a_datagram_is_an_arrow_that_slants_by_its_latency() -> None:
    told = texts(draw(idle_then_send()))
    ((_, zero),), ((_, latency),) = told["0.000"], told["0.020"]
    x_of = {host: told[host][0][0] for host in "AB"}
    first, second = lines(draw(idle_then_send()), "#1d4ed8")[:2]
    # In two pieces, with the label between them.
    assert first[0][0] == x_of["A"] and abs(second[1][0] - x_of["B"]) < 8
    assert abs(zero - first[0][1]) < 6 and first[0][1] < first[1][1] < second[0][1] < second[1][1] < latency
    ((label_x, label_y),) = told["I #1 148 B"]
    assert first[1][0] < label_x < second[0][0] and first[0][1] < label_y < latency


def test_the_time_goes_downwards() -> None:
    for case in (idle_then_send, long_sleep, outage):
        clocks = [
            (float(text.replace(",", "")), places)
            for text, places in texts(draw(case())).items()
            if re.fullmatch(r"[\d,]+\.\d{3}", text)
        ]
        heights = [y for _, places in sorted(clocks) for _, y in places]
        assert heights == sorted(heights) and len(set(heights)) == len(heights) > 8


def test_time_in_which_nothing_happens_is_folded_and_its_length_told() -> None:
    picture = draw(idle_then_send())
    told = texts(picture)
    assert {"10 s", "169.94 s", "4.96 s"} <= set(told)
    assert float(picture.attrib["height"]) < 1200
    (fold,), (before,), (after,) = told["169.94 s"], told["10.080"], told["180.020"]
    assert before[1] < fold[1] < after[1] < before[1] + 90


def test_long_times_are_told_in_hours() -> None:
    assert "2 h 57 min 59.98 s" in texts(draw(long_sleep()))


def test_what_repeats_itself_is_drawn_once_with_a_count() -> None:
    trace = run(pair(keepalive=25)[0], 3600)
    picture = draw(trace)
    told = texts(picture)
    assert "the same 3 times more, every 25 s" in told
    assert "the same 26 times more, every 125.04 s" in told
    sent = [record for record in trace.records if isinstance(record, Sent)]
    shown = [text for text in told if re.match(r"[IRK] #", text)]
    assert len(sent) > 190 and len(shown) < 20


def test_time_in_which_something_is_under_way_is_not_folded() -> None:
    """Datagrams much slower than the others, each of which leaves when the one before arrives."""
    source = ("192.0.2.1", 1)
    records: list[Record] = []
    for number in range(5):
        records.append(Sent(number * 10 * SECOND, "A", "B", number, "D", 1, None, source, source, bytes(100)))
        records.append(Arrived((number + 1) * 10 * SECOND, "B", number, source, None))
    for number in range(5, 15):
        records.append(Sent(100 * SECOND, "A", "B", number, "D", 1, None, source, source, bytes(90)))
        records.append(Arrived(100 * SECOND + SECOND // 50, "B", number, source, None))
    picture = ElementTree.fromstring(draw_svg(("A", "B"), sorted(records, key=lambda record: record.at)))
    told = texts(picture)
    assert {"0.000", "10.000", "20.000", "30.000", "40.000", "50.000", "100.000", "100.020"} <= set(told)
    assert len(told["D 100 B"]) == 5


def lost(*ends: tuple[int, LossReason]) -> list[Record]:
    """Datagrams from A to B that are lost, each at so many seconds for a reason."""
    source = ("192.0.2.1", 1)
    records: list[Record] = []
    for number, (at, why) in enumerate(ends):
        records.append(Sent(at * SECOND, "A", "B", number, "D", 1, None, source, source, bytes(96)))
        records.append(Lost(at * SECOND, "A", number, why))
    return records


def test_what_is_no_repetition_is_drawn() -> None:
    """The same thing with another outcome is another thing."""
    records = lost((0, "loss"), (9, "loss"), (18, "full"), (27, "loss"), (36, "loss"))
    told = texts(ElementTree.fromstring(draw_svg(("A", "B"), records)))
    assert len(told["loss"]) == 4 and len(told["full"]) == 1


def test_a_lost_datagram_ends_in_a_cross_on_its_way_with_the_reason_beside_it() -> None:
    world, a, _, link = pair()
    link.lose(lambda sent: True)
    a.send(at=0.0)
    picture = draw(run(world, 1))
    told = texts(picture)
    (left, _), (right, _) = told["A"][0], told["B"][0]
    ((x, y),) = told["loss"]
    cross = lines(picture, ALARM)[0]
    middle = sum(point[0] for point in cross) / 2
    assert left < middle < x < right and abs(sum(point[1] for point in cross) / 2 - y) < 6


def test_a_lost_datagram_ends_before_the_next_lane_and_before_what_comes_later() -> None:
    picture = ElementTree.fromstring(draw_svg(("A", "C", "B"), lost((0, "loss"), (6, "full"))))
    told = texts(picture)
    assert "D 96 B to B" in told
    lanes = sorted({x for stroke in lines(picture, "#9ca3af") for x, _ in stroke})
    cross = lines(picture, ALARM)[0]
    assert lanes[0] < cross[0][0] < cross[1][0] < lanes[1]
    ((_, fold),) = told["6 s"]
    assert max(y for _, y in cross) < fold - 16


def test_copies_that_are_lost_alike_are_two_arrows() -> None:
    source = ("192.0.2.1", 1)
    records: list[Record] = [
        Sent(0, "A", "B", 1, "D", 1, None, source, source, bytes(96)),
        Lost(0, "A", 1, "nat"),
        Lost(0, "A", 1, "nat"),
    ]
    picture = ElementTree.fromstring(draw_svg(("A", "B"), records))
    assert "D 96 B, copy" in texts(picture)
    # One cross is a sign of the legend.
    assert len({sum(y for _, y in stroke) for stroke in lines(picture, ALARM)}) == 3


def test_a_datagram_that_comes_back_to_its_sender_is_told_there() -> None:
    source = ("192.0.2.1", 1)
    records: list[Record] = [Sent(0, "A", "B", 1, "D", 1, None, source, source, bytes(96))]
    records.append(Arrived(9, "A", 1, source, None))
    assert "own D 96 B comes back" in texts(ElementTree.fromstring(draw_svg(("A", "B"), records)))


def test_the_legend_names_what_occurs_and_stays_on_the_page() -> None:
    source = ("192.0.2.1", 1)
    records: list[Record] = []
    for number, kind in enumerate(KINDS):
        records.append(Sent(number, "A", "B", number, kind, 1, None, source, source, bytes(96)))
        records.append(Lost(number, "A", number, "loss"))
    picture = ElementTree.fromstring(draw_svg(("A", "B"), records))
    legend = {"I initiation", "R response", "C cookie reply", "K keepalive", "D data"}
    assert legend | {"lost or dropped"} <= set(texts(picture))
    assert not {"deadline", "event", "application"} & set(texts(picture))
    for text, box in text_boxes(picture):
        assert box.right <= float(picture.attrib["width"]), text


def test_a_dropped_datagram_comes_to_the_lane_with_its_drop_reason() -> None:
    picture = draw(crossing())
    told = texts(picture)
    ((x, y),) = told["dropped: crossed initiation"]
    lane = told["A"][0][0]
    crosses = [sum(point[0] for point in stroke) / 2 for stroke in lines(picture, ALARM)]
    assert x < lane and abs(crosses[0] - lane) < 1
    assert y > told["I #2 148 B"][0][1]


def test_deadlines_and_events_are_beside_the_lane_of_their_host() -> None:
    told = texts(draw(idle_then_send(), until=20))
    assert told["passive keepalive"][0][0] > told["B"][0][0]
    assert told["session established, as responder"][0][0] > told["B"][0][0]
    assert told["session established, as initiator"][0][0] < told["A"][0][0]
    assert told["passive keepalive"][0][1] > told["10.060"][0][1] - 2


def test_three_packets_that_leave_at_once_are_three_arrows() -> None:
    world, a, _, _ = pair()
    for _ in range(3):
        a.send(at=0.0)
    picture = draw(run(world, 1))
    starts = {stroke[0] for stroke in lines(picture, "#7e22ce") if stroke[0][0] == texts(picture)["A"][0][0]}
    heights = sorted(y for _, y in starts)
    assert [after - before for before, after in itertools.pairwise(heights)] == [19, 19]


def test_a_machine_that_sleeps_is_shaded_from_when_to_when() -> None:
    picture = draw(long_sleep())
    told = texts(picture)
    (shade,) = rectangles(picture, "#d5ddff")
    assert shade.left < told["A"][0][0] < shade.right
    assert abs(shade.top - told["sleeps for 10800 s"][0][1]) < 8
    assert abs(shade.bottom - told["wakes up"][0][1]) < 8


def test_a_cut_link_is_shaded_while_one_way_of_it_is_cut() -> None:
    source = ("192.0.2.1", 1)
    records: list[Record] = [Sent(0, "A", "B", 1, "I", 1, None, source, source, bytes(148))]
    for at, what in enumerate(["cut towards B", "cut towards A", "healed towards A", "healed towards B"], 1):
        records.append(Changed(at * SECOND, "B-A", what))
    picture = ElementTree.fromstring(draw_svg(("A", "B"), records))
    told = texts(picture)
    (shade,) = rectangles(picture, "#fef2f2")
    assert (shade.left, shade.right) == (told["A"][0][0], told["B"][0][0])
    assert abs(shade.top - told["link to B cut towards B"][0][1]) < 8
    assert abs(shade.bottom - told["link to A healed towards B"][0][1]) < 8


def test_a_nat_that_rebinds_and_a_packet_that_is_dropped_are_told() -> None:
    records: list[Record] = [Discarded(1, "B", "A", 7, DropReason.GAVE_UP), Changed(2, "home", "rebinds")]
    told = texts(ElementTree.fromstring(draw_svg(("A", "B"), records)))
    assert told["packet 7 dropped: gave up"][0][0] > told["B"][0][0]
    assert "home rebinds" in told


def test_a_window_keeps_the_numbers_of_the_sessions() -> None:
    told = texts(draw(idle_then_send(), since=100, until=185.03))
    assert "D #1 96 B" not in told
    assert "I #2 148 B" in told and "R #2 92 B" in told and "under way" in told


def test_the_texts_of_a_host_in_the_middle_are_between_its_two_lines() -> None:
    """Where no arrow is."""
    picture = ElementTree.fromstring(draw_svg(("C", "A", "B"), idle_then_send().records))
    lanes = sorted({x for stroke in lines(picture, "#9ca3af") for x, _ in stroke})
    assert len(lanes) == 4
    for text, box in text_boxes(picture):
        if text in ("handshake started", "session established, as initiator"):
            assert lanes[1] < box.left and box.right < lanes[2]
    assert min(x for stroke in lines(picture, "#1d4ed8")[:2] for x, _ in stroke) == lanes[2]


def test_names_with_markup_in_them_are_only_text() -> None:
    picture = ElementTree.fromstring(draw_svg(("A", "B", "<b> & co"), idle_then_send().records))
    assert "<b> & co" in texts(picture)


def test_an_empty_trace_is_an_empty_diagram() -> None:
    assert {"A", "B"} <= set(texts(ElementTree.fromstring(draw_svg(("A", "B"), ()))))
    assert draw_svg((), ()).startswith("<svg")


def test_too_much_for_a_diagram_is_refused() -> None:
    source = ("192.0.2.1", 1)
    records = [
        Sent(n * n * SECOND, "A", "B", n, "D", 1, None, source, source, bytes(n))
        for n in range(MOST_INSTANTS + 1)
    ]
    with pytest.raises(ValueError, match="1,501 instants are too many"):
        draw_svg(("A", "B"), records)


def test_a_png_is_the_svg_in_pixels() -> None:
    trace = crossing()
    picture = draw(trace)
    png = draw_png(trace.hosts, trace.records, title="A title", zoom=3)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    size = struct.unpack(">II", png[16:24])
    assert size == tuple(round(float(picture.attrib[name]) * 3) for name in ("width", "height"))
    assert png != draw_png(trace.hosts, trace.records, title="Another", zoom=3)


def test_a_png_without_its_library_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert issubclass(PictureError, ConnlibError)
    with pytest.raises(
        PictureError, match=r"^a PNG needs resvg-py: pip install 'connlib\[lab\]'; .*$"
    ) as raised:
        draw_png(("A", "B"), ())
    assert "\n" not in str(raised.value)
    assert draw_svg(("A", "B"), ()).startswith("<svg")


def test_a_png_without_a_font_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a font the library draws no text and says nothing."""
    import resvg_py

    blind = ModuleType("resvg_py")
    blind.svg_to_bytes = lambda svg_string, **options: resvg_py.svg_to_bytes(  # type: ignore[attr-defined]
        svg_string=svg_string, skip_system_fonts=True, **options
    )
    monkeypatch.setitem(sys.modules, "resvg_py", blind)
    _png._check_fonts.cache_clear()
    try:
        with pytest.raises(PictureError, match=r"^a PNG needs a font"):
            draw_png(("A", "B"), ())
    finally:
        _png._check_fonts.cache_clear()


def test_the_library_is_imported_only_when_a_png_is_made() -> None:
    code = "import sys, connlib.lab._diagram as d; d.draw_svg(('A',), ()); print('resvg_py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
