"""`connlib peer add`, `remove` and `list`: the peers of a gateway's TOML file."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from connlib import _wgvalues as values
from connlib._configfile import display_path, read_file
from connlib._errors import ConfigError
from connlib._filechange import FileChange
from connlib._gatewayedit import (
    change_of,
    client_file,
    described,
    free_addresses,
    hosts_of,
    key_file_of,
    parse_bytes,
    with_peer,
    without_peer,
)
from connlib._native import PresharedKey, PrivateKey, PublicKey
from connlib._text import host_and_port, listed
from connlib._types import Role
from connlib._wgvalues import BadValue
from connlib.config import Address, Prefix, shown
from connlib.gateway import Gateway, GatewayInterface, GatewayPeer
from connlib.gatewayfile import MAX_FILE_BYTES, read_gateway

from ._files import GATEWAY_ENDING, find_peer, load_without_keys, require_gateway
from ._qr import make_code, picture, picture_ending, terminal_code
from .keys import print_line, warn_if_world_accessible

_NO_PEERS = "only the peers of a gateway's TOML file are added, removed and listed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPeer:
    """A peer to be added, as the command line says it; what is left out is chosen."""

    name: str
    public_key: str | None
    with_preshared_key: bool
    addresses: tuple[str, ...]
    endpoint: str | None
    """Where the peer reaches the gateway."""
    dns: tuple[str, ...]
    allowed_ips: tuple[str, ...]
    """What the peer sends through the tunnel."""
    keepalive: int


def add_peer(
    new: NewPeer, file: str | None, *, qr: bool, output: str | None, allow_world_readable: bool
) -> None:
    """Add a peer to a gateway's file, once its own is handed out. Raises `ConfigError`; then nothing has changed."""
    file = _only_gateway() if file is None else file
    require_gateway(file, _NO_PEERS)
    with _without_warnings(), change_of(file) as change:
        gateway, config = read_gateway(file, allow_world_readable=allow_world_readable)
        own = config.private_key.public_key()
        with _of_file(file):
            if output == "-":
                raise BadValue("--output: - is no file", "leave it out, and it is printed")
            values.display_name(new.name)
            private_key, public_key = _key_pair(new.public_key)
            addresses = _addresses(new.addresses, gateway)
            _require_new(new.name, public_key, addresses, gateway, own)
            preshared_key = PresharedKey.generate() if new.with_preshared_key else None
            text = client_file(
                private_key,
                addresses,
                gateway=own,
                endpoint=endpoint_of(
                    new.endpoint or gateway.interface.endpoint, gateway.interface.listen_port
                ),
                allowed_ips=_routed(new.allowed_ips, gateway.interface),
                preshared_key=preshared_key,
                keepalive=new.keepalive,
                mtu=gateway.interface.mtu,
                dns=[_dns_server(each) for given in new.dns for each in _words(given)],
            )
            peer = GatewayPeer(
                name=new.name,
                public_key=public_key,
                preshared_key_file=key_file_of(new.name) if preshared_key is not None else None,
                allowed_ips=tuple(ip_network(address.ip) for address in addresses),
            )
        data = with_peer(change.data, file, peer)
        if preshared_key is not None:
            # Who may read the gateway's private key, as its service does, may read this one too.
            private = os.path.join(
                change.folder, gateway.interface.private_key_file or os.path.basename(change.path)
            )
            change.add_key(key_file_of(new.name), preshared_key.to_base64() + "\n", like=private)
        stage_gateway(change, data, allow_world_readable=allow_world_readable)
        # Before the gateway knows the peer: if this fails, the private key is lost, and nobody has to remove the peer.
        _hand_out(text, change, qr=qr, output=output)
        change.commit()
    remark(f"{new.name} is in {display_path(file)}, with {described(addresses)}.")
    if private_key is not None:
        places = [display_path(output)] if output is not None else []
        places += ["what is printed above"] if qr or output is None else []
        remark(
            f"The private key is in {' and in '.join(places)}, and nowhere else: the gateway does not keep it."
        )
    _remark_on_reload(file)


