"""A gateway's TOML file with a peer more or less and the rest as it was, byte for byte; and a peer's own file."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_interface

from ._configfile import ConfigFile, display_path
from ._errors import ConfigError
from ._filechange import FileChange
from ._native import PresharedKey, PrivateKey, PublicKey
from ._text import listed
from ._tomlplaces import headers
from ._types import PeerConfig
from .config import Address, InterfaceConfig, Prefix
from .gateway import Gateway, GatewayInterface, GatewayPeer
from .gatewayfile import MAX_FILE_BYTES, parse_gateway
from .wgquick import format_config


def change_of(file: str, *, new: bool = False) -> FileChange:
    """A change of a gateway's file."""

    def key_files(data: bytes) -> Collection[str]:
        gateway = parse_bytes(data, file)
        named = [gateway.interface.private_key_file, *(peer.preshared_key_file for peer in gateway.peers)]
        return [os.path.join(os.path.dirname(file), each) for each in named if each is not None]

    return FileChange(file, MAX_FILE_BYTES, key_files, kind="a gateway's TOML file", new=new)


def parse_bytes(data: bytes, file: str) -> Gateway:
    """What the bytes of a gateway's file say; the paths of key files are as they are written. Raises `ConfigError`."""
    return parse_gateway(ConfigFile(display_path(file), data, 0).text(), file)


def free_addresses(interface: GatewayInterface, peers: Sequence[GatewayPeer]) -> tuple[Address, ...]:
    """The lowest address of each of the interface's networks that neither it nor a peer has.

    Raises `ConfigError` for a network that is full, and if there is none that has room for a peer at all.
    """
    networks = {address.network: None for address in interface.addresses if address.network.num_addresses > 1}
    if not networks:
        hint = "give the interface one such as 10.7.0.1/24, or the peer its own: --address"
        raise ConfigError("no address of the gateway's has a network with room for peers", hint=hint)
    taken: list[Prefix] = [ip_interface(address.ip).network for address in interface.addresses]
    taken += [prefix for peer in peers for prefix in peer.allowed_ips]
    found: list[Address] = []
    for network in networks:
        address = _first_free(network, taken)
        if address is None:
            hint = "remove a peer, widen the network, or give --address"
            raise ConfigError(f"no address of {network} is free", hint=hint)
        found.append(address)
        taken.append(address.network)
    return tuple(found)


def _first_free(network: Prefix, taken: Sequence[Prefix]) -> Address | None:
    first, last = hosts_of(network)
    # Of a prefix that is wider than the network, as a default route is, the peer gets what no longer one takes.
    within = sorted(
        (int(prefix.network_address), int(prefix.broadcast_address))
        for prefix in taken
        if prefix.version == network.version
        and prefix.prefixlen >= network.prefixlen
        and prefix.network_address in network
    )
    for low, high in within:
        if low > first:
            break
        first = max(first, high + 1)
    if first > last:
        return None
    # From a number, ip_interface would make an IPv4 address of a small IPv6 one.
    return ip_interface((type(network.network_address)(first), network.max_prefixlen))


