"""wg-quick files: what they mean, and what is said about the wrong ones (faults 37 and 38)."""

from __future__ import annotations

import base64
import errno
import os
import shutil
import subprocess
import sys
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connlib._configfile import ConfigFileError
from connlib._errors import ConfigError
from connlib._native import PublicKey, Tunn
from connlib._types import Limits, PeerConfig, Role, Timers
from connlib.config import InterfaceConfig
from connlib.wgquick import load_config, parse_config
from helpers_config import ALICE, BOB, FULL, MINIMAL, OWN, SHARED


def peer(extra: str, key: PublicKey = ALICE) -> str:
    return f"{MINIMAL}[Peer]\nPublicKey = {key.to_base64()}\n{extra}\n"


def test_every_key_of_a_file_arrives() -> None:
    assert parse_config(FULL) == InterfaceConfig(
        private_key=OWN,
        listen_port=51820,
        addresses=(ip_interface("10.7.0.1/24"), ip_interface("fd07::1/64"), ip_interface("10.8.0.1/32")),
        mtu=1380,
        name="office0",
        role=Role.RESPONDER,
        fwmark=0xCA6C,
        routes=False,
        timers=Timers(rekey_timeout=2.5),
        limits=Limits(queue_packets=16),
        masquerade=(ip_network("10.7.0.0/24"), ip_network("fd07::/64")),
        protect_addresses=False,
        offload=("tso4", "coalesce_tcp"),
        encryption="ring",
        threads=4,
        worker=False,
        dns=("10.7.0.53", "example.org", "fd07::53"),
        peers=(
            PeerConfig(
                public_key=ALICE,
                preshared_key=SHARED,
                allowed_ips=(
                    ip_network("10.7.0.2/32"),
                    ip_network("192.168.7.0/24"),
                    ip_network("fd07::2/128"),
                ),
                endpoint=("2001:db8::7", 51820),
                persistent_keepalive=25.0,
                role=Role.RESPONDER,
                name="alice",
            ),
            PeerConfig(public_key=BOB, endpoint=("vpn.example.org", 51821), role=Role.INITIATOR),
        ),
    )


def test_a_minimal_file_has_the_defaults() -> None:
    assert parse_config(MINIMAL) == InterfaceConfig(private_key=OWN)
    assert parse_config(MINIMAL).routes


def test_queues_arrive_with_a_worker_and_one_without() -> None:
    """The file with every key has no worker, and so cannot have more than one queue."""
    assert parse_config(MINIMAL + "# connlib: queues = 16\n").queues == 16
    single = parse_config(MINIMAL + "# connlib: worker = false\n# connlib: queues = 1\n")
    assert (single.worker, single.queues) == (False, 1)


def test_line_ends_and_a_byte_order_mark_of_windows_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    file.chmod(0o600)
    assert load_config(file) == parse_config(FULL)


