"""What a gateway is specified with: the objects that a TOML file says and that scripts build.

    connlib.Gateway(
        interface=connlib.GatewayInterface(private_key_file="gateway.key", listen_port=51820),
        peers=(connlib.GatewayPeer(name="alice", public_key=alice, allowed_ips=(ip_network("10.7.0.2/32"),)),),
    )

`connlib.gatewayfile` reads the same from a file. Each object is checked when it is made (`ConfigError`, or `TypeError`
for a value of another type), and frozen: to change one, make another (`msgspec.structs.replace`).
`Gateway.to_interface_config()` gives what `open_interface` and `Interface.apply` take.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from . import _wgvalues as values
from ._configfile import EXPOSED_HINT, KEY_FOR_A_PATH, read_file
from ._errors import ConfigError
from ._fieldtypes import check_types
from ._gatewayrules import GatewayRule, first_excess
from ._gatewayvalues import DEVICE_NAME, DNS, ENDPOINT, NAME, PRINTABLE, whole_text
from ._gatewayvalues import endpoint as check_endpoint
from ._native import PresharedKey, PrivateKey, PublicKey
from ._policy import MOST_RULES, Action, Policy
from ._types import Limits, PeerConfig, Role, Timers
from ._wgvalues import BadValue, as_config_error
from .config import (
    ENCRYPTIONS,
    IPV6_MTU_HINT,
    MAX_FWMARK,
    MAX_MTU,
    MIN_MTU,
    MOST_OF_DOMAIN,
    MOST_QUEUES,
    MOST_THREADS,
    OFFLOADS,
    QUEUES_HINT,
    RESERVED_NAMES,
    Address,
    InterfaceConfig,
    Prefix,
    address_identity,
    check_interface_name,
    check_mtu,
    mtu_is_too_small,
    queues_without_worker,
)

Secret = TypeVar("Secret", PrivateKey, PresharedKey)

_KEY_FILE_BYTES = 4096

_FILE = {"pattern": whole_text(PRINTABLE), "not": {"pattern": whole_text(f" *{KEY_FOR_A_PATH} *")}}
_ENDPOINT = {"pattern": whole_text(ENDPOINT)}


class GatewayPeer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One peer of a gateway."""

    public_key: Annotated[PublicKey, Meta(description="The peer's public key, in base64.")]
    name: Annotated[
        str | None,
        Meta(
            description="What logs call the peer; no two peers have the same name. Up to 64 printable characters.",
            extra_json_schema=NAME,
        ),
    ] = None
    preshared_key: Annotated[
        PresharedKey | None,
        Meta(description="A secret that both ends share, in base64; better in a file of its own."),
    ] = None
    preshared_key_file: Annotated[
        str | None,
        Meta(
            description="The file with the preshared key, relative to this one's folder.",
            extra_json_schema=_FILE,
        ),
    ] = None
    allowed_ips: Annotated[
        tuple[Prefix, ...],
        Meta(description="The prefixes behind the peer. No two peers have the same prefix."),
    ] = ()
    endpoint: Annotated[
        str | None,
        Meta(
            description="host:port, 192.0.2.1:51820 or [2001:db8::1]:51820. A host name is looked up at the start, "
            "and again whenever the peer does not answer.",
            extra_json_schema=_ENDPOINT,
        ),
    ] = None
    persistent_keepalive: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(description="Seconds between keepalives; 0 for none."),
    ] = None
    role: Annotated[
        Role | None,
        Meta(
            description="Who may start sessions with this peer, seen from here; the interface's if left out."
        ),
    ] = None
    rules: Annotated[
        Annotated[tuple[GatewayRule, ...], Meta(max_length=MOST_RULES)] | None,
        Meta(
            description="What the peer may reach, in order. A peer without rules, default and outbound may reach "
            "everything, and be reached."
        ),
    ] = None
    default: Annotated[
        Action | None,
        Meta(description="What becomes of packets that no rule fits; deny if there are rules or outbound."),
    ] = None
    outbound: Annotated[
        Action | None,
        Meta(
            description="What becomes of flows towards the peer that it did not start; as default if left out."
        ),
    ] = None

    def __post_init__(self) -> None:
        check_types(self)
        with as_config_error():
            values.require_peers_key(self.public_key, "public_key")
            if self.name is not None:
                values.display_name(self.name)
            if self.endpoint is not None:
                check_endpoint("endpoint", self.endpoint)
            if self.persistent_keepalive is not None:
                values.whole("persistent_keepalive", str(self.persistent_keepalive), 0, 65535)
            check_preshared_key(self.preshared_key is not None, self.preshared_key_file is not None)
            if excess := first_excess(self.rules or ()):
                raise excess[1]
        self.to_policy()

    def to_policy(self) -> Policy | None:
        """What the peer may reach, and what may reach it; None for everything.

        As soon as one of `rules`, `default` and `outbound` is there, what no rule fits is denied unless `default` says
        otherwise: a rule that is forgotten, or a list of them that turned out empty, must not open everything.
        """
        if self.rules is None and self.default is None and self.outbound is None:
            return None
        default = Action.DENY if self.default is None else self.default
        return Policy(tuple(rule.to_rule() for rule in self.rules or ()), default, self.outbound)

    def __str__(self) -> str:
        """How messages call the peer: by its name, else by the start of its public key."""
        return repr(self.name) if self.name is not None else f"peer {self.public_key.to_base64()[:8]}"


