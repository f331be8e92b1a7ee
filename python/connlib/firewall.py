"""The firewall rules of an interface that connlib makes: a table of nftables of its own, `connlib_` and its name.

    table inet connlib_wg0 {
        flags owner
        chain protect {
            type filter hook prerouting priority raw; policy accept;
            iif != "wg0" iif != "lo" ip daddr 10.7.0.1 fib daddr . iif type != local counter drop
        }
        chain masquerade {
            type nat hook postrouting priority srcnat; policy accept;
            oif != "wg0" oif != "lo" ip saddr 10.7.0.0/24 counter masquerade
        }
    }

The first keeps the address of a tunnel from answering a neighbour on another network, who could find out by it which
addresses the tunnel has, and what goes on in its connections (CVE-2019-14899). What the machine sends to itself comes
in by `lo`. An address that the other device has as well stays reachable there.

A change is one transaction of the kernel. Devices are meant by their numbers, which stay when one is renamed.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from . import _nftables as nft
from ._errors import DeviceError
from ._text import listed
from .config import InterfaceConfig

_log = logging.getLogger("connlib")

_LOOPBACK = 1
"""The number of `lo`, in every namespace."""

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_UNSUPPORTED = (
    errno.EPROTONOSUPPORT,
    errno.EAFNOSUPPORT,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOENT,
    errno.EPERM,
    errno.EACCES,
)
"""What a kernel says that has no nftables, not all of it, or none for us."""


@dataclass(frozen=True, slots=True)
class FirewallRules:
    """What the table of an interface is made of; none if both are empty."""

    protected: tuple[IPv4Address | IPv6Address, ...] = ()
    """Addresses that answer only what came through the tunnel, or from this machine."""
    masqueraded: tuple[IPv4Network | IPv6Network, ...] = ()
    """Sources that get the address of the device that they leave by, unless that is the tunnel."""

    def __bool__(self) -> bool:
        return bool(self.protected or self.masqueraded)


def firewall_rules(config: InterfaceConfig) -> FirewallRules:
    """What a configuration asks for."""
    addresses = config.addresses if config.protect_addresses else ()
    return FirewallRules(
        protected=tuple(dict.fromkeys(address.ip for address in addresses)),
        masqueraded=tuple(dict.fromkeys(config.masquerade)),
    )


def table_name(device: str) -> str:
    """What the table of a device is called; no two have the same, and `nft` can read it."""
    return "connlib_" + "".join(c if c.isalnum() or c in "_-." else f"/{ord(c):x}" for c in device)


class Firewall:
    """The table of one device. Not for two threads at once."""

    def __init__(self) -> None:
        self._tables: nft.Tables | None = None
        self._name: str | None = None

    def change(self, device: str, index: int, rules: FirewallRules) -> None:
        """Have these rules and no others, or, if it raises `DeviceError`, those there were.

        Where the kernel has no nftables, masquerading is an error, and protection a warning.
        """
        try:
            if rules:
                self._make(device, index, rules)
            else:
                self._delete()
        except OSError as error:
            problem = f"{device}: cannot set its firewall rules"
            if error.errno == errno.EPERM:
                hint = f"give CAP_NET_ADMIN, or end the process that has a table {table_name(device)}"
            else:
                hint = "does this kernel have nftables, with its expressions masq and fib?"
            said = DeviceError.from_os(problem, error, hint=hint)
            if self._name is not None or rules.masqueraded or error.errno not in _UNSUPPORTED:
                raise said from error
            _log.warning(
                "%s; so %s may answer other networks than the tunnel (protect_addresses)",
                said,
                listed(rules.protected),
            )

    def _make(self, device: str, index: int, rules: FirewallRules) -> None:
        name = table_name(device)
        try:
            self._commit(_whole_table(name, index, rules, owned=True))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # Before Linux 5.12 there are no owners. What a killed process left is replaced by the next one.
            self._commit(_whole_table(name, index, rules, owned=False))
        self._name = name

    def _commit(self, commands: list[nft.Command]) -> None:
        if self._tables is None:
            self._tables = nft.Tables()
        self._tables.commit(commands)

    def _delete(self) -> None:
        if self._name is not None:
            # Somebody may have removed a table that has no owner.
            self._commit([nft.add_table(self._name), nft.delete_table(self._name)])
        self._name = None

    def close(self) -> None:
        """Remove the table."""
        with suppress(OSError):  # then the kernel removes it with the socket
            self._delete()
        if self._tables is not None:
            self._tables.close()
            self._tables = None


def _whole_table(name: str, index: int, rules: FirewallRules, *, owned: bool) -> list[nft.Command]:
    return [
        # Both, so that there is one to delete.
        nft.add_table(name),
        nft.delete_table(name),
        nft.add_table(name, owned=owned),
        *_chains(name, index, rules),
    ]


def _chains(table: str, index: int, rules: FirewallRules) -> Iterator[nft.Command]:
    if rules.protected:
        yield nft.add_chain(table, "protect", "filter", nft.PREROUTING, nft.PRIORITY_RAW)
    for address in rules.protected:
        yield nft.add_rule(
            table,
            "protect",
            nft.device_is_not(nft.IIF, index),
            nft.device_is_not(nft.IIF, _LOOPBACK),
            nft.destination_is(address),
            nft.destination_is_not_of_its_device(),
            nft.drop(),
        )
    if rules.masqueraded:
        # Not otherwise: with it, the kernel begins to track all connections of this machine.
        yield nft.add_chain(table, "masquerade", "nat", nft.POSTROUTING, nft.PRIORITY_SRCNAT)
    for network in rules.masqueraded:
        yield nft.add_rule(
            table,
            "masquerade",
            nft.device_is_not(nft.OIF, index),
            nft.device_is_not(nft.OIF, _LOOPBACK),
            nft.source_in(network),
            nft.masquerade(),
        )


def warn_of_forwarding(device: str, rules: FirewallRules) -> None:
    """Log what of the kernel's settings keeps masqueraded packets from leaving."""
    for version, setting in _FORWARDING.items():
        networks = [network for network in rules.masqueraded if network.version == version]
        if networks and not _is_on(setting):
            _log.warning(
                "%s: the kernel forwards no IPv%d, so nothing from %s leaves this machine; sysctl -w %s=1",
                device,
                version,
                listed(networks),
                setting.replace("/", "."),
            )


def _is_on(setting: str) -> bool:
    try:
        return (Path("/proc/sys") / setting).read_text().strip() != "0"
    except OSError:
        return True  # nobody knows
