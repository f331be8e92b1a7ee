"""A file changes as a whole or not at all: killed at every line, by two at once, on a disk that is full (fault 36)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from connlib import ConfigError, load_gateway
from connlib import _filechange as module
from connlib._filechange import FileChange
from connlib.cli.peer import add_peer
from every_line import ALICE, BEFORE, OLD

LOCK = ".office.toml.connlib-lock"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway's files; the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in BEFORE.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def change_of(path: str = "office.toml", keys: tuple[str, ...] = (), new: bool = False) -> FileChange:
    return FileChange(path, 4096, lambda data: keys, kind="a file", new=new)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(("action", "lines"), [("add", 200), ("remove", 100), ("init", 100), ("clean", 50)])
def test_killed_at_any_line_it_leaves_the_old_or_the_new_and_no_secret(
    tmp_path: Path, action: str, lines: int
) -> None:
    script = Path(__file__).with_name("every_line.py")
    command = [sys.executable, "-W", "error", str(script), action, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    said = re.fullmatch(r"(?:.*\n)*killed at (\d+) lines, (\d+) times after the change\n", done.stdout)
    assert said is not None, done.stdout
    assert int(said[1]) >= lines and int(said[2]) >= 3


def test_of_many_at_once_each_adds_its_peer(folder: Path) -> None:
    def add(number: int) -> None:
        peer = replace(ALICE, name=f"peer {number}")
        add_peer(peer, "office.toml", qr=False, output=f"{number}.conf", allow_world_readable=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(16)))
    peers = load_gateway("office.toml").peers
    assert {peer.name for peer in peers} == {"bob", *(f"peer {number}" for number in range(16))}
    assert {str(peer.allowed_ips[0]) for peer in peers} == {f"10.7.0.{number}/32" for number in range(2, 19)}
    assert not [name for name in contents(folder) if name.startswith(".")]


def test_one_that_is_locked_for_long_is_said_to_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.0)
    with change_of():
        assert stat.S_IMODE(os.lstat(LOCK).st_mode) == 0o600
        with pytest.raises(ConfigError) as raised, change_of():
            pass
    me = Path("/proc/self/comm").read_text().strip()
    assert str(raised.value) == (
        f"office.toml: process {os.getpid()} ({me}) is changing it; wait until it ends, or end it"
    )
    with change_of():
        pass
    assert contents(folder) == BEFORE


def test_who_may_only_read_cannot_keep_others_from_changing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.0)
    with ExitStack() as locked:
        for path in (folder, folder / "office.toml"):
            descriptor = os.open(path, os.O_RDONLY)
            locked.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with change_of() as change:
            change.stage(b"new")
            change.commit()
    assert contents(folder) == {**BEFORE, "office.toml": "new"}


def test_the_lock_that_a_killed_one_has_left_locks_nobody_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.0)
    Path(LOCK).touch(0o600)
    with change_of():
        pass
    assert contents(folder) == BEFORE


@pytest.mark.parametrize("what", ["full", "of two names", "a folder", "a link", "of somebody else"])
def test_what_is_no_lock_is_left_as_it_is(folder: Path, what: str) -> None:
    """Whoever owns the folder can give any file of root's in it the name of the lock."""
    lock = Path(LOCK)
    if what == "a folder":
        lock.mkdir()
    elif what == "a link":
        Path("elsewhere").touch()
        lock.symlink_to("elsewhere")
    else:
        lock.write_text("secret" if what == "full" else "")
        lock.chmod(0o600)
        if what == "of two names":
            os.link(lock, "elsewhere")
        if what == "of somebody else":
            if os.geteuid() != 0:
                pytest.skip("needs root, to give a file away")
            os.chown(lock, 12345, 23456)
            os.chown(folder, 23456, 12345)
    before = os.lstat(lock)
    with pytest.raises(ConfigError) as raised, change_of():
        pass
    assert len(str(raised.value).splitlines()) == 1
    after = os.lstat(lock)
    assert (after.st_ino, after.st_uid, after.st_size) == (before.st_ino, before.st_uid, before.st_size)


