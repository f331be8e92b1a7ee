"""`InterfaceConfig`: what it refuses, and that a file written from it says the same."""

from __future__ import annotations

import dataclasses
import math
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connlib._errors import ConfigError
from connlib._native import PrivateKey
from connlib._types import Limits, PeerConfig, Role, Timers
from connlib.config import ENCRYPTIONS, MOST_QUEUES, MOST_THREADS, OFFLOADS, InterfaceConfig
from connlib.wgquick import format_config, parse_config
from helpers_config import ALICE, BOB, FULL, OWN, SHARED

# Round trip

PREFIX = st.tuples(st.ip_addresses(v=4), st.integers(0, 32)) | st.tuples(
    st.ip_addresses(v=6), st.integers(0, 128)
)
NAME = st.text(alphabet="abcdefghijklmnopqrstuvwxyz äßЖ-_.1", min_size=1, max_size=20).filter(
    lambda name: name == name.strip()
)
ROLE = st.sampled_from(Role)
SECONDS = st.floats(min_value=0.1, max_value=80.0)


@st.composite
def configs(draw: st.DrawFn) -> InterfaceConfig:
    count = draw(st.integers(0, 4))
    owned = draw(
        st.lists(PREFIX.map(lambda item: ip_network(item, strict=False)), unique=True, max_size=3 * count)
    )
    peers = tuple(
        PeerConfig(
            public_key=PrivateKey.from_bytes(bytes([number + 1]) * 32).public_key(),
            preshared_key=draw(st.none() | st.just(SHARED)),
            allowed_ips=tuple(owned[number::count]),
            endpoint=draw(
                st.none()
                | st.tuples(
                    st.ip_addresses().map(str) | st.sampled_from(["vpn.example.org", "localhost"]),
                    st.integers(1, 65535),
                )
            ),
            persistent_keepalive=draw(st.none() | st.integers(1, 65535).map(float)),
            role=draw(ROLE),
            name=draw(st.none() | NAME),
        )
        for number in range(count)
    )
    worker = draw(st.booleans())
    return InterfaceConfig(
        private_key=OWN,
        listen_port=draw(st.integers(0, 65535)),
        fwmark=draw(st.integers(0, 0xFFFF_FFFF)),
        addresses=tuple(draw(st.lists(PREFIX.map(ip_interface), max_size=3, unique_by=lambda each: each.ip))),
        mtu=draw(st.none() | st.integers(1280, 65472)),
        peers=peers,
        name=draw(st.none() | st.sampled_from(["wg0", "a.b", "x" * 15])),
        role=draw(ROLE),
        routes=draw(st.booleans()),
        timers=dataclasses.replace(Timers(), rekey_timeout=draw(SECONDS), keepalive_timeout=draw(SECONDS)),
        masquerade=tuple(draw(st.lists(PREFIX.map(lambda item: ip_network(item, strict=False)), max_size=3))),
        protect_addresses=draw(st.booleans()),
        encryption=draw(st.sampled_from(ENCRYPTIONS)),
        threads=draw(st.integers(1, MOST_THREADS)),
        worker=worker,
        queues=draw(st.integers(1, MOST_QUEUES if worker else 1)),
        offload=draw(st.booleans() | st.lists(st.sampled_from(OFFLOADS)).map(tuple)),
        dns=tuple(
            draw(st.lists(st.ip_addresses().map(str) | st.sampled_from(["a.example", "b"]), max_size=3))
        ),
        limits=draw(st.just(Limits()) | st.integers(0, 65_536).map(lambda size: Limits(queue_packets=size))),
    )


def test_what_needs_no_ipv6_of_the_device_goes_with_a_small_mtu() -> None:
    for networks, routes in ((("fd00::/64",), False), (("::/0",), True), (("10.0.0.0/8",), True)):
        peer = PeerConfig(public_key=ALICE, allowed_ips=tuple(map(ip_network, networks)))
        config = InterfaceConfig(private_key=OWN, mtu=1279, peers=(peer,), routes=routes)
        assert parse_config(format_config(config)) == config


def test_the_longest_timer_and_a_keepalive_that_is_off_can_be_written() -> None:
    timers = Timers(rekey_attempt_time=1e9)
    peer = PeerConfig(public_key=ALICE, persistent_keepalive=0)
    written = format_config(InterfaceConfig(private_key=OWN, timers=timers, peers=(peer,)))
    off = dataclasses.replace(peer, persistent_keepalive=None)
    assert parse_config(written) == InterfaceConfig(private_key=OWN, timers=timers, peers=(off,))


