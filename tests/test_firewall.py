"""The table of an interface where nftables are not as they should be: each test in a network namespace of its own."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
import trio

from connlib import DeviceError, InterfaceConfig
from connlib import _nftables as nft
from connlib.driver import open_interface
from connlib.firewall import Firewall, FirewallRules, table_name
from helpers_driver import client_config, loopback_socket
from helpers_firewall import TABLES
from helpers_netns import in_namespace, run_body

NAME = "wgtest0"
RULES = FirewallRules(protected=(ip_address("10.0.0.2"),), masqueraded=(ip_network("10.0.0.0/24"),))
PROTECTED = replace(RULES, masqueraded=())
OWNED = 0x2
TABLE_FLAGS = (8).to_bytes(2, sys.byteorder) + (2).to_bytes(2, sys.byteorder) + OWNED.to_bytes(4, "big")


def tables() -> dict[str, int]:
    said = subprocess.run([sys.executable, "-c", TABLES], check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = json.loads(said)
    return found


class Messages(logging.Handler):
    """What connlib warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("connlib").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def failing(error: int, *, only_owned: bool = False) -> Iterator[None]:
    """A kernel that refuses all changes, or the tables that have an owner."""
    genuine = nft.Tables.commit

    def commit(self: nft.Tables, commands: Iterable[nft.Command]) -> None:
        several = list(commands)
        if not only_owned or any(TABLE_FLAGS in command.attributes for command in several):
            raise OSError(error, os.strerror(error))
        genuine(self, several)

    patch = pytest.MonkeyPatch()
    patch.setattr(nft.Tables, "commit", commit)
    try:
        yield
    finally:
        patch.undo()


def config(**changes: Any) -> InterfaceConfig:
    return replace(client_config(), name=NAME, addresses=(ip_interface("10.0.0.2/24"),), **changes)


@in_namespace
def test_without_owners_the_table_ends_with_the_interface_and_what_was_left_is_replaced() -> None:
    """Linux before 5.12."""
    with failing(errno.EOPNOTSUPP, only_owned=True):
        killed = Firewall()
        killed.change("wg0", 7, RULES)
        assert killed._tables is not None
        killed._tables.close()
        assert tables() == {"connlib_wg0": 2}
        following = Firewall()
        following.change("wg0", 8, PROTECTED)
        assert tables() == {"connlib_wg0": 1}
        following.change("wg0", 8, FirewallRules())
        assert tables() == {}
        following.change("wg0", 8, RULES)
        assert tables() == {"connlib_wg0": 2}
        nft.Tables().commit([nft.delete_table("connlib_wg0")])
        following.close()
        assert tables() == {}


@in_namespace
def test_a_change_that_the_kernel_refuses_leaves_the_rules_as_they_were() -> None:
    firewall = Firewall()
    firewall.change("wg0", 7, RULES)
    with (
        failing(errno.ENOMEM),
        pytest.raises(DeviceError, match="wg0: cannot set its firewall rules: Cannot allocate"),
    ):
        firewall.change("wg0", 7, PROTECTED)
    assert tables() == {"connlib_wg0": 2}
    firewall.close()
    assert tables() == {}


@in_namespace
def test_a_table_that_another_process_has_is_said_to_be_in_the_way() -> None:
    other = Firewall()
    other.change(NAME, 7, RULES)
    with pytest.raises(DeviceError, match=rf"Operation not permitted; .* has a table connlib_{NAME}$"):
        Firewall().change(NAME, 7, RULES)
    other.close()
    Firewall().change(NAME, 7, RULES)


@in_namespace
def test_where_there_are_no_nftables_protection_is_a_warning_and_masquerading_an_error() -> None:
    async def main() -> None:
        with loopback_socket() as socket:
            said = Messages().said
            async with open_interface(config(), udp=socket) as interface:
                pass
            assert said == [
                f"{NAME}: cannot set its firewall rules: Protocol not supported; does this kernel have nftables, with "
                "its expressions masq and fib?; so 10.0.0.2 may answer other networks than the tunnel "
                "(protect_addresses)"
            ]
            with pytest.raises(DeviceError, match=f"{NAME}: cannot set its firewall rules"):
                async with open_interface(config(masquerade=(ip_network("10.0.0.0/24"),)), udp=socket):
                    raise AssertionError("it must not come up")
            async with open_interface(config(protect_addresses=False), udp=socket) as interface:
                with pytest.raises(DeviceError, match=f"{NAME}: cannot set its firewall rules"):
                    await interface.apply(config(masquerade=(ip_network("10.0.0.0/24"),), mtu=1300))
                assert interface.config.mtu is None
                with open(f"/sys/class/net/{NAME}/mtu") as mtu:
                    assert int(mtu.read()) == 1420
            assert len(said) == 1

    with failing(errno.EPROTONOSUPPORT):
        trio.run(main)


@in_namespace
def test_a_device_that_the_caller_brought_gets_no_rules() -> None:
    async def main() -> None:
        from connlib.tun import make_device

        fd, _ = make_device(NAME)
        with loopback_socket() as socket:
            async with open_interface(config(masquerade=(ip_network("10.0.0.0/24"),)), tun=fd, udp=socket):
                assert tables() == {}
        os.close(fd)

    trio.run(main)


@in_namespace
def test_very_many_rules_are_one_change() -> None:
    firewall = Firewall()
    networks = tuple(ip_network(f"10.{number >> 8}.{number & 255}.0/24") for number in range(1000))
    firewall.change("wg0", 7, FirewallRules(masqueraded=networks))
    firewall.change("wg0", 7, FirewallRules(masqueraded=networks[::-1]))
    assert tables() == {"connlib_wg0": 1000}
    firewall.close()


@pytest.mark.parametrize(
    ("device", "table"),
    [
        ("wg0", "connlib_wg0"),
        ("a-b.c_d", "connlib_a-b.c_d"),
        ("a+b", "connlib_a/2bb"),
        ("a=b", "connlib_a/3db"),
    ],
)
def test_the_name_of_a_table_has_only_what_nft_can_read(device: str, table: str) -> None:
    assert table_name(device) == table


run_body(globals())
