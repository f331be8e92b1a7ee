"""`make bench-datapath`: its arithmetic, what it reads of other programs, what it writes, and a moment of each cell.

Nothing is said about speed here."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import pytest

import connlib
import sections
from connlib._native import UdpIo
from datapath import NAMES, document, ends, needs, picture, profiles, traffic, without
from datapath.cells import CELLS, Cell
from datapath.ends import Bench
from datapath.series import (
    Found,
    Goal,
    Measured,
    RunFailed,
    Series,
    as_json,
    compared,
    from_json,
    in_turns,
    percentile,
)
from interop.build import PEERS
from interop.netns import Namespace
from interop.peers import End, Remote

SVG = "{http://www.w3.org/2000/svg}"


def figures(values: list[float]) -> Callable[[], Measured]:
    left = iter(values)
    return lambda: {"rate": next(left)}


# --- arithmetic


def test_runs_take_turns_and_who_is_first_changes() -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], Measured]:
        def one() -> Measured:
            order.append(name)
            return {"rate": float(len(order))}

        return one

    done, failed = in_turns(3, run("ours"), run("theirs"))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert [(ours["rate"], theirs["rate"]) for ours, theirs in done] == [(1, 2), (4, 3), (5, 6)]
    assert failed == ""


def test_a_ratio_is_of_neighbours_in_time() -> None:
    # The machine has half of its speed in the second pair: each pair's ratio is 2 all the same.
    runs = in_turns(3, figures([10.0, 5.0, 12.0]), figures([5.0, 2.5, 6.0]))
    series = compared(runs, "rate", "a rate", "Gbit/s", "wireguard-go")
    assert series.ours == (10.0, 5.0, 12.0) and series.theirs == (5.0, 2.5, 6.0)
    assert series.ratios() == [2.0, 2.0, 2.0]


def test_a_run_that_fails_ends_its_series_and_the_pairs_before_it_are_kept() -> None:
    def broken() -> Measured:
        raise RunFailed("it was not there")

    left: Iterator[Callable[[], Measured]] = iter([lambda: {"rate": 1.0}, broken])
    runs = in_turns(5, lambda: {"rate": 3.0}, lambda: next(left)())
    series = compared(runs, "rate", "a rate", "Gbit/s", "gotatun-cli", Goal(1.5))
    assert series.ratios() == [3.0]
    assert series.met() is False
    assert document.verdict(series) == "at least 1.5 times: **missed**; broken off: it was not there"


@pytest.mark.parametrize(
    ("goal", "ours", "theirs", "met"),
    [
        (Goal(1.5), (3.0, 1.6, 9.0), (2.0, 1.0, 9.0), True),  # the ratios are 1.5, 1.6 and 1
        (Goal(1.5), (3.0, 1.4, 9.0), (2.0, 1.0, 9.0), False),
        (Goal(1.0, least=False), (1.0, 5.0, 9.0), (1.0, 5.0, 8.0), True),
        (Goal(1.0, least=False), (1.0, 6.0, 9.0), (1.0, 5.0, 8.0), False),
        (Goal(0.1, least=False, ratio=False), (0.0, 0.1, 0.9), (7.0, 7.0, 7.0), True),
        (Goal(0.1, least=False, ratio=False), (0.0, 0.2, 0.9), (7.0, 7.0, 7.0), False),
        (Goal(1.5), (), (), False),
        (None, (1.0,), (1.0,), None),
    ],
)
def test_the_median_is_held_to_the_goal(
    goal: Goal | None, ours: tuple[float, ...], theirs: tuple[float, ...], met: bool | None
) -> None:
    assert Series("it", "", ours, "wireguard-go", theirs, goal).met() is met


def test_a_pair_in_which_the_other_has_nothing_has_no_ratio() -> None:
    assert Series("lost", "%", (0.0, 1.0), "wireguard-go", (0.0, 2.0)).ratios() == [0.5]


@pytest.mark.parametrize(("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (0, 1.0)])
def test_percentiles_of_the_numbers_from_one_to_a_hundred(percent: float, expected: float) -> None:
    assert percentile([float(101 - number) for number in range(1, 101)], percent) == expected


def test_the_99th_percentile_of_few_values_is_the_largest() -> None:
    assert percentile([1.0, 2.0, 7.0], 99) == 7.0


# --- what other programs say


def test_the_rate_of_iperf3_is_what_the_receivers_had() -> None:
    said = {
        "end": {
            "sum_sent": {"bytes": 2000, "bits_per_second": 3200.0, "retransmits": 3},
            "sum_received": {"bytes": 1500, "bits_per_second": 2400.0},
        }
    }
    assert traffic.parse_iperf3(json.dumps(said)) == (1500, 2400.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"start": {}, "error": "unable to connect to server"}', "iperf3: unable to connect to server"),
        ("iperf3: command not found", "iperf3 wrote no JSON: 'iperf3: command not found'"),
        ('{"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}}', "iperf3: nothing was received"),
        ('{"end": {}}', "iperf3: nothing was received"),
    ],
)
def test_what_iperf3_could_not_do_is_said(text: str, problem: str) -> None:
    with pytest.raises(RunFailed, match=f"^{re.escape(problem)}$"):
        traffic.parse_iperf3(text)


PING = """PING 10.77.0.2 (10.77.0.2) 56(84) bytes of data.
64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=0.266 ms
64 bytes from 10.77.0.2: icmp_seq=3 ttl=64 time=12.5 ms
64 bytes from 10.77.0.2: icmp_seq=4 ttl=64 time=100 ms

