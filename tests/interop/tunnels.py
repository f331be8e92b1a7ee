"""A tunnel between connlib and somebody else's WireGuard, as the tests use it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from interop.build import missing_tool
from interop.machine import FOREIGN, Launcher, require
from interop.netns import Wire, joined_namespaces
from interop.peers import BoringtunCli, Connlib, Peer, WireguardGo, ends_of_tunnel
from interop.traffic import Handshakes, Pinger, ping

__all__ = ["CLIENT", "ROLES", "SERVER", "OldTunnels", "Tunnel", "bring_up"]

CLIENT, SERVER = 0, 1
ROLES = {CLIENT: "connlib-is-client", SERVER: "connlib-is-server"}


@dataclass
class Tunnel:
    """A tunnel that is up: its ends by role, and by whose they are."""

    client: Peer
    server: Peer
    connlib: Connlib
    foreign: WireguardGo | BoringtunCli
    seen: Handshakes
    wire: Wire
    outer: int

    def initiations(self, peer: Peer) -> int:
        """How many initiations that end has sent."""
        return self.seen.count(self._address(peer), Handshakes.INITIATION)

    def responses(self, peer: Peer) -> int:
        """How many responses that end has sent."""
        return self.seen.count(self._address(peer), Handshakes.RESPONSE)

    def ping_both_ways(self, timeout: float = 10.0) -> None:
        """Ping over IPv4 and IPv6, the client first: the server may not know yet where the client is."""
        for one, other in ((self.client, self.server), (self.server, self.client)):
            for address in other.end.inner:
                ping(one.host, address, timeout)

    def _address(self, peer: Peer) -> str:
        return self.wire.address(CLIENT if peer is self.client else SERVER, self.outer)


def bring_up(
    launcher: Launcher,
    foreign: str,
    role: int,
    *,
    outer: int = 4,
    preshared: bool = False,
    extensions: tuple[str, ...] = (),
) -> Tunnel:
    """Start both ends, connlib in the role given and with the `# connlib:` lines given, the server first."""
    foreign_kind = require(foreign)
    wire = launcher.enter_context(joined_namespaces())
    seen = launcher.enter_context(Handshakes(wire.hosts[SERVER], Wire.DEVICE))
    ends = list(ends_of_tunnel(wire, outer, preshared))
    ends[role] = dataclasses.replace(ends[role], extensions=extensions)
    ours = Connlib(wire.hosts[role], ends[role], launcher.folder)
    theirs = foreign_kind(wire.hosts[1 - role], ends[1 - role], launcher.folder)
    client, server = (ours, theirs) if role == CLIENT else (theirs, ours)
    launcher.start(server)
    launcher.start(client)
    return Tunnel(client, server, ours, theirs, seen, wire, outer)


class OldTunnels:
    """Tunnels with every foreign peer in both roles that carry a ping every 0.2 s from the first test to the last.

    After 120 s (paper, 6.1) their sessions are renewed, which would be a long wait for a test of its own.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._started: dict[tuple[str, int], tuple[Tunnel, Pinger, float]] = {}

    def start(self) -> None:
        """Bring all of them up."""
        for foreign in FOREIGN:
            if missing_tool(foreign):
                continue
            for role in ROLES:
                tunnel = bring_up(self._launcher, foreign, role)
                ping(tunnel.client.host, tunnel.server.end.v4)
                log = self._launcher.folder / f"ping-{foreign}-{role}"
                pinger = Pinger(tunnel.client.host, tunnel.server.end.v4, log)
                self._launcher.callback(pinger.close)
                self._started[foreign, role] = (tunnel, pinger, time.monotonic())

    def get(self, foreign: str, role: int) -> tuple[Tunnel, Pinger, float] | None:
        """The tunnel, its ping, and when that was started; None if this machine could not have it."""
        return self._started.get((foreign, role))
