"""The tunnel: near and far in namespaces of their own, and between them a host that forwards, and may lose."""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gigabyte.end import DEVICE, inner
from interop.netns import Namespace
from interop.nft import lose
from interop.traffic import ping
from reliability.places import CABLES, Child, Yard, child, yard

CABLE_MTU = 9100
"""Room for the largest packets of the tunnel, and the 60 bytes around them."""
_SIOCETHTOOL, _ETHTOOL_SGRO = 0x8946, 0x2C


@dataclass(frozen=True)
class Setting:
    """What the tunnel is like."""

    mtu: int | None
    """None: it changes under traffic, and begins with 1,420."""
    loss: int = 0
    """Percent of the datagrams, each way."""
    offload: bool = True
    """Of the device, at both ends."""

    def __str__(self) -> str:
        words = ["changing" if self.mtu is None else str(self.mtu)]
        words += [f"{self.loss}%"] if self.loss else []
        return "-".join(words if self.offload else [*words, "off"])


class Tunnel:
    """A tunnel that is up. Its ends are numbered 1 and 2, near and far."""

    def __init__(self, hosts: Yard, ends: tuple[Child, Child], setting: Setting) -> None:
        self.setting = setting
        self.near, self.far = hosts.others
        self._middle = hosts.middle
        self._ends = ends

    def host(self, number: int) -> Namespace:
        """Where an end is."""
        return self.near if number == 1 else self.far

    def apply(self, number: int, mtu: int) -> None:
        """Another configuration for an end."""
        assert self._ends[number - 1].ask("apply", mtu=mtu) == mtu

    def stats(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What each end has counted."""
        near, far = (end.ask("stats") for end in self._ends)
        return near, far

    def dropped(self) -> int:
        """Datagrams from near to far that the host between them has lost so far."""
        return _packets(self._middle, "cable0", "rx") - _packets(self._middle, "cable1", "tx")


@contextmanager
def tunnel(setting: Setting) -> Iterator[Tunnel]:
    """Bring one up, and take it down whatever happens. Raises `Missing` if this machine cannot."""
    with yard(2) as hosts:
        _join(hosts, setting)
        near, far = hosts.others
        options = {"mtu": setting.mtu or 1420, "offload": setting.offload}
        with (
            child(near, "gigabyte.end", {**options, "me": 1, "endpoint": f"{CABLES[1]}.2"}) as first,
            child(far, "gigabyte.end", {**options, "me": 2, "endpoint": f"{CABLES[0]}.2"}) as second,
        ):
            for version in (4, 6):
                ping(near, inner(2, version), timeout=60)
            yield Tunnel(hosts, (first, second), setting)


def _join(hosts: Yard, setting: Setting) -> None:
    """Have the host in the middle forward, and let nothing but the tunnel's datagrams onto the cables."""
    middle = hosts.middle
    middle.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    if setting.loss:
        lose(middle, 100 // setting.loss)
    for number, host in enumerate(hosts.others):
        device, network = f"cable{number}", CABLES[number]
        for one, other, last in ((middle, host, 2), (host, middle, 1)):
            one.run("sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1")
            one.run("ip", "link", "set", device, "mtu", str(CABLE_MTU))
            (link,) = json.loads(other.run("ip", "-j", "link", "show", device))
            address = f"{network}.{last}"
            one.run(
                "ip",
                "neigh",
                "replace",
                address,
                "lladdr",
                link["address"],
                "dev",
                device,
                "nud",
                "permanent",
            )
        host.run("ip", "route", "add", f"{CABLES[1 - number]}.0/24", "via", f"{network}.1")
        # A datagram of which a fragment is lost must not stand in the way of others for half a minute.
        host.run("sysctl", "-qw", "net.ipv4.ipfrag_time=2", "net.ipv6.ip6frag_time=2")
        host.run(
            "sysctl", "-qw", "net.ipv4.ipfrag_high_thresh=67108864", "net.ipv6.ip6frag_high_thresh=67108864"
        )
        if setting.loss:
            # What is lost is to be a datagram, not all of them that the kernel takes in one call: they are cut apart on
            # the first cable, and put together again behind the last one, as a network card does.
            host.run("ip", "link", "set", device, "gso_max_segs", "1")
            _coalesce(host, device)


def _coalesce(host: Namespace, device: str) -> None:
    """What `ethtool -K DEVICE gro on` does."""
    value = array.array("B", struct.pack("II", _ETHTOOL_SGRO, 1))
    request = struct.pack("16sP16x", device.encode(), value.buffer_info()[0])
    with host.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def _packets(host: Namespace, device: str, way: str) -> int:
    """How many have come out of a cable, or gone into it."""
    return int(host.run("cat", f"/sys/class/net/{device}/statistics/{way}_packets"))


def set_mtu(host: Namespace, mtu: int) -> None:
    """From outside, as an administrator does."""
    host.run("ip", "link", "set", DEVICE, "mtu", str(mtu))