class GatewayInterface(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gateway's own end."""

    private_key: Annotated[
        PrivateKey | None,
        Meta(description="The private key, in base64; better in a file of its own."),
    ] = None
    private_key_file: Annotated[
        str | None,
        Meta(
            description="The file with the private key, relative to this one's folder.",
            extra_json_schema=_FILE,
        ),
    ] = None
    name: Annotated[
        str | None,
        Meta(
            description="The device's name; the file's own, without .toml, if left out.",
            extra_json_schema={"pattern": whole_text(DEVICE_NAME), "not": {"enum": list(RESERVED_NAMES)}},
        ),
    ] = None
    listen_port: Annotated[
        int, Meta(description="The UDP port; 0 lets the system choose.", ge=0, le=65535)
    ] = 0
    addresses: Annotated[
        tuple[Address, ...],
        Meta(description="The device's own addresses, each with the length of its prefix."),
    ] = ()
    mtu: Annotated[
        Annotated[int, Meta(ge=MIN_MTU, le=MAX_MTU)] | None,
        Meta(description="Largest packet through the device, in bytes; 1420 if left out."),
    ] = None
    fwmark: Annotated[
        int,
        Meta(
            description="The mark of what is sent over UDP, for ip rule and nftables; 0 for none.",
            ge=0,
            le=MAX_FWMARK,
        ),
    ] = 0
    routes: Annotated[bool, Meta(description="Whether allowed_ips become routes into the device.")] = True
    endpoint: Annotated[
        str | None,
        Meta(
            description="host:port where peers reach this end; `connlib peer add` writes it into their files.",
            extra_json_schema=_ENDPOINT,
        ),
    ] = None
    role: Annotated[
        Role,
        Meta(
            description="Who may start sessions: responder is a gateway that never does, initiator a client."
        ),
    ] = Role.EITHER
    timers: Annotated[Timers, Meta(description="Seconds of the protocol's timers.")] = Timers()
    limits: Annotated[Limits, Meta(description="Counts of messages and packets.")] = Limits()
    masquerade: Annotated[
        bool | tuple[Prefix, ...],
        Meta(
            description="Sources that get this machine's address where they leave by another device than this one: "
            "prefixes, or true for those of the addresses."
        ),
    ] = False
    protect_addresses: Annotated[
        bool,
        Meta(
            description="Whether the addresses answer only what comes through the tunnel, and this machine."
        ),
    ] = True
    dns: Annotated[
        tuple[Annotated[str, Meta(pattern=whole_text(DNS), max_length=MOST_OF_DOMAIN)], ...],
        Meta(
            description="What this machine resolves names with meanwhile: addresses of name servers, and domains to "
            "search."
        ),
    ] = ()
    offload: Annotated[
        bool | tuple[Annotated[str, Meta(extra_json_schema={"enum": list(OFFLOADS)})], ...],
        Meta(
            description="What the TUN device does many packets at once: names of offloads, or true for all that the "
            "kernel can."
        ),
    ] = True
    encryption: Annotated[
        str,
        Meta(
            description="What seals and opens packets; auto takes the faster one of those that there are.",
            extra_json_schema={"enum": list(ENCRYPTIONS)},
        ),
    ] = "auto"
    threads: Annotated[
        int,
        Meta(
            description="How many threads share the sealing and opening of packets that come together.",
            ge=1,
            le=MOST_THREADS,
        ),
    ] = 1
    worker: Annotated[
        bool, Meta(description="Whether a thread of its own moves the packets, beside the event loop.")
    ] = True
    queues: Annotated[
        int,
        Meta(
            description="How many queues the device has, each with a thread and UDP sockets of its own; fixed when "
            "the interface starts.",
            ge=1,
            le=MOST_QUEUES,
        ),
    ] = 1

    def __post_init__(self) -> None:
        check_types(self)
        with as_config_error():
            check_private_key(self.private_key is not None, self.private_key_file is not None)
            for entry in self.dns:
                values.dns_entry("dns", entry)
            values.encryption("encryption", self.encryption)
            values.whole("threads", str(self.threads), 1, MOST_THREADS)
            values.whole("queues", str(self.queues), 1, MOST_QUEUES)
            values.whole("listen_port", str(self.listen_port), 0, 65535)
            values.whole("fwmark", str(self.fwmark), 0, MAX_FWMARK)
            if self.endpoint is not None:
                check_endpoint("endpoint", self.endpoint)
        if self.name is not None:
            check_interface_name(self.name)
        check_mtu(self.mtu)

    def masqueraded(self) -> tuple[Prefix, ...]:
        """The prefixes that `masquerade` stands for."""
        if not isinstance(self.masquerade, bool):
            return tuple(dict.fromkeys(self.masquerade))
        networks = (address.network for address in self.addresses if self.masquerade)
        # What has no others in it is the gateway itself, which has an address of its own wherever it sends.
        return tuple(dict.fromkeys(network for network in networks if network.num_addresses > 1))


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A WireGuard gateway: its interface and its peers.

    Raises `ConfigError` if two parts contradict each other: a name, a public key or a prefix that is there twice, a
    peer with the gateway's own key, an address that the MTU is too small for, queues without a worker.
    """

    interface: Annotated[GatewayInterface, Meta(description="The gateway's own end.")]
    peers: Annotated[tuple[GatewayPeer, ...], Meta(description="Who may connect.")] = ()

    def __post_init__(self) -> None:
        check_types(self)
        own = self.interface.private_key
        public = own.public_key() if own is not None else None
        for found in contradictions(self.interface, enumerate(self.peers), public):
            raise ConfigError(found.problem, hint=found.hint)

    def key_files(self) -> tuple[str, ...]:
        """The files with keys that it names, which `to_interface_config` reads."""
        files = (self.interface.private_key_file, *(peer.preshared_key_file for peer in self.peers))
        return tuple(file for file in files if file is not None)

    def to_interface_config(self, *, allow_world_readable: bool = False) -> InterfaceConfig:
        """What `open_interface` takes. Reads the key files.

        Raises `ConfigError` for a key file that cannot be read, that holds no key, or that every user of the machine
        can read or change, unless `allow_world_readable`.
        """
        interface = self.interface
        private_key = interface.private_key
        if private_key is None:
            assert interface.private_key_file is not None  # it has one of the two
            private_key = read_key(PrivateKey, interface.private_key_file, allow_world_readable)
        preshared = {
            peer.public_key: read_key(PresharedKey, peer.preshared_key_file, allow_world_readable)
            for peer in self.peers
            if peer.preshared_key_file is not None
        }
        return self.with_keys(private_key, preshared)

    def with_keys(
        self, private_key: PrivateKey, preshared: Mapping[PublicKey, PresharedKey]
    ) -> InterfaceConfig:
        """What `open_interface` takes, given the keys that are in files of their own."""
        interface = self.interface
        # Peers that share a policy share the memory of what it is compiled to.
        policies: dict[Policy | None, Policy | None] = {}
        return InterfaceConfig(
            private_key=private_key,
            listen_port=interface.listen_port,
            addresses=interface.addresses,
            mtu=interface.mtu,
            peers=tuple(_peer_config(peer, preshared, policies) for peer in self.peers),
            name=interface.name,
            fwmark=interface.fwmark,
            role=interface.role,
            routes=interface.routes,
            timers=interface.timers,
            limits=interface.limits,
            masquerade=interface.masqueraded(),
            protect_addresses=interface.protect_addresses,
            dns=interface.dns,
            offload=interface.offload,
            encryption=interface.encryption,
            threads=interface.threads,
            worker=interface.worker,
            queues=interface.queues,
        )


def _peer_config(
    peer: GatewayPeer,
    preshared: Mapping[PublicKey, PresharedKey],
    policies: dict[Policy | None, Policy | None],
) -> PeerConfig:
    policy = peer.to_policy()
    return PeerConfig(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key or preshared.get(peer.public_key),
        allowed_ips=tuple(dict.fromkeys(peer.allowed_ips)),
        endpoint=values.endpoint(peer.endpoint) if peer.endpoint is not None else None,
        persistent_keepalive=float(peer.persistent_keepalive) if peer.persistent_keepalive else None,
        role=Role.EITHER if peer.role is None else peer.role,
        name=peer.name,
        policy=policies.setdefault(policy, policy),
    )


def read_key(kind: type[Secret], path: str, allow_world_readable: bool) -> Secret:
    """The key in a file, as `connlib genkey` and `connlib genpsk` write it. Raises `ConfigError`."""
    file = read_file(path, _KEY_FILE_BYTES, kind="a file with one key")
    if not allow_world_readable and (file.others_may_read or file.others_may_write):
        raise ConfigError(file.exposed("it holds a key"), hint=EXPOSED_HINT, path=file.name)
    try:
        return values.key(kind, "what is in it", file.text().strip())
    except BadValue as bad:
        raise ConfigError(bad.problem, hint=bad.hint, path=file.name) from None


class Contradiction(NamedTuple):
    """Two parts of a gateway that do not go together."""

    place: tuple[str | int, ...]
    """The part to change, as names of fields and numbers of elements."""
    problem: str
    hint: str


def contradictions(
    interface: GatewayInterface | None, peers: Iterable[tuple[int, GatewayPeer]], own: PublicKey | None
) -> Iterator[Contradiction]:
    """What is wrong with the parts together, of those that are there: with the peers, each with its number.

    own: the gateway's public key, if it is known.
    """
    known = list(peers)
    if interface is not None:
        yield from _link_contradictions(interface, known)
    keys: dict[PublicKey, GatewayPeer] = {}
    names: dict[str, GatewayPeer] = {}
    owners: dict[Prefix, GatewayPeer] = {}
    for number, peer in known:
        place = ("peers", number)
        if peer.public_key == own:
            hint = "give the peer's key: this one belongs to the gateway's private key"
            yield Contradiction((*place, "public_key"), "public_key is the gateway's own", hint)
        if (other := keys.setdefault(peer.public_key, peer)) is not peer:
            problem = f"public_key: {other} has the same one"
            yield Contradiction((*place, "public_key"), problem, "merge the two peers, or correct one")
        if peer.name is not None and names.setdefault(peer.name, peer) is not peer:
            yield Contradiction((*place, "name"), f"name: there is another {peer}", "rename one of the two")
        for element, prefix in enumerate(peer.allowed_ips):
            if (owner := owners.setdefault(prefix, peer)) is not peer:
                problem = f"allowed_ips: {prefix} already belongs to {owner}"
                yield Contradiction(
                    (*place, "allowed_ips", element), problem, "remove it from one of the two"
                )
        if interface is not None and peer.role is Role.EITHER and interface.role is not Role.EITHER:
            problem = f"role: either contradicts the interface's {interface.role.value}"
            hint = "remove the interface's role, and give each peer its own"
            yield Contradiction((*place, "role"), problem, hint)


def _link_contradictions(
    interface: GatewayInterface, peers: list[tuple[int, GatewayPeer]]
) -> Iterator[Contradiction]:
    seen: set[object] = set()
    for element, address in enumerate(interface.addresses):
        if (identity := address_identity(address)) in seen:
            place = ("interface", "addresses", element)
            yield Contradiction(place, f"addresses: {address} is there twice", "remove one of the two")
        seen.add(identity)
    if interface.masquerade is True and not interface.masqueraded():
        yield Contradiction(
            ("interface", "masquerade"),
            "masquerade: no address has a network with others in it",
            'name the sources instead: ["10.0.0.0/24"]',
        )
    if queues := queues_without_worker(interface.queues, interface.worker):
        yield Contradiction(("interface", "queues"), queues, QUEUES_HINT)
    routed = [prefix for _, peer in peers for prefix in peer.allowed_ips if interface.routes]
    if too_small_for := mtu_is_too_small(interface.mtu, interface.addresses, routed):
        problem = f"mtu: {interface.mtu} is too small for {too_small_for}"
        yield Contradiction(("interface", "mtu"), problem, IPV6_MTU_HINT)


def check_private_key(inline: bool, in_file: bool) -> None:
    """Raise `BadValue` unless the private key is in exactly one place."""
    if not inline and not in_file:
        raise BadValue(
            "there is no private key", "add private_key_file or private_key; `connlib genkey` makes a key"
        )
    if inline and in_file:
        raise BadValue("there are a private_key and a private_key_file", "keep one of the two")


def check_preshared_key(inline: bool, in_file: bool) -> None:
    """Raise `BadValue` if a preshared key is in two places."""
    if inline and in_file:
        raise BadValue("there are a preshared_key and a preshared_key_file", "keep one of the two")
