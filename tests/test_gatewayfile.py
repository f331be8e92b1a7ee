"""A gateway's TOML file: what it means, and what is said about the wrong ones, with line and column (fault 37)."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connlib import (
    ConfigError,
    ConfigFileError,
    GatewayInterface,
    GatewayPeer,
    GatewayRule,
    Limits,
    Timers,
    gatewayfile,
    load_gateway,
    parse_gateway,
)
from helpers_config import ALICE, BOB, OWN, SHARED
from helpers_gateway import FULL, GATEWAY, MINIMAL


def with_peer(lines: str, key: Any = ALICE) -> str:
    return f'{MINIMAL}[[peers]]\npublic_key = "{key.to_base64()}"\n{lines}'


def test_every_key_of_a_file_arrives_as_a_script_would_build_it() -> None:
    assert parse_gateway(FULL) == GATEWAY


def test_queues_arrive_which_need_a_worker() -> None:
    """The file with every key has no worker, and so cannot have more than one queue."""
    assert parse_gateway(MINIMAL + "queues = 16\n").to_interface_config().queues == 16
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(MINIMAL + "mtu = 1\nqueues = 2\nworker = false\n")
    assert [problem.line for problem in caught.value.problems] == [3, 4], "with another problem as well"


def test_inline_tables_and_dotted_keys_mean_the_same() -> None:
    inline = (
        f'interface = {{ private_key = "{OWN.to_base64()}", timers.rekey_timeout = 2 }}\n'
        f'peers = [{{ public_key = "{ALICE.to_base64()}", persistent_keepalive = 5 }}]\n'
    )
    assert parse_gateway(inline).interface.timers == Timers(rekey_timeout=2.0)
    assert parse_gateway(inline).peers == (GatewayPeer(public_key=ALICE, persistent_keepalive=5),)


def test_the_reader_knows_every_field_of_the_types() -> None:
    for kind, fields in (
        (GatewayInterface, gatewayfile._INTERFACE),
        (GatewayPeer, gatewayfile._PEER),
        (GatewayRule, gatewayfile._RULE),
    ):
        assert set(fields) == {field.name for field in msgspec.structs.fields(kind)}
    assert set(gatewayfile._TIMERS) == set(Timers.__dataclass_fields__)
    assert set(gatewayfile._LIMITS) == set(Limits.__dataclass_fields__)


KEY = OWN.to_base64()
BAD = [
    # text, line, column, part of the problem, part of the hint
    ("", 1, 1, "no [interface] table", "private_key_file"),
    ("[interface]\n", 1, 1, "there is no private key", "connlib genkey"),
    ("interface = 5\n", 1, 13, "interface must be a table, not a whole number", "[interface]"),
    (MINIMAL + "listen_port = 70000\n", 3, 15, "listen_port: 70000 is out of range", "0 to 65535"),
    (MINIMAL + "listen_port = -1\n", 3, 15, "listen_port: -1 is out of range", "0 to 65535"),
    (MINIMAL + f"listen_port = {'9' * 4000}\n", 3, 15, "listen_port: the number is out", "0 to 65535"),
    (MINIMAL + f"listen_port = {'9' * 5000}\n", 3, 15, "a number is too long", "toml.io"),
    (MINIMAL + f"listen_port = 0x{'9' * 5000}\n", 3, 15, "listen_port: the number is out", "0 to 65535"),
    (MINIMAL + "listen_port = true\n", 3, 15, "must be a whole number, not true or false", "without quotes"),
    (MINIMAL + "listen_port = 1.0\n", 3, 15, "must be a whole number, not a number", "without quotes"),
    (MINIMAL + "listen_prt = 1\n", 3, 1, "listen_prt is not a key of [interface]", "mean listen_port?"),
    (MINIMAL + "Listen-Port = 1\n", 3, 1, "Listen-Port is not a key", "mean listen_port?"),
    (MINIMAL + "nonsense = 1\n", 3, 1, "nonsense is not a key", "use one of name, private_key,"),
    (MINIMAL + "mtu = 575\n", 3, 7, "mtu: 575 is out of range", "576 to 65472"),
    (MINIMAL + 'name = "a/b"\n', 3, 8, "'a/b' cannot name a network device", "1 to 15"),
    (MINIMAL + 'endpoint = "vpn"\n', 3, 12, "endpoint: 'vpn' has no host or no port", "write host:port"),
    (MINIMAL + 'role = "server"\n', 3, 8, "'server' is not a role", "initiator"),
    (MINIMAL + "routes = 1\n", 3, 10, "routes must be true or false, not a whole number", "true"),
    (MINIMAL + "masquerade = 1\n", 3, 14, "masquerade must be an array, not a whole number", '["'),
    (
        MINIMAL + 'masquerade = ["10.0.0.0/8", "x"]\n',
        3,
        29,
        "masquerade: 'x' is not an IP address",
        "10.0.0.1",
    ),
    (MINIMAL + "masquerade = true\n", 3, 14, "no address has a network with others in it", '["10.0.0.0/24"]'),
    (
        MINIMAL + 'masquerade = true\naddresses = ["10.0.0.1/32"]\n',
        3,
        14,
        "no address has a network",
        "sources",
    ),
    (MINIMAL + "offload = 1\n", 3, 11, "offload must be an array, not a whole number", '["'),
    (
        MINIMAL + 'offload = ["tso4", "tcp"]\n',
        3,
        20,
        "offload: 'tcp' is no offload",
        "use some of checksum, tso4",
    ),
    (
        MINIMAL + 'encryption = "aes"\n',
        3,
        14,
        "encryption: 'aes' is no encryption",
        "use one of auto, ring, ipsec-mb",
    ),
    (MINIMAL + "threads = 0\n", 3, 11, "threads: 0 is out of range", "use 1 to 64"),
    (MINIMAL + "threads = 65\n", 3, 11, "threads: 65 is out of range", "use 1 to 64"),
    (MINIMAL + 'threads = "two"\n', 3, 11, "threads must be a whole number, not text", "1 to 64, without"),
    (MINIMAL + "threads = true\n", 3, 11, "threads must be a whole number, not true or false", "1 to 64"),
    (MINIMAL + "threads = 1.5\n", 3, 11, "threads must be a whole number, not a number", "1 to 64"),
    (MINIMAL + "queues = 0\n", 3, 10, "queues: 0 is out of range", "use 1 to 16"),
    (MINIMAL + "queues = 17\n", 3, 10, "queues: 17 is out of range", "use 1 to 16"),
    (MINIMAL + 'queues = "two"\n', 3, 10, "queues must be a whole number, not text", "1 to 16, without"),
    (MINIMAL + "queues = true\n", 3, 10, "queues must be a whole number, not true or false", "1 to 16"),
    (MINIMAL + "queues = 1.5\n", 3, 10, "queues must be a whole number, not a number", "1 to 16"),
    (MINIMAL + "worker = false\nqueues = 2\n", 4, 10, "queues: 2 need worker = true", "have one queue"),
    (MINIMAL + "protect_addresses = 1\n", 3, 21, "protect_addresses must be true or false", "true"),
    (MINIMAL + 'dns = "10.0.0.1"\n', 3, 7, "dns must be an array, not text", '["'),
    (
        MINIMAL + 'dns = ["10.0.0.1", "10.0.0"]\n',
        3,
        20,
        "dns: '10.0.0' is neither the address of a",
        "fd00::1",
    ),
    (MINIMAL + f'dns = ["{KEY}"]\n', 3, 8, "dns: the value of 44 characters (not shown", "fd00::1"),
    (MINIMAL + 'addresses = "10.0.0.1/24"\n', 3, 13, "addresses must be an array, not text", '["'),
    (MINIMAL + 'addresses = ["10.0.0.1/8",\n  "x"]\n', 4, 3, "'x' is not an IP address", "10.0.0.1/24"),
    (MINIMAL + 'addresses = ["10.0.0.1, 10.0.0.2"]\n', 3, 14, "not one address", "each in quotes"),
    (MINIMAL + 'addresses = [""]\n', 3, 14, "not one address", "each in quotes"),
    (MINIMAL + 'addresses = ["fd00::1/64"]\nmtu = 1000\n', 4, 7, "too small for an IPv6", "1280"),
    (MINIMAL + 'addresses = ["10.0.0.1/8", "10.0.0.1/8"]\n', 3, 28, "is there twice", "remove one"),
    (MINIMAL + 'private_key_file = "x"\n', 1, 1, "private_key and a private_key_file", "keep one"),
    ('[interface]\nprivate_key = "abc"\n', 2, 15, "private_key is not a key: it has 3 ch", "base64"),
    ('[interface]\nprivate_key_file = ""\n', 2, 20, "private_key_file: this is not a path", "one key"),
    (MINIMAL + "timers.rekey_timeout = 0\n", 3, 24, "not a positive number", "0.5"),
    (MINIMAL + "timers.rekey_timeout = nan\n", 3, 24, "not a number of seconds", "0.5"),
    (MINIMAL + "timers.rekey_timeout = 1e99\n", 3, 24, "not a number of seconds", "0.5"),
    (MINIMAL + 'timers.rekey_timeout = "5"\n', 3, 24, "must be a number of seconds, not text", "quotes"),
    (MINIMAL + "timers.rekey_after_time = 500\n", 3, 1, "rekey_after_time must be less than", "one of"),
    (
        MINIMAL + "timers.rekey_timeout = 170\n",
        3,
        1,
        "more than keepalive_timeout, rekey_timeout and 0.333 s",
        "",
    ),
    (MINIMAL + "limits.queue_packets = 65537\n", 3, 24, "queue_packets: 65537 is out of range", "65536"),
    (
        MINIMAL + f"limits.queue_packets = 0x{'f' * 20}\n",
        3,
        24,
        "the number is out of range",
        "use 0 to 65536",
    ),
    (MINIMAL + "limits.queue_packets = -1\n", 3, 24, "queue_packets: -1 is out of range", "use 0 to 65536"),
    (
        "peers = [1]\n" + MINIMAL,
        1,
        10,
        "an element of peers must be a table, not a whole number",
        "[[peers]]",
    ),
    (MINIMAL + "peers = 1979-05-27\n", 3, 1, "peers is not a key of [interface]", "use one of"),
    ("peers = 1979-05-27\n" + MINIMAL, 1, 9, "peers must be an array, not a date", "[[peers]]"),
    (MINIMAL + "[peers]\n", 3, 1, "peers must be an array, not a table", "[[peers]]"),
    (MINIMAL + "[[peers]]\n", 3, 1, "this peer has no public_key", "add it"),
    (MINIMAL + "[[peer]]\n", 3, 1, "peer is not a key of this file", "mean peers?"),
    (with_peer('name = ""\n'), 5, 8, "the name is empty", "short name"),
    (with_peer("name = 5\n"), 5, 8, "name must be text, not a whole number", "quotes"),
    (with_peer('name = "a\\nb"\n'), 5, 8, "not printable", "short name"),
    (with_peer('endpoint = "x"\n'), 5, 12, "endpoint: 'x' has no host or no port", "host:port"),
    (with_peer('endpoint = "x:99999"\n'), 5, 12, "endpoint: port: 99999 is out", "1 to 65535"),
    (with_peer('endpoint = "[fe80::1%eth0]:1"\n'), 5, 12, "has a zone", "host name"),
    (with_peer("persistent_keepalive = 65536\n"), 5, 24, "keepalive: 65536 is out of range", "65535"),
    (with_peer('preshared_key = "x"\n'), 5, 17, "preshared_key is not a key: it has 1 ch", "base64"),
    (with_peer("allowed_ips = [5]\n"), 5, 16, "allowed_ips must be text, not a whole number", "quotes"),
    (with_peer('role = "either"\n').replace("[[", 'role = "responder"\n[[', 1), 6, 8, "contradicts", "own"),
    (with_peer("", OWN.public_key()), 4, 14, "public_key is the gateway's own", "private key"),
    (MINIMAL + f'[[peers]]\npublic_key = "{"A" * 43}="\n', 4, 14, "point of low order", "correct it"),
    (with_peer(f'[[peers]]\npublic_key = "{ALICE.to_base64()}"\n'), 6, 14, "has the same one", "merge"),
    (
        with_peer(f'name = "x"\n[[peers]]\nname = "x"\npublic_key = "{BOB.to_base64()}"\n'),
        7,
        8,
        "name: there is another 'x'",
        "rename",
    ),
    (
        with_peer(
            'name = "x"\nallowed_ips = ["10.0.0.0/8"]\n[[peers]]\n'
            f'public_key = "{BOB.to_base64()}"\nallowed_ips = ["10.2.0.0/16", "10.1.0.0/8"]\n'
        ),
        9,
        31,
        "10.0.0.0/8 already belongs to 'x'",
        "remove it",
    ),
    # What is no TOML at all: the parser's words, its place.
    (MINIMAL + "listen_port 5\n", 3, 13, "not TOML: expected '='", "toml.io"),
    (MINIMAL + "name = \n", 3, 8, "not TOML: invalid value", "toml.io"),
    (MINIMAL + "[interface]\n", 3, 11, "not TOML: cannot declare it twice", "toml.io"),
    (MINIMAL + 'name = "x', 3, 10, "not TOML", "toml.io"),
    (MINIMAL + "a." * 40 + "b = 1\n", 3, 1, "a key has too many parts", "toml.io"),
    (MINIMAL + "é = 1\n", 3, 1, "not TOML: invalid", "toml.io"),
]


@pytest.mark.parametrize(("text", "line", "column", "problem", "hint"), BAD)
def test_what_is_wrong_is_named_with_line_and_column(
    text: str, line: int, column: int, problem: str, hint: str
) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(text, "wg0.toml")
    error = caught.value
    assert problem in error.problem
    assert error.hint is not None and hint in error.hint
    assert (error.line, error.column) == (line, column)
    assert str(error) == f"wg0.toml:{line}:{column}: {error.problem}; {error.hint}"
    assert str(error).isprintable(), "one line"
    assert len(error.problems) == 1


def test_every_error_is_said_in_the_order_of_the_lines() -> None:
    text = FULL.replace("51820\n", "0x1FFFF\n", 1).replace("true", "1").replace("mtu", "mut")
    text = text.replace("2.5", '"2.5"').replace('"10.7.0.2/32"', '"10.7.0.2/33"').replace("= 25\n", "= -5\n")
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(text, "wg0.toml")
    assert [str(problem).partition("; ")[0] for problem in caught.value.problems] == [
        "wg0.toml:5:15: listen_port: 131071 is out of range",
        "wg0.toml:7:1: mut is not a key of [interface]",
        "wg0.toml:12:14: masquerade must be an array, not a whole number",
        "wg0.toml:21:17: rekey_timeout must be a number of seconds, not text",
        "wg0.toml:30:16: allowed_ips: '10.7.0.2/33' is not an IP address with a prefix length",
        "wg0.toml:32:24: persistent_keepalive: -5 is out of range",
    ]


def test_what_is_right_is_still_compared_where_something_is_wrong() -> None:
    text = (
        MINIMAL
        + 'role = "server"\nmtu = 1000\naddresses = ["fd00::1/64", "x"]\n'
        + "".join(
            f'[[peers]]\nname = "x"\npublic_key = "{key.to_base64()}"\npersistent_keepalive = -5\n'
            'allowed_ips = ["10.0.0.0/8", 5]\n'
            for key in (BOB, OWN.public_key())
        )
    )
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(text)
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [
        *((3, 8), (4, 7), (5, 28)),
        *((9, 24), (10, 30)),
        # The name, the gateway's own key, and the prefix.
        *((12, 8), (13, 14), (14, 24), (15, 16), (15, 30)),
    ]


def test_a_peer_that_can_never_be_reached_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    parse_gateway(with_peer('role = "initiator"\n'), "wg0.toml")
    assert caplog.record_tuples == [
        (
            "connlib.config",
            logging.WARNING,
            "wg0.toml:3:1: this peer can never be reached: connlib is its initiator, and it has no endpoint",
        )
    ]


# Files


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


KEYS_ELSEWHERE = f"""\
[interface]
private_key_file = "keys/own"