def remove_peer(wanted: str, file: str | None) -> None:
    """Remove a peer, and its key file if `add_peer` named it and nobody else needs it. Raises `ConfigError`.

    Reads no key file.
    """
    file = _only_gateway() if file is None else file
    require_gateway(file, _NO_PEERS)
    with _without_warnings(), change_of(file) as change:
        gateway = parse_bytes(change.data, file)
        peer = find_peer(gateway, wanted, file)
        change.stage(without_peer(change.data, file, gateway.peers.index(peer)))
        key_file = peer.preshared_key_file
        removed = None
        if peer.name is not None and key_file == key_file_of(peer.name):
            path = os.path.join(change.folder, key_file)
            if change.drop_key(path):
                removed = path
        change.commit()
    if removed is not None and os.path.lexists(removed):
        removed = None  # the system has refused that, and the next change tries again
    also = f", and {display_path(removed)} is removed" if removed is not None else ""
    remark(f"{peer.name or peer} is no longer in {display_path(file)}{also}.")
    if key_file is not None and removed is None:
        remark(f"{display_path(key_file)} is left where it is.")
    _remark_on_reload(file)


def list_peers(file: str | None) -> None:
    """Print name, public key and allowed IPs of each peer. Reads no key file. Raises `ConfigError`."""
    gateway = load_without_keys(_only_gateway() if file is None else file, _NO_PEERS)
    width = max((len(peer.name or "-") for peer in gateway.peers), default=0)
    for peer in gateway.peers:
        allowed_ips = listed(peer.allowed_ips) or "-"
        print_line(f"{peer.name or '-':{width}}  {peer.public_key.to_base64()}  {allowed_ips}")


def stage_gateway(change: FileChange, data: bytes, *, allow_world_readable: bool = False) -> None:
    """Write a gateway's file beside the one that it is to replace, and read it there as `up` would: `ConfigError`."""
    change.stage(data)
    try:
        read_gateway(change.staged, allow_world_readable=allow_world_readable)
    except ConfigError as error:
        for problem in getattr(error, "problems", (error,)):
            problem.path = display_path(change.path)
        raise


def endpoint_of(text: str | None, listen_port: int) -> tuple[str, int]:
    """Where peers reach a gateway that listens on this port: HOST or HOST:PORT. Raises `BadValue`."""
    if text is None:
        hint = 'add endpoint = "vpn.example.org:51820" to [interface], or give --endpoint'
        raise BadValue("where peers reach the gateway is not known", hint)
    if re.fullmatch(r"(\[.*\]|[^\[:]*):[^:]*", text):
        return values.endpoint(text, "endpoint")
    if listen_port == 0:
        hint = "add listen_port to [interface], or give --endpoint HOST:PORT"
        raise BadValue("endpoint: it has no port, and the gateway no fixed one", hint)
    return values.endpoint(host_and_port(text.strip("[]"), listen_port), "endpoint")


def remark(text: str) -> None:
    """A line for a person, where it is not mixed with what was asked for. That nobody reads it is no failure."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """A file is read several times to be changed. What is doubtful in it is for `connlib check` to say."""
    log = logging.getLogger("connlib.config")

    def none(_: logging.LogRecord) -> bool:
        return False

    log.addFilter(none)
    try:
        yield
    finally:
        log.removeFilter(none)


@contextlib.contextmanager
def _of_file(file: str) -> Iterator[None]:
    """Give what is wrong with a value, or does not go with a gateway's file, the file's name."""
    try:
        yield
    except BadValue as bad:
        raise ConfigError(bad.problem, hint=bad.hint, path=display_path(file)) from None
    except ConfigError as error:
        error.path = error.path or display_path(file)
        raise


def _only_gateway() -> str:
    """The one file of the current folder that is a gateway's. Raises `ConfigError` if there is none, or another one."""
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir()):
            if name.endswith(GATEWAY_ENDING):
                with contextlib.suppress(ConfigError):
                    data = read_file(name, MAX_FILE_BYTES, kind="a gateway's TOML file").data
                    if re.search(rb"^[ \t]*\[[ \t]*interface[ \t]*\]", data, re.MULTILINE):
                        found.append(name)
    if len(found) != 1:
        problem = (
            f"there are {listed([display_path(name) for name in found])}"
            if found
            else "there is no gateway's TOML file in the current folder"
        )
        hint = (
            "say which one: --file"
            if found
            else "name one with --file, or make one: connlib init office.toml"
        )
        raise ConfigError(problem, hint=hint)
    return found[0]


