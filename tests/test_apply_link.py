"""What `Interface.apply` does to a device and its routes, with the kernel. As root, each in a namespace of its own."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import trio

from connlib import DeviceError, InterfaceConfig
from connlib.driver import open_interface
from helpers_netns import in_namespace, ip, run_body
from test_tun_device import NAME, addresses, device_config, link, routes


def config(addresses: Iterable[str], prefixes: Iterable[str], mtu: int = 1400) -> InterfaceConfig:
    peer = replace(device_config().peers[0], allowed_ips=tuple(map(ip_network, prefixes)))
    return device_config(addresses=tuple(map(ip_interface, addresses)), peers=(peer,), mtu=mtu)


def state(name: str = NAME) -> tuple[Any, ...]:
    """Addresses, routes of ours and of the kernel's, and the MTU."""
    found = [
        (route["dst"], route.get("protocol"))
        for version in ("-4", "-6")
        for route in json.loads(ip(version, "-j", "route", "show", "dev", name) or "[]")
        if not route["dst"].startswith("fe80:")
    ]
    return addresses(name), sorted(found), link(name)["mtu"]


async def fresh(wanted: InterfaceConfig) -> tuple[Any, ...]:
    async with open_interface(wanted):
        return state()


CHANGES = {
    "the network of an address that leaves is another peer's now": (
        config(["10.7.0.1/24"], ["10.7.0.0/24"]),
        config(["10.8.0.1/24"], ["10.7.0.0/24"]),
    ),
    "a prefix of a peer's is the network of an address now": (
        config(["10.8.0.1/24"], ["10.7.0.0/24", "fd00::/64"]),
        config(["10.7.0.1/24", "fd00::1/64"], ["10.7.0.0/24", "fd00::/64"]),
    ),
    "an IPv6 address gets another prefix length": (
        config(["fd00::1/64"], ["fd00:5::/64"]),
        config(["fd00::1/48"], ["fd00:5::/64"]),
    ),
    "an MTU too small for the IPv6 that was there": (
        config(["10.7.0.1/16", "fd00::1/64"], [], 1400),
        config(["10.7.0.1/16"], [], 600),
    ),
    "IPv6 for the first time, with the MTU that it takes": (
        config(["10.7.0.1/16"], [], 600),
        config(["10.7.0.1/16", "fd00::1/64"], ["fd00:5::/64"], 1400),
    ),
}


@in_namespace
def test_whatever_can_be_started_can_be_changed_to() -> None:
    async def main() -> None:
        for what, (before, after) in CHANGES.items():
            reference = await fresh(after)
            async with open_interface(before) as interface:
                old = state()
                await interface.apply(after)
                assert state() == reference, what
                await interface.apply(before)
                assert state() == old, f"and back: {what}"

    trio.run(main)


ADDRESSES = (
    "10.7.0.1/24",
    "10.7.0.1/16",
    "10.7.0.2/24",
    "10.8.0.1/24",
    "fd00::1/64",
    "fd00::1/48",
    "fd00:1::1/64",
)
PREFIXES = (
    "10.7.0.0/24",
    "10.8.0.0/24",
    "10.8.0.0/16",
    "10.9.0.0/16",
    "fd00::/64",
    "fd00:5::/64",
    "10.7.0.9/32",
)


def any_config(rng: random.Random) -> InterfaceConfig:
    chosen = rng.sample(ADDRESSES, rng.randrange(4))
    if "fd00::1/64" in chosen and "fd00::1/48" in chosen:
        chosen.remove("fd00::1/64")  # a device has an IPv6 address once
    prefixes = rng.sample(PREFIXES, rng.randrange(4))
    with_ipv6 = any(":" in each for each in (*chosen, *prefixes))
    return config(chosen, prefixes, rng.choice((1280, 1400) if with_ipv6 else (600, 1280, 1400)))