[[peers]]
public_key = "{ALICE.to_base64()}"
preshared_key_file = "keys/shared"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a gateway's file and its key files."""
    (tmp_path / "keys").mkdir()
    write(tmp_path / "keys" / "own", OWN.to_base64() + "\n")
    write(tmp_path / "keys" / "shared", SHARED.to_base64() + "\n")
    write(tmp_path / "wg0.toml", KEYS_ELSEWHERE, 0o644)
    return tmp_path


def test_key_files_are_beside_the_file_wherever_it_is_read_from(folder: Path) -> None:
    gateway = load_gateway(folder / "wg0.toml")
    assert gateway.interface.private_key_file == str(folder / "keys" / "own")
    config = gateway.to_interface_config()
    assert (config.private_key, config.peers[0].preshared_key) == (OWN, SHARED)


def test_what_is_wrong_with_key_files_is_said_where_they_are_named(folder: Path) -> None:
    (folder / "keys" / "own").chmod(0o640)
    (folder / "keys" / "shared").chmod(0o644)
    with pytest.raises(ConfigFileError) as caught:
        load_gateway(folder / "wg0.toml")
    (error,) = caught.value.problems
    assert str(error).startswith(
        f"{folder}/wg0.toml:6:22: preshared_key_file: {folder}/keys/shared: every user"
    )
    (folder / "keys" / "own").unlink()
    with pytest.raises(ConfigFileError) as caught:
        load_gateway(folder / "wg0.toml", allow_world_readable=True)
    (error,) = caught.value.problems
    assert (error.line, error.column) == (2, 20)
    assert "cannot read it: no such file" in error.problem