@given(configs())
@settings(deadline=None)
def test_a_configuration_that_is_written_and_read_is_the_same(config: InterfaceConfig) -> None:
    assert parse_config(format_config(config)) == config


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (
            PeerConfig(public_key=ALICE, persistent_keepalive=1.5),
            r"this persistent keepalive of a peer: '1\.5'; use 0 to",
        ),
        (
            PeerConfig(public_key=ALICE, name="a\n[Peer]"),
            r"this name of a peer: 'a\\n\[Peer\]'; use a short name",
        ),
        (
            PeerConfig(public_key=ALICE, name=" a"),
            "this name of a peer: ' a'; it would be read as another one",
        ),
        (PeerConfig(public_key=ALICE, endpoint=("a\nPostUp = x", 1)), "this endpoint of a peer"),
    ],
)
def test_what_the_format_cannot_say_is_not_written(peer: PeerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        format_config(InterfaceConfig(private_key=OWN, peers=(peer,)))


# InterfaceConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"listen_port": 65536}, "listen port 65536 is out of range; use 0 to 65535"),
        ({"fwmark": 2**32}, "fwmark 4294967296 is out of range; use 0 to 0xffffffff"),
        ({"fwmark": -1}, "fwmark -1 is out of range; use 0 to 0xffffffff"),
        ({"mtu": 100}, "MTU 100 is out of range"),
        ({"threads": 0}, "0 threads are out of range; use 1 to 64"),
        ({"threads": 65}, "65 threads are out of range; use 1 to 64"),
        ({"queues": 0}, "0 queues are out of range; use 1 to 16"),
        ({"queues": 17}, "17 queues are out of range; use 1 to 16"),
        ({"queues": 2, "worker": False}, "queues: 2 need worker = true; have one queue, or worker = true"),
        (
            {"mtu": 1279, "addresses": (ip_interface("fd00::1/64"),)},
            "MTU 1279 is too small for an IPv6 address; use 1280 or more",
        ),
        (
            {"mtu": 1279, "peers": (PeerConfig(public_key=ALICE, allowed_ips=(ip_network("fd00::/64"),)),)},
            "MTU 1279 is too small for a route to an IPv6 prefix of a peer; use 1280 or more",
        ),
        ({"addresses": (ip_interface("10.0.0.1/8"),) * 2}, "10.0.0.1/8 is there twice; remove"),
        (
            {"peers": (PeerConfig(public_key=ALICE, name="alice", endpoint=("192.0.2.1", 0)),)},
            "the endpoint of alice has the port 0, which is out of range; use 1 to 65535",
        ),
        (
            {"peers": (PeerConfig(public_key=ALICE, name="alice", endpoint=("fe80::1%eth0", 1)),)},
            "the endpoint of alice has a zone",
        ),
        (
            {"peers": (PeerConfig(public_key=ALICE, name="alice", endpoint=("", 1)),)},
            "the endpoint of alice has no host; use a host name or an address",
        ),
        *(
            (
                {"peers": (PeerConfig(public_key=ALICE, name="alice", persistent_keepalive=seconds),)},
                "the persistent keepalive of alice is .* seconds, which is out of range; use 1 to 65535",
            )
            for seconds in (1e9, 0.5, -1.0, math.nan)
        ),
        (
            {"peers": (PeerConfig(public_key=OWN.public_key(), name="me"),)},
            "me has the interface's own public key",
        ),
        ({"peers": (PeerConfig(public_key=ALICE), PeerConfig(public_key=ALICE))}, "is there twice; merge"),
        (
            {
                "peers": (
                    PeerConfig(public_key=ALICE, name="alice", allowed_ips=(ip_network("10.0.0.0/8"),)),
                    PeerConfig(public_key=BOB, name="bob", allowed_ips=(ip_network("10.0.0.0/8"),)),
                )
            },
            "10.0.0.0/8 is allowed for two peers, alice and bob",
        ),
    ],
)
def test_an_interface_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(InterfaceConfig(private_key=OWN), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["threads", "queues"])
@pytest.mark.parametrize(
    ("value", "kind"), [("two", "str"), (True, "bool"), (1.5, "float"), (None, "NoneType")]
)
def test_a_count_that_is_no_int_is_refused(field: str, value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"^{field} must be an int, not {kind}$"):
        InterfaceConfig(private_key=OWN, **{field: value})


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "x" * 16, "%d", "a b", "wg0:1", "ä", "a\0b", "a\n", "all", "default"],
)
def test_a_name_that_no_device_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a network device"):
        InterfaceConfig(private_key=OWN, name=name)


def test_the_interface_gives_its_role_to_peers_that_have_none() -> None:
    peers = (PeerConfig(public_key=ALICE), PeerConfig(public_key=BOB, role=Role.INITIATOR))
    config = InterfaceConfig(private_key=OWN, role=Role.RESPONDER, peers=peers)
    assert [each.role for each in config.peers] == [Role.RESPONDER, Role.INITIATOR]


def test_a_configuration_shows_no_key(tmp_path: Path) -> None:
    shown = repr(parse_config(FULL))
    assert OWN.to_base64() not in shown and SHARED.to_base64() not in shown
    assert repr(OWN.to_bytes()) not in shown and OWN.to_bytes().hex() not in shown
