"""A gateway's file with a peer more or less: the rest of it stays as it was, byte for byte."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connlib import ConfigError, GatewayInterface, GatewayPeer, PrivateKey, parse_config, parse_gateway
from connlib._gatewayedit import client_file, free_addresses, key_file_of, with_peer, without_peer
from helpers_config import ALICE, BOB, OWN, SHARED
from helpers_gateway import FULL, MINIMAL

NEW = PrivateKey.from_bytes(bytes(range(120, 152))).public_key()
CAROL = GatewayPeer(
    name="carol",
    public_key=NEW,
    preshared_key_file="carol.psk",
    allowed_ips=(ip_network("10.7.0.9/32"), ip_network("fd07::9/128")),
)
CAROL_TABLE = f"""
[[peers]]
name = "carol"
public_key = "{NEW.to_base64()}"
preshared_key_file = "carol.psk"
allowed_ips = ["10.7.0.9/32", "fd07::9/128"]
"""


def without(text: str, number: int) -> str:
    return without_peer(text.encode(), "wg0.toml", number).decode()


# A peer more


@pytest.mark.parametrize("text", [FULL, MINIMAL, MINIMAL + "# the end\n", MINIMAL + "\n\n"])
def test_a_peer_is_added_behind_what_is_there(text: str) -> None:
    assert with_peer(text.encode(), "wg0.toml", CAROL).decode() == text + CAROL_TABLE


def test_a_last_line_without_an_end_gets_one() -> None:
    assert with_peer(MINIMAL.rstrip().encode(), "wg0.toml", CAROL).decode() == MINIMAL + CAROL_TABLE


def test_the_lines_of_a_peer_end_as_the_others_do() -> None:
    text = "\ufeff" + MINIMAL.replace("\n", "\r\n")
    made = with_peer(text.encode(), "wg0.toml", CAROL).decode()
    assert made == text + CAROL_TABLE.replace("\n", "\r\n")
    assert without(made, 0) == text


def test_a_name_is_written_so_that_it_is_read_as_it_is() -> None:
    name = 'Ünï "quoted" \\back\\ 爱丽丝 # [x]'
    peer = GatewayPeer(name=name, public_key=NEW)
    made = with_peer(MINIMAL.encode(), "wg0.toml", peer).decode()
    assert parse_gateway(made).peers == (peer,)
    assert "preshared_key" not in made


@pytest.mark.parametrize(
    "peers", ["peers = []", f'peers = [{{ public_key = "{ALICE.to_base64()}" }}]'], ids=["none", "one"]
)
def test_a_file_with_its_peers_in_one_array_is_left_to_its_author(peers: str) -> None:
    text = f'{peers}\n[interface]\nprivate_key = "{OWN.to_base64()}"\n'
    with pytest.raises(ConfigError) as raised:
        with_peer(text.encode(), "wg0.toml", CAROL)
    assert str(raised.value) == (
        "wg0.toml: as this file is written, a peer cannot be added to it; "
        "write every peer below a [[peers]] of its own, or change it by hand"
    )
    if "public_key" in peers:
        with pytest.raises(
            ConfigError, match=r"as this file is written, this peer cannot be removed from it"
        ):
            without(text, 0)


# A peer less

KEYS = [PrivateKey.from_bytes(bytes([number] * 32)).public_key().to_base64() for number in range(1, 4)]
PEERS = [f'[[peers]]\nname = "p{number}"\npublic_key = "{key}"\n' for number, key in enumerate(KEYS)]


@pytest.mark.parametrize(
    ("before", "number", "after"),
    [
        # The first, one in the middle, the last, the only one.
        (f"{MINIMAL}\n{PEERS[0]}\n{PEERS[1]}", 0, f"{MINIMAL}\n{PEERS[1]}"),
        (f"{MINIMAL}\n{PEERS[0]}\n{PEERS[1]}\n{PEERS[2]}", 1, f"{MINIMAL}\n{PEERS[0]}\n{PEERS[2]}"),
        (f"{MINIMAL}\n{PEERS[0]}\n{PEERS[1]}", 1, f"{MINIMAL}\n{PEERS[0]}"),
        (f"{MINIMAL}\n{PEERS[0]}", 0, MINIMAL),
        (f"{MINIMAL}{PEERS[0]}{PEERS[1]}", 0, f"{MINIMAL}{PEERS[1]}"),
        # With what is below it, wherever that stands.
        (
            f"{MINIMAL}\n{PEERS[0]}\n[[peers.rules]]\nallow = true\n\n"
            f'  [[ peers . "rules" ]]\nallow = false\n\n{PEERS[1]}',
            0,
            f"{MINIMAL}\n{PEERS[1]}",
        ),
        (
            f"{PEERS[0]}\n{MINIMAL}\n[[peers.rules]]\nallow = true\n\n{PEERS[1]}",
            0,
            f"{MINIMAL}\n{PEERS[1]}",
        ),
        # Its comments go, and those of others stay.
        (
            f"{MINIMAL}\n# all of us\n\n# a phone\n# and more\n{PEERS[0]}# no endpoint\n\n# a laptop\n{PEERS[1]}",
            0,
            f"{MINIMAL}\n# all of us\n\n# a laptop\n{PEERS[1]}",
        ),
        (f"{MINIMAL}# whose?\n{PEERS[0]}# whose?\n{PEERS[1]}", 0, f"{MINIMAL}# whose?\n# whose?\n{PEERS[1]}"),
        (f"{MINIMAL}\n{PEERS[0]}# its own\n", 0, MINIMAL),
        (f"{MINIMAL}\n{PEERS[0]}\n# the end\n", 0, f"{MINIMAL}\n# the end\n"),
        # A text that looks like a header, and one that looks like a comment.
        (
            f'{MINIMAL}\n{PEERS[0]}\n[[peers.rules]]\nallow = true\nname = """\\\n[[peers]]\\\n# x"""\n\n{PEERS[1]}',
            0,
            f"{MINIMAL}\n{PEERS[1]}",
        ),
    ],
)
def test_a_peer_is_removed_with_what_is_about_it(before: str, number: int, after: str) -> None:
    assert without(before, number) == after


