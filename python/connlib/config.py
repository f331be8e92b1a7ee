"""What a WireGuard interface is configured with, and the checks that need more than one value.

`InterfaceConfig` is what a wg-quick file says (see `connlib.wgquick` for the file format); programs build one
directly just as well. It is frozen: to change a running interface, make another one (`dataclasses.replace`) and
give it to `Interface.apply`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from abc import ABC
from collections.abc import Collection, Iterable
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

from ._errors import ConfigError
from ._native import PrivateKey, PublicKey
from ._types import Limits, NodeConfig, PeerConfig, Role, Timers

if TYPE_CHECKING:
    Prefix = IPv4Network | IPv6Network
    Address = IPv4Interface | IPv6Interface
else:
    # msgspec wants one class for a value; each of these stands for two.
    class Prefix(ABC):  # noqa: B024
        """An IPv4 or IPv6 prefix."""

    class Address(ABC):  # noqa: B024
        """An IPv4 or IPv6 address with the length of its prefix."""

    Prefix.register(IPv4Network)
    Prefix.register(IPv6Network)
    Address.register(IPv4Interface)
    Address.register(IPv6Interface)

# RFC 791 and RFC 8200 put the floor at 68 and 1280; 576 is what every IPv4 host accepts. The ceiling is the largest
# UDP payload over IPv4 less WireGuard's 32 bytes, on a padding boundary.
MIN_MTU = 576
MAX_MTU = 65_472
MIN_IPV6_MTU = 1280
MAX_FWMARK = 2**32 - 1

OFFLOADS = ("checksum", "tso4", "tso6", "tso_ecn", "uso", "coalesce_tcp", "coalesce_udp")
"""What a TUN device may do many packets at once, by name.

`checksum`: packets are read without their checksums, which are made here; the next ones need it and bring it along.
`tso4`, `tso6`, `uso`: superpackets of TCP over IPv4, over IPv6, and of UDP are read, and cut here. `tso_ecn`: those of
TCP are read also where they say that congestion was noticed; it is of use beside the other two. `coalesce_tcp`,
`coalesce_udp`: packets of a flow that follow each other are written as one superpacket.
"""

ENCRYPTIONS = ("auto", "ring", "ipsec-mb")
"""What seals and opens packets that come in batches, by name.

