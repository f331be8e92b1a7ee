"""The configuration protocol as bytes (https://www.wireguard.com/xplatform/): what is understood, and what is said."""

from __future__ import annotations

import errno
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connlib import PresharedKey, PrivateKey, PublicKey
from connlib.uapi import protocol
from connlib.uapi.protocol import (
    UNCHANGED,
    GetRequest,
    PeerState,
    Refused,
    Request,
    RequestParser,
    SetRequest,
    answer_to_get,
    answer_to_set,
)
from connlib.uapi.settings import Settings, change

KEY = "ab" * 32
OTHER = "cd" * 32
ZEROS = "00" * 32


def parse(text: str | bytes, piece: int = 1 << 20) -> list[Request]:
    data = text.encode() if isinstance(text, str) else text
    parser = RequestParser()
    return [
        request
        for start in range(0, len(data), piece)
        for request in parser.feed(data[start : start + piece])
    ]


def parse_set(*lines: str) -> SetRequest:
    (request,) = parse("\n".join(["set=1", *lines, "", ""]))
    assert isinstance(request, SetRequest), request
    return request


def refused(*lines: str) -> Refused:
    (request,) = parse("\n".join([*lines, "", ""]))
    assert isinstance(request, Refused)
    return request


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_every_key_of_a_set_arrives_whatever_pieces_it_comes_in(piece: int) -> None:
    text = f"""set=1
private_key={KEY}
listen_port=51820
fwmark=4294967295
replace_peers=true
public_key={OTHER}
update_only=true
preshared_key={KEY.upper()}
endpoint=192.0.2.1:51820
persistent_keepalive_interval=25
protocol_version=1
replace_allowed_ips=true
allowed_ip=10.0.0.7/24
allowed_ip=-fd00::/64
public_key={KEY}
remove=true
endpoint=[2001:db8::1]:1

"""
    (request,) = parse(text, piece)
    assert isinstance(request, SetRequest)
    assert request.private_key == PrivateKey.from_bytes(bytes.fromhex(KEY))
    assert (request.listen_port, request.fwmark, request.replace_peers) == (51820, 2**32 - 1, True)
    one, other = request.peers
    assert one.public_key == PublicKey.from_bytes(bytes.fromhex(OTHER))
    assert one.preshared_key == PresharedKey.from_bytes(bytes.fromhex(KEY))
    assert (one.update_only, one.remove, one.replace_allowed_ips) == (True, False, True)
    assert (one.endpoint, one.persistent_keepalive) == (("192.0.2.1", 51820), 25)
    assert one.allowed_ips == [(ip_network("10.0.0.0/24"), True), (ip_network("fd00::/64"), False)]
    assert (other.remove, other.endpoint) == (True, ("2001:db8::1", 1))


def test_what_is_not_mentioned_is_unchanged_and_zeros_remove() -> None:
    request = parse_set(f"public_key={KEY}")
    assert request.private_key is UNCHANGED and request.peers[0].preshared_key is UNCHANGED
    assert (request.listen_port, request.fwmark, request.replace_peers) == (None, None, False)
    assert request.peers[0].persistent_keepalive is None and request.peers[0].endpoint is None
    request = parse_set(f"private_key={ZEROS}", "listen_port=0", "fwmark=0", f"public_key={KEY}")
    assert (request.private_key, request.listen_port, request.fwmark) == (None, 0, 0)
    request = parse_set(f"public_key={KEY}", f"preshared_key={ZEROS}", "persistent_keepalive_interval=0")
    assert (request.peers[0].preshared_key, request.peers[0].persistent_keepalive) == (None, 0)


def test_requests_follow_one_another_and_empty_lines_between_them_say_nothing() -> None:
    requests = parse("get=1\n\n\n\nset=1\nlisten_port=1\n\nget=1\n\nget=1\n")
    assert [type(request) for request in requests] == [GetRequest, SetRequest, GetRequest]