def test_a_text_that_passes_for_a_comment_is_no_harm() -> None:
    text = f'{MINIMAL}\n{PEERS[0]}\n[[peers.rules]]\nallow = true\nname = """\\\n# x"""\n{PEERS[1]}'
    assert without(text, 0) == f'{MINIMAL}\n# x"""\n{PEERS[1]}'


FILLING = st.lists(st.sampled_from(["\n", "# about something\n", "  \n", "\t# indented\n"]), max_size=4).map(
    "".join
)


@given(st.lists(FILLING, min_size=5, max_size=5), st.integers(0, 2))
def test_whatever_comments_there_are_the_other_peers_stay_byte_for_byte(
    filling: list[str], number: int
) -> None:
    text = "".join(part + between for part, between in zip(["", MINIMAL, *PEERS], filling, strict=True))
    after = without(text, number)
    for other, peer in enumerate(PEERS):
        assert (peer in after) == (other != number)
    assert MINIMAL in after
    assert without_peer(with_peer(text.encode(), "wg0.toml", CAROL), "wg0.toml", 3) == text.encode()
    # Only lines of comments, blanks and the peer have gone.
    left = iter(after.splitlines())
    assert all(line in left for line in after.splitlines())
    kept = after.splitlines()
    gone = text.splitlines()
    for line in kept:
        gone.remove(line)
    assert set(gone) - set(PEERS[number].splitlines()) <= {"", "  ", "# about something", "\t# indented"}


# Addresses


@pytest.mark.parametrize(
    ("own", "taken", "found"),
    [
        (["10.7.0.1/24"], [], ["10.7.0.2/32"]),
        (["10.7.0.1/24", "fd07::1/64"], ["10.7.0.2/32", "fd07::2/128"], ["10.7.0.3/32", "fd07::3/128"]),
        # A gap is filled, whatever the order; the gateway's own may be in the middle.
        (["10.7.0.2/24"], ["10.7.0.4/32", "10.7.0.1/32"], ["10.7.0.3/32"]),
        (["10.7.0.254/24"], [], ["10.7.0.1/32"]),
        # Networks behind peers, within the gateway's own.
        (["10.7.0.1/16"], ["10.7.0.0/24", "10.7.1.0/25"], ["10.7.1.128/32"]),
        # What is wider than the network, or elsewhere, takes none of its addresses.
        (["10.7.0.1/24"], ["0.0.0.0/0", "10.7.0.0/16", "10.8.0.0/24", "::/0"], ["10.7.0.2/32"]),
        # Two networks of one kind, one within the other, one that is there twice, and one without room.
        (["10.7.0.1/24", "10.8.0.1/24"], [], ["10.7.0.2/32", "10.8.0.2/32"]),
        (["10.7.0.1/16", "10.7.0.2/24"], [], ["10.7.0.3/32", "10.7.0.4/32"]),
        (["10.7.0.1/24", "10.7.0.2/24", "10.9.0.1/32"], [], ["10.7.0.3/32"]),
        # Small networks: RFC 3021 has no broadcast.
        (["10.7.0.1/30"], [], ["10.7.0.2/32"]),
        (["10.7.0.0/31"], [], ["10.7.0.1/32"]),
        (["fd07::1/127"], [], ["fd07::/128"]),
        (["fd07::1/126"], ["fd07::2/128"], ["fd07::3/128"]),
        (["::1:1/112"], [], ["::1:2/128"]),
    ],
)
def test_the_lowest_free_address_of_each_network_is_taken(
    own: list[str], taken: list[str], found: list[str]
) -> None:
    peers = [GatewayPeer(public_key=ALICE, allowed_ips=tuple(ip_network(prefix) for prefix in taken))]
    interface = GatewayInterface(private_key=OWN, addresses=tuple(ip_interface(address) for address in own))
    assert [str(address) for address in free_addresses(interface, peers)] == found


