"""Configuration files of either kind."""

from __future__ import annotations

import os

from connlib._configfile import display_path
from connlib._errors import ConfigError
from connlib.config import InterfaceConfig, check_interface_name
from connlib.wgquick import load_config

GATEWAY_ENDING = ".toml"


def load(file: str, *, allow_world_readable: bool) -> InterfaceConfig:
    """Read a gateway's TOML file, if that is its ending, else a wg-quick file. Raises `ConfigError`."""
    if not file.endswith(GATEWAY_ENDING):
        return load_config(file, allow_world_readable=allow_world_readable)
    from connlib.gatewayfile import read_gateway

    return read_gateway(file, allow_world_readable=allow_world_readable)[1]


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
