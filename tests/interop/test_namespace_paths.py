"""What is between two ends of `connlib-wg`: a router that translates addresses, and rules for the way out."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from interop import nft
from interop.devices import INNER, End
from interop.netns import Namespace, Wire, unique_name, wait_for
from interop.traffic import arrives, is_lost, ping

# linux/netfilter/nf_conntrack_common.h: seconds without a packet after which a router forgets who sent it.
FORGETS_AFTER = 2


def _inner_host(stack: ExitStack, router: Namespace) -> Namespace:
    """A host with the address 10.9.0.2 behind a router that gives what it forwards its own address."""
    inside = Namespace(unique_name("clI"))
    stack.callback(inside.delete)
    inside.run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", router.name)
    for host, address in ((inside, "10.9.0.2/24"), (router, "10.9.0.1/24")):
        host.run("ip", "address", "add", address, "dev", "lan")
        host.run("ip", "link", "set", "lan", "up")
    inside.run("ip", "route", "add", "default", "via", "10.9.0.1")
    nft.masquerade(router)
    settings = ["net.ipv4.ip_forward=1"]
    for state in ("", "_stream"):
        settings.append(f"net.netfilter.nf_conntrack_udp_timeout{state}={FORGETS_AFTER}")
    for setting in settings:
        name, _, value = setting.partition("=")
        router.run("sh", "-c", f"echo {value} > /proc/sys/{name.replace('.', '/')}")
    return inside


def test_a_keepalive_of_one_second_keeps_the_way_through_a_router_that_forgets_after_two(
    stack: ExitStack, wire: Wire, tmp_path: Path
) -> None:
    router, outside = wire.hosts
    client, server = End(stack, _inner_host(stack, router), tmp_path), End(stack, outside, tmp_path)
    server.wg("private-key", str(server.key), "listen-port", "51821")
    server.wg("peer", client.public, "allowed-ips", f"{INNER[0]}/32")
    server.address(INNER[1])
    client.wg("private-key", str(client.key), "listen-port", "51820")
    client.wg("peer", server.public, "allowed-ips", f"{INNER[1]}/32", "endpoint", "192.0.2.2:51821")
    client.address(INNER[0])

    def received() -> int:
        ((_, count, _),) = server.show("transfer")
        return int(count)

    def knows_the_way() -> bool:
        return "dport=51821" in router.run("cat", "/proc/net/nf_conntrack")

    arrives(client.host, INNER[1])
    assert server.show("endpoints") == [[client.public, "192.0.2.1:51820"]]
    client.wg("peer", server.public, "persistent-keepalive", "1")
    start, keepalive = received(), 32
    wait_for(lambda: received() >= start + 5 * keepalive, "five keepalives")
    assert (received() - start) % keepalive == 0, "and nothing else"
    ping(server.host, INNER[0])
    # Without it, the router forgets, and whatever comes from outside then is for nobody.
    client.wg("peer", server.public, "persistent-keepalive", "off")
    wait_for(lambda: not knows_the_way(), "the router to forget")
    is_lost(server.host, INNER[0])
    arrives(client.host, INNER[1])
    arrives(server.host, INNER[0])


def test_a_default_route_through_the_tunnel_spares_what_the_tunnel_sends_itself(
    ends: tuple[End, End], wire: Wire
) -> None:
    """As `wg-quick` does it: a mark, a table for all that has none, and the strict check of where packets come from."""
    one, other = ends
    anywhere, anywhere6 = "198.51.100.7", "2001:db8:7::7"
    for address in ("203.0.113.1/32", f"{anywhere}/32", f"{anywhere6}/128"):
        other.host.run("ip", "address", "add", address, "dev", "lo")
    other.host.run("ip", "address", "add", "fd66::2/64", "dev", other.name, "nodad")
    one.host.run("ip", "address", "add", "fd66::1/64", "dev", one.name, "nodad")
    one.host.run("ip", "route", "add", "default", "via", wire.V4[1])
    other.wg("peer", one.public, "allowed-ips", f"{INNER[0]}/32,fd66::1/128")
    one.wg("fwmark", "51820", "peer", other.public, "allowed-ips", "0.0.0.0/0,::/0")
    one.wg("peer", other.public, "endpoint", "203.0.113.1:51821")
    for family in ("-4", "-6"):
        one.host.run("ip", family, "route", "add", "default", "dev", one.name, "table", "51820")
        one.host.run("ip", family, "rule", "add", "not", "fwmark", "51820", "table", "51820")
        one.host.run("ip", family, "rule", "add", "table", "main", "suppress_prefixlength", "0")
    for setting in ("all/rp_filter", "default/rp_filter", f"{wire.DEVICE}/rp_filter", "all/src_valid_mark"):
        one.host.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv4/conf/{setting}")
    nft.restore_marks(one.host)
    for address in (anywhere, anywhere6):
        answer = one.host.run("ping", "-n", "-q", "-f", "-c", "100", "-W", "5", address)
        assert " 100 received" in answer, answer
    assert one.show("endpoints") == [[other.public, "203.0.113.1:51821"]]
    # Without the mark, the tunnel would have to go through itself.
    one.wg("fwmark", "off")
    is_lost(one.host, anywhere)
    one.wg("fwmark", "51820")
    ping(one.host, anywhere)
