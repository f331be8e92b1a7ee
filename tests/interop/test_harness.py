"""The harness itself, with two foreign peers: if this fails, the fault is not connlib's."""

from __future__ import annotations

import pytest

from interop.machine import FOREIGN, Launcher, require
from interop.netns import Wire, joined_namespaces
from interop.peers import ends_of_tunnel
from interop.traffic import Handshakes, ping, transfer


@pytest.mark.parametrize("other", FOREIGN)
def test_foreign_peers_talk_to_each_other(launcher: Launcher, other: str) -> None:
    wire = launcher.enter_context(joined_namespaces())
    seen = launcher.enter_context(Handshakes(wire.hosts[1], Wire.DEVICE))
    client_end, server_end = ends_of_tunnel(wire, outer=6, preshared=True)
    client = require("wireguard-go")(wire.hosts[0], client_end, launcher.folder)
    server = require(other)(wire.hosts[1], server_end, launcher.folder)
    launcher.start(client)
    launcher.start(server)
    for address in server.end.inner:
        ping(client.host, address)
        rate = transfer(client.host, server.host, address)
        print(f"{rate * 8 / 1e9:.2f} Gbit/s")
    assert seen.count(wire.address(0, 6), Handshakes.INITIATION) == 1
    assert seen.count(wire.address(1, 6), Handshakes.RESPONSE) == 1