def test_prefixes_before_replace_allowed_ips_are_taken_from_whoever_had_them_and_replaced_too() -> None:
    before, after = ip_network("10.0.0.0/8"), ip_network("::/0")
    replaced = [f"allowed_ip={before}", "allowed_ip=-172.16.0.0/12", "replace_allowed_ips=true"]
    request = parse_set(f"public_key={KEY}", *replaced, replaced[-1], f"allowed_ip={after}")
    assert request.peers[0].replace_allowed_ips
    assert request.peers[0].allowed_ips == [(before, True), (before, False), (after, True)]


@pytest.mark.parametrize(
    ("line", "number", "problem"),
    [
        ("listen_port=65536", errno.EINVAL, "listen_port: not a number from 0 to 65535"),
        ("listen_port=-1", errno.EINVAL, "listen_port: not a number"),
        ("listen_port=0x10", errno.EINVAL, "listen_port: not a number"),
        ("listen_port=1_0", errno.EINVAL, "listen_port: not a number"),
        ("listen_port=", errno.EINVAL, "listen_port: not a number"),
        ("fwmark=4294967296", errno.EINVAL, "fwmark: not a number from 0 to 4294967295"),
        ("private_key=ab", errno.EINVAL, "private_key: not a key of 64 hexadecimal digits"),
        (f"private_key={KEY} ", errno.EINVAL, "private_key: not a key"),
        (f"private_key={'ab ' * 21}a", errno.EINVAL, "private_key: not a key"),
        ("replace_peers=false", errno.EINVAL, "replace_peers: can only be true"),
        ("rx_bytes=1", errno.EINVAL, "rx_bytes cannot be set"),
        ("remove=true", errno.EINVAL, "remove is not a setting of the interface"),
        ("colour=blue", errno.EINVAL, "no setting of the interface"),
        ("listen_port", errno.EPROTO, "not of the form key=value"),
        ("x" * 257, errno.EPROTO, "a line of more than 256 bytes"),
        ("x" * 100_000, errno.EPROTO, "a line of more than 256 bytes"),
    ],
)
def test_a_bad_line_of_the_interface_is_refused_with_its_place(line: str, number: int, problem: str) -> None:
    answer = refused("set=1", "fwmark=1", line, "listen_port=99999999")
    assert (answer.errno, answer.line, answer.final) == (number, 3, False)
    assert answer.problem.startswith(problem)
    assert str(answer) == f"line 3: {answer.problem}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("endpoint=192.0.2.1", "endpoint: not of the form"),
        ("endpoint=192.0.2.1:0", "endpoint: the port 0"),
        ("endpoint=192.0.2.1:65536", "endpoint: not a number"),
        ("endpoint=2001:db8::1:51820", "endpoint: not of the form"),
        ("endpoint=vpn.example.org:51820", "endpoint: not of the form"),
        ("endpoint=[fe80::1%eth0]:51820", "endpoint: an address with a zone"),
        ("endpoint=[192.0.2.1]:51820", "endpoint: not of the form"),
        ("endpoint=\xff:1", "endpoint: not of the form"),
        ("allowed_ip=10.0.0.0", "allowed_ip: not of the form"),
        ("allowed_ip=10.0.0.0/33", "allowed_ip: not of the form"),
        ("allowed_ip=10.0.0.0/255.0.0.0", "allowed_ip: not of the form"),
        ("allowed_ip=fe80::%1/64", "allowed_ip: not of the form"),
        ("allowed_ip=--10.0.0.0/8", "allowed_ip: not of the form"),
        ("persistent_keepalive_interval=off", "persistent_keepalive_interval: not a number"),
        (
            "persistent_keepalive_interval=65536",
            "persistent_keepalive_interval: not a number from 0 to 65535",
        ),
        ("protocol_version=2", "protocol_version: only version 1"),
        ("preshared_key=", "preshared_key: not a key"),
        ("public_key=00", "public_key: not a key"),
        ("update_only=1", "update_only: can only be true"),
        ("listen_port=1", "listen_port is not a setting of a peer"),
        ("last_handshake_time_sec=1", "last_handshake_time_sec cannot be set"),
        ("colour=blue", "no setting of a peer"),
    ],
)
def test_a_bad_line_of_a_peer_is_invalid(line: str, problem: str) -> None:
    answer = refused("set=1", f"public_key={KEY}", line)
    assert (answer.errno, answer.line) == (errno.EINVAL, 3)
    assert answer.problem.startswith(problem)


