"""What this machine has for the interop tests, and how they start a peer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from interop.build import missing_tool
from interop.netns import Namespace, unique_name
from interop.peers import BoringtunCli, Peer, WireguardGo

__all__ = ["FOREIGN", "Launcher", "missing", "missing_rights", "own_namespace", "require"]

# By the name in peers.ini.
FOREIGN: dict[str, type[WireguardGo | BoringtunCli]] = {
    "wireguard-go": WireguardGo,
    "boringtun-cli": BoringtunCli,
}


@contextmanager
def own_namespace(prefix: str) -> Iterator[Namespace]:
    """A namespace that is gone at the end of the block; skips where there can be none."""
    if reason := missing_rights():
        pytest.skip(reason)
    made = Namespace(unique_name(prefix))
    try:
        yield made
    finally:
        made.delete()


@functools.cache
def missing_rights() -> str | None:
    """Why this machine cannot have network namespaces with TUN devices in them, None if it can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces and TUN devices"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    absent = [program for program in ("ip", "unshare") if not shutil.which(program)]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2, util-linux)"
    # Root of a container may lack the capabilities. The device is gone with its namespace, and the mount namespace is
    # what `ip netns` makes besides.
    probe = ["unshare", "--net", "--mount", "ip", "tuntap", "add", "dev", "probe0", "mode", "tun"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        return f"needs CAP_SYS_ADMIN and CAP_NET_ADMIN, for network namespaces and TUN devices: {done.stderr.strip()}"
    return None


def missing() -> str | None:
    """What this machine lacks for real tunnels, None if it has everything."""
    if reason := missing_rights():
        return reason
    absent = [program for program in ("ip", "wg", "ping") if not shutil.which(program)]
    return f"needs {', '.join(absent)} (Debian: iproute2, wireguard-tools, iputils-ping)" if absent else None


def require(name: str) -> type[WireguardGo | BoringtunCli]:
    """The class of a foreign peer, or a skip that says what is missing."""
    if reason := missing_tool(name):
        pytest.skip(reason)
    return FOREIGN[name]


class Launcher(ExitStack):
    """Starts peers, and stops them when it is closed; then their output is printed, which pytest shows on a failure.

    What else is entered into it (namespaces, sniffers) must be entered before the peers that use it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def start(self, peer: Peer) -> None:
        """Start a peer and wait until it is up."""
        self.callback(lambda: print(f"--- {type(peer).__name__} {peer.device}\n{peer.output()}"))
        self.callback(peer.close)
        peer.start()
