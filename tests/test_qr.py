"""The QR codes of `connlib peer add`, as a scanner reads them: on a terminal, and in pictures."""

from __future__ import annotations

import os
import pty
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zxingcpp

from connlib import InterfaceConfig, load_gateway, parse_config
from test_cli import COMMAND
from test_gateway_cli import Command, connlib
from test_peer_cli import contents, folder

__all__ = ["connlib", "folder"]  # the fixtures


def scanned(rows: list[bytes], scale: int = 4) -> str:
    """What a scanner reads in an image of a byte a pixel. Looking once, it does not find one code in some hundred: a
    phone takes many pictures, and this one does of several sizes."""
    for size in (scale, 1, 2, 3, 5):
        pixels = b"".join(bytes(value for value in row for _ in range(size)) * size for row in rows)
        shape = (len(rows) * size, len(rows[0]) * size)
        image = memoryview(pixels).cast("B", shape=shape)
        for is_pure in (False, True):
            for found in zxingcpp.read_barcodes(image, is_pure=is_pure):
                return found.text
    raise AssertionError("no code is found")


def scanned_blocks(text: str) -> str:
    """The same of lines of half blocks, which are light where a character has ink."""
    lit = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    return scanned([bytes(lit[c][half] for c in line) for line in text.splitlines() for half in (0, 1)])


def scanned_png(data: bytes) -> str:
    """The same of a PNG file of one bit a pixel, with the filters that segno uses: none, and Up."""
    width, height, depth, colours = struct.unpack("!IIBB", data[16:26])
    assert (data[:8], depth, colours) == (b"\x89PNG\r\n\x1a\n", 1, 0)
    start = data.index(b"IDAT") + 4
    (length,) = struct.unpack("!I", data[start - 8 : start - 4])
    packed = zlib.decompress(data[start : start + length])
    size = len(packed) // height
    rows, above = [], bytes(size - 1)
    for row in range(height):
        kind, *line = packed[row * size : (row + 1) * size]
        assert kind in (0, 2)
        above = (
            bytes((byte + up) % 256 for byte, up in zip(line, above, strict=True)) if kind else bytes(line)
        )
        rows.append(bytes(255 * int(bit) for byte in above for bit in f"{byte:08b}")[:width])
    return scanned(rows, scale=1)


def is_of_alice(config: InterfaceConfig) -> bool:
    return config.private_key.public_key() == load_gateway("office.toml").peers[1].public_key


def test_a_phone_reads_the_configuration_from_the_code(connlib: Command, folder: Path) -> None:
    code, out, err = connlib("peer", "add", "alice", "--qr", "-o", "alice.conf")
    assert code == 0 and set(out) == set("█▀▄ \n")
    assert "The private key is in alice.conf and in what is printed above, and nowhere else" in err
    text = scanned_blocks(out)
    assert text == (folder / "alice.conf").read_text()
    assert is_of_alice(parse_config(text))
    # A quiet zone of four modules around it.
    lines = out.splitlines()
    assert {*lines[0], *lines[1]} == {"█"} and all(line[:4] == line[-4:] == "████" for line in lines[2:-1])
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("ending", ["png", "PNG"])
def test_the_code_is_a_picture_if_the_file_s_name_says_so(
    connlib: Command, folder: Path, ending: str
) -> None:
    assert connlib("peer", "add", "alice", "-o", f"alice.{ending}")[0] == 0
    text = scanned_png((folder / f"alice.{ending}").read_bytes())
    assert is_of_alice(parse_config(text))
    assert stat.S_IMODE((folder / f"alice.{ending}").stat().st_mode) == 0o600
    assert connlib("peer", "add", "carol", "-o", "carol.svg")[0] == 0
    picture = (folder / "carol.svg").read_text()
    assert picture.startswith("<?xml") and "#fff" in picture


@pytest.mark.parametrize("ending", ["gif", "JPG"])
def test_a_picture_of_another_kind_is_refused_and_no_text_written_there(
    connlib: Command, folder: Path, ending: str
) -> None:
    before = (folder / "office.toml").read_bytes()
    said = f"connlib: alice.{ending}: a QR code is a .png or a .svg, and no .{ending.lower()}; choose another ending\n"
    assert connlib("peer", "add", "alice", "-o", f"alice.{ending}") == (2, "", said)
    assert not (folder / f"alice.{ending}").exists()
    assert (folder / "office.toml").read_bytes() == before


def on_terminal(columns: int, *arguments: str) -> tuple[int, str]:
    """The exit code of the command on a terminal of so many columns, and what it prints there."""
    ours, theirs = pty.openpty()
    try:
        environment = {**os.environ, "COLUMNS": str(columns)}
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment
        )
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # nobody has the other end any more
                break
            if not part:
                break
            written += part
        return process.wait(60), written.decode()
    finally:
        os.close(ours)


def test_on_a_terminal_the_code_is_white_on_black_whatever_its_colours_are(folder: Path) -> None:
    code, out = on_terminal(80, "peer", "add", "alice", "--qr")
    assert code == 0
    lines = out.splitlines()
    assert all(line.startswith("\x1b[97;40m") and line.endswith("\x1b[0m") for line in lines)
    blocks = "\n".join(line.removeprefix("\x1b[97;40m").removesuffix("\x1b[0m") for line in lines)
    assert is_of_alice(parse_config(scanned_blocks(blocks)))


def test_a_terminal_that_is_too_narrow_is_said_to_be_before_anything_changes(
    connlib: Command, folder: Path
) -> None:
    before = contents(folder)
    assert on_terminal(60, "peer", "add", "alice", "--qr") == (2, "")
    assert contents(folder) == before


def test_without_segno_it_is_said_what_to_install_and_nothing_changes(
    connlib: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    before = contents(folder)
    code, out, err = connlib("peer", "add", "alice", "--qr")
    assert (code, out) == (1, "") and err.endswith("QR codes need: pip install 'connlib[qr]'\n")
    assert contents(folder) == before


def test_what_is_too_long_for_a_code_is_said_to_be(connlib: Command, folder: Path) -> None:
    prefixes = ",".join(f"10.{number}.0.0/16" for number in range(256))
    before = contents(folder)
    code, out, err = connlib("peer", "add", "alice", "--qr", "--allowed-ips", prefixes)
    assert (code, out) == (2, "")
    assert err.endswith(
        " bytes are too many for a QR code; route less to the peer, or write a file: -o NAME.conf\n"
    )
    assert contents(folder) == before


def test_a_terminal_that_cannot_show_blocks_is_said_to_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*COMMAND, "peer", "add", "alice", "--qr"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    said = "connlib: no QR code can be written in ascii; make a picture: -o NAME.png\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
