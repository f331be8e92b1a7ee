"""`connlib up` as a service: what it tells its manager, two of them joined by a cable, and what a process may do."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from connlib import PrivateKey
from interop.machine import missing_rights
from interop.netns import Background, Namespace, Wire, joined_namespaces, wait_for

PATIENCE = 20.0
"""Seconds for a message."""


class Manager:
    """A socket that services tell how they are."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if self.address.startswith("@"):
            self._socket.bind(b"\0" + self.address[1:].encode())
        else:
            self._socket.bind(self.address)
            os.chmod(self.address, 0o777)
        self._socket.settimeout(PATIENCE)

    @property
    def environment(self) -> dict[str, str]:
        """What a service is started with."""
        return {"NOTIFY_SOCKET": self.address}

    def hear(self) -> dict[str, str]:
        """The next message."""
        lines = self._socket.recv(4096).decode().split("\n")
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def heard(self) -> list[dict[str, str]]:
        """The messages that are there already."""
        messages = []
        self._socket.settimeout(0)
        try:
            while True:
                messages.append(self.hear())
        except BlockingIOError:
            return messages
        finally:
            self._socket.settimeout(PATIENCE)

    def hear_until(self, **assignments: str) -> list[dict[str, str]]:
        """The messages up to the first one that holds all of that."""
        heard: list[dict[str, str]] = []
        end = time.monotonic() + PATIENCE
        while not heard or not assignments.items() <= heard[-1].items():
            # Others may come for ever.
            assert time.monotonic() < end, f"waited {PATIENCE:g} s for {assignments}"
            heard.append(self.hear())
        return heard

    def __enter__(self) -> Manager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


# Two ends


@dataclass
class Ends:
    """`connlib up` as a gateway with 10.9.0.1, and as its client with 10.9.0.2, in two namespaces joined by a cable."""

    wire: Wire
    gateway: Background
    client: Background
    folder: Path

    def ping(self, count: int = 1) -> int:
        """How many of `count` pings from the client through the tunnel, 0.1 s apart, were answered within 5 s each."""
        said = self.wire.hosts[CLIENT].run(
            *("ping", "-n", "-c", str(count), "-i", "0.1", "-W", "5", "10.9.0.1"), check=False, timeout=60
        )
        answered = re.search(r"(\d+) received", said)
        assert answered is not None, said
        return int(answered[1])


GATEWAY, CLIENT = 0, 1


@contextmanager
def two_ends(
    folder: Path,
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    keepalive: int = 0,
) -> Iterator[Ends]:
    """Both ends, up; options and environment are the client's."""
    if reason := missing_rights():
        pytest.skip(reason)
    keys = [PrivateKey.generate(), PrivateKey.generate()]
    with joined_namespaces() as wire:
        ends: list[Background] = []
        try:
            for host, name in ((GATEWAY, "gw0"), (CLIENT, "cl0")):
                key = keys[1 - host].public_key().to_base64()
                peer = f'public_key = "{key}"\nallowed_ips = ["10.9.0.{2 - host}/32"]\n'
                if host == CLIENT:
                    peer += (
                        f'endpoint = "{wire.address(GATEWAY, 4)}:51820"\npersistent_keepalive = {keepalive}\n'
                    )
                file = private_file(
                    folder / f"{name}.toml",
                    f'[interface]\nprivate_key = "{keys[host].to_base64()}"\naddresses = ["10.9.0.{1 + host}/24"]\n'
                    f"listen_port = {51820 if host == GATEWAY else 0}\n[[peers]]\n{peer}",
                )
                more = (options, environment) if host == CLIENT else ((), None)
                ends.append(start_up(wire.hosts[host], file, *more[0], environment=more[1]))
            yield Ends(wire, ends[GATEWAY], ends[CLIENT], folder)
        finally:
            for end in ends:
                if end.returncode is None:
                    end.stop()
                print(end.output())


def private_file(path: Path, text: str) -> Path:
    """A file that only its owner can read."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def start_up(
    namespace: Namespace, file: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Background:
    """`connlib up FILE` in the namespace, once it is up; its log is beside the file."""
    command = namespace.command(sys.executable, "-m", "connlib", "up", str(file), *options)
    log = file.with_suffix(".log")
    before = len(log.read_text()) if log.exists() else 0
    process = Background(command, log, dict(environment or {}))
    try:
        wait_for(
            lambda: " is up: " in process.output()[before:] or process.returncode is not None,
            "the tunnel to be up",
        )
        process.require_running()
    except BaseException:
        process.send(signal.SIGKILL)
        raise
    return process


# As the unit's user


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="connlib-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


UNIT_USER = "nobody"
"""Who stands for the user `connlib` of the unit, which this machine does not have."""

_AS_UNIT_USER = f"""
case $(stat -c %a /dev/net/tun) in
*[67]) ;;
*) rm -f "$0"; mknod -m 666 "$0" c 10 200 && mount --bind "$0" /dev/net/tun || exit 1 ;;
esac
rights=-all,+net_admin,+net_bind_service
exec setpriv --reuid {UNIT_USER} --regid "$(id -g {UNIT_USER})" --clear-groups --inh-caps=$rights \\
    --ambient-caps=$rights --bounding-set=$rights --no-new-privs "$@"
"""


def as_unit_user(namespace: Namespace, folder: Path, *command: str) -> tuple[str, ...]:
    """The command line that runs `command` in the namespace with the user and the capabilities of the unit.

    There, everybody may open /dev/net/tun, as is usual; where it is not so, another one is put over it from `folder`,
    in the mount namespace that `ip netns exec` makes.
    """
    return namespace.command("sh", "-c", _AS_UNIT_USER, str(folder / "tun"), *command)


# Capabilities


def rights(process: Background) -> list[dict[str, str]]:
    """Who each thread of a process is, and what it may do: the fields of /proc/PID/status."""
    threads = Path(f"/proc/{process.pid}/task")
    return [
        {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
        for text in ((thread / "status").read_text() for thread in threads.iterdir())
    ]