BAD_LINES = [
    # text, line, part of the problem, part of the hint
    ("", 1, "no [Interface] section", "add one"),
    ("PrivateKey = x", 1, "in no section", "[Interface]"),
    ("[Interface]\n", 1, "no PrivateKey", "genkey"),
    ("[Interface]\nPrivateKey = abc\n", 2, "PrivateKey is not a key: it has 3 characters", "base64"),
    (f"[Interface]\nPrivateKey = {'*' * 44}\n", 2, "it is not base64", "44 characters"),
    (
        f"[Interface]\nPrivatKey = {OWN.to_base64()}\n",
        2,
        "PrivatKey is not a key of [Interface]",
        "mean PrivateKey?",
    ),
    (f"[Interface]\n{OWN.to_base64()}\n", 2, "this is not a key of [Interface]", "use one of"),
    ("[Interface]\nPrivateKey\n", 2, "has no =", "Key = value"),
    ("[Interfaces]\n", 1, "'[Interfaces]' is not a section", "[Interface] or [Peer]"),
    (MINIMAL + "[Interface]\n", 3, "already at line 1", "keep one"),
    (MINIMAL + "ListenPort = 1\nListenPort = 1\n", 4, "ListenPort is already set at line 3", "keep one"),
    (MINIMAL + "ListenPort = 65536\n", 3, "ListenPort: 65536 is out of range", "0 to 65535"),
    (MINIMAL + "ListenPort = -1\n", 3, "ListenPort: -1 is out of range", "0 to 65535"),
    (MINIMAL + "ListenPort = -0\n", 3, "ListenPort: -0 is out of range", "0 to 65535"),
    (MINIMAL + "ListenPort = --1\n", 3, "'--1' is not a whole number", "0 to 65535"),
    (MINIMAL + "# connlib: queue-packets = -1\n", 3, "queue-packets: -1 is out of range", "use 0 to 65536"),
    (
        MINIMAL + "# connlib: queue-packets = x\n",
        3,
        "queue-packets: 'x' is not a whole number",
        "use 0 to 65536",
    ),
    (MINIMAL + "ListenPort = ٣\n", 3, "is not a whole number", "0 to 65535"),
    (MINIMAL + f"ListenPort = {'9' * 5000}\n", 3, "is not a whole number", "0 to 65535"),
    (MINIMAL + "MTU = 100\n", 3, "MTU: 100 is out of range", "576 to"),
    (MINIMAL + "Address = 10.0.0.256/24\n", 3, "'10.0.0.256/24' is not an IP address", "10.0.0.1/24"),
    (MINIMAL + "Address = 10.0.0.1/33\n", 3, "is not an IP address", "10.0.0.1/24"),
    (MINIMAL + "Address = 10.0.0.1,,10.0.0.2\n", 3, "nothing between two commas", "comma"),
    (MINIMAL + "Address = fe80::1%eth0/64\n", 3, "is not an IP address", "fd00::1/64"),
    (MINIMAL + "Table = 1234\n", 3, "table '1234'", "off"),
    (MINIMAL + "FwMark = 0x100000000\n", 3, "FwMark: '0x100000000' is not a mark", "0xffffffff"),
    (MINIMAL + "FwMark = 4294967296\n", 3, "FwMark: '4294967296' is not a mark", "0xffffffff"),
    (MINIMAL + "FwMark = -1\n", 3, "FwMark: '-1' is not a mark", "0xffffffff"),
    (MINIMAL + "DNS = 10.7.0.256\n", 3, "DNS: '10.7.0.256' is neither the address of a name", "example.org"),
    (MINIMAL + "DNS = 10.7.0.1/24\n", 3, "DNS: '10.7.0.1/24' is neither", "example.org"),
    (MINIMAL + "DNS = fe80::1%eth0\n", 3, "DNS: 'fe80::1%eth0' is neither", "example.org"),
    (MINIMAL + "DNS = 10.7.0.1,,example.org\n", 3, "nothing between two commas", "comma"),
    (MINIMAL + "DNS = -x\n", 3, "DNS: '-x' is neither", "example.org"),
    (
        MINIMAL + "# connlib: encryption = aes\n",
        3,
        "encryption: 'aes' is no encryption",
        "use one of auto, ring, ipsec-mb",
    ),
    (MINIMAL + "# connlib: threads = 0\n", 3, "threads: 0 is out of range", "use 1 to 64"),
    (MINIMAL + "# connlib: threads = 65\n", 3, "threads: 65 is out of range", "use 1 to 64"),
    (MINIMAL + "# connlib: threads = two\n", 3, "threads: 'two' is not a whole number", "use 1 to 64"),
    (MINIMAL + "# connlib: threads = true\n", 3, "threads: 'true' is not a whole number", "use 1 to 64"),
    (MINIMAL + "# connlib: threads = 1.5\n", 3, "threads: '1.5' is not a whole number", "use 1 to 64"),
    (MINIMAL + "# connlib: queues = 0\n", 3, "queues: 0 is out of range", "use 1 to 16"),
    (MINIMAL + "# connlib: queues = 17\n", 3, "queues: 17 is out of range", "use 1 to 16"),
    (MINIMAL + "# connlib: queues = two\n", 3, "queues: 'two' is not a whole number", "use 1 to 16"),
    (MINIMAL + "# connlib: queues = true\n", 3, "queues: 'true' is not a whole number", "use 1 to 16"),
    (MINIMAL + "# connlib: queues = 1.5\n", 3, "queues: '1.5' is not a whole number", "use 1 to 16"),
    (
        MINIMAL + "# connlib: queues = 2\n# connlib: worker = false\n",
        3,
        "queues: 2 need worker = true",
        "have one queue, or worker = true",
    ),
    (
        MINIMAL + "# connlib: offload = tso4, tcp\n",
        3,
        "offload: 'tcp' is no offload",
        "use some of checksum, tso4",
    ),
    (MINIMAL + "# connlib: masquerade = all\n", 3, "masquerade: 'all' is not an IP address", "10.0.0.1/24"),
    (
        MINIMAL + "# connlib: protect-addresses = no\n",
        3,
        "protect-addresses: 'no' is neither true nor",
        "use",
    ),
    (MINIMAL + "SaveConfig = maybe\n", 3, "neither true nor false", "use one"),
    (MINIMAL + "PostUp = rm -rf /\n", 3, "PostUp: connlib runs no hooks", "remove the line"),
    (MINIMAL + "# connlib: interface = a/b\n", 3, "'a/b' cannot name a network device", "1 to 15"),
    (MINIMAL + "# connlib: role = server\n", 3, "'server' is not a role", "initiator"),
    (MINIMAL + "# connlib: rol = initiator\n", 3, "not a connlib setting of [Interface]", "mean role?"),
    (MINIMAL + "# connlib: rekey-timeout = 0\n", 3, "not a positive number of seconds", "0.5"),
    (
        MINIMAL + "# connlib: rekey-timeout = 0.000000001\n",
        3,
        "rekey-timeout: 1e-09 seconds is out",
        "0.1 to",
    ),
    (
        MINIMAL + "# connlib: keepalive-timeout = 1e-9\n",
        3,
        "keepalive-timeout: 1e-09 seconds is out",
        "0.1 to",
    ),
    (
        MINIMAL + "# connlib: rekey-attempt-time = 1e99\n",
        3,
        "rekey-attempt-time: 1e+99 seconds is out",
        "0.1 to",
    ),
    (
        MINIMAL + "# connlib: rekey-after-time = 200\n# connlib: rekey-timeout = 4\n",
        3,
        "rekey-after-time must be less than reject-after-time",
        "correct it",
    ),
    (
        MINIMAL + "# connlib: rekey-after-time = 5\n# connlib: reject-after-time = 12\n",
        4,
        "reject-after-time must be more than keepalive-timeout, rekey-timeout and 0.333 s together",
        "correct it",
    ),
    (
        MINIMAL + "# connlib: rekey-after-messages = 18446744073709551615\n",
        3,
        "rekey-after-messages: 18446744073709551615 is out of range",
        "use 2 to 18446744073709543423",
    ),
    (MINIMAL + "# connlib: queue-packets = 18446744073709551615\n", 3, "is out of range", "use 0 to 65536"),
    (MINIMAL + "# connlib: queue-packets = 65537\n", 3, "65537 is out of range", "use 0 to 65536"),
    (MINIMAL + "# connlib: interface = all\n", 3, "'all' cannot name a network device", "none of all"),
    (MINIMAL + "# connlib: interface = default\n", 3, "'default' cannot name", "none of all"),
    (
        MINIMAL + "Address = 10.0.0.1/24\nAddress = fd00::1/64, 10.0.0.1/24\n",
        4,
        "10.0.0.1/24 is there twice, first at line 3",
        "remove one",
    ),
    (MINIMAL + "Address = fd00::1/64 fd00:0::1/128\n", 3, "is there twice, first at line 3", "remove one"),
    (
        MINIMAL + "MTU = 1279\nAddress = 10.0.0.1/24\nAddress = fd00::1/64\n",
        3,
        "MTU: 1279 is too small for an IPv6 address",
        "use 1280 or more",
    ),
    (
        peer("AllowedIPs = fd00::/64").replace("[Peer]", "MTU = 1279\n[Peer]"),
        3,
        "MTU: 1279 is too small for a route to an IPv6 prefix of a peer",
        "use 1280 or more",
    ),
    (MINIMAL + "# connlib: role\n", 3, "not a connlib setting", "role"),
    ("# connlib: role = either\n", 1, "in no section", "[Interface]"),
    (MINIMAL + "[Peer]\n", 3, "has no PublicKey", "public key"),
    (MINIMAL + "PublicKey = x\n", 3, "PublicKey does not belong in [Interface]", "move it to [Peer]"),
    (peer("", OWN.public_key()), 4, "PublicKey is the interface's own", "PrivateKey of this file"),
    (peer(f"[Peer]\nPublicKey = {ALICE.to_base64()}"), 6, "line 4 has the same PublicKey", "merge"),
    (peer("PresharedKey = abc"), 5, "PresharedKey is not a key", "base64"),
    (peer("Endpoint = example.org"), 5, "'example.org' has no host or no port", "host:port"),
    (peer("Endpoint = fe80::1:51820"), 5, "IPv6 address without brackets", "[2001:db8::1]:51820"),
    (peer("Endpoint = [fe80::g]:51820"), 5, "'fe80::g' is not an IPv6 address", "[2001:db8::1]:51820"),
    (peer("Endpoint = [fe80::1%eth0]:51820"), 5, "'fe80::1%eth0' has a zone", "host name"),
    (peer("Endpoint = 300.1.1.1:51820"), 5, "'300.1.1.1' is not an IPv4 address", "192.0.2.1:51820"),
    (peer("Endpoint = a b:51820"), 5, "neither an address nor a host name", "host:port"),
    (peer("Endpoint = example.org:0"), 5, "port: 0 is out of range", "1 to 65535"),
    (peer("PersistentKeepalive = 65536"), 5, "65536 is out of range", "0 to 65535"),
    (peer("# connlib: name ="), 5, "the name is empty", "short name"),
    (
        peer(
            f"AllowedIPs = 10.0.0.0/8, 10.1.0.0/16\n[Peer]\nPublicKey = {BOB.to_base64()}\nAllowedIPs = 10.1.2.3/16"
        ),
        8,
        "10.1.0.0/16 already belongs to another peer, at line 5",
        "remove it",
    ),
    (
        peer("# connlib: role = either").replace("[Peer]", "# connlib: role = responder\n[Peer]"),
        6,
        "contradicts the interface's role = responder",
        "its own role",
    ),
    (MINIMAL + "MTU = 14\x0000\n", 3, "NUL byte", "UTF-8"),
]


