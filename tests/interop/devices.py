"""Devices that `connlib-wg` serves and that `wg` and `ip` configure: what the tests of the protocol start from."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from interop.netns import Background, Namespace, Wire, shell, unique_name, wait_for

__all__ = ["CONNLIB_WG", "INNER", "RUN", "End", "configured_ends"]

CONNLIB_WG = (sys.executable, "-m", "connlib.cli.wg")
RUN = Path("/var/run/wireguard")
INNER = ("10.66.0.1", "10.66.0.2")


class End:
    """A device that `connlib-wg -f` serves, and its key pair."""

    def __init__(self, stack: ExitStack, host: Namespace, folder: Path) -> None:
        self.host = host
        self.name = unique_name("cw")
        self.socket = RUN / f"{self.name}.sock"
        self.key = folder / f"{self.name}.key"
        self.key.touch(mode=0o600)
        self.key.write_text(shell("wg", "genkey"))
        self.public = shell("wg", "pubkey", stdin=self.key.read_text()).strip()
        self.process = Background(
            host.command(*CONNLIB_WG, "-f", self.name),
            folder / f"{self.name}.log",
            {"LOG_LEVEL": "debug", "PYTHONWARNINGS": "error"},
        )
        stack.callback(self.stop)
        wait_for(self.is_there, f"{self.socket}")

    def is_there(self) -> bool:
        self.process.require_running()
        return self.socket.exists()

    def stop(self) -> None:
        if self.process.returncode is None:
            assert self.process.stop() == 0, self.process.output()
        assert "Traceback" not in self.process.output() and not self.socket.exists()

    def wg(self, *arguments: str) -> None:
        shell("wg", "set", self.name, *arguments)

    def show(self, what: str) -> list[list[str]]:
        """`wg show DEVICE WHAT`, line by line, word by word."""
        return [line.split() for line in shell("wg", "show", self.name, what).splitlines()]

    def address(self, address: str, host: Namespace | None = None) -> None:
        host = host or self.host
        host.run("ip", "address", "add", f"{address}/24", "dev", self.name)
        host.run("ip", "link", "set", self.name, "up")


def configured_ends(stack: ExitStack, wire: Wire, folder: Path) -> tuple[End, End]:
    """Two devices that know each other's keys and endpoints, with addresses, and up."""
    one, other = (End(stack, host, folder) for host in wire.hosts)
    for number, (end, peer) in enumerate(((one, other), (other, one))):
        endpoint = f"{wire.V4[1 - number]}:{51820 + 1 - number}"
        end.wg("private-key", str(end.key), "listen-port", str(51820 + number))
        end.wg("peer", peer.public, "allowed-ips", f"{INNER[1 - number]}/32", "endpoint", endpoint)
        end.address(INNER[number])
    return one, other