--- 10.77.0.2 ping statistics ---
4 packets transmitted, 3 received, 25% packet loss, time 3003ms
rtt min/avg/max/mdev = 0.266/37.588/100.000/44.411 ms
"""


def test_a_ping_that_is_lost_counts_as_a_second() -> None:
    assert traffic.parse_ping(PING) == [0.266, 12.5, 100.0, 1000.0]


def test_pings_of_which_none_is_answered_are_no_run() -> None:
    with pytest.raises(RunFailed, match=r"^no ping was answered: 'connect: Network is unreachable'$"):
        traffic.parse_ping("connect: Network is unreachable\n")


PERF = """\
 20.00%  \t_native.abi3.so         \t[.] chacha20_poly1305_seal_avx2
 10.00%  \t_native.abi3.so         \t[.] ring_core_0_17_14__chacha20_poly1305_open
 25.00%  \t[kernel.kallsyms]       \t[k] _copy_to_iter   \t- -
  5.50%  \t_native.abi3.so         \t[.] connlib_core::node::Node::seal
  3.00%  \tpython3.11              \t[.] _PyEval_EvalFrameDefault
  2.00%  \tlibc.so.6               \t[.] 0x0000000000012345
  1.50%  \tlibc.so.6               \t[.] 0x0000000000012399

