"""What a trace can be turned into, from `Trace` and `World` themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from connlib.lab import LabError, World


@pytest.fixture
def world() -> World:
    world = World(4)
    a, b = world.host("A"), world.host("B")
    world.tunnel(a, b)
    a.send(at=1.0)
    a.send(at=30.0)
    world.run(60.0)
    return world


def test_a_trace_is_a_table_of_what_is_wanted(world: World) -> None:
    lines = world.trace.table(kinds="IR", until=10.0).splitlines()
    assert lines[1:] == [
        "1.000000  A -> B  I #1 148 B  at 1.020000",
        "1.020000  B -> A  R #1 92 B   at 1.040000",
    ]
    whole = world.trace.table()
    assert all(
        text in whole for text in ("packet 1 for B, 64 B", "wake: passive keepalive", "session established")
    )


@pytest.mark.parametrize(("name", "magic"), [("t.svg", b"<svg"), ("t.png", b"\x89PNG")])
def test_a_trace_is_drawn_in_the_format_that_the_file_s_name_says(
    world: World, tmp_path: Path, name: str, magic: bytes
) -> None:
    path = tmp_path / name
    world.trace.draw(str(path), title="two packets")
    assert path.read_bytes().startswith(magic)
    if name == "t.svg":
        assert "two packets" in path.read_text(encoding="utf-8")


def test_another_format_is_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"^a picture is a \.svg or a \.png, not trace\.gif$"):
        world.trace.draw(tmp_path / "trace.gif")
    assert not list(tmp_path.iterdir())


def test_a_capture_holds_keys_only_if_they_are_given(world: World, tmp_path: Path) -> None:
    keys = world.key_log()
    assert any(line.startswith("LOCAL_EPHEMERAL_PRIVATE_KEY") for line in keys)
    secret = world.hosts["A"].private_key.to_base64()
    for given, holds in ((None, False), (keys, True)):
        path = tmp_path / "trace.pcapng"
        world.trace.save_capture(path, keys=given)
        assert (secret.encode() in path.read_bytes()) is holds


def test_only_patched_hosts_have_keys_to_log() -> None:
    world = World(4)
    a, b = world.host("A", engine="upstream"), world.host("B")
    world.tunnel(a, b)
    a.send(at=0.0)
    world.run(1.0)
    log = "\n".join(world.key_log())
    assert b.private_key.to_base64() in log
    assert a.private_key.to_base64() not in log