@pytest.mark.parametrize(("text", "line", "problem", "hint"), BAD_LINES)
def test_a_wrong_line_is_named(text: str, line: int, problem: str, hint: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text, "wg0.conf")
    *others, error = caught.value.problems
    # Where a key is misspelled, it is missing, too.
    assert {each.problem for each in others} <= {"[Interface] has no PrivateKey"}
    assert (error.path, error.line) == ("wg0.conf", line)
    assert problem in error.problem
    assert error.hint is not None and hint in error.hint
    assert str(error) == f"wg0.conf:{line}:{error.column}: {error.problem}; {error.hint}"
    assert str(error).isprintable(), "one line"


# Of order 8, as listed at https://cr.yp.to/ecdh.html#validate.
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)


@pytest.mark.parametrize("point", [0, 1, *ORDER_8, 2**255 - 20, 2**255 - 19, 2**255 - 18])
@pytest.mark.parametrize("highest_bit", [0, 2**255])
def test_a_public_key_of_low_order_is_refused_as_the_engine_refuses_it(point: int, highest_bit: int) -> None:
    key = PublicKey.from_bytes((point | highest_bit).to_bytes(32, "little"))
    with pytest.raises(ValueError, match="low order"):
        Tunn(OWN, key, now=0.0, unix_time=0.0)
    with pytest.raises(ConfigError, match=r"^wg0.conf:4:13: PublicKey is a point of low order"):
        parse_config(peer("", key), "wg0.conf")