"""


def test_a_profile_says_whose_time_it_is() -> None:
    samples = profiles.parse_perf(PERF)
    assert dict(profiles.by_part(samples)) == {
        "encryption (ring)": 30.0,
        "kernel": 25.0,
        "connlib, Rust": 5.5,
        "Python": 3.0,
        "other libraries": 3.5,
    }
    assert profiles.averaged([samples]) == [
        ("encryption (ring)", "all of it", 30.0),
        ("kernel", "_copy_to_iter", 25.0),
        ("connlib, Rust", "connlib_core::node::Node::seal", 5.5),
        ("other libraries", "libc.so.6", 3.5),
        ("Python", "_PyEval_EvalFrameDefault", 3.0),
    ]


def test_profiles_of_several_runs_are_averaged() -> None:
    runs = [[("kernel", "copy", 10.0), ("kernel", "zero", 1.0)], [("kernel", "copy", 20.0)]]
    assert profiles.averaged(runs) == [("kernel", "copy", 15.0), ("kernel", "zero", 0.5)]


def test_perf_that_saw_nothing_is_no_profile() -> None:
    with pytest.raises(RunFailed, match=r"^perf has seen nothing: 'no permission'$"):
        profiles.parse_perf("no permission\n")


def test_ring_alone_takes_its_share_of_the_time() -> None:
    # A GB is 730,994 segments of 1,368 bytes, which take 1 us each: 0.731 s, a tenth of 7.31 s.
    assert profiles.estimate(1000.0, 7.30994) == pytest.approx(10.0, abs=0.001)


# --- what is written

FOUND = Found(
    (
        Series("TCP x 1", "Gbit/s", (3.0, 4.0, 5.0), "wireguard-go", (2.0, 2.0, 2.0), Goal(1.5)),
        Series("TCP x 1", "Gbit/s", (3.0, 4.0, 5.0), "gotatun-cli", (1.0, 1.0, 1.0), Goal(5.0)),
        Series("memory at rest", "MB", (110.5,), "wireguard-go", (12.0,)),
    ),
    (("kernel", "_copy_to_iter", 25.04), ("connlib, Rust", "either::<a|b>", 3.0)),
)
TITLES = [("tcp", "TCP", "Measured so."), ("share", "The limit", "Measured otherwise.")]


def test_what_was_found_comes_back_from_its_file() -> None:
    assert from_json(json.loads(json.dumps(as_json(FOUND)))) == FOUND


def test_the_table_says_what_is_met_and_what_is_missed() -> None:
    assert document.table(FOUND) == [
        "| | connlib | other | | ratio (quartiles) | goal |",
        "|---|---|---|---|---|---|",
        "| TCP x 1 | 4.00 Gbit/s | 2.00 Gbit/s | wireguard-go | 2.00 (1.50-2.50) | at least 1.5 times: met |",
        "| TCP x 1 | 4.00 Gbit/s | 1.00 Gbit/s | gotatun-cli | 4.00 (3.00-5.00) | at least 5 times: **missed** |",
        "| memory at rest | 110 MB | 12.0 MB | wireguard-go | 9.21 (9.21-9.21) | - |",
        "",
        "| part | function | % |",
        "|---|---|---|",
        "| kernel | `_copy_to_iter` | 25.0 |",
        "| connlib, Rust | `either::<a/b>` | 3.0 |",
        "",
    ]


def test_a_table_without_another_has_a_column_less() -> None:
    series = Series("encryption", "%", (30.0, 31.0, 35.0), goal=Goal(1.0, ratio=False))
    assert document.table(Found((series,)))[2] == "| encryption | 31.0 (30.0-35.0) % | at least 1: met |"


def test_the_ratio_of_what_is_to_be_nothing_is_not_shown() -> None:
    series = Series("lost", "%", (0.01,), "wireguard-go", (0.02,), Goal(0.1, least=False, ratio=False))
    assert (
        document.table(Found((series,)))[2]
        == "| lost | 0.01 % | 0.02 % | wireguard-go | - | at most 0.1: met |"
    )


def test_what_was_broken_off_stays_in_its_row() -> None:
    series = Series("TCP", "Gbit/s", against="gotatun-cli", failed="exit 1\na | b")
    assert document.table(Found((series,)))[2] == (
        "| TCP | - | - | gotatun-cli | - | broken off: exit 1 a / b |"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.0123, "0.012"),
        (0.5, "0.50"),
        (9.876, "9.88"),
        (12.34, "12.3"),
        (123456.0, "123,456"),
    ],
)
def test_figures_have_the_digits_that_count(value: float, text: str) -> None:
    assert document.figure(value) == text


@pytest.fixture
def kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Documents of a test's own."""
    monkeypatch.setattr(sections, "DOCUMENT", tmp_path / "benchmarks.md")
    monkeypatch.setattr(document, "PICTURE", tmp_path / "pictures" / "datapath.svg")
    return tmp_path / "runs.json"


