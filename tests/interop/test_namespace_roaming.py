"""Where the peers of `connlib-wg` are, and which of them a packet is for or may come from."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from interop.devices import INNER, End
from interop.netns import Wire, shell, wait_for
from interop.traffic import arrives, is_lost, ping


def test_a_peer_is_followed_over_addresses_families_and_ports_without_another_handshake(
    ends: tuple[End, End], wire: Wire, tmp_path: Path
) -> None:
    """With a preshared key. The first packet from elsewhere is enough, and the other side never has to be told."""
    one, other = ends
    preshared = tmp_path / "psk"
    preshared.write_text(shell("wg", "genpsk"))
    for end, peer in ((one, other), (other, one)):
        end.wg("peer", peer.public, "preshared-key", str(preshared))
    ping(one.host, INNER[1])
    handshake = one.show("latest-handshakes")
    for host in wire.hosts:
        # What was addressed and is used no more is as if it had never been there.
        host.run("ip", "address", "flush", "dev", wire.DEVICE, "scope", "global")
        host.run("ip", "link", "set", wire.DEVICE, "addrgenmode", "none")
    places = [
        ("192.0.2.1", "192.0.2.2", 4001),
        ("192.0.2.77", "192.0.2.2", 4001),
        ("192.0.2.77", "192.0.2.2", 4002),
        ("2001:db8::1", "2001:db8::2", 4002),
        ("2001:db8::77", "2001:db8::2", 4003),
        ("192.0.2.1", "192.0.2.2", 51820),
    ]
    for mine, yours, port in places:
        for host, address in zip(wire.hosts, (mine, yours), strict=True):
            host.run("ip", "address", "flush", "dev", wire.DEVICE, "scope", "global")
            size = "64" if ":" in address else "24"
            nodad = ["nodad"] if ":" in address else []
            host.run("ip", "address", "add", f"{address}/{size}", "dev", wire.DEVICE, *nodad)
        one.wg("listen-port", str(port))
        one.wg("peer", other.public, "endpoint", f"{_quoted(yours)}:51821")
        arrives(one.host, INNER[1])
        assert other.show("endpoints") == [[one.public, f"{_quoted(mine)}:{port}"]]
        arrives(other.host, INNER[0])
    assert one.show("latest-handshakes") == handshake
    assert one.show("preshared-keys") == [[other.public, preshared.read_text().strip()]]


def test_both_ends_may_move_as_long_as_one_knows_where_the_other_is(
    ends: tuple[End, End], wire: Wire
) -> None:
    one, other = ends
    ping(one.host, INNER[1])
    for number, mover, follower, inner in ((61, one, other, INNER[1]), (62, other, one, INNER[0])) * 2:
        address = f"192.0.2.{number}"
        mover.host.run("ip", "address", "flush", "dev", wire.DEVICE, "scope", "global")
        mover.host.run("ip", "address", "add", f"{address}/24", "dev", wire.DEVICE)
        arrives(mover.host, inner)
        ((_, endpoint),) = follower.show("endpoints")
        assert endpoint.startswith(f"{address}:")


def _quoted(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def test_a_packet_goes_to_the_peer_with_the_longest_prefix_and_to_nobody_without_one(
    stack: ExitStack, ends: tuple[End, End], tmp_path: Path
) -> None:
    one, other = ends
    third = End(stack, other.host, tmp_path)
    third.wg(
        "private-key",
        str(third.key),
        "listen-port",
        "51822",
        "peer",
        one.public,
        "allowed-ips",
        "10.66.0.1/32",
    )
    third.host.run("ip", "link", "set", third.name, "up")
    one.wg("peer", other.public, "allowed-ips", "10.66.0.0/24")
    one.wg("peer", third.public, "endpoint", "192.0.2.2:51822")
    ping(one.host, INNER[1])

    def received_by_third() -> int:
        ((_, received, _),) = third.show("transfer")
        return int(received)

    assert received_by_third() == 0
    # A longer prefix than the one that `other` has, which is the owner's from now on.
    one.wg("peer", third.public, "allowed-ips", "10.66.0.2/32")
    is_lost(one.host, INNER[1])
    wait_for(lambda: received_by_third() > 148, "the packet at the third")
    one.wg("peer", third.public, "allowed-ips", "")
    arrives(one.host, INNER[1])
    # Nobody's: nothing is sent, to anybody.
    one.wg("peer", other.public, "allowed-ips", "10.66.0.3/32")
    before = one.show("transfer")
    is_lost(one.host, INNER[1])
    assert one.show("transfer") == before


def test_a_packet_from_an_address_that_is_not_the_peers_is_dropped_but_says_where_the_peer_is(
    ends: tuple[End, End],
) -> None:
    one, other = ends
    ping(one.host, INNER[1])
    one.host.run("ip", "address", "add", "10.66.0.9/24", "dev", one.name)
    one.wg("listen-port", "4001")
    other.host.run("ip", "route", "add", "10.66.0.9/32", "dev", other.name)
    packets = "/sys/class/net/{}/statistics/rx_packets"
    delivered = other.host.run("cat", packets.format(other.name))
    ((_, counted, _),) = other.show("transfer")
    is_lost(one.host, INNER[1], "-I", "10.66.0.9")
    assert other.host.run("cat", packets.format(other.name)) == delivered
    # The packet was authentic: its peer is where it came from, and its bytes were received.
    assert other.show("endpoints") == [[one.public, "192.0.2.1:4001"]]
    ((_, received, _),) = other.show("transfer")
    assert int(received) == int(counted) + 16 + 96 + 16
    other.wg("peer", one.public, "allowed-ips", "10.66.0.1/32,10.66.0.9/32")
    arrives(one.host, INNER[1], "-I", "10.66.0.9")