def test_all_problems_of_a_file_are_listed_in_the_order_of_the_lines() -> None:
    text = "[Interface]\nMTU = x\nPostUp = x\n[Peer]\nEndpoint = x\nAllowedIPs = x\n"
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text)
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3, 4, 5, 6]
    assert str(caught.value) == str(caught.value.problems[0])


def test_lines_that_contradict_each_other_are_named_beside_one_that_is_wrong() -> None:
    one, other = (f"[Peer]\nPublicKey = {key.to_base64()}\nAllowedIPs = 10.0.0.0/8\n" for key in (ALICE, BOB))
    text = f"{MINIMAL}ListenPort = 70000\nAddress = fd00::1/64\nMTU = 600\n{one}{other}[Peer]\n{one}"
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text)
    assert [(problem.line, problem.problem) for problem in caught.value.problems] == [
        (3, "ListenPort: 70000 is out of range"),
        (5, "MTU: 600 is too small for an IPv6 address"),
        (11, "AllowedIPs: 10.0.0.0/8 already belongs to another peer, at line 8"),
        (12, "this [Peer] has no PublicKey"),
        (14, "the peer of line 7 has the same PublicKey"),
        (15, "AllowedIPs: 10.0.0.0/8 already belongs to another peer, at line 8"),
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("[Interface]\nPrivateKey = x\n[Peer]\nPublicKey = x\n", [2, 4]),
        ("[Interfaces]\nPrivateKey = x\n", [1]),
        (f"PrivateKey = {OWN.to_base64()}\n[Interface]\n", [1, 2]),
        (f"{MINIMAL}# connlib: rekey-after-time = x\n# connlib: reject-after-time = 60\n", [3]),
        (f"{MINIMAL}[Interface]\nMTU = 1400\n", [3]),
    ],
)
def test_a_line_that_is_wrong_is_not_taken_for_one_that_is_missing(text: str, lines: list[int]) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text)
    assert [problem.line for problem in caught.value.problems] == lines


