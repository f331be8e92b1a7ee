"""Configuration files of either kind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from connlib._configfile import display_path, guess, read_file
from connlib._errors import ConfigError
from connlib.config import InterfaceConfig, check_interface_name, shown
from connlib.wgquick import load_config

if TYPE_CHECKING:
    from connlib.gateway import Gateway, GatewayPeer

GATEWAY_ENDING = ".toml"


def load(file: str, *, allow_world_readable: bool) -> InterfaceConfig:
    """Read a gateway's TOML file, if that is its ending, else a wg-quick file. Raises `ConfigError`."""
    if not file.endswith(GATEWAY_ENDING):
        return load_config(file, allow_world_readable=allow_world_readable)
    from connlib.gatewayfile import read_gateway

    return read_gateway(file, allow_world_readable=allow_world_readable)[1]


def load_without_keys(file: str, problem: str) -> Gateway:
    """Read a gateway's TOML file, and no key file. Raises `ConfigError`, of a wg-quick file with this problem."""
    from connlib.gatewayfile import MAX_FILE_BYTES, parse_gateway

    # What is not there is no file of the other kind.
    source = read_file(file, MAX_FILE_BYTES, kind="a gateway's TOML file")
    require_gateway(file, problem)
    return parse_gateway(source.text(), file)


def require_gateway(file: str, problem: str) -> None:
    """Raise `ConfigError` with this problem unless the file's name is that of a gateway's file."""
    if not file.endswith(GATEWAY_ENDING):
        hint = f"name a file that ends in {GATEWAY_ENDING}"
        raise ConfigError(problem, path=display_path(file), hint=hint)


def find_peer(gateway: Gateway, wanted: str, file: str) -> GatewayPeer:
    """The peer of this name or public key. Raises `ConfigError` if there is none."""
    for peer in gateway.peers:
        if wanted in (peer.name, peer.public_key.to_base64()):
            return peer
    names = [peer.name for peer in gateway.peers if peer.name is not None]
    near = guess(wanted, names)
    hint = f"did you mean {near}?" if near else "give a peer's name, or its public key"
    raise ConfigError(f"there is no peer {shown(wanted)}", path=display_path(file), hint=hint)


def name_after(file: str) -> str:
    """The device's name after the file's, as wg-quick does: /etc/wireguard/wg0.conf is wg0. Raises `ConfigError`."""
    stem = os.path.basename(file).removesuffix(".conf").removesuffix(GATEWAY_ENDING)
    try:
        return check_interface_name(stem)
    except ConfigError:
        raise ConfigError(
            "no network device can be called like this file",
            path=display_path(file),
            hint="choose a name with --name",
        ) from None
