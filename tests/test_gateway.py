"""The objects of a gateway's specification, as scripts build them, and their JSON Schema."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

import helpers_config
from connlib import (
    ConfigError,
    Gateway,
    GatewayInterface,
    GatewayPeer,
    GatewayRule,
    Limits,
    PresharedKey,
    PrivateKey,
    PublicKey,
    Timers,
    parse_config,
)
from connlib.gatewayschema import schema
from helpers_config import ALICE, BOB, OWN, SHARED
from helpers_gateway import FULL, GATEWAY, MINIMAL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_a_gateway_is_the_interface_that_the_same_wg_quick_file_describes() -> None:
    assert GATEWAY.to_interface_config() == parse_config(helpers_config.FULL)


def test_what_is_left_out_has_the_defaults_of_a_wg_quick_file() -> None:
    gateway = Gateway(interface=GatewayInterface(private_key=OWN))
    assert gateway.to_interface_config() == parse_config(helpers_config.MINIMAL)


def test_it_is_frozen_and_shows_no_secret() -> None:
    with pytest.raises(AttributeError):
        GATEWAY.interface.mtu = 1400  # type: ignore[misc]
    for shown in (repr(GATEWAY), str(GATEWAY.peers[0])):
        assert OWN.to_base64()[:12] not in shown and SHARED.to_base64()[:12] not in shown


def interface(**fields: Any) -> GatewayInterface:
    return GatewayInterface(**{"private_key": OWN, **fields})


def peer(**fields: Any) -> GatewayPeer:
    return GatewayPeer(**{"public_key": ALICE, **fields})


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: GatewayInterface(), "there is no private key"),
        (lambda: interface(private_key_file="key"), "private_key and a private_key_file"),
        (lambda: interface(name="a/b"), "'a/b' cannot name a network device"),
        (lambda: interface(listen_port=65536), "listen_port: 65536 is out of range"),
        (lambda: interface(listen_port=-1), "listen_port: -1 is out of range"),
        (lambda: interface(mtu=575), "MTU 575 is out of range"),
        (lambda: interface(threads=0), "threads: 0 is out of range"),
        (lambda: interface(threads=65), "threads: 65 is out of range"),
        (lambda: interface(queues=0), "queues: 0 is out of range"),
        (lambda: interface(queues=17), "queues: 17 is out of range"),
        (lambda: peer(name=""), "the name is empty"),
        (lambda: peer(name="a\nb"), "not printable"),
        (lambda: peer(endpoint="example.org"), "no host or no port"),
        (lambda: peer(endpoint="10.0.0.256:1"), "not an IPv4 address"),
        (lambda: peer(persistent_keepalive=65536), "persistent_keepalive: 65536 is out of range"),
        (lambda: peer(preshared_key=SHARED, preshared_key_file="psk"), "preshared_key and a preshared_key"),
    ],
)
def test_a_part_that_is_wrong_cannot_be_made(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert problem in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize(
    ("peers", "changes", "problem"),
    [
        ((peer(), peer()), {}, "has the same one"),
        ((peer(name="x"), peer(name="x", public_key=BOB)), {}, "another 'x'"),
        ((peer(public_key=OWN.public_key()),), {}, "the gateway's own"),
        (
            (
                peer(allowed_ips=(ip_network("10.0.0.0/8"),), name="x"),
                peer(public_key=BOB, allowed_ips=(ip_network("10.0.0.0/8"),)),
            ),
            {},
            "10.0.0.0/8 already belongs to 'x'",
        ),
        ((), {"addresses": (ip_interface("10.0.0.1/8"),) * 2}, "10.0.0.1/8 is there twice"),
        ((), {"addresses": (ip_interface("fd00::1/64"),), "mtu": 1279}, "1279 is too small for an IPv6"),
        ((), {"queues": 2, "worker": False}, "queues: 2 need worker = true"),
    ],
)
def test_parts_that_contradict_each_other_make_no_gateway(
    peers: tuple[GatewayPeer, ...], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Gateway(interface=interface(**changes), peers=peers)
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("kind", "fields", "problem"),
    [
        (
            GatewayInterface,
            {"private_key": OWN.to_base64()},
            "private_key must be PrivateKey or None, not str",
        ),
        (GatewayInterface, {"private_key_file": Path("own")}, "private_key_file must be str or None, not "),
        (GatewayInterface, {"listen_port": "51820"}, "listen_port must be int, not str"),
        (GatewayInterface, {"listen_port": True}, "listen_port must be int, not bool"),
        (GatewayInterface, {"threads": True}, "threads must be int, not bool"),
        (GatewayInterface, {"queues": 1.5}, "queues must be int, not float"),
        (GatewayInterface, {"mtu": "1400"}, "mtu must be int or None, not str"),
        (GatewayInterface, {"role": "responder"}, "role must be Role, not str"),
        (GatewayInterface, {"routes": "false"}, "routes must be bool, not str"),
        (GatewayInterface, {"protect_addresses": 0}, "protect_addresses must be bool, not int"),
        (GatewayInterface, {"masquerade": "10.0.0.0/24"}, "masquerade must be bool or tuple of "),
        (GatewayInterface, {"masquerade": ("10.0.0.0/24",)}, " of Prefix, not tuple with str"),
        (
            GatewayInterface,
            {"addresses": (ip_network("10.0.0.0/24"),)},
            "tuple of Address, not tuple with IPv4N",
        ),
        (GatewayInterface, {"dns": "10.0.0.1"}, "dns must be tuple of str, not str"),
        (GatewayInterface, {"timers": {}}, "timers must be Timers, not dict"),
        (GatewayPeer, {"public_key": ALICE.to_base64()}, "public_key must be PublicKey, not str"),
        (
            GatewayPeer,
            {"preshared_key": SHARED.to_base64()},
            "preshared_key must be PresharedKey or None, not str",
        ),
        (GatewayPeer, {"name": 5}, "name must be str or None, not int"),
        (GatewayPeer, {"allowed_ips": "10.0.0.0/24"}, "allowed_ips must be tuple of Prefix, not str"),
        (
            GatewayPeer,
            {"allowed_ips": [ip_network("10.0.0.0/24")]},
            "allowed_ips must be tuple of Prefix, not list",
        ),
        (GatewayPeer, {"persistent_keepalive": 25.0}, "persistent_keepalive must be int or None, not float"),
        (GatewayPeer, {"role": "initiator"}, "role must be Role or None, not str"),
        (
            GatewayPeer,
            {"rules": ({"allow": True},)},
            "rules must be tuple of GatewayRule or None, not tuple with dict",
        ),
        (Gateway, {"interface": None}, "interface must be GatewayInterface, not NoneType"),
        (Gateway, {"peers": [GatewayPeer(public_key=ALICE)]}, "peers must be tuple of GatewayPeer, not list"),
    ],
)
def test_what_is_of_another_type_than_it_must_be_is_refused_and_not_shown(
    kind: type[Any], fields: dict[str, Any], problem: str
) -> None:
    required: dict[Any, dict[str, Any]] = {
        GatewayInterface: {"private_key": OWN},
        GatewayPeer: {"public_key": ALICE},
        Gateway: {"interface": GatewayInterface(private_key=OWN)},
    }
    with pytest.raises(TypeError) as caught:
        kind(**{**required[kind], **fields})
    assert problem in str(caught.value)
    for secret in (OWN.to_base64(), SHARED.to_base64(), "10.0.0.0"):
        assert secret not in str(caught.value)


def test_a_peer_with_a_key_of_low_order_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="low order"):
        peer(public_key=PublicKey.from_bytes(bytes(32)))


def test_a_prefix_within_another_peer_s_prefix_and_one_that_is_there_twice_are_fine() -> None:
    inner, outer = ip_network("10.1.0.0/16"), ip_network("10.0.0.0/8")
    gateway = Gateway(
        interface=interface(),
        peers=(peer(allowed_ips=(inner, inner)), peer(public_key=BOB, allowed_ips=(outer,))),
    )
    assert gateway.to_interface_config().peers[0].allowed_ips == (inner,)


# Key files


def key_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_keys_in_files_of_their_own_are_read(tmp_path: Path) -> None:
    own = key_file(tmp_path / "own", f" {OWN.to_base64()}\n\n")
    shared = key_file(tmp_path / "shared", SHARED.to_base64())
    gateway = Gateway(
        interface=GatewayInterface(private_key_file=own), peers=(peer(preshared_key_file=shared),)
    )
    config = gateway.to_interface_config()
    assert (config.private_key, config.peers[0].preshared_key) == (OWN, SHARED)
    assert isinstance(config.private_key, PrivateKey)
    assert isinstance(config.peers[0].preshared_key, PresharedKey)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o604])
def test_a_key_file_that_everybody_can_read_or_change_is_refused_unless_overridden(
    tmp_path: Path, mode: int
) -> None:
    """Fault 37."""
    gateway = Gateway(
        interface=GatewayInterface(private_key_file=key_file(tmp_path / "own", OWN.to_base64(), mode))
    )
    with pytest.raises(ConfigError, match=rf"/own: every user .* \(mode {mode:04o}\), and it holds a key"):
        gateway.to_interface_config()
    assert gateway.to_interface_config(allow_world_readable=True).private_key == OWN


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it has 0 characters"),
        (OWN.to_base64()[:-1], "it has 43 characters"),
        (f"{OWN.to_base64()}\n{OWN.to_base64()}", "it has 89 characters"),
        ("*" * 44, "it is not base64"),
        ("x" * 5000, "larger than 4096 bytes"),
        (OWN.to_base64() + "\0", "NUL byte"),
    ],
)
def test_a_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, text: str, problem: str) -> None:
    gateway = Gateway(interface=GatewayInterface(private_key_file=key_file(tmp_path / "own", text)))
    with pytest.raises(ConfigError) as caught:
        gateway.to_interface_config()
    assert problem in caught.value.problem
    assert caught.value.path == str(tmp_path / "own")
    assert OWN.to_base64()[:12] not in str(caught.value)


def test_a_gateway_with_the_key_of_its_file_as_a_peer_is_refused(tmp_path: Path) -> None:
    own = key_file(tmp_path / "own", OWN.to_base64())
    gateway = Gateway(
        interface=GatewayInterface(private_key_file=own), peers=(peer(public_key=OWN.public_key()),)
    )
    with pytest.raises(ConfigError, match="own public key"):
        gateway.to_interface_config()


# Schema


VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_schema_is_one_and_takes_what_the_reader_takes() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    for text in (FULL, MINIMAL):
        VALIDATOR.validate(tomllib.loads(text))


def with_peer(line: str) -> str:
    return f'{MINIMAL}[[peers]]\npublic_key = "{ALICE.to_base64()}"\n{line}'


BAD = [
    "",
    "[interface]\n",
    "interface = 5\n",
    MINIMAL + 'private_key_file = "x"\n',
    MINIMAL + 'private_key_file = ""\n',
    '[interface]\nprivate_key = "abc"\n',
    MINIMAL + "listen_port = 65536\n",
    MINIMAL + 'listen_port = "51820"\n',
    MINIMAL + "listen_prt = 51820\n",
    MINIMAL + "mtu = 575\n",
    MINIMAL + "mtu = 65473\n",
    MINIMAL + 'name = "a/b"\n',
    MINIMAL + 'name = "all"\n',
    MINIMAL + 'name = "sixteen-letters-"\n',
    MINIMAL + 'addresses = "10.0.0.1/24"\n',
    MINIMAL + 'addresses = ["ten"]\n',
    MINIMAL + "routes = 1\n",
    MINIMAL + "masquerade = 1\n",
    MINIMAL + 'masquerade = "10.0.0.0/24"\n',
    MINIMAL + "protect_addresses = 1\n",
    MINIMAL + 'dns = "10.0.0.1"\n',
    MINIMAL + 'dns = ["-x"]\n',
    MINIMAL + 'dns = ["fe80::1%eth0"]\n',
    MINIMAL + 'role = "server"\n',
    MINIMAL + "threads = 0\n",
    MINIMAL + "threads = 65\n",
    MINIMAL + "queues = 17\n",
    MINIMAL + "queues = true\n",
    MINIMAL + "timers.rekey_timeout = 0.01\n",
    MINIMAL + "timers.rekey_time = 1\n",
    MINIMAL + "limits.queue_packets = 65537\n",
    MINIMAL + "limits.queue_packets = 1.5\n",
    MINIMAL + "[peers]\n",
    MINIMAL + "[[peers]]\n",
    MINIMAL + "[[peer]]\n",
    with_peer('name = ""\n'),
    with_peer(f'name = "{"x" * 65}"\n'),
    with_peer('endpoint = "example.org"\n'),
    with_peer('endpoint = "2001:db8::1:51820"\n'),
    with_peer("persistent_keepalive = 65536\n"),
    with_peer('persistent_keepalive = "off"\n'),
    with_peer('preshared_key_file = "x"\npreshared_key = "y"\n'),
    with_peer("allowed_ips = [5]\n"),
]


@pytest.mark.parametrize("text", BAD)
def test_the_schema_refuses_what_is_wrong_by_itself(text: str) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(text))


def test_every_field_of_the_schema_has_a_description_and_every_table_is_closed() -> None:
    for name, definition in schema()["$defs"].items():
        assert definition["description"], name
        assert "\n" not in definition["description"]
        if "properties" in definition:
            assert definition["additionalProperties"] is False, name
            for field, property_ in definition["properties"].items():
                assert property_.get("description"), f"{name}.{field}"


def test_the_schema_knows_every_field_and_has_no_key_in_it() -> None:
    definitions = schema()["$defs"]
    for kind in (Gateway, GatewayInterface, GatewayPeer, GatewayRule):
        fields = {field.name for field in msgspec.structs.fields(kind)}
        assert set(definitions[kind.__name__]["properties"]) == fields
    for constants in (Timers, Limits):
        assert set(definitions[constants.__name__]["properties"]) == set(constants.__dataclass_fields__)
    assert not re.search(r"[A-Za-z0-9+/]{43}=", str(schema()))
