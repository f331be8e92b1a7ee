"""WireGuard implementations as processes: one class each, all driven the same way.

A `Peer` is one end of a tunnel: a process in a namespace with a TUN device. `start` returns when the device carries
addresses and is up; `stop` returns when the process has ended and its device is gone.
"""

from __future__ import annotations

import abc
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from interop.build import build
from interop.netns import Background, Namespace, Wire, shell, unique_name, wait_for

__all__ = ["BoringtunCli", "Connlib", "End", "GotatunCli", "Peer", "Remote", "WireguardGo", "ends_of_tunnel"]

MTU = 1420


@dataclass(frozen=True)
class Remote:
    """The other side, as one side's configuration names it."""

    public_key: str
    allowed_ips: tuple[str, ...]
    preshared_key: str | None = None
    endpoint: str | None = None
    keepalive: int | None = None

    def lines(self) -> list[str]:
        """The [Peer] section."""
        lines = ["[Peer]", f"PublicKey = {self.public_key}", f"AllowedIPs = {', '.join(self.allowed_ips)}"]
        if self.preshared_key:
            lines.append(f"PresharedKey = {self.preshared_key}")
        if self.endpoint:
            lines.append(f"Endpoint = {self.endpoint}")
        if self.keepalive:
            lines.append(f"PersistentKeepalive = {self.keepalive}")
        return lines


@dataclass(frozen=True)
class End:
    """One side of a tunnel: keys, port, inner addresses and the other side."""

    private_key: str
    public_key: str
    port: int
    inner: tuple[str, str]
    remote: Remote | None = None
    extensions: tuple[str, ...] = field(default=())

    def conf(self, *, quick: bool) -> str:
        """The configuration file: as wg-quick reads it, or as `wg setconf` does."""
        lines = ["[Interface]", f"PrivateKey = {self.private_key}", f"ListenPort = {self.port}"]
        if quick:
            v4, v6 = self.inner
            lines += [f"Address = {v4}/24, {v6}/64", f"MTU = {MTU}"]
            lines += [f"# connlib: {line}" for line in self.extensions]
        if self.remote is not None:
            lines += ["", *self.remote.lines()]
        return "\n".join(lines) + "\n"

    @property
    def v4(self) -> str:
        """The inner IPv4 address."""
        return self.inner[0]

    @property
    def v6(self) -> str:
        """The inner IPv6 address."""
        return self.inner[1]


def ends_of_tunnel(wire: Wire, outer: int, preshared: bool) -> tuple[End, End]:
    """(client, server): the client, on host 0, knows the server's endpoint; the server knows none."""
    preshared_key = shell("wg", "genpsk").strip() if preshared else None
    client, server = (
        End(private, shell("wg", "pubkey", stdin=private).strip(), port, inner)
        for private, port, inner in (
            (shell("wg", "genkey").strip(), 51_820, ("10.77.0.1", "fd77::1")),
            (shell("wg", "genkey").strip(), 51_821, ("10.77.0.2", "fd77::2")),
        )
    )
    host = wire.address(1, outer)
    endpoint = f"[{host}]:{server.port}" if outer == 6 else f"{host}:{server.port}"
    return (
        replace(client, remote=_remote(server, preshared_key, endpoint)),
        replace(server, remote=_remote(client, preshared_key, None)),
    )


def _remote(end: End, preshared_key: str | None, endpoint: str | None) -> Remote:
    return Remote(end.public_key, (f"{end.v4}/32", f"{end.v6}/128"), preshared_key, endpoint)