@pytest.mark.parametrize("operation", ["get=2", "set=", "put=1", "hello", "=", "get"])
def test_what_begins_otherwise_is_not_the_protocol(operation: str) -> None:
    answer = refused(operation, "listen_port=1")
    assert (answer.errno, answer.line) == (errno.EPROTO, 1)


def test_get_takes_no_settings() -> None:
    assert refused("get=1", "listen_port=1").errno == errno.EINVAL


def test_after_a_refused_request_the_next_one_is_understood() -> None:
    bad, good = parse("set=1\nnonsense\nlisten_port=1\n\nset=1\nlisten_port=2\n\n")
    assert isinstance(bad, Refused) and isinstance(good, SetRequest) and good.listen_port == 2


@pytest.mark.parametrize("line", ["listen_port=1\n", "x" * 64])
def test_a_request_without_an_end_is_cut_off_and_costs_no_memory(line: str) -> None:
    parser = RequestParser(largest=10_000)
    answers = list(parser.feed(b"set=1\n"))
    for _ in range(1000):
        answers += parser.feed(line.encode())
        assert len(parser._rest) <= 257
    (answer,) = answers
    assert isinstance(answer, Refused) and answer.errno == errno.E2BIG and answer.final


def test_no_message_repeats_what_may_be_a_key() -> None:
    secret = "5ec7e7" * 10
    for line in (
        f"private_key={secret}",
        f"{secret}=1",
        secret,
        f"colour={secret}",
        f"endpoint={secret}",
        f"allowed_ip={secret}",
        f"listen_port={secret}",
    ):
        for section in ([], [f"public_key={KEY}"]):
            assert secret[:12] not in str(refused("set=1", *section, line))
    assert secret[:12] not in str(refused(f"{secret}=1")) + str(refused(f"set={secret}"))


@given(st.binary(max_size=2000), st.integers(1, 2000))
def test_no_bytes_raise(data: bytes, piece: int) -> None:
    parse(data, piece)


LINES = st.lists(
    st.sampled_from(
        [
            *("get=1", "set=1", "", "listen_port=1", "fwmark=x", f"public_key={KEY}", f"public_key={OTHER}"),
            *("remove=true", "allowed_ip=10.0.0.0/8", "endpoint=1.2.3.4:5", "errno=0", "=", "x" * 300),
        ]
    ),
    max_size=30,
)


@given(LINES, st.integers(1, 50))
def test_pieces_make_no_difference(lines: list[str], piece: int) -> None:
    data = "".join(f"{line}\n" for line in lines)
    assert parse(data, piece) == parse(data)
    for request in parse(data):
        assert not isinstance(request, Refused) or request.problem


NETWORK = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: ip_network(f"{address}/{length}", strict=False)
    )
)
SECRET = st.binary(min_size=32, max_size=32).filter(any)
# As they are used (RFC 7748, section 5), and so are shown.
PRIVATE = SECRET.map(
    lambda key: PrivateKey.from_bytes(bytes([key[0] & 0xF8, *key[1:31], key[31] & 0x3F | 0x40]))
)