def test_a_peer_whose_endpoint_is_wrong_is_not_said_to_have_none(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_config(peer("Endpoint = x\n# connlib: role = initiator"))
    assert [problem.line for problem in caught.value.problems] == [5]
    assert caplog.messages == []


def test_of_a_file_with_hundreds_of_problems_each_is_named() -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_config(MINIMAL + "MTU = x\n" + "Address = x\n" * 500)
    assert len(caught.value.problems) == 501 and not caught.value.more


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("[ Interface ]", "[Interface]"),
        ("[\tpeer ]", "[Peer]"),
        ("Endpoint = 192.0.2.1 : 80", "Endpoint = 192.0.2.1:80"),
        ("Endpoint = [ 2001:db8::1 ] : 80", "Endpoint = [2001:db8::1]:80"),
        ("Endpoint = _vpn.example.org:80", None),
        ("AllowedIPs = 10.0.0.1 /32, fd00:: / 64", "AllowedIPs = 10.0.0.1/32, fd00::/64"),
    ],
)
def test_blanks_and_underscores_are_taken_where_wg_takes_them(
    tmp_path: Path, written: str, plain: str | None
) -> None:
    base = peer("" if plain is None or plain.startswith("[") else plain)
    text = base.replace(plain, written) if plain else base + written
    config = parse_config(text)
    if plain is not None:
        assert config == parse_config(base)
    else:
        assert config.peers[0].endpoint == ("_vpn.example.org", 80)
    if not shutil.which("wg"):
        pytest.skip("needs wg to compare with (Debian: wireguard-tools)")
    file = tmp_path / "wg0.conf"
    # A name is looked up by wg, and not by connlib.
    file.write_text(text if plain else base)
    done = subprocess.run(
        ["wg", "setconf", "nosuchdevice", str(file)], capture_output=True, text=True, timeout=10
    )
    assert "arsing" not in done.stderr and "nrecognized" not in done.stderr, done.stderr


