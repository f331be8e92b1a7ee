"""Recordings: what a live interface was given, written down, read, and replayed on engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from connlib import ConfigError, InputKind, NodeInput, PeerConfig, PrivateKey, Role
from connlib.lab import (
    Engine,
    RecordedInput,
    RecordedPeer,
    Recording,
    RecordingWriter,
    load_recording,
    measure,
    replays,
)
from helpers_driver import CLIENT, GATEWAY, in_virtual_time, open_pair, packet

ALICE, BOB = (PrivateKey.from_bytes(bytes([n] * 32)).public_key() for n in (1, 2))
PEERS = [
    PeerConfig(public_key=ALICE, role=Role.INITIATOR, persistent_keepalive=25.0),
    PeerConfig(public_key=BOB),
]


def write(path: Path, *inputs: NodeInput, missed: int = 0) -> Path:
    writer = RecordingWriter(PEERS)
    path.write_text(writer.header() + "".join(writer.lines(inputs, missed)))
    return path


def test_what_is_written_is_read_again_and_holds_no_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "recording",
        NodeInput(1000.5, BOB, InputKind.PACKET, 100, True),
        NodeInput(1001.75, ALICE, InputKind.DATA, 144, False),
        NodeInput(1002.0, PrivateKey.generate().public_key(), InputKind.DATA, 144, True),
        missed=7,
    )
    assert load_recording(path) == Recording(
        peers=(RecordedPeer(Role.INITIATOR, 25.0), RecordedPeer(Role.EITHER, None)),
        inputs=(
            RecordedInput(0, 1, InputKind.PACKET, 100, True),
            RecordedInput(1_250_000_000, 0, InputKind.DATA, 144, False),
        ),
        missed=7,
    )
    text = path.read_text()
    assert ALICE.to_base64() not in text and ALICE.to_bytes().hex() not in text


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        (["[]"], 1),
        (['{"connlib-recording": 2, "peers": []}'], 1),
        (['{"connlib-recording": 1, "peers": [{"role": "king", "keepalive": null}]}'], 1),
        (["{}", "[0, 0, 1]"], 1),
        *(
            ([f'{{"connlib-recording": 1, "peers": [{{"role": "either", "keepalive": {keepalive}}}]}}'], 1)
            for keepalive in ("NaN", "-5", "Infinity", "1" + "0" * 400)
        ),
        (['{"connlib-recording": 1, "peers": []}', '[0, 0, "data", 1, true]'], 2),
        *(
            (['{"connlib-recording": 1, "peers": [{"role": "either", "keepalive": null}]}', line], 2)
            for line in (
                "",
                "nonsense",
                "[" * 100_000,
                '[0, 0, "data", 1]',
                '[0, -1, "data", 1, true]',
                '[-1, 0, "data", 1, true]',
                f'[{10**400}, 0, "data", 1, true]',
                '[100000000000000000000, 0, "data", 1, true]',
                '[0.5, 0, "data", 1, true]',
                '[0, 0, "letter", 1, true]',
                '[0, 0, "data", true, true]',
                '[0, 0, "data", 1, 1]',
                '{"lost": 3}',
                '{"missed": -3}',
            )
        ),
    ],
)
def test_what_is_no_recording_is_named_with_its_line(lines: list[str], number: int, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as caught:
        load_recording(path)
    assert (caught.value.path, caught.value.line) == (str(path), number)
    assert caught.value.hint == "give a file that `connlib crosscheck --record` wrote"


HEADER = '{"connlib-recording": 1, "peers": [{"role": "either", "keepalive": null}]}\n'
FIRST, LAST = '[0, 0, "packet", 100, true]\n', '[1500000000, 0, "handshake", 0, false]'


@pytest.mark.parametrize("last", [LAST, '{"missed": 12}'])
def test_of_a_recording_whose_writer_was_killed_what_is_complete_is_read(last: str, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(HEADER + FIRST + last + "\n")
    whole = load_recording(path)
    path.write_text(HEADER + FIRST)
    but_the_last = load_recording(path)
    assert not whole.is_cut and not but_the_last.is_cut and whole != but_the_last
    for length in range(1, len(last)):
        path.write_text(HEADER + FIRST + last[:length])
        assert load_recording(path) == replace(but_the_last, is_cut=True), last[:length]
    # Only its end is missing.
    path.write_text(HEADER + FIRST + last)
    assert load_recording(path) == whole


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (HEADER[:30], 1),
        # Complete, and wrong.
        (HEADER + '[0, 9, "packet", 100, true]', 2),
        # No beginning of a line.
        (HEADER + "nonsense", 2),
        (HEADER + "[" * 100_000, 2),
        # Not the last one.
        (HEADER + FIRST[:12] + "\n" + FIRST, 2),
        (HEADER + FIRST[:12] + "\n", 2),
    ],
)
def test_other_damage_at_the_end_of_a_recording_is_refused(text: str, number: int, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf":{number}: this is not a line of a recording"):
        load_recording(path)


def test_files_that_cannot_be_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read it: no such file or directory; name a recording$"):
        load_recording(tmp_path / "none")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"the file is empty"):
        load_recording(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match=r"this is not a recording"):
        load_recording(tmp_path / "binary")


def test_a_gateway_s_recording_replays_the_client_s_handshake_and_what_found_no_room(tmp_path: Path) -> None:
    client = PeerConfig(public_key=ALICE, role=Role.RESPONDER)
    writer = RecordingWriter([client])
    inputs = [
        NodeInput(0.0, ALICE, InputKind.INITIATION, 148, True),
        NodeInput(0.04, ALICE, InputKind.DATA, 32, True),
        *(NodeInput(10.0 + number, ALICE, InputKind.PACKET, 100, number % 2 == 0) for number in range(10)),
    ]
    path = tmp_path / "recording"
    path.write_text(writer.header() + "".join(writer.lines(inputs)))
    (script,) = replays(load_recording(path))
    pairs: list[tuple[Engine, Engine]] = [("patched", "patched"), ("upstream", "upstream")]
    for engines in pairs:
        measured, _ = measure(script, engines)
        assert (measured.offered, measured.undelivered) == (10, 0)


def test_times_that_go_back_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "recording",
        NodeInput(2.0, BOB, InputKind.PACKET, 100, True),
        NodeInput(1.0, BOB, InputKind.PACKET, 100, True),
    )
    with pytest.raises(ConfigError, match=r":3: this is not a line of a recording"):
        load_recording(path)


@in_virtual_time
async def test_a_replay_does_what_the_live_interface_did(tmp_path: Path) -> None:
    async with open_pair() as pair:
        client = pair.client
        client.record(10_000)
        writer = RecordingWriter(client.config.peers)
        for pause in (1.0, 30.0, 100.0, 200.0, 5.0):
            await pair.client_tun.send(packet(CLIENT, GATEWAY, bytes(80)))
            await trio.sleep(pause / 2)
            await pair.gateway_tun.send(packet(GATEWAY, CLIENT, bytes(200)))
            await trio.sleep(pause / 2)
        tunnel = client.stats().peers[0].tunnel
        text = writer.header() + "".join(writer.lines(*client.take_recorded()))
    path = trio.Path(tmp_path / "recording")
    await path.write_text(text)
    (script,) = replays(load_recording(str(path)))
    assert script.roles == (client.config.peers[0].role, Role.RESPONDER)
    world = script.run()
    assert [(len(world.trace.delivered(name))) for name in "BA"] == [5, 5]
    assert world.trace.counts("A")["I"] == tunnel.initiations_sent
    assert measure(script, ("upstream", "upstream"))[0].undelivered == 0
