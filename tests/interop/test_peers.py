"""`connlib up FILE` and other people's WireGuard, each as server and as client.

The client knows the server's endpoint, the server learns the client's. Inner traffic is IPv4 and IPv6 everywhere. What
the peers send is counted on the cable, not believed from their logs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.machine import FOREIGN, Launcher
from interop.netns import wait_for
from interop.traffic import Pinger, ping, transfer
from interop.tunnels import CLIENT, ROLES, SERVER, bring_up

every_peer = pytest.mark.parametrize("foreign", FOREIGN)
every_role = pytest.mark.parametrize("role", ROLES, ids=ROLES.values())

# As a client, connlib notices in two seconds that the server is gone; by the paper's constants it takes fifteen.
QUICK_TO_NOTICE = ("keepalive-timeout = 1", "rekey-timeout = 1")


@every_peer
@every_role
@pytest.mark.parametrize("outer", [4, 6], ids=["outer-v4", "outer-v6"])
@pytest.mark.parametrize("preshared", [False, True], ids=["no-psk", "psk"])
def test_carries_traffic(launcher: Launcher, foreign: str, role: int, outer: int, preshared: bool) -> None:
    """Ping and 20 MB by TCP, each way, on one handshake that the client started."""
    tunnel = bring_up(launcher, foreign, role, outer=outer, preshared=preshared)
    tunnel.ping_both_ways()
    rates = [
        transfer(tunnel.client.host, tunnel.server.host, tunnel.server.end.v4),
        transfer(tunnel.server.host, tunnel.client.host, tunnel.client.end.v6),
    ]
    print("up, down:", ", ".join(f"{rate * 8 / 1e9:.2f} Gbit/s" for rate in rates))
    assert (tunnel.initiations(tunnel.client), tunnel.responses(tunnel.server)) == (1, 1)
    assert (tunnel.initiations(tunnel.server), tunnel.responses(tunnel.client)) == (0, 0)
    assert tunnel.connlib.stop() == 0


@every_peer
@every_role
def test_full_sized_packets_are_not_fragmented(launcher: Launcher, foreign: str, role: int) -> None:
    """A ping that fills the tunnel's MTU of 1,420 bytes passes with "don't fragment", one byte more does not leave."""
    tunnel = bring_up(launcher, foreign, role, outer=6)
    for one, other in ((tunnel.client, tunnel.server), (tunnel.server, tunnel.client)):
        for address, header in ((other.end.v4, 28), (other.end.v6, 48)):
            answer = one.host.run(
                "ping", "-n", "-M", "do", "-c", "2", "-i", "0.2", "-s", str(1420 - header), address
            )
            assert " 0% packet loss" in answer
            refused = one.host.run(
                "ping",
                "-n",
                "-M",
                "do",
                "-c",
                "1",
                "-W",
                "0.3",
                "-s",
                str(1421 - header),
                address,
                check=False,
            )
            assert " 0% packet loss" not in refused


@every_peer
@every_role
def test_survives_a_fresh_handshake(launcher: Launcher, foreign: str, role: int) -> None:
    """The other side forgets its sessions and is the one that has something to send; the traffic goes on.

    As server it does not know where the client is any more, so the client has to notice: by its keepalive timer, which
    the test shortens where connlib is the client.
    """
    extensions = QUICK_TO_NOTICE if role == CLIENT else ()
    tunnel = bring_up(launcher, foreign, role, outer=6, preshared=True, extensions=extensions)
    tunnel.ping_both_ways()
    responses = tunnel.responses(tunnel.server)
    tunnel.foreign.forget_sessions()
    tunnel.ping_both_ways(timeout=30)
    assert tunnel.responses(tunnel.server) == responses + 1
    transfer(tunnel.client.host, tunnel.server.host, tunnel.server.end.v6, size=2_000_000)
    transfer(tunnel.server.host, tunnel.client.host, tunnel.client.end.v4, size=2_000_000)


@every_peer
def test_renews_the_session_under_traffic(launcher: Launcher, tmp_path: Path, foreign: str) -> None:
    """connlib as initiator renews the session when it is 3 s old, again and again, and no ping is lost."""
    tunnel = bring_up(launcher, foreign, CLIENT, extensions=("rekey-after-time = 3",))
    tunnel.ping_both_ways()
    pinger = Pinger(tunnel.client.host, tunnel.server.end.v4, tmp_path / "ping")
    wait_for(lambda: tunnel.responses(tunnel.server) >= 4, "three renewals", timeout=20)
    sent, lost = pinger.losses()
    assert sent >= 9 / 0.2 * 0.8
    assert lost == 0
    assert tunnel.initiations(tunnel.client) == tunnel.responses(tunnel.server)
    assert tunnel.initiations(tunnel.server) == 0


@every_peer
@every_role
def test_traffic_recovers_after_a_restart_of_each_side(launcher: Launcher, foreign: str, role: int) -> None:
    """The client is restarted, then the server; the client's traffic comes back without help.

    A client starts a handshake with its first packet. After the server's restart it takes the client 15 s of silence to
    notice (paper, 6.5), or as long as connlib's timers say.
    """
    extensions = QUICK_TO_NOTICE if role == CLIENT else ()
    tunnel = bring_up(launcher, foreign, role, extensions=extensions)
    tunnel.ping_both_ways()
    tunnel.client.restart()
    tunnel.ping_both_ways()
    tunnel.server.restart()
    tunnel.ping_both_ways(timeout=40)
    transfer(tunnel.client.host, tunnel.server.host, tunnel.server.end.v4, size=2_000_000)
    transfer(tunnel.server.host, tunnel.client.host, tunnel.client.end.v6, size=2_000_000)


@every_peer
def test_a_responder_never_sends_an_initiation(launcher: Launcher, foreign: str) -> None:
    """Traffic from the gateway while the client knows nothing of the session any more: it waits for the client."""
    tunnel = bring_up(launcher, foreign, SERVER, extensions=("role = responder",))
    ping(tunnel.client.host, tunnel.server.end.v4)
    tunnel.foreign.forget_sessions()
    answer = tunnel.server.host.run(
        "ping", "-n", "-c", "10", "-i", "0.2", tunnel.client.end.v4, check=False, timeout=40
    )
    assert " 100% packet loss" in answer
    ping(tunnel.client.host, tunnel.server.end.v6, timeout=30)
    ping(tunnel.server.host, tunnel.client.end.v6)
    assert tunnel.initiations(tunnel.server) == 0
    assert tunnel.initiations(tunnel.client) >= 2