`ring`: the library that connlib is built with. `ipsec-mb`: intel-ipsec-mb, if the system has it: many packets at once.
`auto`: that one if it is there and the processor has AVX-512, which it is made for; else ring.
"""

MOST_THREADS = 64
# Linux has up to 256, but each takes a thread and sockets of its own here.
MOST_QUEUES = 16

# Linux: at most 15 bytes. Slashes, "." and ".." would leave the directory of a control socket, "%" is the kernel's
# own pattern, ":" is the syntax of alias addresses: none of them reach the kernel or the file system from here.
INTERFACE_NAME = "[A-Za-z0-9_=+.-]{1,15}"
# Linux keeps the settings of each device in a directory of its name, beside these two (/proc/sys/net/ipv4/conf).
RESERVED_NAMES = (".", "..", "all", "default")

# Labels as host names have them, and the underscore of services; the last one is no number, so that 10.0.0 is none.
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
DOMAIN = rf"(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}"
MOST_OF_DOMAIN = 253
"""How many characters a domain has at most."""


def check_interface_name(name: str) -> str:
    """Return `name` if it can name a network device.

    Raises `ConfigError` for an empty name, more than 15 bytes, ".", "..", "all", "default", and characters other than
    letters, digits and `_=+.-` (the set that wg-quick allows).
    """
    if not re.fullmatch(INTERFACE_NAME, name) or name in RESERVED_NAMES:
        raise ConfigError(
            f"{shown(name)} cannot name a network device",
            hint="use 1 to 15 letters, digits or _=+.-, and none of all and default",
        )
    return name


def check_dns_entry(entry: str) -> str:
    """Return `entry`, as it is usually written, if it is the address of a name server or a domain to search.

    Raises `ConfigError` otherwise, also for an address with a zone and for a domain that is only a dot.
    """
    if "%" not in entry:
        with suppress(ValueError):
            return str(ipaddress.ip_address(entry))
    # Programs and a file are given it, which must not take it for an option or for a line of their own.
    if len(entry) > MOST_OF_DOMAIN or not re.fullmatch(DOMAIN, entry):
        raise ConfigError(
            f"{shown(entry)} is neither the address of a name server nor a domain",
            hint="write 10.0.0.1, fd00::1 or example.org",
        )
    return entry


def check_offload(name: str) -> str:
    """Return `name` if it is one of `OFFLOADS`. Raises `ConfigError` otherwise."""
    if name not in OFFLOADS:
        raise ConfigError(f"{shown(name)} is no offload", hint=f"use some of {', '.join(OFFLOADS)}")
    return name


def check_encryption(name: str) -> str:
    """Return `name` if it is one of `ENCRYPTIONS`. Raises `ConfigError` otherwise."""
    if name not in ENCRYPTIONS:
        raise ConfigError(f"{shown(name)} is no encryption", hint=f"use one of {', '.join(ENCRYPTIONS)}")
    return name


def check_count(what: str, number: int, most: int) -> None:
    """Raise `ConfigError` unless `number` is 1 to `most`; `TypeError` for what is no int, as True is none here."""
    if type(number) is not int:
        raise TypeError(f"{what} must be an int, not {type(number).__name__}")
    if not 1 <= number <= most:
        raise ConfigError(f"{number} {what} are out of range", hint=f"use 1 to {most}")


def offload_names(offload: bool | tuple[str, ...]) -> tuple[str, ...]:
    """The names that `InterfaceConfig.offload` stands for."""
    if isinstance(offload, bool):
        return OFFLOADS if offload else ()
    return offload


def describe_offload(offload: bool | tuple[str, ...]) -> str:
    """How messages and files say it: true, false, or names."""
    return str(offload).lower() if isinstance(offload, bool) else ", ".join(offload)


def shown(value: str) -> str:
    """Quote `value` for an error message, or describe it if it may hold key material.

    A value in the wrong place is often a key in the wrong place, so whatever has a run as long as half a key is
    described by its length only.
    """
    squeezed = "".join(value.split())
    if re.search(r"[A-Za-z0-9+/=_]{20,}", squeezed):
        return f"the value of {len(value)} characters (not shown: it may be a key)"
    if len(value) > 64:
        return f"the value of {len(value)} characters"
    return repr(value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceConfig:
    """One WireGuard interface and its peers.

    `role` applies to every peer that has no role of its own: on construction, a peer with `Role.EITHER` takes the
    interface's role, so that `InterfaceConfig(role=Role.RESPONDER, ...)` is a gateway towards all its peers, and
    `peers` says for each what it is.

    Raises `ConfigError` (without file and line) if a number is out of range, a name cannot name a device, an
    address is there twice or does not go with the MTU, `dns` has what is neither an address nor a domain, `offload`
    what is no offload, `encryption` is unknown, there are `queues` but no `worker`, two peers have the same public
    key, a peer has the interface's own public key, or two peers claim the same prefix. A prefix within another peer's
    prefix is fine: the longest match owns the packet.
    """

    private_key: PrivateKey
    listen_port: int = 0
    """UDP port, 0 to 65535; 0 lets the system choose."""
    fwmark: int = 0
    """Mark of what is sent by UDP (SO_MARK), for policy routing and firewalls; 0 for none. Linux only."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    """The device's own addresses, each with the length of its prefix."""
    mtu: int | None = None
    """Largest IP packet through the device, in bytes; None is 1420."""
    peers: tuple[PeerConfig, ...] = ()
    name: str | None = None
    """Name of the device; None lets the driver choose."""
    role: Role = Role.EITHER
    routes: bool = True
    """Whether the peers' allowed IPs become routes into the device, as wg-quick does; `Table = off` is False."""
    timers: Timers = dataclasses.field(default_factory=Timers)
    limits: Limits = dataclasses.field(default_factory=Limits)
    masquerade: tuple[IPv4Network | IPv6Network, ...] = ()
    """Sources whose packets get this machine's address where they leave by another device than this one."""
    protect_addresses: bool = True
    """Whether `addresses` answer only what comes through the tunnel, and this machine."""
    dns: tuple[str, ...] = ()
    """Name servers, as addresses, and domains to search: what this machine resolves names with meanwhile."""
    offload: bool | tuple[str, ...] = True
    """What the TUN device does many packets at once: those of `OFFLOADS`, or all that the kernel can, or nothing."""
    encryption: str = "auto"
    """What seals and opens packets that come in batches: one of `ENCRYPTIONS`."""
    threads: int = 1
    """How many threads share the sealing and opening of one batch, 1 to 64, where it is large enough to pay."""
    worker: bool = True
    """Whether a thread of its own moves the packets, which then wait neither for the event loop nor for what else that
    does. Where that cannot be (ends in memory, a clock of the caller's, other systems than Linux) it moves them."""
    queues: int = 1
    """How many queues the device has, 1 to 16, each with a thread and UDP sockets of its own on the same port. They are
    made when the interface starts. More than one need `worker`. A device or sockets that the caller brings have one."""

    def __post_init__(self) -> None:
        if not 0 <= self.listen_port <= 65535:
            raise ConfigError(f"the listen port {self.listen_port} is out of range", hint="use 0 to 65535")
        if not 0 <= self.fwmark <= MAX_FWMARK:
            raise ConfigError(f"the fwmark {self.fwmark} is out of range", hint=f"use 0 to {MAX_FWMARK:#x}")
        check_mtu(self.mtu)
        if self.name is not None:
            check_interface_name(self.name)
        self._check_addresses()
        object.__setattr__(self, "dns", tuple(map(check_dns_entry, self.dns)))
        if not isinstance(self.offload, bool):
            wanted = set(map(check_offload, self.offload))
            # One way to say each: none of them is False.
            object.__setattr__(self, "offload", tuple(filter(wanted.__contains__, OFFLOADS)) or False)
        check_encryption(self.encryption)
        check_count("threads", self.threads, MOST_THREADS)
        check_count("queues", self.queues, MOST_QUEUES)
        if problem := queues_without_worker(self.queues, self.worker):
            raise ConfigError(problem, hint=QUEUES_HINT)
        for peer in self.peers:
            _check_peer(peer)
        if self.role is not Role.EITHER:
            peers = tuple(
                dataclasses.replace(peer, role=self.role) if peer.role is Role.EITHER else peer
                for peer in self.peers
            )
            object.__setattr__(self, "peers", peers)
        self._check_keys()
        self._check_allowed_ips()
        routed = [prefix for peer in self.peers for prefix in peer.allowed_ips if self.routes]
        if too_small_for := mtu_is_too_small(self.mtu, self.addresses, routed):
            raise ConfigError(f"the MTU {self.mtu} is too small for {too_small_for}", hint=IPV6_MTU_HINT)

    def _check_addresses(self) -> None:
        seen: set[object] = set()
        for address in self.addresses:
            if (identity := address_identity(address)) in seen:
                raise ConfigError(f"the address {address} is there twice", hint="remove one of the two")
            seen.add(identity)

    def _check_keys(self) -> None:
        own = self.private_key.public_key()
        seen = set()
        for peer in self.peers:
            if peer.public_key == own:
                raise ConfigError(
                    f"{describe_peer(peer)} has the interface's own public key",
                    hint="give the peer's public key, which is not the one of this private key",
                )
            if peer.public_key in seen:
                raise ConfigError(
                    f"{describe_peer(peer)} is there twice",
                    hint="merge the two, or correct the public key of one",
                )
            seen.add(peer.public_key)

    def _check_allowed_ips(self) -> None:
        owners: dict[IPv4Network | IPv6Network, PeerConfig] = {}
        for peer in self.peers:
            for prefix in peer.allowed_ips:
                other = owners.setdefault(prefix, peer)
                if other is not peer:
                    raise ConfigError(
                        f"{prefix} is allowed for two peers, {describe_peer(other)} and {describe_peer(peer)}",
                        hint="a prefix belongs to one peer: remove it from the other",
                    )


