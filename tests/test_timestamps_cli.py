"""The commands keep the timestamps of handshakes (fault 7): processes that are killed, on real sockets and devices."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from connlib import PrivateKey, Role, Tunn
from connlib.cli import _state
from connlib.cli._state import timestamp_store
from helpers_service import UNIT_USER, open_folder
from interop.machine import own_namespace
from interop.netns import Background, Namespace, shell, unique_name, wait_for

__all__ = ["open_folder"]  # the fixture

UP = (sys.executable, "-m", "connlib", "up")
CONNLIB_WG = (sys.executable, "-m", "connlib.cli.wg")
GATEWAY, CLIENT = PrivateKey.generate(), PrivateKey.generate()
PROBES = [PrivateKey.generate() for _ in range(4)]
PEERS = list(enumerate((CLIENT, *PROBES), 2))
PORT = 51820


def public(key: PrivateKey) -> str:
    return key.public_key().to_base64()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with own_namespace("ts") as made:
        yield made


class Outside:
    """A client of a gateway in a namespace, and others that ask once each."""

    def __init__(self, stack: ExitStack, namespace: Namespace) -> None:
        self.socket = stack.enter_context(namespace.make_socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.settimeout(20)
        self.socket.bind(("127.0.0.1", 0))
        self.initiation = self._initiation(CLIENT)
        self._probes = iter(PROBES)

    def _initiation(self, key: PrivateKey) -> bytes:
        tunn = Tunn(key, GATEWAY.public_key(), role=Role.INITIATOR, now=0.0, unix_time=time.time())
        (datagram,) = tunn.initiate_handshake(0.0).datagrams
        return datagram

    def answers(self, datagram: bytes) -> int:
        """How many responses come of an initiation before that of somebody who asks later."""
        probe = self._initiation(next(self._probes))
        before = 0
        for each in (datagram, probe):
            self.socket.sendto(each, ("127.0.0.1", PORT))
        while True:
            answer = self.socket.recv(1500)
            assert answer[0] == 2 and len(answer) == 92
            # The receiver index is the sender index of the initiation.
            if answer[8:12] == probe[4:8]:
                return before
            assert answer[8:12] == datagram[4:8]
            before += 1


def write_config(folder: Path) -> Path:
    file = folder / "wg0.conf"
    file.write_text(
        f"[Interface]\nPrivateKey = {GATEWAY.to_base64()}\nListenPort = {PORT}\n"
        + "".join(f"[Peer]\nPublicKey = {public(key)}\nAllowedIPs = 10.9.0.{n}/32\n" for n, key in PEERS)
    )
    file.chmod(0o600)
    return file


def start(
    stack: ExitStack, namespace: Namespace, folder: Path, *options: str, variable: str = ""
) -> Background:
    log = folder / "log"
    log.unlink(missing_ok=True)
    file = write_config(folder)
    if "--user" in options:
        # Who reads it again at a reload; otherwise there is a warning.
        shutil.chown(file, UNIT_USER)
    command = namespace.command(*UP, *options, str(file))
    process = Background(command, log, {"STATE_DIRECTORY": variable})
    stack.callback(lambda: process.returncode is None and process.stop(signal.SIGKILL))
    wait_for(lambda: "wg0 is up" in process.output() or process.returncode is not None, "wg0", 60)
    process.require_running()
    return process


def kill(process: Background) -> None:
    assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert "Traceback" not in process.output() and "warning" not in process.output()


def holds(file: Path, key: PrivateKey) -> bool:
    return file.exists() and public(key) in json.loads(file.read_text())["received"]


def test_a_gateway_that_was_killed_does_not_answer_a_replay(
    stack: ExitStack, namespace: Namespace, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    file = state / "wg0.timestamps.json"
    outside = Outside(stack, namespace)
    process = start(stack, namespace, tmp_path, "--state-dir", str(state))
    assert outside.answers(outside.initiation) == 1
    wait_for(lambda: holds(file, CLIENT), "the file")
    kill(process)
    # systemd's variable says the same, unless the option does; it may name several.
    process = start(stack, namespace, tmp_path, variable=f"{state}:/nowhere")
    assert outside.answers(outside.initiation) == 0
    assert process.stop() == 0
    assert all(holds(file, key) for key in (CLIENT, *PROBES[:2]))
    process = start(stack, namespace, tmp_path, "--no-state", variable=str(state))
    assert outside.answers(outside.initiation) == 1
    assert outside.answers(outside.initiation) == 0
    kill(process)
    assert sorted(path.name for path in state.iterdir()) == [file.name, f"{file.name}.lock"]


@pytest.mark.parametrize("is_there", [True, False], ids=["folder", "no folder"])
def test_another_user_keeps_them_over_a_restart_in_a_folder_of_its_own(
    stack: ExitStack, namespace: Namespace, open_folder: Path, is_there: bool
) -> None:
    """What root opens, before it becomes that user, is the user's from the start."""
    home = open_folder / "home"
    state = home / "state"
    for folder in (home, state) if is_there else (home,):
        folder.mkdir(0o700)
        shutil.chown(folder, UNIT_USER)
    file = state / "wg0.timestamps.json"
    options = ("--user", UNIT_USER, "--state-dir", str(state))
    outside = Outside(stack, namespace)
    process = start(stack, namespace, open_folder, *options)
    assert outside.answers(outside.initiation) == 1
    wait_for(lambda: holds(file, CLIENT), "the file")
    kill(process)
    process = start(stack, namespace, open_folder, *options)
    assert outside.answers(outside.initiation) == 0
    assert process.stop() == 0
    assert "warning" not in process.output()
    assert {path.owner() for path in (state, *state.iterdir())} == {UNIT_USER}
    assert sorted(path.name for path in state.iterdir()) == [file.name, f"{file.name}.lock"]