def test_the_gateway_s_own_key_is_found_among_the_peers_when_it_is_in_a_file(folder: Path) -> None:
    text = KEYS_ELSEWHERE.replace(ALICE.to_base64(), OWN.public_key().to_base64())
    with pytest.raises(ConfigFileError, match=r":5:14: public_key is the gateway's own"):
        load_gateway(write(folder / "wg0.toml", text))


@pytest.mark.parametrize(("text", "place"), [(FULL, "4:15"), (MINIMAL + "mtu = 5\n", "2:15")])
def test_a_file_with_a_key_that_everybody_can_read_is_refused_at_the_key(
    tmp_path: Path, text: str, place: str
) -> None:
    """Fault 37, also where something else is wrong."""
    file = write(tmp_path / "wg0.toml", text, 0o644)
    with pytest.raises(ConfigFileError, match=f":{place}: every user of this machine can read or change it"):
        load_gateway(file)
    if text is FULL:
        assert load_gateway(file, allow_world_readable=True) == GATEWAY


def test_a_file_that_everybody_can_change_is_refused_even_without_a_key(folder: Path) -> None:
    (folder / "wg0.toml").chmod(0o602)
    with pytest.raises(ConfigError, match=r"\(mode 0602\), and it says who may connect; chmod 600"):
        load_gateway(folder / "wg0.toml")
    load_gateway(folder / "wg0.toml", allow_world_readable=True)