def test_the_same_prefix_twice_for_one_peer_is_harmless() -> None:
    config = parse_config(peer("AllowedIPs = 10.0.0.1/8\nAllowedIPs = 10.0.0.0/8"))
    assert config.peers[0].allowed_ips == (ip_network("10.0.0.0/8"),)


def test_what_is_not_done_but_does_no_harm_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    parse_config(MINIMAL + "SaveConfig = true\n", "wg0.conf")
    parse_config(peer("# connlib: role = initiator"), "wg1.conf")
    parse_config(peer("# connlib role = responder\n# connlib runs role = x\n#Connlib ; Name=a"), "wg2.conf")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    assert caplog.messages[0].startswith("wg0.conf:3: SaveConfig is ignored")
    assert caplog.messages[1].startswith("wg1.conf:3: this peer can never be reached")
    assert caplog.messages[2] == (
        "wg2.conf:5: this is only a comment; if it is to be a setting, write # connlib: role = value"
    )
    assert caplog.messages[3].startswith("wg2.conf:7: this is only a comment")


# Files


def test_a_file_that_everybody_can_read_is_refused_unless_overridden(tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(MINIMAL)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644.*holds a private key; chmod 600"):
        load_config(file)
    assert load_config(file, allow_world_readable=True) == InterfaceConfig(private_key=OWN)
    file.chmod(0o640)
    assert load_config(file) == InterfaceConfig(private_key=OWN)


def test_a_file_that_is_missing_or_a_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.conf: cannot read it: no such file"):
        load_config(tmp_path / "none.conf")
    with pytest.raises(ConfigError, match=r"cannot read it: is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"not a path"):
        load_config("a\0b")


def test_a_file_that_may_not_be_read_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match=r"permission denied; run as its owner or as root$"):
        load_config(tmp_path / "wg0.conf")


def test_a_pipe_is_as_good_as_a_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, MINIMAL.encode())
    os.close(writer)
    try:
        assert load_config(f"/dev/fd/{reader}").private_key == OWN
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MINIMAL.encode() + b"#" * 100 * 1024 * 1024, r"wg0.conf: this file is larger than 16 MiB"),
        (MINIMAL.encode() + b"MTU = \0\n", r"wg0.conf:3:7: there is a NUL byte"),
        (bytes(15 * 1024 * 1024), r"wg0.conf:1:1: there is a NUL byte"),
        (MINIMAL.encode("utf-16"), r"wg0.conf:1:4: there is a NUL byte"),
        (MINIMAL.encode() + b"\n# caf\xe9\n", r"wg0.conf:4:6: this is not UTF-8"),
        (MINIMAL.encode() + b"?=" * 7 * 1024 * 1024, r"wg0.conf:3:1: this is not a key"),
        (MINIMAL.encode() + b"MTU = 5\n" * 1024 * 1024, r"wg0.conf:3:7: MTU: 5 is out of range"),
        (b"[Interface]\nPrivateKey = " + b"A" * 15 * 1024 * 1024, r"wg0.conf:2:14: PrivateKey is not a key"),
        (MINIMAL.encode() + b"Address = " + b"1/" * 7 * 1024 * 1024, r"wg0.conf:3:11: Address"),
        (peer("Endpoint = ").strip().encode() + b"a:" * 7 * 1024 * 1024, r"wg0.conf:5:11: Endpoint"),
    ],
    ids=["100MB", "nul", "nuls", "utf16", "latin1", "name", "lines", "key", "address", "endpoint"],
)
def test_a_corrupt_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "wg0.conf"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert len(str(caught.value)) < 300 + len(str(file))