def hosts_of(network: Prefix) -> tuple[int, int]:
    """The first and the last address of a network that a host can have, as numbers."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.num_addresses > 2:
        # The network's own address is no host's: IPv4's is an old broadcast, IPv6's the anycast address of its routers
        # (RFC 4291, section 2.6.1). IPv4's last one is the broadcast.
        first += 1
        last -= 1 if network.version == 4 else 0
    return first, last


def key_file_of(name: str) -> str:
    """The name of the file with the preshared key of a peer of this name: no path, and no hidden file."""
    return (re.sub(r"[^\w.-]", "_", name).strip(".") or "peer") + ".psk"


def with_peer(data: bytes, file: str, peer: GatewayPeer) -> bytes:
    """A gateway's file with a peer after the others. Raises `ConfigError` if it is written so that none can follow.

    Written are the peer's name, public key, key file and allowed IPs.
    """
    allowed_ips = ", ".join(f'"{prefix}"' for prefix in peer.allowed_ips)
    # What may stand in a name is written in JSON as it is in TOML.
    name, key_file = (json.dumps(each, ensure_ascii=False) for each in (peer.name, peer.preshared_key_file))
    lines = [
        "",
        "[[peers]]",
        f"name = {name}",
        f'public_key = "{peer.public_key.to_base64()}"',
        *([f"preshared_key_file = {key_file}"] if peer.preshared_key_file is not None else []),
        f"allowed_ips = [{allowed_ips}]",
        "",
    ]
    line_end = "\r\n" if b"\r\n" in data else "\n"
    start = data if data.endswith(b"\n") else data + line_end.encode()
    made = start + line_end.join(lines).encode()
    before = parse_bytes(data, file)
    _check(made, file, before.interface, (*before.peers, peer), "a peer cannot be added to it")
    return made


def without_peer(data: bytes, file: str, number: int) -> bytes:
    """A gateway's file without one of its peers, whose number is counted from 0, and without the comments about it.

    Those are the ones between its lines, after its last line, and directly above its header. Comments that follow a
    blank line, or that touch what is before or behind the peer, stay. Raises `ConfigError` for a peer that is not
    written as a table with a header.
    """
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    text = data[len(mark) :].decode()
    pieces, kept = [], 0
    for start, end in _extents(text, number):
        first, last = _comments_before(text, start), _comments_behind(text, start, end)
        if not text[last:].strip():
            # The blank line that set it apart from what is above it.
            first = len(re.sub(r"(?<=\n)\r?\n\Z", "", text[:first]))
        pieces.append(text[kept:first])
        kept = last
    made = mark + "".join([*pieces, text[kept:]]).encode()
    before = parse_bytes(data, file)
    others = (*before.peers[:number], *before.peers[number + 1 :])
    _check(made, file, before.interface, others, "this peer cannot be removed from it")
    return made


def _check(
    data: bytes, file: str, interface: GatewayInterface, peers: tuple[GatewayPeer, ...], otherwise: str
) -> None:
    """Raise `ConfigError` unless the file says just this."""
    try:
        after = parse_bytes(data, file)
        if after.interface == interface and after.peers == peers:
            return
    except ConfigError:
        pass  # not of what the user has written
    hint = "write every peer below a [[peers]] of its own, or change it by hand"
    raise ConfigError(f"as this file is written, {otherwise}", hint=hint, path=display_path(file))


def _extents(text: str, number: int) -> Iterator[tuple[int, int]]:
    """From where to where the tables of a peer reach, up to the next header; those that follow each other as one."""
    found = headers(text)
    begun: int | None = None
    for start, path in found:
        if path[:2] == ("peers", number):
            begun = start if begun is None else begun
        elif begun is not None:
            yield begun, start
            begun = None
    if begun is not None:
        yield begun, len(text)


def _comments_before(text: str, header: int) -> int:
    """Where the comment begins that stands directly above a header and touches nothing else; else the header's line."""
    start = first = text.rfind("\n", 0, header) + 1
    while first > 0:
        above = text.rfind("\n", 0, first - 1) + 1
        line = text[above:first].strip()
        if not line:
            return first
        if not line.startswith("#"):
            return start
        first = above
    return first


def _comments_behind(text: str, header: int, end: int) -> int:
    """Where the tables end that begin at a header: with the comment that follows at once, and one blank line."""
    end = end if end == len(text) else text.rfind("\n", 0, end) + 1
    lines = [match for match in re.finditer(r"[^\n]*\n?", text[header:end]) if match[0]]
    count = len(lines)
    while lines[count - 1][0].lstrip()[:1] in ("", "#"):
        count -= 1  # the header is neither
    body = count
    while count < len(lines) and lines[count][0].strip():
        count += 1
    if count == len(lines):
        # It may be about what follows.
        return end if end == len(text) else header + lines[body - 1].end()
    return header + lines[count].end()


def client_file(
    private_key: PrivateKey | None,
    addresses: tuple[Address, ...],
    *,
    gateway: PublicKey,
    endpoint: tuple[str, int],
    allowed_ips: tuple[Prefix, ...],
    preshared_key: PresharedKey | None = None,
    keepalive: int = 0,
    mtu: int | None = None,
    dns: Sequence[str] = (),
) -> str:
    """A peer's own wg-quick file. Without its private key, the line for that is a comment. Raises `ConfigError`."""
    stand_in = PrivateKey.generate() if private_key is None else private_key
    peer = PeerConfig(
        public_key=gateway,
        preshared_key=preshared_key,
        allowed_ips=allowed_ips,
        endpoint=endpoint,
        persistent_keepalive=float(keepalive) if keepalive else None,
    )
    config = InterfaceConfig(
        private_key=stand_in, addresses=addresses, mtu=mtu, dns=tuple(dns), peers=(peer,)
    )
    text = format_config(config)
    if private_key is None:
        key_line = f"PrivateKey = {stand_in.to_base64()}"
        text = text.replace(key_line, "# PrivateKey = (only the peer has it: put it here)", 1)
    return text


def described(addresses: Sequence[Address]) -> str:
    """Addresses without the lengths of their prefixes."""
    return listed([address.ip for address in addresses])