DAMAGED = [
    (MINIMAL.encode() + b"#" * 100 * 1024 * 1024, r"wg0.toml: this file is larger than 2 MiB"),
    (MINIMAL.encode() + b"name = \0\n", r"wg0.toml:3:8: there is a NUL byte"),
    (bytes(2 * 1024 * 1024), r"wg0.toml:1:1: there is a NUL byte"),
    (MINIMAL.encode("utf-16"), r"wg0.toml:1:4: there is a NUL byte"),
    (MINIMAL.encode() + b"# caf\xe9\n", r"wg0.toml:3:6: this is not UTF-8"),
    (MINIMAL.encode() + b"a." * 1024 * 1000 + b"b = 1\n", r"wg0.toml:3:1: a key has too many parts"),
    (
        MINIMAL.encode() + (b"a." * 30 + b"b = 1\n") * 30_000,
        r"wg0.toml: this file has more than 100,000 lines",
    ),
    (
        MINIMAL.encode() + (b"[" + b"a." * 30 + b"b]\n") * 30_000,
        r"wg0.toml: this file has more than 100,000 l",
    ),
    (MINIMAL.encode() + (b"a . b . 'c' = 1\n") * 40_000, r"wg0.toml: this file has more than 100,000 lines"),
    (MINIMAL.encode() + b"a = " + b"[" * 1024 * 1024, r"wg0.toml: arrays and tables are nested too deeply"),
    (MINIMAL.encode() + b"a = " + b"{a=" * 512 * 1024, r"wg0.toml: arrays and tables are nested too deeply"),
    (MINIMAL.encode() + b"x = '''" + b"y " * 1024 * 1000, r"wg0.toml:\d+:\d+: this is not TOML"),
    (MINIMAL.encode() + b'x = "' + b"y" * 2048 * 1000, r"wg0.toml:3:\d+: this is not TOML"),
    (MINIMAL.encode() + b"[a]\n" * 99_000, r"wg0.toml:4:3: this is not TOML: cannot declare it twice"),
    (MINIMAL.encode() + b"\n" * 99_000 + b"x", r"wg0.toml:99003:2: this is not TOML"),
    (MINIMAL.encode() + b"\n" * 100_000, r"wg0.toml: this file has more than 100,000 lines, commas and dots"),
    (
        MINIMAL.encode() + b"x = [" + b"1," * 1024 * 1000 + b"]",
        r"wg0.toml: this file has more than 100,000 lines",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"),
    DAMAGED,
    ids=[
        *("100MB", "nul", "nuls", "utf16", "latin1", "dots", "keys", "parents", "quoted", "arrays", "tables"),
        *("text", "string", "headers", "blanks", "lines", "elements"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    """Fault 37."""
    file = write(tmp_path / "wg0.toml", content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_gateway(file)
    assert len(str(caught.value)) < 300 + len(str(file))


def problems_of(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(text)
    return [(problem.line, problem.problem) for problem in caught.value.problems]


def test_without_a_right_key_the_rest_is_compared_all_the_same() -> None:
    text = (
        '[interface]\nmtu = 700\naddresses = ["fd00::1/64", "fd00::1/64"]\nprivate_key_file = 5\n'
        '[[peers]]\nname = "a"\npublic_key = "x"\nallowed_ips = ["10.0.0.0/8"]\n'
        '[[peers]]\nname = "a"\nallowed_ips = ["10.0.0.0/8"]\n'
        '[[peers]]\nallowed_ips = ["10.0.0.0/8"]\n'
    )
    assert problems_of(text) == [
        (2, "mtu: 700 is too small for an IPv6 address"),
        (3, "addresses: fd00::1/64 is there twice"),
        (4, "private_key_file must be text, not a whole number"),
        (7, "public_key is not a key: it has 1 characters"),
        (9, "this peer has no public_key"),
        (10, "name: there is another 'a'"),
        (11, "allowed_ips: 10.0.0.0/8 already belongs to 'a'"),
        # By what would a peer with neither name nor key be called?
        (12, "this peer has no public_key"),
    ]


def test_two_private_keys_are_one_problem_and_hide_no_other() -> None:
    text = MINIMAL + 'private_key_file = "no.key"\naddresses = ["10.0.0.1/8", "10.0.0.1/8"]\n'
    assert problems_of(text) == [
        (1, "there are a private_key and a private_key_file"),
        (4, "addresses: 10.0.0.1/8 is there twice"),
    ]


def test_after_a_thousand_problems_the_rest_is_not_read() -> None:
    text = MINIMAL + "".join(f"x{number} = 1\n" for number in range(5_000))
    with pytest.raises(ConfigFileError) as caught:
        parse_gateway(text)
    assert len(caught.value.problems) == 1000


def test_a_mistake_at_the_end_of_five_thousand_peers_is_found() -> None:
    keys = [base64.b64encode(number.to_bytes(32, "little")).decode() for number in range(2, 5_002)]
    text = MINIMAL + "".join(f'[[peers]]\npublic_key = "{key}"\n' for key in keys) + "endpoint = 'x'\n"
    with pytest.raises(ConfigError, match=r":10003:12: endpoint: 'x' has no host"):
        parse_gateway(text)


def test_a_pipe_is_as_good_as_a_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, FULL.encode())
    os.close(writer)
    try:
        assert load_gateway(f"/dev/fd/{reader}") == GATEWAY
    finally:
        os.close(reader)


# Secrets


def fragments(secret: str, length: int = 12) -> list[str]:
    return [secret[start : start + length] for start in range(len(secret) - length)]


@given(data=st.data())
def test_no_message_shows_a_secret_however_the_file_is_damaged(data: st.DataObject) -> None:
    secret = base64.b64encode(data.draw(st.binary(min_size=32, max_size=32))).decode()
    text = FULL.replace(OWN.to_base64(), secret).replace(SHARED.to_base64(), secret)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 0, 1, 1, 2, 10]))
        damage = data.draw(st.sampled_from(["", "=", "\n", " ", "[", "#", "x", '"', "'", ".", "\\"]))
        text = text[:place] + damage + text[place + length :]
    try:
        parse_gateway(text)
    except ConfigFileError as error:
        said = "\n".join(str(problem) for problem in error.problems)
        assert not [part for part in fragments(secret) if part in said]


@pytest.mark.parametrize("table", ["[interface]", "[[peers]]", "", "[nowhere]"])
@pytest.mark.parametrize(
    "line",
    [
        '{} = "x"',
        '"{}" = "x"',
        '"{}" = "x"\n"{}" = "y"',
        '["{}"]\n["{}"]',
        'a = {{ "{}" = 1, "{}" = 2 }}',
        'name = "{}"',
        'endpoint = "{}"',
        'endpoint = "{}:5"',
        'addresses = ["{}"]',
        'allowed_ips = ["{}"]',
        'role = "{}"',
        'private_key_file = "{}"',
        'default = "{}"',
        'outbound = "{}"',
        'rules = [{{ ports = ["{}"], to = ["{}"], protocol = "{}" }}]',
        'rules = [{{ allow = true, icmp_types = ["{}"], name = "{}" }}]',
        "{}",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(table: str, line: str) -> None:
    for secret in (OWN.to_base64(), OWN.to_base64().rstrip("="), OWN.to_base64()[:40] + "AA"):
        text = f"{table}\n{line.replace('{}', secret).replace('{{', '{').replace('}}', '}')}\n"
        with pytest.raises(ConfigFileError) as caught:
            parse_gateway(text)
        said = "\n".join(str(problem) for problem in caught.value.problems)
        assert not [part for part in fragments(secret) if part in said]


@given(st.text() | st.binary().map(lambda data: data.decode("latin1")))
def test_garbage_raises_nothing_but_config_errors(text: str) -> None:
    for start in ("", MINIMAL, with_peer("")):
        try:
            parse_gateway(start + text)
        except ConfigFileError as error:
            assert all(str(problem).isprintable() for problem in error.problems)
            assert all(problem.line and problem.column for problem in error.problems)


VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1", "1e400", "nan", "true", '"x"', '"10.0.0.1/8"', "1979-05-27", f'"{KEY}"', '""']
    ),
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]")
        | inner.map(lambda value: f"{{ allow = {value} }}")
    ),
    max_leaves=3,
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted({*gatewayfile._INTERFACE, *gatewayfile._PEER, *gatewayfile._RULE, "x"})),
            VALUES,
        )
        .map(" = ".join)
        .map(lambda line: line + "\n")
        | st.sampled_from(["[[peers]]\n", "[[peers.rules]]\n", "[interface]\n", "[interface.timers]\n"]),
        max_size=8,
    )
)
def test_values_in_the_wrong_place_raise_nothing_but_config_errors(lines: list[str]) -> None:
    try:
        parse_gateway("".join(lines))
    except ConfigFileError as error:
        assert all(str(problem).isprintable() and problem.line for problem in error.problems)