@in_namespace
def test_many_changes_in_a_row_end_as_a_start_would_have() -> None:
    async def main() -> None:
        rng = random.Random(1)
        wanted = [any_config(rng) for _ in range(60)]
        references = [await fresh(each) for each in wanted]
        async with open_interface(wanted[0]) as interface:
            for number, (each, reference) in enumerate(zip(wanted, references, strict=True)):
                await interface.apply(each)
                assert state() == reference, (number, wanted[number - 1], each)

    trio.run(main)


@in_namespace
def test_an_apply_that_is_refused_leaves_what_others_have_made() -> None:
    async def main() -> None:
        before = config(["10.7.0.1/24"], ["10.7.0.2/32"])
        async with open_interface(before) as interface:
            ip("route", "add", "10.50.0.0/16", "dev", NAME)
            ip("address", "add", "10.9.0.1/24", "dev", NAME)
            old = state()
            for clash, what in (
                (config(["10.7.0.1/24"], ["10.60.0.0/16", "10.50.0.0/16"]), "the route to 10.50.0.0/16"),
                (config(["10.7.0.1/24", "10.6.0.1/24", "10.9.0.1/24"], []), "the address 10.9.0.1/24"),
                (config(["10.6.0.1/24", "10.9.0.1/24"], ["10.60.0.0/16"], 1300), "the address 10.9.0.1/24"),
                (config([], ["10.7.0.2/32", "10.50.0.0/16"], 1300), "the route to 10.50.0.0/16"),
            ):
                try:
                    await interface.apply(clash)
                except DeviceError as error:
                    assert f"cannot add {what}: there is one already" in str(error)
                else:
                    raise AssertionError("nothing was raised")
                assert state() == old, (what, old, state())
                assert interface.config == before

    trio.run(main)


@in_namespace
def test_what_others_have_removed_is_no_error_when_it_is_to_go() -> None:
    async def main() -> None:
        before = config(["10.7.0.1/24", "fd00::1/64"], ["10.50.0.0/16", "fd00:5::/64"])
        async with open_interface(before) as interface:
            ip("route", "del", "10.50.0.0/16", "dev", NAME)
            ip("address", "flush", "dev", NAME, "scope", "global")
            after = config(["10.6.0.1/24"], ["10.60.0.0/16"])
            await interface.apply(after)
            found = state()
        assert found == await fresh(after)

    trio.run(main)


@in_namespace
def test_a_device_that_was_renamed_is_changed_and_not_the_one_that_has_its_name_now() -> None:
    async def main() -> None:
        async with open_interface(config(["10.7.0.1/24"], [])) as interface:
            ip("link", "set", NAME, "down")
            ip("link", "set", NAME, "name", "renamed0")
            ip("link", "set", "renamed0", "up")
            ip("tuntap", "add", "dev", NAME, "mode", "tun")
            await interface.apply(config(["10.7.0.1/24", "10.6.0.1/24"], ["10.60.0.0/16"]))
            assert addresses("renamed0") == {"10.7.0.1/24", "10.6.0.1/24"}
            assert routes("renamed0") == {"10.60.0.0/16"}
            assert addresses(NAME) == set()

    trio.run(main)


@in_namespace
def test_a_device_that_was_moved_away_is_said_to_be_gone() -> None:
    async def main() -> None:
        async with open_interface(config(["10.7.0.1/24"], [])) as interface:
            elsewhere = f"connlib-away-{secrets.token_hex(4)}"
            ip("netns", "add", elsewhere)
            try:
                ip("link", "set", NAME, "netns", elsewhere)
                try:
                    await interface.apply(config(["10.7.0.1/24", "10.6.0.1/24"], []))
                except DeviceError as error:
                    assert str(error) == (
                        f"there is no network device {NAME!r} any more; was it moved to another namespace?"
                    )
                else:
                    raise AssertionError("nothing was raised")
            finally:
                ip("netns", "delete", elsewhere)

    trio.run(main)


run_body(globals())
