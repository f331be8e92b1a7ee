"""What `connlib diff` and a reload say of two configurations: what `Interface.apply` would do, and no secret."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from connlib import (
    ConfigDiff,
    InterfaceConfig,
    Limits,
    PeerConfig,
    PresharedKey,
    PrivateKey,
    Role,
    Timers,
    parse_config,
)
from connlib.diff import compute_diff, describe_diff
from helpers_config import ALICE, BOB, FULL, OWN, SHARED
from helpers_driver import client_config, in_virtual_time, open_pair

OLD = parse_config(FULL)


def lines(old: InterfaceConfig, new: InterfaceConfig) -> list[str]:
    return [str(change) for change in describe_diff(compute_diff(old, new), old, new)]


def with_alice(**changes: Any) -> InterfaceConfig:
    alice, bob = OLD.peers
    return dataclasses.replace(OLD, peers=(dataclasses.replace(alice, **changes), bob))


OTHER = PrivateKey.from_bytes(bytes(range(120, 152)))
PUBLIC, OTHER_PUBLIC = OWN.public_key().to_base64(), OTHER.public_key().to_base64()


def test_equal_configurations_have_no_difference() -> None:
    assert lines(OLD, OLD) == []
    assert not compute_diff(OLD, OLD)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (
            with_alice(allowed_ips=(ip_network("10.7.0.2/32"), ip_network("10.7.0.9/32"))),
            "~ alice: allowed IPs: + 10.7.0.9/32; - 192.168.7.0/24, fd07::2/128",
        ),
        (
            with_alice(endpoint=("vpn.example.org", 1)),
            "~ alice: endpoint: [2001:db8::7]:51820 -> vpn.example.org:1",
        ),
        (with_alice(endpoint=None), "~ alice: endpoint: [2001:db8::7]:51820 -> none"),
        (with_alice(persistent_keepalive=None), "~ alice: persistent keepalive: 25 s -> none"),
        (with_alice(role=Role.INITIATOR), "~ alice: role: responder -> initiator"),
        (with_alice(name="carol"), "~ alice: name: alice -> carol"),
        (with_alice(preshared_key=None), "~ alice: preshared key: removed"),
        (with_alice(preshared_key=PresharedKey.generate()), "~ alice: preshared key: another one"),
        (dataclasses.replace(OLD, mtu=None), "~ MTU: 1380 -> 1420"),
        (dataclasses.replace(OLD, routes=True), "~ routes: off -> on"),
        (
            dataclasses.replace(OLD, addresses=(*OLD.addresses[1:], ip_interface("10.9.0.1/24"))),
            "~ addresses: + 10.9.0.1/24; - 10.7.0.1/24",
        ),
        (dataclasses.replace(OLD, addresses=OLD.addresses[::-1]), "~ addresses: in another order"),
        (dataclasses.replace(OLD, timers=Timers()), "~ timers: rekey_timeout 2.5 -> 5"),
        (dataclasses.replace(OLD, limits=Limits(queue_packets=8)), "~ limits: queue_packets 16 -> 8"),
        (
            dataclasses.replace(OLD, private_key=OTHER),
            f"~ private key: the public one was and becomes {PUBLIC} -> {OTHER_PUBLIC}; all sessions start anew",
        ),
        (
            dataclasses.replace(OLD, masquerade=(*OLD.masquerade[1:], ip_network("10.9.0.0/24"))),
            "~ masquerade: + 10.9.0.0/24; - 10.7.0.0/24",
        ),
        (dataclasses.replace(OLD, protect_addresses=True), "~ protect addresses: off -> on"),
        (dataclasses.replace(OLD, offload=False), "~ offload: tso4, coalesce_tcp -> false"),
        (dataclasses.replace(OLD, encryption="auto"), "~ encryption: ring -> auto"),
        (dataclasses.replace(OLD, encryption="ipsec-mb"), "~ encryption: ring -> ipsec-mb"),
        (dataclasses.replace(OLD, threads=1), "~ threads: 4 -> 1"),
        (dataclasses.replace(OLD, threads=64), "~ threads: 4 -> 64"),
        (dataclasses.replace(OLD, offload=True), "~ offload: tso4, coalesce_tcp -> true"),
        (
            dataclasses.replace(OLD, dns=("10.7.0.54", "example.org")),
            "~ DNS: + 10.7.0.54; - 10.7.0.53, fd07::53",
        ),
        (dataclasses.replace(OLD, listen_port=1), "~ UDP port: 51820 -> 1"),
        (dataclasses.replace(OLD, listen_port=0), "~ UDP port: 51820 -> any"),
        (dataclasses.replace(OLD, fwmark=0xCA6D), "~ mark: 0xca6c -> 0xca6d"),
        (dataclasses.replace(OLD, name="office1"), "! name: office0 -> office1, which takes a restart"),
        (
            dataclasses.replace(OLD, peers=OLD.peers[1:]),
            f"- alice, peer {ALICE.to_base64()}, allowed IPs 10.7.0.2/32, 192.168.7.0/24, fd07::2/128, "
            "endpoint [2001:db8::7]:51820",
        ),
        (
            dataclasses.replace(OLD, peers=OLD.peers[:1]),
            f"- peer {BOB.to_base64()}, endpoint vpn.example.org:51821",
        ),
    ],
)
def test_each_difference_is_a_line(new: InterfaceConfig, expected: str) -> None:
    assert lines(OLD, new) == [expected]


def test_other_queues_take_a_restart() -> None:
    old = dataclasses.replace(OLD, worker=True)
    new = dataclasses.replace(old, queues=2)
    assert lines(old, new) == ["! queues: 1 -> 2, which takes a restart"]
    assert lines(new, old) == ["! queues: 2 -> 1, which takes a restart"]


def test_an_added_peer_is_a_line_too_and_the_peer_itself_is_not_a_change() -> None:
    peer = PeerConfig(public_key=OTHER.public_key(), preshared_key=SHARED, name="carol")
    assert lines(OLD, dataclasses.replace(OLD, peers=(*OLD.peers, peer))) == [f"+ carol, peer {OTHER_PUBLIC}"]


def test_a_name_that_the_new_one_leaves_open_stays() -> None:
    assert lines(OLD, dataclasses.replace(OLD, name=None)) == []


def test_long_lists_are_cut() -> None:
    prefixes = tuple(ip_network(f"10.{number}.0.0/16") for number in range(2000 // 8))
    (line,) = lines(with_alice(allowed_ips=()), with_alice(allowed_ips=prefixes))
    assert line == (
        "~ alice: allowed IPs: + 10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16, 10.5.0.0/16, "
        "10.6.0.0/16, 10.7.0.0/16 and 242 more"
    )


def test_no_line_has_a_secret() -> None:
    new = dataclasses.replace(with_alice(preshared_key=PresharedKey.generate()), private_key=OTHER)
    said = "\n".join(lines(OLD, new))
    for config in (OLD, new):
        for key in (config.private_key, config.peers[0].preshared_key):
            assert key is not None and key.to_base64()[:12] not in said


@in_virtual_time
async def test_the_diff_of_two_files_is_what_apply_returns() -> None:
    old = client_config(persistent_keepalive=25.0, name="old")
    new = client_config(("gateway.example", 1), name="new", allowed_ips=(ip_network("10.0.0.0/24"),))
    new = dataclasses.replace(new, routes=False, timers=Timers(rekey_timeout=4))
    async with open_pair(old) as pair:
        diff = await pair.client.apply(new)
    assert diff == compute_diff(old, new) != ConfigDiff()
