"""The file of a control socket: who gets to it, what is in its way, and who removes it."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from connlib import ConfigError, DeviceError, socketfile
from connlib.socketfile import SocketFile
from test_uapi_server import Run, run

__all__ = ["run"]  # the fixture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_only_the_owner_gets_to_the_socket_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        with SocketFile("wg0", str(folder)) as file:
            found = os.lstat(file.path)
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
            assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700
    finally:
        os.umask(before)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "x" * 16, "%d", "", ".", "a b", "wg\n"])
def test_names_that_name_no_interface_touch_no_file(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError):
        SocketFile(name, str(folder))
    assert not folder.exists()


def test_a_symbolic_link_in_the_way_is_refused_and_left_alone(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(mode=0o700)
    for target in (tmp_path / "target", tmp_path / "absent"):
        (tmp_path / "target").write_text("precious")
        (folder / "wg0.sock").symlink_to(target)
        with pytest.raises(DeviceError, match="a symbolic link"):
            SocketFile("wg0", str(folder))
        assert (tmp_path / "target").read_text() == "precious" and not (tmp_path / "absent").exists()
        (folder / "wg0.sock").unlink()


def test_a_file_in_the_way_is_refused_and_left_alone(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "wg0.sock").write_text("precious")
    with pytest.raises(DeviceError, match="not a socket"):
        SocketFile("wg0", str(folder))
    assert (folder / "wg0.sock").read_text() == "precious"


def test_a_socket_that_a_process_left_is_replaced(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "wg0.sock"))
    with SocketFile("wg0", str(folder)) as file, socket.socket(socket.AF_UNIX) as client:
        client.connect(file.path)


def test_a_socket_that_is_served_is_refused_and_goes_on(folder: Path) -> None:
    with SocketFile("wg0", str(folder)) as first:
        with pytest.raises(DeviceError, match="belongs to a process that runs"):
            SocketFile("wg0", str(folder))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(first.path)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_that_others_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(DeviceError, match="others can write"):
        SocketFile("wg0", str(folder))


def test_a_link_in_place_of_the_directory_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="not a directory"):
        SocketFile("wg0", str(folder))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_that_took_our_place_is_not_removed(folder: Path) -> None:
    with SocketFile("wg0", str(folder)) as file:
        os.unlink(file.path)
        Path(file.path).write_text("another's")
        assert file.removed
    assert Path(file.path).read_text() == "another's"


def test_nothing_is_left_open_when_it_cannot_be_made(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "wg0.sock").write_text("")
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    with pytest.raises(DeviceError):
        SocketFile("wg0", str(folder))
    assert before == (os.listdir("/proc/self/fd") if before else [])


def test_a_directory_that_stays_locked_is_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "_LOCK_PAUSE", 0.0)
    with (
        SocketFile("wg0", str(folder)) as file,
        socketfile._locked(file._folder, str(folder)),
        pytest.raises(DeviceError, match=r"keeps .* locked"),
    ):
        SocketFile("wg1", str(folder))


@pytest.mark.parametrize("how", ["unlink", "rename", "replace"])
def test_whoever_removes_the_file_is_noticed(run: Run, folder: Path, how: str) -> None:
    async def remove(file: SocketFile) -> None:
        await anyio.wait_all_tasks_blocked()
        # Something else that happens in the directory is no reason.
        beside = Path(file.path).with_name("other")
        beside.write_text("")
        beside.unlink()
        other = folder.with_name("elsewhere")
        await anyio.wait_all_tasks_blocked()
        if how == "unlink":
            os.unlink(file.path)
        elif how == "rename":
            os.rename(file.path, other)
        else:
            other.write_text("")
            os.replace(other, file.path)

    async def body() -> None:
        with SocketFile("wg0", str(folder)) as file:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(remove, file)
                await file.wait_removed()
                assert file.removed

    run(body)


@pytest.mark.parametrize("how", ["unlink", "rename", "replace"])
def test_whoever_removes_the_file_is_noticed_where_nothing_can_be_watched(
    run: Run, folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where each of the user's `fs.inotify.max_user_instances` is in use."""
    monkeypatch.setattr(socketfile, "_PAUSE", 0.0)
    elsewhere = folder.with_name("elsewhere")
    elsewhere.write_text("")

    async def remove(file: SocketFile) -> None:
        await anyio.sleep(0)
        if how == "unlink":
            os.unlink(file.path)
        elif how == "rename":
            os.rename(file.path, elsewhere)
        else:
            os.replace(elsewhere, file.path)

    async def body() -> None:
        with SocketFile("wg0", str(folder)) as file, no_more_descriptors():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(remove, file)
                await file.wait_removed()
                assert file.removed

    run(body)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