def test_a_cell_replaces_its_own_runs_and_no_others(kept_here: Path) -> None:
    kept: document.Kept = {}
    document.keep(kept, "tcp", Bench(), FOUND)
    document.keep(kept, "tcp", Bench(offload="false"), Found(FOUND.series[:1]))
    document.keep(kept, "share", Bench(), Found((Series("encryption", "%", (30.0,)),)))
    document.save(kept, TITLES, kept_here)
    again = document.load(kept_here)
    assert list(again) == ["tcp", "tcp, offload = false", "share"]
    document.keep(again, "tcp", Bench(pairs=7), Found(FOUND.series[1:2]))
    document.save(again, TITLES, kept_here)
    last = document.load(kept_here)
    assert from_json(last["tcp"]).series == FOUND.series[1:2] and last["tcp"]["runs"] == "7 pairs of 5 s"
    assert from_json(last["tcp, offload = false"]).series == FOUND.series[:1]
    text = sections.DOCUMENT.read_text()
    headings = re.findall(r"^#+ .+$", text, re.MULTILINE)
    assert headings == [
        "# Benchmarks",
        "## The data path",
        "### TCP",
        "### TCP (offload = false)",
        "### The limit",
    ]
    assert "\nMeasured so.\n" in text and "\nMeasured otherwise.\n" in text
    assert "- runs: 7 pairs of 5 s" in text
    assert "](pictures/datapath.svg)" in text and document.PICTURE.read_text().startswith("<svg")


def test_the_machine_is_described_once_and_again_only_where_it_differs(kept_here: Path) -> None:
    kept: document.Kept = {}
    document.keep(kept, "tcp", Bench(), FOUND)
    document.keep(kept, "share", Bench(seconds=9), Found((Series("encryption", "%", (30.0,)),)))
    text = document.render(kept, TITLES)
    assert text.count("- processor: ") == 1
    assert text.count("- date: ") == 2
    assert "- runs: 5 pairs of 5 s" in text and "- runs: 5 pairs of 9 s" in text


def test_a_command_writes_its_own_section_only() -> None:
    first = sections.replaced("", "make bench-datapath", "## B\n\nb\n")
    both = sections.replaced(first, "make bench", "## A\n\na\n")
    assert both.startswith("# Benchmarks\n") and both.index("## A") < both.index("## B")
    again = sections.replaced(both, "make bench-datapath", "## B\n\nc\n")
    assert again == both.replace("\nb\n", "\nc\n")
    assert sections.replaced(again, "make bench-datapath", "## B\n\nc\n") == again


def test_the_document_is_as_the_commands_write_it() -> None:
    text = sections.DOCUMENT.read_text()
    for command in sections.COMMANDS:
        found = re.search(rf"^<!-- {command} -->\n(.*?)(?=^<!--|\Z)", text, re.MULTILINE | re.DOTALL)
        if found is not None:
            assert sections.replaced(text, command, found[1]) == text


def test_equal_factors_have_equal_lengths_in_the_picture() -> None:
    goal = Goal(4.0)
    series = [
        Series("TCP x 1", "Gbit/s", (ratio,), name, (1.0,), goal)
        for ratio, name in ((1.0, "boringtun-cli"), (2.0, "gotatun-cli"), (4.0, "wireguard-go"))
    ]
    drawn = picture.draw(series)
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"boringtun-cli", "gotatun-cli", "wireguard-go", "TCP x 1", "1", "2", "4"} <= set(texts)
    # Those of the legend are above.
    dots = [float(dot.attrib["cx"]) for dot in root.iter(f"{SVG}circle") if float(dot.attrib["cy"]) > 60]
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    ticks = [box for box in root.iter(f"{SVG}rect") if box.attrib["width"] == "2"]
    assert [float(tick.attrib["x"]) + 1 for tick in ticks] == pytest.approx([dots[2]] * 3, abs=0.2)


def test_there_is_no_picture_of_nothing() -> None:
    assert picture.draw([Series("TCP", "Gbit/s", (1.0,))]) is None


# --- how it is run


def test_cells_and_peers_have_the_names_that_the_command_knows() -> None:
    assert tuple(cell.name for cell in CELLS) == NAMES
    assert all(cell.remark for cell in CELLS)
    assert list(ends.FOREIGN) == PEERS.sections()


