"""From which of its addresses `connlib-wg` sends: the one that the peer has reached, as long as that leads anywhere."""

from __future__ import annotations

import pytest

from interop.devices import INNER, End
from interop.netns import Namespace, Wire
from interop.traffic import arrives, ping

# By the version of IP: an address that is not the one which the system would choose, and how many bits it has.
SECOND = {4: ("192.0.2.22", 24), 6: ("2001:db8::22", 64)}
ELSEWHERE = {4: ("203.0.113.1", 32), 6: ("2001:db8:1::1", 128)}


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _add(host: Namespace, address: tuple[str, int], device: str) -> None:
    # As one of many, and not what the system would send from.
    lifetime = ["nodad", "preferred_lft", "0"] if ":" in address[0] else []
    host.run("ip", "address", "add", f"{address[0]}/{address[1]}", "dev", device, *lifetime)


def _del(host: Namespace, address: tuple[str, int], device: str) -> None:
    host.run("ip", "address", "del", f"{address[0]}/{address[1]}", "dev", device)


def _reach(ends: tuple[End, End], wire: Wire, version: int) -> tuple[str, int]:
    """The first reaches the second at an address that is not its main one."""
    one, other = ends
    second = SECOND[version]
    _add(other.host, second, wire.DEVICE)
    one.wg("peer", other.public, "endpoint", _endpoint(second[0], 51821))
    ping(one.host, INNER[1])
    return second


def _seen(end: End) -> str:
    ((_, endpoint),) = end.show("endpoints")
    return endpoint


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_comes_from_the_address_that_was_asked(
    ends: tuple[End, End], wire: Wire, version: int
) -> None:
    one, other = ends
    first = _reach(ends, wire, version)
    elsewhere = ELSEWHERE[version]
    _add(other.host, elsewhere, "lo")
    one.host.run("ip", "route", "add", f"{elsewhere[0]}/{elsewhere[1]}", "via", wire.address(1, version))
    for address, _ in (first, elsewhere, first):
        # Nothing but a peer's own packet tells the other side: a session that goes on, and one that begins.
        for anew in (False, True):
            if anew:
                one.wg("peer", other.public, "remove")
                one.wg("peer", other.public, "allowed-ips", f"{INNER[1]}/32")
            one.wg("peer", other.public, "endpoint", _endpoint(address, 51821))
            arrives(one.host, INNER[1])
            assert _seen(one) == _endpoint(address, 51821)
            arrives(other.host, INNER[0])
            assert _seen(one) == _endpoint(address, 51821)


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_that_is_removed_is_replaced_with_the_next_packet(
    ends: tuple[End, End], wire: Wire, version: int
) -> None:
    one, other = ends
    second = _reach(ends, wire, version)
    assert _seen(one) == _endpoint(second[0], 51821)
    _del(other.host, second, wire.DEVICE)
    arrives(other.host, INNER[0])
    assert _seen(one) == _endpoint(wire.address(1, version), 51821)
    arrives(one.host, INNER[1])
    # It is back, and is used again when it is asked for.
    _add(other.host, second, wire.DEVICE)
    arrives(other.host, INNER[0])
    assert _seen(one) == _endpoint(wire.address(1, version), 51821)
    one.wg("peer", other.public, "endpoint", _endpoint(second[0], 51821))
    arrives(one.host, INNER[1])
    assert _seen(one) == _endpoint(second[0], 51821)


def test_another_port_or_mark_lets_the_system_choose_the_address_again(
    ends: tuple[End, End], wire: Wire
) -> None:
    one, other = ends
    _reach(ends, wire, 4)
    for setting in (("listen-port", "4001"), ("fwmark", "7")):
        other.wg(*setting)
        arrives(other.host, INNER[0])
        assert _seen(one) == "192.0.2.2:4001"
        one.wg("peer", other.public, "endpoint", "192.0.2.22:4001")
        arrives(one.host, INNER[1])
        assert _seen(one) == "192.0.2.22:4001"


def test_another_default_route_is_taken_from_its_own_address_at_once(
    ends: tuple[End, End], wire: Wire
) -> None:
    """The old address stays, so that the system would go on to send from it, on a way where nobody takes it."""
    one, other = ends
    one.host.run(
        "ip", "link", "add", "second", "type", "veth", "peer", "name", "second", "netns", other.host.name
    )
    for end, number in ((one, 1), (other, 2)):
        _add(end.host, (f"198.51.100.{number}", 24), "second")
        end.host.run("ip", "link", "set", "second", "up")
    _add(one.host, ELSEWHERE[4], "lo")
    one.host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/second/rp_filter")
    other.host.run("ip", "route", "add", "default", "via", "192.0.2.1")
    other.wg("peer", one.public, "endpoint", _endpoint(ELSEWHERE[4][0], 51820))
    ping(other.host, INNER[0])
    assert _seen(one) == "192.0.2.2:51821"
    other.host.run("ip", "route", "replace", "default", "via", "198.51.100.1")
    # A peer that is silent for 15 s is tried from another address as well; this is about not waiting for that.
    ping(other.host, INNER[0], timeout=8)
    assert _seen(one) == "198.51.100.2:51821"