def check_mtu(mtu: int | None) -> None:
    """Raise `ConfigError` unless `mtu` is None or within `MIN_MTU` and `MAX_MTU`."""
    if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
        raise ConfigError(f"the MTU {mtu} is out of range", hint=f"use {MIN_MTU} to {MAX_MTU}")


IPV6_MTU_HINT = f"use {MIN_IPV6_MTU} or more, or only IPv4"


def mtu_is_too_small(
    mtu: int | None,
    addresses: Iterable[IPv4Interface | IPv6Interface],
    routed: Iterable[IPv4Network | IPv6Network],
) -> str | None:
    """What a device of this MTU cannot have, of its addresses and the prefixes that become routes into it, or None.

    Linux has no IPv6 on a device below 1280. Default routes are not made (`connlib.links`).
    """
    if mtu is None or mtu >= MIN_IPV6_MTU:
        return None
    if any(address.version == 6 for address in addresses):
        return "an IPv6 address"
    if any(prefix.version == 6 and prefix.prefixlen > 0 for prefix in routed):
        return "a route to an IPv6 prefix of a peer"
    return None


QUEUES_HINT = "have one queue, or worker = true"


def queues_without_worker(queues: int, worker: bool) -> str | None:
    """What is wrong with more queues than one without threads that move their packets, or None."""
    return f"queues: {queues} need worker = true" if queues > 1 and not worker else None