@st.composite
def peer_states(draw: st.DrawFn) -> list[PeerState]:
    # An address that reads as one with a zone is not one that anybody has.
    endpoint = st.tuples(st.ip_addresses().map(str), st.integers(1, 65535))
    prefixes = draw(st.lists(NETWORK, unique=True, max_size=12))
    keys = draw(st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=3))
    return [
        PeerState(
            public_key=PublicKey.from_bytes(key),
            preshared_key=draw(st.none() | SECRET.map(PresharedKey.from_bytes)),
            endpoint=draw(st.none() | endpoint),
            last_handshake=(draw(st.integers(0, 2**40)), draw(st.integers(0, 10**9 - 1))),
            tx_bytes=draw(st.integers(0, 2**64 - 1)),
            rx_bytes=draw(st.integers(0, 2**64 - 1)),
            persistent_keepalive=draw(st.integers(0, 65535)),
            allowed_ips=tuple(prefixes[number :: len(keys)]),
        )
        for number, key in enumerate(keys)
    ]


@given(
    st.none() | PRIVATE,
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    peer_states(),
)
def test_what_get_says_can_be_set_and_makes_the_same_settings(
    private_key: PrivateKey | None, port: int, mark: int, peers: list[PeerState]
) -> None:
    answer = b"".join(answer_to_get(private_key, port, mark, peers)).decode()
    assert answer.endswith("\nerrno=0\n\n")
    counters = ("errno=", "last_handshake", "tx_bytes", "rx_bytes")
    lines = [line for line in answer.splitlines() if line and not line.startswith(counters)]
    made = change(Settings(), parse_set(*lines)).settings
    own = None if private_key is None else private_key.public_key()
    assert (made.private_key, made.listen_port, made.fwmark) == (private_key, port, mark)
    assert [
        (p.public_key, p.preshared_key, p.endpoint, p.persistent_keepalive or 0, p.allowed_ips)
        for p in made.peers.values()
    ] == [
        (p.public_key, p.preshared_key, p.endpoint, p.persistent_keepalive, p.allowed_ips)
        for p in peers
        if p.public_key != own
    ]


def test_an_answer_has_the_keys_of_the_specification_in_its_order() -> None:
    peer = PeerState(
        public_key=PublicKey.from_bytes(bytes.fromhex(KEY)),
        preshared_key=PresharedKey.from_bytes(bytes.fromhex(OTHER)),
        endpoint=("2001:db8::1", 51820),
        last_handshake=(1_700_000_000, 5_000_000),
        tx_bytes=2**63,
        rx_bytes=7,
        persistent_keepalive=25,
        allowed_ips=[ip_network("10.0.0.0/24"), ip_network("fd00::/64")],
    )
    bare = PeerState(PublicKey.from_bytes(bytes.fromhex(OTHER)), None, None, (0, 0), 0, 0, 0, ())
    private_key = PrivateKey.from_bytes(bytes.fromhex(OTHER))
    assert (
        b"".join(answer_to_get(private_key, 51820, 0xCA6C, [peer, bare])).decode()
        == f"""private_key={OTHER}
listen_port=51820
fwmark=51820
public_key={KEY}
preshared_key={OTHER}
protocol_version=1
endpoint=[2001:db8::1]:51820
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5000000
tx_bytes=9223372036854775808
rx_bytes=7
persistent_keepalive_interval=25
allowed_ip=10.0.0.0/24
allowed_ip=fd00::/64
public_key={OTHER}
protocol_version=1
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
errno=0

"""
    )
    assert b"".join(answer_to_get(None, 0, 0, [])) == b"listen_port=0\nerrno=0\n\n"


def test_a_long_answer_comes_in_pieces() -> None:
    networks = [ip_network((0x0A00_0000 + number, 32)) for number in range(5000)]
    key = PublicKey.from_bytes(bytes.fromhex(KEY))
    pieces = list(answer_to_get(None, 0, 0, [PeerState(key, None, None, (0, 0), 0, 0, 0, networks)]))
    assert len(pieces) == -(-5009 // protocol.LINES_A_PIECE)
    assert b"".join(pieces).count(b"allowed_ip=") == 5000


def test_an_errno_of_an_answer_to_set_is_negative_as_wg_takes_it() -> None:
    assert answer_to_set(0) == b"errno=0\n\n"
    assert answer_to_set(errno.EADDRINUSE) == b"errno=-98\n\n"
