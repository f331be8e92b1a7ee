"""`connlib init FILE`: a gateway's TOML file with its key, for a start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import ip_interface

from connlib import _wgvalues as values
from connlib._configfile import display_path
from connlib._errors import ConfigError
from connlib._gatewayedit import change_of
from connlib._native import PrivateKey
from connlib._text import host_and_port
from connlib._wgvalues import BadValue
from connlib.config import Address, shown

from ._files import GATEWAY_ENDING, name_after, require_gateway
from .keys import print_line
from .peer import endpoint_of, remark, stage_gateway


def run(file: str, *, endpoint: str | None, networks: Sequence[str], port: int) -> None:
    """Make the files, and print the public key. Raises `ConfigError`; then there is none of the two."""
    require_gateway(file, "a gateway's TOML file has another ending")
    name_after(file)
    try:
        addresses = [_address(each) for text in networks for each in values.addresses("--network", text)]
        place = host_and_port(*endpoint_of(endpoint, port)) if endpoint is not None else None
    except BadValue as bad:
        raise ConfigError(bad.problem, hint=bad.hint) from None
    private_key = PrivateKey.generate()
    key_file = os.path.basename(file).removesuffix(GATEWAY_ENDING) + ".key"
    written = ", ".join(f'"{address}"' for address in addresses)
    lines = [
        "[interface]",
        f'private_key_file = "{key_file}"',
        f"listen_port = {port}",
        f"addresses = [{written}]",
        'role = "responder"  # peers start the sessions',
        *([f'endpoint = "{place}"  # where peers reach this gateway'] if place is not None else []),
    ]
    with change_of(file, new=True) as change:
        made = change.add_key(key_file, private_key.to_base64() + "\n")
        stage_gateway(change, "".join(f"{line}\n" for line in lines).encode())
        change.commit()
    print_line(f"public key {private_key.public_key().to_base64()}")
    remark(f"{display_path(file)} and {display_path(made)} are made; the second one is secret.")
    remark(f"Next: connlib peer add NAME --file {display_path(file)}; connlib up {display_path(file)}")


def _address(given: Address) -> Address:
    """The gateway's address in a network: the one that was given with its length, or the first. Raises `BadValue`."""
    network = given.network
    if network.num_addresses < 4:
        raise BadValue(
            f"--network: {shown(str(given))} has no room for peers", "write a prefix such as 10.7.0.0/24"
        )
    if given.ip != network.network_address:
        return given
    return ip_interface((network.network_address + 1, network.prefixlen))