def _end() -> End:
    key = connlib.PrivateKey.from_bytes(bytes([7] * 32))
    remote = Remote(key.public_key().to_base64(), ("10.77.0.1/32",))
    other = connlib.PrivateKey.from_bytes(bytes([8] * 32))
    return End(other.to_base64(), other.public_key().to_base64(), 51_821, ("10.77.0.2", "fd77::2"), remote)


def _config_of(bench: Bench, folder: Path, idle_peers: int) -> str:
    peer = ends._make(ends.CONNLIB, bench, cast("Namespace", None), _end(), folder, idle_peers)
    *_, path = peer.command()
    return Path(path).read_text()


def test_the_offload_setting_is_named_only_when_it_is_given(tmp_path: Path) -> None:
    assert "offload" not in _config_of(Bench(), tmp_path, 0)
    assert "\n# connlib: offload = false\n" in _config_of(Bench(offload="false"), tmp_path, 0)


def test_idle_peers_are_configured_and_get_no_routes(tmp_path: Path) -> None:
    config = connlib.parse_config(_config_of(Bench(), tmp_path, 99))
    assert len(config.peers) == 100 and not config.routes


def test_without_iperf3_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "missing", lambda: None)
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert needs.lacking(["wireguard-go"]) == "needs iperf3 (Debian: iperf3)"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["flood"], "there is no cell flood; there are tcp, gateway, udp, ping, cost, peers, parts, share"),
        (["--pairs", "4"], "fewer than 5 pairs are written nowhere: add --no-write"),
        (["--quick", "--seconds", "0"], "there must be one pair, and a second, at least"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], problem: str) -> None:
    command = [sys.executable, "-m", "datapath", *arguments]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "", "PYTHONPATH": f"{root / 'benches'}:{root / 'tests'}"},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"make bench-datapath: error: {problem}"


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_moment_of_each_cell(cell: Cell) -> None:
    if reason := needs.lacking(["wireguard-go"]):
        pytest.skip(reason)
    bench = Bench(quick=True, pairs=1, seconds=1, against=("wireguard-go",))
    found = cell.measure(bench)
    if cell.name == "share" and not shutil.which("perf"):
        # And without the Rust program, which `make bench-datapath` builds.
        assert [series.failed for series in found.series] == ["needs perf (Debian: linux-perf)"]
        return
    assert [series.failed for series in found.series] == [""] * len(found.series) != []
    for series in found.series:
        assert len(series.ours) == 1
        assert bool(series.theirs) is bool(series.against)
        # A time, a rate or a size that is nothing was not measured; nothing may be lost, and no Python seen.
        assert series.ours[0] > 0 or series.unit == "%"


@pytest.mark.skipif(sys.platform != "linux", reason="options of Linux")
def test_what_there_is_no_switch_for_is_really_taken_away() -> None:
    other = connlib.PrivateKey.from_bytes(bytes([7] * 32))
    with contextlib.ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)
        )
        for each in (ours, theirs):
            each.bind(("127.0.0.1", 0))
        ends = [UdpIo(each.fileno(), None) for each in (ours, theirs)]
        gro = ours.getsockopt(socket.IPPROTO_UDP, without.UDP_GRO)
        for take_away in without.OF_THE_SOCKETS.values():
            take_away((ours, theirs))
        assert (gro, ours.getsockopt(socket.IPPROTO_UDP, without.UDP_GRO)) == (1, 0)
        peer = connlib.PeerConfig(public_key=other.public_key(), endpoint=theirs.getsockname())
        config = connlib.NodeConfig(private_key=connlib.PrivateKey.generate(), peers=(peer,))
        node = connlib.Node(config, now=0.0, unix_time=1.0)
        # Two initiations, which have the same size and go the same way.
        for now in (0.0, 6.0):
            node.initiate_handshake(other.public_key(), now)
            node.handle_timeout(now)
        assert ends[0].send(node) == 2
        assert ends[0].stats()["segmentation_refused"] == 1
