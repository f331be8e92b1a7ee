"""docs/service.md goes on where docs/gateway.md ends: one walk through both, to the service as the unit's user."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers_service import UNIT_USER, as_unit_user, open_folder
from interop.machine import own_namespace
from interop.netns import Background, Namespace, wait_for
from test_cli import COMMAND
from test_gateway_docs import STEPS

__all__ = ["open_folder"]  # the fixture

DOCUMENT = (Path(__file__).parent.parent / "docs" / "service.md").read_text()
INSTALLING = DOCUMENT.partition("\n## Installing it\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```\n(# .*?)^```", INSTALLING, re.MULTILINE | re.DOTALL)
FOLDER = "/etc/connlib"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with own_namespace("sd") as made:
        yield made


class Gateway:
    """`connlib up office.toml` in a namespace, by root and then by the unit's user, and what root types beside it."""

    def __init__(self, namespace: Namespace, base: Path) -> None:
        self.namespace = namespace
        self.base = base
        self.folder = base / "etc"
        self.folder.mkdir(mode=0o755)
        self.run_dir, self.state = base / "run", base / "state"
        self.environment = {"CONNLIB_RUN_DIR": str(self.run_dir), "STATE_DIRECTORY": str(self.state)}
        self.log = base / "log"
        self.process: Background | None = None

    def type(self, *command: str) -> str:
        """What a command prints, in the folder; it has to succeed."""
        line = [*COMMAND, *command[1:]] if command[0] == "connlib" else command
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            line, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (
            f"{shlex.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout + done.stderr

    def start(self, *, as_root: bool) -> None:
        self.log.unlink(missing_ok=True)
        # The unit has this path.
        command = (*COMMAND, "up", str(self.folder / "office.toml"))
        started = (
            self.namespace.command(*command) if as_root else as_unit_user(self.namespace, self.base, *command)
        )
        self.process = Background(started, self.log, self.environment)
        wait_for(lambda: "office is up: " in self.output() or self.process_ended(), "the gateway", 30)
        self.process.require_running()

    def process_ended(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    def output(self) -> str:
        assert self.process is not None
        return self.process.output()

    def reload(self) -> None:
        assert self.process is not None
        before = self.output()
        self.process.send(signal.SIGHUP)
        wait_for(lambda: "reloaded" in self.output().removeprefix(before), "the reload", 30)
        assert "not reloaded" not in self.output().removeprefix(before), self.output()

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            print(process.output())
            assert process.returncode is not None or process.stop() == 0
            assert "warning" not in process.output() and "error" not in process.output()


@pytest.fixture
def gateway(namespace: Namespace, open_folder: Path) -> Iterator[Gateway]:
    made = Gateway(namespace, open_folder)
    try:
        yield made
    finally:
        if made.process is not None and made.process.returncode is None:
            print(made.process.output())
            made.process.stop(signal.SIGKILL)


def do_as_the_guide_says(gateway: Gateway) -> None:
    """What docs/gateway.md has root type, in the folder of the unit."""
    for command, _ in STEPS:
        match shlex.split(command):
            case ["connlib", "up", _]:
                gateway.start(as_root=True)
            case ["connlib", *arguments]:
                gateway.type("connlib", *arguments)
            case _:
                pass  # what else there is concerns the kernel, and files that are to be looked at


def do_as_the_document_says(gateway: Gateway) -> list[list[str]]:
    """What docs/service.md has root type, as far as it concerns the gateway's files; what else it has, is returned."""
    group = str(pwd.getpwnam(UNIT_USER).pw_gid)
    others = []
    for line in "".join(BLOCKS).splitlines():
        match shlex.split(line.removeprefix("# ")):
            case ["cd", folder]:
                assert folder == FOLDER
            case ["chgrp", "connlib", *files]:
                gateway.type("chgrp", group, *files)
            case ["chmod", *arguments]:
                gateway.type("chmod", *arguments)
            case other:
                others.append(other)
    return others


def test_the_guide_and_then_the_service_is_one_path_and_peers_may_come_later(gateway: Gateway) -> None:
    do_as_the_guide_says(gateway)
    gateway.stop()
    others = do_as_the_document_says(gateway)
    assert [command[0] for command in others] == ["pip", "install", "install", "systemd-sysusers"] + [
        "systemctl"
    ] * 2
    assert others[-1] == ["systemctl", "enable", "--now", "connlib@office"]
    user = pwd.getpwnam(UNIT_USER)
    for folder in (gateway.run_dir, gateway.state):
        # As systemd does with RuntimeDirectory and StateDirectory, and what root has left there.
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user.pw_uid, user.pw_gid)
    gateway.start(as_root=False)
    assert "alice" in gateway.type("connlib", "show", "office")
    added = gateway.type("connlib", "peer", "add", "carol", "--file", "office.toml", "-o", "carol.conf")
    assert "connlib apply office.toml" in added
    assert gateway.type("connlib", "apply", "office.toml").startswith("+ carol, ")
    gateway.reload()
    gateway.stop()
    # A restart, or a machine that was switched on.
    gateway.start(as_root=False)
    assert "2 peers; stop with" in gateway.output()
    gateway.type("connlib", "peer", "remove", "carol", "--file", "office.toml")
    gateway.reload()
    gateway.stop()
    secret = ["office.toml", "office.key", "alice.psk"]
    assert {os.stat(gateway.folder / name).st_mode & 0o777 for name in secret} == {0o640}
    assert os.stat(gateway.folder / "carol.conf").st_mode & 0o777 == 0o600, (
        "nobody else's key is shown to the unit"
    )