def _key_pair(public_key: str | None) -> tuple[PrivateKey | None, PublicKey]:
    if public_key is not None:
        return None, values.public_key(public_key, "--public-key")
    made = PrivateKey.generate()
    return made, made.public_key()


def _addresses(given: Iterable[str], gateway: Gateway) -> tuple[Address, ...]:
    addresses = tuple(each for text in given for each in values.addresses("--address", text))
    return addresses or free_addresses(gateway.interface, gateway.peers)


def _require_new(
    name: str, public_key: PublicKey, addresses: tuple[Address, ...], gateway: Gateway, own: PublicKey
) -> None:
    """Raise `BadValue` if the gateway has the name, the key or an address already, or would answer no peer."""
    if gateway.interface.role is Role.INITIATOR:
        problem = "role: the gateway is an initiator, which answers no peer"
        raise BadValue(problem, "make it a responder, or leave the role out")
    if any(peer.name == name for peer in gateway.peers):
        raise BadValue(f"there is a peer {name!r} already", "choose another name, or remove it first")
    if public_key == own:
        raise BadValue("--public-key: this is the gateway's own", "give the peer's")
    for peer in gateway.peers:
        if peer.public_key == public_key:
            raise BadValue(f"--public-key: {peer} has the same one", "give the peer's own")
    owners = {prefix: str(peer) for peer in gateway.peers for prefix in peer.allowed_ips}
    owners |= {ip_network(address.ip): "the gateway itself" for address in gateway.interface.addresses}
    for address in addresses:
        if owner := owners.get(ip_network(address.ip)):
            raise BadValue(f"--address: {address.ip} belongs to {owner}", "leave it out to get a free one")
        owners[ip_network(address.ip)] = "this peer already"
        for network in (each.network for each in gateway.interface.addresses):
            first, last = hosts_of(network)
            if address.ip in network and not first <= int(address.ip) <= last:
                problem = (
                    f"--address: {address.ip} is not for a host: it is the first or the last of {network}"
                )
                raise BadValue(problem, "leave it out to get a free one")


def _routed(given: Iterable[str], interface: GatewayInterface) -> tuple[Prefix, ...]:
    prefixes = [each for text in given for each in values.prefixes("--allowed-ips", text)]
    return tuple(dict.fromkeys(prefixes or [address.network for address in interface.addresses]))


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _dns_server(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise BadValue(f"--dns: {shown(text)} is not an IP address", "write 10.0.0.1 or fd00::1") from None


def _hand_out(text: str, change: FileChange, *, qr: bool, output: str | None) -> None:
    """Write a peer's own file to where it was asked for: as a new file, as a picture, on standard output."""
    ending = picture_ending(output)
    code = make_code(text) if qr or ending is not None else None
    shown_code = terminal_code(code) if code is not None and qr else None
    if output is not None:
        change.add_output(
            output, picture(code, ending) if code is not None and ending is not None else text.encode()
        )
    if shown_code is not None:
        warn_if_world_accessible()
        print_line(shown_code)
    elif output is None:
        warn_if_world_accessible()
        print_line(text.rstrip("\n"))


def _remark_on_reload(file: str) -> None:
    remark(f"If `connlib up {display_path(file)}` runs: connlib apply {display_path(file)}")