@pytest.mark.parametrize("comment", ["{}connlib", "connlib{}!", "connlib;{}!", "connlib{}role{}!"])
def test_a_comment_of_very_many_blanks_is_read(comment: str) -> None:
    """In a process of its own, which can be ended: nothing else runs while an expression is matched."""
    text = f"{MINIMAL}# {comment.replace('{}', ' ' * 300_000)}\n"
    script = "import sys; from connlib import parse_config; parse_config(sys.stdin.read())"
    subprocess.run([sys.executable, "-c", script], input=text, text=True, check=True, timeout=30)


def test_a_mistake_at_the_end_of_60000_peers_is_found() -> None:
    keys = [base64.b64encode(number.to_bytes(32, "little")).decode() for number in range(2, 60_002)]
    text = MINIMAL + "".join(f"[Peer]\nPublicKey = {key}\n" for key in keys) + "Endpoint = x\n"
    with pytest.raises(ConfigError, match=r":120003:12: Endpoint: 'x' has no host"):
        parse_config(text)


def test_a_gateway_with_very_many_allowed_ips_is_read() -> None:
    """WireGuard's own test gives 130,560 at once (netns.sh)."""
    prefixes = ", ".join(f"10.{i}.{j}.0/24, fd00:{i:x}:{j:x}::/48" for i in range(255) for j in range(256))
    assert len(parse_config(peer(f"AllowedIPs = {prefixes}")).peers[0].allowed_ips) == 130_560


# Secrets


def fragments(secret: str, length: int = 12) -> list[str]:
    return [secret[start : start + length] for start in range(len(secret) - length)]


@given(data=st.data())
def test_no_message_shows_a_secret_however_the_file_is_damaged(data: st.DataObject) -> None:
    secret = base64.b64encode(data.draw(st.binary(min_size=32, max_size=32))).decode()
    text = MINIMAL.replace(OWN.to_base64(), secret) + FULL.partition("\n\n")[2].replace(
        SHARED.to_base64(), secret
    )
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 0, 1, 1, 2, 10]))
        text = (
            text[:place]
            + data.draw(st.sampled_from(["", "=", "\n", " ", "[", "#", "x", ":"]))
            + text[place + length :]
        )
    try:
        parse_config(text)
    except ConfigFileError as error:
        said = "\n".join(str(problem) for problem in error.problems)
        assert not [part for part in fragments(secret) if part in said]


@pytest.mark.parametrize(
    "name", ["Address", "Endpoint", "AllowedIPs", "MTU", "Table", "PublicKy", "Nonsense", "[", ""]
)
@pytest.mark.parametrize("section", ["[Interface]", "[Peer]", "", "[Nowhere]"])
@pytest.mark.parametrize("separator", [" = ", " ", "", ":"])
def test_a_secret_in_the_wrong_place_is_not_shown(name: str, section: str, separator: str) -> None:
    secret = OWN.to_base64()
    with pytest.raises(ConfigFileError) as caught:
        parse_config(f"{section}\n{name}{separator}{secret}\n# connlib: {name}{separator}{secret}\n")
    said = "\n".join(str(problem) for problem in caught.value.problems)
    assert not [part for part in fragments(secret) if part in said]


@given(st.text() | st.binary().map(lambda data: data.decode("latin1")))
def test_garbage_raises_nothing_but_config_errors(text: str) -> None:
    for start in ("", MINIMAL, peer("")):
        try:
            parse_config(start + text)
        except ConfigFileError as error:
            assert all(str(problem).isprintable() for problem in error.problems)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "[Interface]",
                    "[Peer]",
                    "Endpoint",
                    "AllowedIPs",
                    "Address",
                    "MTU",
                    "# connlib: role",
                    "Table",
                ]
            ),
            st.sampled_from(["=", " = ", "", " "]),
            st.text(alphabet="0123456789abcdef.:/[],=-# \tE", max_size=30),
        ),
        max_size=8,
    )
)
def test_garbage_of_the_right_shape_raises_nothing_but_config_errors(
    lines: list[tuple[str, str, str]],
) -> None:
    try:
        parse_config(MINIMAL + "\n".join("".join(line) for line in lines))
    except ConfigFileError:
        pass