class Peer(abc.ABC):
    """One end of a tunnel, as a process in a namespace."""

    def __init__(self, host: Namespace, end: End, folder: Path) -> None:
        self.host = host
        self.end = end
        self.folder = folder
        self.device = unique_name("wg")
        self.process: Background | None = None

    @abc.abstractmethod
    def command(self) -> Sequence[str]:
        """The command that makes the device and stays in the foreground."""

    @abc.abstractmethod
    def configure(self) -> None:
        """Bring the started device to the state that `end` describes."""

    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {}

    def start(self) -> None:
        """Start the process and wait until it carries the configuration."""
        log = self.folder / f"{self.device}.log"
        self.process = Background(self.host.command(*self.command()), log, self.environment())
        self.configure()

    def stop(self) -> int:
        """End the process as a user would, wait until the device is gone, return the exit code."""
        assert self.process is not None
        code = self.process.stop(signal.SIGTERM)
        wait_for(lambda: not self.host.has_link(self.device), f"{self.device} to go away")
        self.process = None
        return code

    def restart(self) -> None:
        """Stop and start again: the new process knows no session of the old one."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop if it runs."""
        if self.process is not None:
            self.process.stop(signal.SIGTERM)
            self.process = None

    def output(self) -> str:
        """What the process printed: the first thing to read when a test fails."""
        log = self.folder / f"{self.device}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _wait(self, condition: str, timeout: float = 15.0) -> None:
        """Wait for something about the device, but not longer than the process lives."""
        process = self.process
        assert process is not None

        def done() -> bool:
            process.require_running()
            if condition == "socket":
                return self._socket().exists()
            return self.host.has_link(self.device) and condition in self.host.run(
                "ip", "address", "show", "dev", self.device, check=False
            )

        wait_for(done, f"{self.device}: {condition}", timeout)

    def _socket(self) -> Path:
        return Path("/run/wireguard") / f"{self.device}.sock"


class _UapiPeer(Peer):
    """A peer that `wg` configures through its UAPI socket."""

    def configure(self) -> None:
        self._wait("socket")
        self.set_conf()
        v4, v6 = self.end.inner
        self.host.run("ip", "address", "add", f"{v4}/24", "dev", self.device)
        self.host.run("ip", "address", "add", f"{v6}/64", "dev", self.device, "nodad")
        self.host.run("ip", "link", "set", self.device, "mtu", str(MTU), "up")

    def set_conf(self) -> None:
        """Give the process its keys and its peer."""
        path = self.folder / f"{self.device}.conf"
        path.write_text(self.end.conf(quick=False))
        shell("wg", "setconf", self.device, str(path))

    def forget_sessions(self) -> None:
        """Remove the peer and add it again: its next packet needs a fresh handshake."""
        remote = self.end.remote
        assert remote is not None
        shell("wg", "set", self.device, "peer", remote.public_key, "remove")
        self.set_conf()


class WireguardGo(_UapiPeer):
    """wireguard-go."""

    def command(self) -> Sequence[str]:
        return (str(build("wireguard-go")), "-f", self.device)

    def environment(self) -> dict[str, str]:
        return {"LOG_LEVEL": "verbose"}


class BoringtunCli(_UapiPeer):
    """Cloudflare's boringtun-cli."""

    def command(self) -> Sequence[str]:
        return (str(build("boringtun-cli")), "--foreground", "--disable-drop-privileges", self.device)

    def environment(self) -> dict[str, str]:
        return {"WG_LOG_LEVEL": "info"}


class GotatunCli(_UapiPeer):
    """Mullvad's gotatun-cli."""

    def command(self) -> Sequence[str]:
        return (str(build("gotatun-cli")), "--foreground", "--disable-drop-privileges", self.device)

    def environment(self) -> dict[str, str]:
        return {"WG_LOG_LEVEL": "info", "WG_LOG_FILE": str(self.folder / f"{self.device}.file")}


class Connlib(Peer):
    """`connlib up FILE`, from the interpreter that runs the tests."""

    def command(self) -> Sequence[str]:
        path = self.folder / f"{self.device}.conf"
        path.write_text(self.end.conf(quick=True))
        path.chmod(0o600)
        return (str(Path(sys.executable).with_name("connlib")), "up", str(path))

    def configure(self) -> None:
        for wanted in (*self.end.inner, "UP,LOWER_UP"):
            self._wait(wanted)