def test_a_file_of_roots_is_not_given_to_who_owns_the_folder(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder away")
    os.chown(folder, 65534, 65534)
    Path(LOCK).write_text("root's secret")
    Path(LOCK).chmod(0o600)
    with pytest.raises(ConfigError), change_of():
        pass
    assert (os.stat(LOCK).st_uid, Path(LOCK).read_text()) == (0, "root's secret")


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one in the row would hold another file than the one after it."""
    taken: list[int] = []

    def lock(descriptor: int, patience: float, pause: float) -> bool:
        taken.append(os.fstat(descriptor).st_ino)
        if len(taken) == 1:
            os.rename(LOCK, "elsewhere")
        return True

    monkeypatch.setattr(module, "lock", lock)
    with change_of():
        assert os.lstat(LOCK).st_ino == taken[1] != taken[0]


def test_the_new_text_takes_over_mode_and_owner(folder: Path) -> None:
    (folder / "office.toml").chmod(0o640)
    owner = (12345, 23456) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown("office.toml", *owner)
    with change_of() as change:
        change.stage(b"new")
        assert (folder / "office.toml").read_text() == OLD
        change.commit()
    found = os.stat("office.toml")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, *owner)
    assert contents(folder) == {**BEFORE, "office.toml": "new"}


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o600, 0o600), (0o640, 0o640), (0o400, 0o600), (0o666, 0o640), (0o4750, 0o640)]
)
def test_a_key_is_for_the_owner_and_the_group_of_the_file_that_it_is_like(
    folder: Path, mode: int, expected: int
) -> None:
    (folder / "office.key").chmod(mode)
    owner = (12345, 23456) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown("office.key", *owner)
    for name, like in (("new.psk", "office.key"), ("own.psk", None)):
        with change_of() as change:
            change.add_key(name, "secret", like)
            change.stage(b"new")
            change.commit()
    found = os.stat("new.psk")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (expected, *owner)
    found = os.stat("own.psk")
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.getuid())


@pytest.mark.parametrize(("refused", "mode"), [("owner", 0o640), ("both", 0o600)])
def test_a_key_is_written_where_it_cannot_be_given_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str, mode: int
) -> None:
    """Who is not root gives nothing to another user, nor to a group of others."""
    (folder / "office.key").chmod(0o640)
    given = []

    def refuse(_: int, owner: int, group: int) -> None:
        given.append((owner, group))
        if refused == "both" or owner != -1:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refuse)
    with change_of() as change:
        path = change.add_key("new.psk", "secret", "office.key")
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert given == [(os.getuid(), os.getgid()), (-1, os.getgid())]


def test_without_a_commit_nothing_changes_and_nothing_stays(folder: Path) -> None:
    with change_of() as change:
        change.stage(b"new")
        change.add_key("alice.psk", "secret\n")
        change.add_output("alice.conf", b"also secret\n")
        for name in ("alice.psk", "alice.conf"):
            assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
    assert contents(folder) == BEFORE
    with change_of() as change:
        change.stage(b"new")
        assert change.drop_key("bob.psk")
    assert contents(folder) == BEFORE


@pytest.mark.parametrize("call", ["fsync", "unlink"])
def test_what_fails_once_the_file_has_changed_is_left_for_the_next_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with change_of() as change:
        change.stage(b"new")
        assert change.drop_key("bob.psk")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            change.commit()
    assert (folder / "bob.psk").read_text() == BEFORE["bob.psk"]
    with change_of():
        pass
    assert contents(folder) == {"office.toml": "new", "office.key": BEFORE["office.key"]}


def test_a_key_file_that_somebody_else_removed_meanwhile_may_be_gone(folder: Path) -> None:
    with change_of() as change:
        change.stage(b"new")
        assert change.drop_key("bob.psk")
        os.unlink("bob.psk")
        change.commit()
    assert contents(folder) == {"office.toml": "new", "office.key": BEFORE["office.key"]}


def test_what_somebody_else_wrote_meanwhile_is_kept(folder: Path) -> None:
    with change_of() as change:
        change.stage(b"new")
        (folder / "office.toml").write_text("theirs")
        with pytest.raises(
            ConfigError, match=r"^office\.toml: somebody else has changed it meanwhile; nothing is"
        ):
            change.commit()
    assert contents(folder) == {**BEFORE, "office.toml": "theirs"}


def test_a_new_file_that_somebody_else_made_meanwhile_is_kept(folder: Path) -> None:
    with change_of("home.toml", new=True) as change:
        change.stage(b"new")
        (folder / "home.toml").write_text("theirs")
        with pytest.raises(ConfigError, match=r"^home\.toml: it is there already; choose another name"):
            change.commit()
    assert contents(folder) == {**BEFORE, "home.toml": "theirs"}


def test_no_key_is_written_over(folder: Path) -> None:
    with change_of() as change:
        with pytest.raises(
            ConfigError, match=r"^bob\.psk: it is there already, and nothing is written over a key"
        ):
            change.add_key("bob.psk", "another\n")
        with pytest.raises(ConfigError, match=r"^office\.key: it is there already; choose another name, or"):
            change.add_output("office.key", b"another\n")
    assert contents(folder) == BEFORE


def test_only_an_ordinary_key_file_of_one_name_is_removed(folder: Path) -> None:
    os.symlink("bob.psk", "link.psk")
    os.link("office.key", "second.psk")
    with change_of() as change:
        change.stage(b"new")
        assert not change.drop_key("link.psk")
        assert not change.drop_key("second.psk")
        assert not change.drop_key("missing.psk")
        change.commit()
    assert set(contents(folder)) == {*BEFORE, "link.psk", "second.psk"}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.symlink_to("elsewhere.toml"), "a symbolic link is not written through"),
        (lambda path: path.mkdir(), "this is not an ordinary file"),
        (os.mkfifo, "this is not an ordinary file"),
        (lambda path: None, "cannot read it: no such file or directory"),
    ],
    ids=["link", "folder", "pipe", "nothing"],
)
def test_what_is_no_ordinary_file_is_refused(
    folder: Path, make: Callable[[Path], None], problem: str
) -> None:
    (folder / "elsewhere.toml").write_text(OLD)
    make(folder / "odd.toml")
    with pytest.raises(ConfigError, match=rf"^odd\.toml: {problem}; name "), change_of("odd.toml"):
        pass
    assert (folder / "elsewhere.toml").read_text() == OLD


def test_a_path_without_a_folder_or_with_a_nul_byte_is_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^nowhere/office\.toml: cannot read it: no such file"):
        change_of("nowhere/office.toml").__enter__()
    with pytest.raises(ConfigError, match=r"^nowhere/office\.toml: cannot write it: no such file"):
        change_of("nowhere/office.toml", new=True).__enter__()
    with pytest.raises(ConfigError, match=r"^'a\\x00b': cannot read it: this is not a path"):
        change_of("a\0b").__enter__()


@pytest.mark.parametrize("call", ["open", "write", "fsync", "fchmod", "link", "rename"])
def test_a_system_that_says_no_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk, a folder that is read-only: whichever call fails, the old files are there and no other."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def change() -> None:
        with change_of() as begun:
            monkeypatch.setattr(os, call, fail)
            begun.add_key("alice.psk", "secret\n")
            begun.stage(b"new")
            begun.commit()

    with pytest.raises(ConfigError) as raised:
        change()
    monkeypatch.undo()
    assert raised.value.problem == "cannot write it: no space left on device"
    assert contents(folder) == BEFORE


def test_a_file_that_may_not_be_written_is_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename needs the right to write to the folder only."""
    monkeypatch.setattr(os, "access", lambda path, mode, **_: (path, mode) != ("office.toml", os.W_OK))
    with (
        pytest.raises(
            ConfigError, match=r"^office\.toml: cannot write it: permission denied; run as its owner"
        ),
        change_of() as change,
    ):
        change.stage(b"new")
    assert contents(folder) == BEFORE


# What a change that was killed has left


@pytest.mark.parametrize("named", ["bob.psk", "./bob.psk", "keys/bob.psk"])
def test_what_a_killed_change_left_is_removed_unless_the_file_needs_it(folder: Path, named: str) -> None:
    (folder / "keys").symlink_to(folder)
    (folder / ".office.toml.connlib-new").write_text("half")
    os.link("bob.psk", ".office.toml.connlib-key")
    with change_of(keys=(named,)):
        pass
    (folder / "keys").unlink()
    assert contents(folder) == BEFORE
    os.link("bob.psk", ".office.toml.connlib-key")
    with change_of(keys=()):
        pass
    assert set(contents(folder)) == {"office.toml", "office.key"}


def test_while_the_file_is_wrong_nobody_knows_what_it_needs_and_no_key_is_removed(folder: Path) -> None:
    os.link("bob.psk", ".office.toml.connlib-key")

    def unknown(_: bytes) -> tuple[str, ...]:
        raise ConfigError("wrong")

    with FileChange("office.toml", 4096, unknown, kind="a file"):
        pass
    assert (folder / "bob.psk").read_text() == BEFORE["bob.psk"]
    assert (folder / ".office.toml.connlib-key").exists()
    with change_of(keys=("bob.psk",)):
        pass
    assert contents(folder) == BEFORE
