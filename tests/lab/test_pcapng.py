"""`write_pcapng`: a trace as a capture file, read back by hand and by Wireshark."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from connlib import PresharedKey
from connlib._native import LabTunn
from connlib.lab import Host, Trace, World
from connlib.lab._pcapng import write_pcapng
from connlib.lab._records import Sent
from helpers_pcapng import PACKET, SECRETS, blocks, needs_tshark, options, packets, tshark
from lab.traces import idle_then_send, long_sleep, outage, pair, run

PSK = PresharedKey.from_bytes(bytes([7] * 32))


def capture(trace: Trace, keys: list[str] | None = None) -> bytes:
    file = io.BytesIO()
    write_pcapng(file, trace.hosts, trace.records, keys=keys)
    return file.getvalue()


def test_the_file_has_an_interface_for_each_host_and_a_packet_for_each_datagram() -> None:
    trace = idle_then_send()
    data = capture(trace)
    kinds = [kind for kind, _ in blocks(data)]
    sent = [record for record in trace.records if isinstance(record, Sent)]
    assert kinds == [0x0A0D0D0A, 1, 1, *[PACKET] * len(sent)]
    names = []
    for kind, body in blocks(data):
        if kind == 1:
            assert struct.unpack("<HHI", body[:8]) == (101, 0, 0)
            names.append(options(body[8:])[2])
            assert options(body[8:])[9] == bytes([9])
    assert names == [b"A", b"B"]
    for (interface, at, frame, told), record in zip(packets(data), sent, strict=True):
        assert trace.hosts[interface] == record.host
        assert at == 1_700_000_000 * 10**9 + record.at
        assert frame[28:] == record.data
        assert told == {2: struct.pack("<I", 2)}


def key_log(host: Host) -> list[str]:
    """The secrets of a host's only tunnel."""
    tunnel = host.tunnel()
    assert isinstance(tunnel, LabTunn)
    return tunnel.key_log()


def test_no_key_is_in_the_file_unless_it_is_given() -> None:
    world, a, _, _ = pair()
    a.send(at=0.0)
    trace = run(world, 1)
    keys = key_log(a)
    assert len(keys) == 3
    without, with_keys = capture(trace), capture(trace, keys)
    assert SECRETS not in [kind for kind, _ in blocks(without)]
    assert not [line for line in keys if line.split(" = ")[1].encode() in without]
    # Before the packets, for which it is needed.
    kinds = [kind for kind, _ in blocks(with_keys)]
    assert kinds.index(SECRETS) < kinds.index(PACKET)
    body = dict(blocks(with_keys))[SECRETS]
    kind, length = struct.unpack("<II", body[:8])
    assert kind.to_bytes(4, "big") == b"WGKL"
    assert body[8 : 8 + length].decode().splitlines() == keys


def test_a_key_log_that_is_no_sequence_of_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence of lines"):
        write_pcapng(io.BytesIO(), (), (), keys=["one\ntwo"])


def test_comments_say_what_was_lost_dropped_and_copied() -> None:
    told = [options.get(1, b"").decode() for _, _, _, options in packets(capture(outage()))]
    assert "copy 1: A: dropped: unexpected message" in told
    assert "copy 1: B: dropped: duplicate counter" in told
    assert told.count("lost: cut") == 6
    assert told[0] == ""


def test_equal_traces_make_equal_files() -> None:
    assert capture(long_sleep()) == capture(long_sleep())


@needs_tshark
@pytest.mark.parametrize("end", ["A", "B"])
@pytest.mark.parametrize(
    ("addresses", "preshared_key"),
    [(("192.0.2.1", "192.0.2.2"), None), (("2001:db8::1", "2001:db8::2"), PSK)],
    ids=["IPv4", "IPv6 and a preshared key"],
)
def test_wireshark_shows_what_is_inside_with_the_keys_of_either_end(
    tmp_path: Path, end: str, preshared_key: PresharedKey | None, addresses: tuple[str, str]
) -> None:
    world, a, b, _ = pair(preshared_key=preshared_key, addresses=addresses)
    for n in range(4):
        (a if n % 2 else b).send(at=n * 100.0)
    trace = run(world, 400)
    path = tmp_path / "trace.pcapng"
    path.write_bytes(capture(trace, key_log(world.hosts[end])))
    seen = tshark(
        path, "wg.type", "ip.src", "udp.checksum.status", "frame.interface_name", "frame.time_epoch"
    )
    sent = [record for record in trace.records if isinstance(record, Sent)]
    assert len(seen) == len(sent) == 12
    for (kind, sources, checksum, interface, at), record in zip(seen, sent, strict=True):
        assert kind == str(record.data[0])
        assert checksum.split(",")[0] == "1"
        assert interface == record.host
        assert at == f"1700000{record.at // 10**9:03d}.{record.at % 10**9:09d}"
        inside = [source for source in sources.split(",") if source.startswith("10.")]
        assert inside == ([f"10.0.0.{'AB'.index(record.host) + 1}"] if record.kind == "D" else [])


@needs_tshark
def test_wireshark_shows_what_is_inside_behind_a_nat(tmp_path: Path) -> None:
    world = World()
    a, b = world.host("A"), world.host("B")
    world.nat("home", a)
    world.tunnel(a, b)
    a.send(at=0.0)
    b.send(at=1.0)
    path = tmp_path / "trace.pcapng"
    path.write_bytes(capture(run(world, 2), key_log(b)))
    seen = [sources for (sources,) in tshark(path, "ip.src")]
    assert seen == ["198.51.100.1", "192.0.2.2", "198.51.100.1,10.0.0.1", "192.0.2.2,10.0.0.2"]


@needs_tshark
def test_wireshark_shows_nothing_of_the_inside_without_keys(tmp_path: Path) -> None:
    path = tmp_path / "trace.pcapng"
    path.write_bytes(capture(idle_then_send()))
    assert {source for (source,) in tshark(path, "ip.src")} == {"192.0.2.1", "192.0.2.2"}


@needs_tshark
def test_wireshark_shows_the_comments(tmp_path: Path) -> None:
    path = tmp_path / "trace.pcapng"
    path.write_bytes(capture(outage()))
    told = [comment for (comment,) in tshark(path, "frame.comment")]
    assert told == [options.get(1, b"").decode() for _, _, _, options in packets(path.read_bytes())]