@pytest.mark.parametrize(
    ("own", "taken", "problem"),
    [
        (["10.7.0.1/30"], ["10.7.0.2/32"], "no address of 10.7.0.0/30 is free"),
        (["10.7.0.1/24"], ["10.7.0.0/24"], "no address of 10.7.0.0/24 is free"),
        (["10.7.0.1/24", "fd07::1/127"], ["fd07::/128"], "no address of fd07::/127 is free"),
        (["10.7.0.1/32", "fd07::1/128"], [], "no address of the gateway's has a network with room for peers"),
        ([], [], "no address of the gateway's has a network with room for peers"),
    ],
)
def test_a_full_network_is_said_to_be(own: list[str], taken: list[str], problem: str) -> None:
    peers = [GatewayPeer(public_key=ALICE, allowed_ips=tuple(ip_network(prefix) for prefix in taken))]
    interface = GatewayInterface(private_key=OWN, addresses=tuple(ip_interface(address) for address in own))
    with pytest.raises(ConfigError) as raised:
        free_addresses(interface, peers)
    assert raised.value.problem == problem and "--address" in str(raised.value.hint)


def test_a_network_of_many_peers_is_searched_at_once() -> None:
    start = int(ip_network("10.0.0.0/8").network_address)
    allowed_ips = tuple(ip_network(start + number) for number in range(2, 10_000))
    interface = GatewayInterface(
        private_key=OWN, addresses=(ip_interface("10.0.0.1/8"), ip_interface("fd00::1/8"))
    )
    found = free_addresses(interface, [GatewayPeer(public_key=ALICE, allowed_ips=allowed_ips)])
    assert [str(address) for address in found] == ["10.0.39.16/32", "fd00::2/128"]


# Names of files, and a peer's own file


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alice", "alice.psk"),
        ("Alice's phone", "Alice_s_phone.psk"),
        ("../../etc/passwd", "_.._etc_passwd.psk"),
        ("..", "peer.psk"),
        (".hidden", "hidden.psk"),
        ("爱丽丝", "爱丽丝.psk"),
    ],
)
def test_a_key_file_is_called_after_its_peer_and_stays_beside_the_gateway_s(name: str, file: str) -> None:
    assert key_file_of(name) == file


def test_a_peer_s_own_file_says_what_it_needs() -> None:
    private_key = PrivateKey.generate()
    text = client_file(
        private_key,
        (ip_interface("10.7.0.9/32"), ip_interface("fd07::9/128")),
        gateway=BOB,
        endpoint=("2001:db8::1", 51820),
        allowed_ips=(ip_network("0.0.0.0/0"), ip_network("::/0")),
        preshared_key=SHARED,
        keepalive=25,
        mtu=1380,
        dns=("10.7.0.1", "fd07::1"),
    )
    assert text == (
        f"[Interface]\nPrivateKey = {private_key.to_base64()}\nAddress = 10.7.0.9/32\nAddress = fd07::9/128\n"
        "DNS = 10.7.0.1\nDNS = fd07::1\nMTU = 1380\n\n"
        f"[Peer]\nPublicKey = {BOB.to_base64()}\nPresharedKey = {SHARED.to_base64()}\n"
        "AllowedIPs = 0.0.0.0/0\nAllowedIPs = ::/0\nEndpoint = [2001:db8::1]:51820\nPersistentKeepalive = 25\n"
    )
    assert parse_config(text).private_key == private_key


def test_without_its_private_key_the_peer_has_to_put_it_in() -> None:
    text = client_file(
        None, (), gateway=BOB, endpoint=("vpn.example.org", 1), allowed_ips=(ip_network("10.7.0.0/24"),)
    )
    assert text == (
        "[Interface]\n# PrivateKey = (only the peer has it: put it here)\n\n"
        f"[Peer]\nPublicKey = {BOB.to_base64()}\nAllowedIPs = 10.7.0.0/24\nEndpoint = vpn.example.org:1\n"
    )