def test_another_user_s_rights_and_groups_decide_where_they_can_be_kept(
    stack: ExitStack, namespace: Namespace, open_folder: Path
) -> None:
    """Root could write there; the tunnel that it starts could not, later."""
    state = open_folder / "root's"
    state.mkdir()
    state.chmod(0o770)
    process = start(stack, namespace, open_folder, "--user", UNIT_USER, "--state-dir", str(state))
    (warning,) = [line for line in process.output().splitlines() if "warning: " in line]
    file = state / "wg0.timestamps.json"
    assert (
        f"warning: timestamps of handshakes are not kept: {file}: cannot be had: Permission denied" in warning
    )
    assert process.stop() == 0
    assert list(state.iterdir()) == []
    os.chown(state, 0, pwd.getpwnam(UNIT_USER).pw_gid)
    process = start(stack, namespace, open_folder, "--user", UNIT_USER, "--state-dir", str(state))
    assert process.stop() == 0
    assert "warning" not in process.output()
    assert [path.owner() for path in state.iterdir()] == [UNIT_USER]


def test_where_nothing_can_be_kept_a_warning_says_so_and_the_tunnel_is_up(
    stack: ExitStack, namespace: Namespace, tmp_path: Path
) -> None:
    place = tmp_path / "file"
    place.write_text("")
    process = start(stack, namespace, tmp_path, "--state-dir", str(place))
    (warning,) = [line for line in process.output().splitlines() if "warning: " in line]
    file = place / "wg0.timestamps.json"
    assert f"warning: timestamps of handshakes are not kept: {file}: cannot be had: " in warning
    assert process.stop() == 0


def test_connlib_wg_gets_its_key_and_its_peers_later_and_does_not_answer_a_replay(
    stack: ExitStack, namespace: Namespace, tmp_path: Path
) -> None:
    if not shutil.which("wg"):
        pytest.skip("needs wg (Debian: wireguard-tools)")
    name = unique_name("cw")
    stack.callback(lambda: Path(f"/var/run/wireguard/{name}.sock").unlink(missing_ok=True))
    key, state = tmp_path / "key", tmp_path / "state"
    key.touch(mode=0o600)
    key.write_text(GATEWAY.to_base64())
    outside = Outside(stack, namespace)

    def gateway(variable: str) -> Background:
        process = Background(
            namespace.command(*CONNLIB_WG, "-f", name),
            tmp_path / "log",
            {"STATE_DIRECTORY": variable, "LOG_LEVEL": "info"},
        )
        stack.callback(lambda: process.returncode is None and process.stop(signal.SIGKILL))
        wait_for(lambda: "waits for wg" in process.output() or process.returncode is not None, name, 60)
        process.require_running()
        namespace.run("ip", "link", "set", name, "up")
        # One after the other, as a script would.
        shell("wg", "set", name, "listen-port", str(PORT), "private-key", str(key))
        for number, peer in PEERS:
            shell("wg", "set", name, "peer", public(peer), "allowed-ips", f"10.9.0.{number}/32")
        return process

    process = gateway(str(state))
    assert outside.answers(outside.initiation) == 1
    wait_for(lambda: holds(state / f"{name}.timestamps.json", CLIENT), "the file")
    kill(process)
    (tmp_path / "log").unlink()
    process = gateway(str(state))
    assert outside.answers(outside.initiation) == 0
    # Without its key it has no peers, and with it they are the ones that it knows.
    (tmp_path / "none").touch()
    shell("wg", "set", name, "private-key", str(tmp_path / "none"))
    shell("wg", "set", name, "private-key", str(key))
    assert outside.answers(outside.initiation) == 0
    kill(process)
    (tmp_path / "log").unlink()
    process = gateway("")
    assert outside.answers(outside.initiation) == 1
    kill(process)


def test_the_place_is_an_option_else_systemds_else_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timestamp_store("wg0") is None  # what the tests have set
    monkeypatch.delenv("STATE_DIRECTORY")
    assert _state.DEFAULT == "/var/lib/connlib"
    for variable, option, path in (
        (None, None, "/var/lib/connlib/wg0.timestamps.json"),
        ("/var/lib/a:/var/lib/b", None, "/var/lib/a/wg0.timestamps.json"),
        ("/var/lib/a", "here", "here/wg0.timestamps.json"),
        ("", "here", "here/wg0.timestamps.json"),
    ):
        if variable is not None:
            monkeypatch.setenv("STATE_DIRECTORY", variable)
        store = timestamp_store("wg0", option)
        assert store is not None and store.path == path
