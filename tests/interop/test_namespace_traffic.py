"""What goes through a tunnel of `connlib-wg`, and what `wg` counts of it: all families inside and outside, two MTUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop.devices import INNER, End
from interop.netns import Wire, shell
from interop.traffic import arrives, exchange_datagrams, ping, transfer

INNER6 = ("fd66::1", "fd66::2")
# Header of IP and ICMP, which are not counted in what `ping -s` takes.
PING_HEADERS = {4: 28, 6: 48}


def _prepare(ends: tuple[End, End], wire: Wire, folder: Path, outer: int, mtu: int) -> None:
    """IPv6 inside too, the endpoints of this family, a preshared key, and this MTU."""
    preshared = folder / "psk"
    preshared.write_text(shell("wg", "genpsk"))
    for number, (end, peer) in enumerate(((ends[0], ends[1]), (ends[1], ends[0]))):
        address = wire.address(1 - number, outer)
        end.wg(
            *("peer", peer.public, "preshared-key", str(preshared)),
            *("endpoint", f"{f'[{address}]' if outer == 6 else address}:{51821 - number}"),
            *("allowed-ips", f"{INNER[1 - number]}/32,{INNER6[1 - number]}/128"),
        )
        end.host.run("ip", "link", "set", end.name, "mtu", str(mtu))
        end.host.run("ip", "address", "add", f"{INNER6[number]}/64", "dev", end.name, "nodad")


@pytest.mark.parametrize("mtu", [1420, 34_736])
@pytest.mark.parametrize("outer", [4, 6])
def test_pings_and_transfers_of_both_families_arrive_whole(
    ends: tuple[End, End], wire: Wire, tmp_path: Path, outer: int, mtu: int
) -> None:
    """The large MTU makes datagrams of 34,768 bytes, which go over a cable with one of 1,500 in fragments."""
    one, other = ends
    _prepare(ends, wire, tmp_path, outer, mtu)
    for version, inner in ((4, INNER), (6, INNER6)):
        ping(one.host, inner[1])
        full = mtu - PING_HEADERS[version]
        for host, address in ((one.host, inner[1]), (other.host, inner[0])):
            answer = host.run("ping", "-n", "-q", "-f", "-c", "200", "-W", "5", address)
            assert " 200 received" in answer, answer
            # One after the other: `ping` itself has no room for two answers of this size.
            for _ in range(3):
                arrives(host, address, "-M", "do", "-s", str(full))
        too_large = one.host.run(
            "ping", "-n", "-c", "1", "-M", "do", "-s", str(full + 1), inner[1], check=False
        )
        assert " 0 received, +1 errors" in too_large, "larger than the MTU, and so refused by the host itself"
        transfer(one.host, other.host, inner[1], size=4_000_000)
        transfer(other.host, one.host, inner[0], size=4_000_000)
        exchange_datagrams(one.host, other.host, inner[1], full)
        exchange_datagrams(other.host, one.host, inner[0], 65_000, count=16)
    for end, peer in ((one, other), (other, one)):
        ((_, endpoint),) = end.show("endpoints")
        assert endpoint.startswith("[" if outer == 6 else "192.")
        assert end.show("preshared-keys") == [[peer.public, (tmp_path / "psk").read_text().strip()]]


def _interface(end: End) -> tuple[int, int]:
    """Bytes that the interface received, and that were sent into it."""
    names = [f"/sys/class/net/{end.name}/statistics/{which}_bytes" for which in ("rx", "tx")]
    received, sent = end.host.run("cat", *names).split()
    return int(received), int(sent)


def _transfer(end: End) -> tuple[int, int]:
    ((_, received, sent),) = end.show("transfer")
    return int(received), int(sent)


def test_what_wg_counts_is_what_the_interface_counts_sealed(ends: tuple[End, End]) -> None:
    """A packet is padded to a multiple of 16, and 16 bytes of header and 16 of tag around it (paper, 5.4.6)."""
    one, _ = ends
    ping(one.host, INNER[1])
    sizes = (1, 4, 20, 83, 500, 1391, 1392)
    before = [(_interface(end), _transfer(end)) for end in ends]
    for size in sizes:
        arrives(one.host, INNER[1], "-s", str(size))
    packets = [size + 28 for size in sizes]
    sealed = sum(16 + min(-(-length // 16) * 16, 1420) + 16 for length in packets)
    for end, (interface, counted) in zip(ends, before, strict=True):
        assert _interface(end) == tuple(count + sum(packets) for count in interface)
        received, sent = _transfer(end)
        assert (received - counted[0], sent - counted[1]) == (sealed, sealed)