def address_identity(address: IPv4Interface | IPv6Interface) -> IPv4Interface | IPv6Address:
    """What one device cannot have twice: an IPv6 address, and an IPv4 address with its prefix length."""
    return address.ip if isinstance(address, IPv6Interface) else address


def _check_peer(peer: PeerConfig) -> None:
    if peer.endpoint is not None:
        host, port = peer.endpoint
        if not 1 <= port <= 65535:
            raise ConfigError(
                f"the endpoint of {describe_peer(peer)} has the port {port}, which is out of range",
                hint="use 1 to 65535",
            )
        if not host:
            raise ConfigError(
                f"the endpoint of {describe_peer(peer)} has no host", hint="use a host name or an address"
            )
        if "%" in host:
            raise ConfigError(f"the endpoint of {describe_peer(peer)} {ZONE_PROBLEM}", hint=ZONE_HINT)
    keepalive = peer.persistent_keepalive
    # 0 is None, as `wg` has it.
    if keepalive and not 1 <= keepalive <= 65535:
        raise ConfigError(
            f"the persistent keepalive of {describe_peer(peer)} is {keepalive:g} seconds, which is out of range",
            hint="use 1 to 65535, or None",
        )


ZONE_PROBLEM = "has a zone (what follows the %), which connlib does not support"
ZONE_HINT = "use a host name, or an address that needs no zone"


def describe_peer(peer: PeerConfig) -> str:
    """How messages call a peer: by its name, else by the start of its public key."""
    return peer.name if peer.name is not None else f"peer {peer.public_key.to_base64()[:8]}"


def what_is_new(old: NodeConfig, new: NodeConfig, anew: Collection[PublicKey] = ()) -> NodeConfig:
    """`new` without the peers that `old` has just so: with the keys of those a node has made its computations, which
    take a twentieth of a second for a thousand. Those that are made `anew` are new."""
    if old.private_key != new.private_key:
        return new
    gone, come = (old.peers, new.peers) if anew else without_common(old.peers, new.peers)
    had = {peer.public_key: peer for peer in gone if not anew or peer.public_key not in anew}
    return dataclasses.replace(new, peers=tuple(peer for peer in come if had.get(peer.public_key) != peer))


def without_common(
    old: tuple[PeerConfig, ...], new: tuple[PeerConfig, ...]
) -> tuple[tuple[PeerConfig, ...], tuple[PeerConfig, ...]]:
    """Both without the objects that they begin with alike, and end with alike: of a thousand peers, as a rule one."""
    shorter = min(len(old), len(new))
    head = 0
    while head < shorter and old[head] is new[head]:
        head += 1
    tail = 0
    while tail < shorter - head and old[-1 - tail] is new[-1 - tail]:
        tail += 1
    return old[head : len(old) - tail], new[head : len(new) - tail]


def without_policies(peers: tuple[PeerConfig, ...]) -> tuple[PeerConfig, ...]:
    """The same peers. Raises `ConfigError` if one has a policy, for which a wg-quick file has no words."""
    for peer in peers:
        if peer.policy is not None:
            raise ConfigError(
                f"{describe_peer(peer)} has a policy, for which a wg-quick file has no words",
                hint="write it without the policy",
            )
    return peers
