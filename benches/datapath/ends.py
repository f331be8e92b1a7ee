"""Tunnels: two ends, each a process in a network namespace of its own, with a cable between them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.series import RunFailed
from interop.build import PEERS
from interop.netns import Background, Namespace, joined_namespaces, wait_for
from interop.peers import BoringtunCli, Connlib, End, GotatunCli, Peer, WireguardGo, ends_of_tunnel
from interop.traffic import ping
from reliability import parties
from reliability.places import COMMAND, cpu_seconds, resident

CONNLIB = "connlib"
FOREIGN: dict[str, type[WireguardGo | GotatunCli | BoringtunCli]] = {
    "wireguard-go": WireguardGo,
    "gotatun-cli": GotatunCli,
    "boringtun-cli": BoringtunCli,
}
IPERF3_PORT = 5201


@dataclass(frozen=True)
class Bench:
    """How thorough to be, and against whom."""

    quick: bool = False
    pairs: int = 5
    seconds: float = 5.0
    """Of each run."""
    against: tuple[str, ...] = tuple(FOREIGN)
    offload: str | None = None
    """What connlib's configuration says of offloads; None for what it does by itself."""
    program: Path | None = None
    """The Rust program of benches/rust, which times ring alone."""

    say: Callable[[str], None] = lambda what: None
    """Told what is measured next."""


def version(name: str) -> str:
    """Of a foreign implementation."""
    return PEERS[name]["version"]


class ConnlibEnd(Connlib):
    """`connlib up`, from the package of this process, which keeps nothing anywhere; maybe with idle peers besides."""

    def __init__(self, host: Namespace, end: End, folder: Path, idle_peers: int) -> None:
        super().__init__(host, end, folder)
        self._idle_peers = idle_peers

    def command(self) -> Sequence[str]:
        path = self.folder / f"{self.device}.conf"
        text = self.end.conf(quick=True)
        if self._idle_peers:
            # The other end is in the interface's own network, and nobody needs a way to those who are not there.
            text = text.replace("[Interface]\n", "[Interface]\nTable = off\n", 1)
        path.write_text(text + "".join(map(_idle_peer, range(self._idle_peers))))
        path.chmod(0o600)
        return (*COMMAND, "up", "--log-level", "warning", str(path))

    def environment(self) -> dict[str, str]:
        return {"STATE_DIRECTORY": "", "CONNLIB_RUN_DIR": str(self.folder)}


def _idle_peer(number: int) -> str:
    party = parties.GATEWAY + 1 + number
    key = parties.key(party).public_key().to_base64()
    return f"\n[Peer]\nPublicKey = {key}\nAllowedIPs = {parties.address(party)}/32\n"


@dataclass(frozen=True)
class Without:
    """What an end of connlib's does without, or otherwise."""

    what: str = ""
    """In words."""
    settings: tuple[str, ...] = ()
    """Lines of its configuration."""
    sockets: str = ""
    """Of `datapath.without`, separated by commas."""
    backend: str = "trio"


class WithoutEnd(Connlib):
    """An end of connlib's that does without something."""

    def __init__(self, host: Namespace, end: End, folder: Path, without: Without) -> None:
        super().__init__(host, end, folder)
        self._without = without

    def command(self) -> Sequence[str]:
        *_, path = super().command()
        return (sys.executable, "-m", "datapath.without", path, self._without.sockets, self._without.backend)

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join(sys.path)}


class Tunnel:
    """A tunnel that is up."""

    def __init__(self, near: Peer, far: Peer, folder: Path) -> None:
        self.near, self.far, self.folder = near, far, folder
        self._server: Background | None = None

    @property
    def pids(self) -> tuple[int, int]:
        """The processes of the near and of the far end."""
        return _pid(self.near), _pid(self.far)

    def cpu(self) -> float:
        """Seconds of processor time that both ends have used so far."""
        return sum(map(cpu_seconds, self.pids))

    def resident(self) -> float:
        """Megabytes of memory that both ends have."""
        return sum(map(resident, self.pids)) / 1e6

    def serve(self) -> None:
        """Start an iperf3 server at the far end, in the place of the one that there is.

        A new one for each run: one that was broken off may still wait for the rest, and some end with their client.
        """
        self.stop()
        host = self.far.host
        command = host.command("iperf3", "-s", "-p", str(IPERF3_PORT))
        self._server = Background(command, self.folder / f"{host.name}.iperf3")
        listening = f":{IPERF3_PORT:04X} "
        wait_for(
            lambda: any(
                listening in line and " 0A " in line
                for line in host.run("cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
            ),
            "iperf3 to listen",
        )

    def stop(self) -> None:
        """End the iperf3 server."""
        if self._server is not None:
            self._server.stop()
            self._server = None


def _pid(peer: Peer) -> int:
    if peer.process is None or peer.process.returncode is not None:
        raise RunFailed(f"{type(peer).__name__} has ended: {peer.output()[-500:].strip()}")
    return peer.process.pid


def _make(
    name: str | Without, bench: Bench, host: Namespace, end: End, folder: Path, idle_peers: int
) -> Peer:
    if isinstance(name, Without):
        return WithoutEnd(host, replace(end, extensions=name.settings), folder, name)
    if name != CONNLIB:
        return FOREIGN[name](host, end, folder)
    lines = () if bench.offload is None else (f"offload = {bench.offload}",)
    return ConnlibEnd(host, replace(end, extensions=lines), folder, idle_peers)


@contextmanager
def tunnel(bench: Bench, near: str | Without, far: str | Without, *, idle_peers: int = 0) -> Iterator[Tunnel]:
    """Bring a tunnel up, and take it down whatever happens. idle_peers: how many more the far end, connlib, has."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wire = stack.enter_context(joined_namespaces())
        near_end, far_end = ends_of_tunnel(wire, 4, preshared=False)
        first = _make(near, bench, wire.hosts[0], near_end, folder, 0)
        second = _make(far, bench, wire.hosts[1], far_end, folder, idle_peers)
        for peer in (second, first):
            stack.callback(peer.close)
            peer.start()
        made = Tunnel(first, second, folder)
        ping(first.host, second.end.v4, timeout=30)
        stack.callback(made.stop)
        yield made
