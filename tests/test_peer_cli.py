"""`connlib init` and `connlib peer add`, `remove` and `list`: what they print, and what they do to files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from connlib import load_gateway, parse_config
from helpers_config import ALICE, BOB, OWN, SHARED
from test_cli import COMMAND
from test_gateway_cli import Command, connlib, write

__all__ = ["connlib"]  # the fixture

FILE = f"""\
# the office
[interface]
private_key_file = "office.key"
listen_port = 51820
addresses = ["10.7.0.1/24", "fd07::1/64"]
mtu = 1380
role = "responder"
endpoint = "vpn.example.org:443"

# the branch
[[peers]]
name = "branch"
public_key = "{BOB.to_base64()}"
allowed_ips = ["10.7.0.2/32", "192.168.20.0/24"]
"""
PSK = "preshared_key_file"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway's files, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "office.key", OWN.to_base64())
    write(tmp_path / "office.toml", FILE)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


RELOAD = "If `connlib up office.toml` runs: connlib apply office.toml\n"

# peer add


def test_a_peer_is_added_and_its_own_file_printed(connlib: Command, folder: Path) -> None:
    code, out, err = connlib("peer", "add", "alice")
    config = parse_config(out)
    (gateway,) = config.peers
    public_key, preshared_key = config.private_key.public_key(), gateway.preshared_key
    assert preshared_key is not None
    assert out == (
        f"[Interface]\nPrivateKey = {config.private_key.to_base64()}\nAddress = 10.7.0.3/32\n"
        f"Address = fd07::2/128\nMTU = 1380\n\n[Peer]\nPublicKey = {OWN.public_key().to_base64()}\n"
        f"PresharedKey = {preshared_key.to_base64()}\nAllowedIPs = 10.7.0.0/24\nAllowedIPs = fd07::/64\n"
        "Endpoint = vpn.example.org:443\nPersistentKeepalive = 25\n"
    )
    assert contents(folder) == {
        "office.key": OWN.to_base64().encode(),
        "office.toml": (
            f'{FILE}\n[[peers]]\nname = "alice"\npublic_key = "{public_key.to_base64()}"\n'
            'preshared_key_file = "alice.psk"\nallowed_ips = ["10.7.0.3/32", "fd07::2/128"]\n'
        ).encode(),
        "alice.psk": f"{preshared_key.to_base64()}\n".encode(),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert (code, err) == (
        0,
        "alice is in office.toml, with 10.7.0.3, fd07::2.\n"
        "The private key is in what is printed above, and nowhere else: the gateway does not keep it.\n"
        + RELOAD,
    )
    assert load_gateway("office.toml").to_interface_config().peers[1].preshared_key == preshared_key


@pytest.mark.parametrize("key_inside", [False, True])
def test_who_may_read_the_gateway_s_private_key_may_read_a_peer_s_preshared_key(
    connlib: Command, folder: Path, key_inside: bool
) -> None:
    """The service's user, say: it reads them at its next start."""
    if key_inside:
        text = FILE.replace('private_key_file = "office.key"', f'private_key = "{OWN.to_base64()}"')
        write(folder / "office.toml", text, 0o640)
    else:
        (folder / "office.toml").chmod(0o644)
        (folder / "office.key").chmod(0o640)
    assert connlib("peer", "add", "alice")[0] == 0
    assert stat.S_IMODE((folder / "alice.psk").stat().st_mode) == 0o640


def test_everything_about_a_peer_can_be_said(connlib: Command, folder: Path) -> None:
    code, out, err = connlib(
        *("peer", "add", "carol's laptop", "-f", folder / "office.toml", "-o", "carol.conf", "--no-psk"),
        *("--address", "10.7.0.9/24,fd07::9", "--endpoint", "2001:db8::1", "--keepalive", "0"),
        *("--allowed-ips", "0.0.0.0/0, ::/0", "--allowed-ips", "10.0.0.0/8"),
        *("--dns", "10.7.0.1,fd07::1", "--dns", "10.7.0.2"),
    )
    assert (code, out) == (0, "")
    assert err.startswith(
        f"carol's laptop is in {folder}/office.toml, with 10.7.0.9, fd07::9.\nThe private key is in carol.c"
    )
    text = (folder / "carol.conf").read_text()
    config = parse_config(text)
    assert "\nDNS = 10.7.0.1\nDNS = fd07::1\nDNS = 10.7.0.2\n" in text
    assert [str(address) for address in config.addresses] == ["10.7.0.9/24", "fd07::9/128"]
    (gateway,) = config.peers
    assert [str(prefix) for prefix in gateway.allowed_ips] == ["0.0.0.0/0", "::/0", "10.0.0.0/8"]
    assert (gateway.endpoint, gateway.persistent_keepalive, gateway.preshared_key) == (
        ("2001:db8::1", 51820),
        None,
        None,
    )
    assert stat.S_IMODE((folder / "carol.conf").stat().st_mode) == 0o600
    peer = load_gateway("office.toml").peers[1]
    assert [str(prefix) for prefix in peer.allowed_ips] == ["10.7.0.9/32", "fd07::9/128"]
    assert peer.public_key == config.private_key.public_key()


def test_with_a_public_key_no_private_one_is_made(connlib: Command, folder: Path) -> None:
    code, out, err = connlib("peer", "add", "alice", "--public-key", ALICE.to_base64())
    assert code == 0 and "private key is" not in err
    assert out.startswith("[Interface]\n# PrivateKey = (only the peer has it: put it here)\nAddress = ")
    assert load_gateway("office.toml").peers[1].public_key == ALICE


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("vpn.example.net", ("vpn.example.net", 51820)),
        ("vpn.example.net:1", ("vpn.example.net", 1)),
        ("192.0.2.1", ("192.0.2.1", 51820)),
        ("[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("[2001:db8::1]", ("2001:db8::1", 51820)),
    ],
)
def test_an_endpoint_without_a_port_has_that_of_the_gateway(
    connlib: Command, folder: Path, endpoint: str, expected: tuple[str, int]
) -> None:
    code, out, _ = connlib("peer", "add", "alice", "--endpoint", endpoint)
    assert code == 0 and parse_config(out).peers[0].endpoint == expected


REFUSED = [
    # what is changed in the file, arguments, what is said
    (
        (),
        ("branch",),
        "office.toml: there is a peer 'branch' already; choose another name, or remove it first",
    ),
    (
        (),
        ("a\nb",),
        "office.toml: the name is empty, longer than 64 characters, or not printable; use a short name",
    ),
    (
        (),
        ("x" * 65,),
        "office.toml: the name is empty, longer than 64 characters, or not printable; use a short name",
    ),
    (
        (),
        ("",),
        "office.toml: the name is empty, longer than 64 characters, or not printable; use a short name",
    ),
    ((), (ALICE.to_base64(),), "office.toml: the name looks like a key; use a short name"),
    (
        (("/24", "/30"), (', "fd07::1/64"', "")),
        ("alice",),
        "office.toml: no address of 10.7.0.0/30 is free; remove a peer, widen the network, or give --address",
    ),
    (
        (('endpoint = "vpn.example.org:443"\n', ""),),
        ("alice",),
        "office.toml: where peers reach the gateway is not known; "
        'add endpoint = "vpn.example.org:51820" to [interface], or give --endpoint',
    ),
    (
        (("listen_port = 51820\n", ""),),
        ("alice", "--endpoint", "vpn.example.net"),
        "office.toml: endpoint: it has no port, and the gateway no fixed one; "
        "add listen_port to [interface], or give --endpoint HOST:PORT",
    ),
    (
        (),
        ("alice", "--endpoint", "a b"),
        "office.toml: endpoint: 'a b' is neither an address nor a host name; "
        "write host:port, 192.0.2.1:51820 or [2001:db8::1]:51820",
    ),
    (
        (),
        ("alice", "--endpoint", "vpn.example.net:99999"),
        "office.toml: endpoint: port: 99999 is out of range; use 1 to 65535",
    ),
    (
        (),
        ("alice", "--address", "10.7.0.2"),
        "office.toml: --address: 10.7.0.2 belongs to 'branch'; leave it out to get a free one",
    ),
    (
        (),
        ("alice", "--address", "10.7.0.1"),
        "office.toml: --address: 10.7.0.1 belongs to the gateway itself; leave it out to get a free one",
    ),
    (
        (),
        ("alice", "--address", "10.7.0.9,10.7.0.9/24"),
        "office.toml: --address: 10.7.0.9 belongs to this peer already; leave it out to get a free one",
    ),
    (
        (),
        ("alice", "--address", "10.7.0"),
        "office.toml: --address: '10.7.0' is not an IP address with a prefix length; write 10.0.0.1/24 or fd00::1/64",
    ),
    (
        (),
        ("alice", "--allowed-ips", "10.7.0.0/33"),
        "office.toml: --allowed-ips: '10.7.0.0/33' is not an IP address with a prefix length; "
        "write 10.0.0.1/24 or fd00::1/64",
    ),
    (
        (("responder", "initiator"),),
        ("alice",),
        "office.toml: role: the gateway is an initiator, which answers no peer; "
        "make it a responder, or leave the role out",
    ),
    (
        (),
        ("alice", "--dns", "here"),
        "office.toml: --dns: 'here' is not an IP address; write 10.0.0.1 or fd00::1",
    ),
    (
        (),
        ("alice", "--public-key", "abc"),
        "office.toml: --public-key is not a key: it has 3 characters; "
        "a key is 32 bytes in base64: 44 characters, the last of them =",
    ),
    (
        (),
        ("alice", "--public-key", OWN.public_key().to_base64()),
        "office.toml: --public-key: this is the gateway's own; give the peer's",
    ),
    (
        (),
        ("alice", "--public-key", BOB.to_base64()),
        "office.toml: --public-key: 'branch' has the same one; give the peer's own",
    ),
    (
        (),
        ("taken",),
        "taken.psk: it is there already, and nothing is written over a key; "
        "remove it if no file needs it, or choose another name",
    ),
    *(
        (
            (),
            ("alice", "--address", f"{address}"),
            f"office.toml: --address: {address} is not for a host: it is the first or the last of {network}; "
            "leave it out to get a free one",
        )
        for address, network in (
            ("10.7.0.0", "10.7.0.0/24"),
            ("10.7.0.255", "10.7.0.0/24"),
            ("fd07::", "fd07::/64"),
        )
    ),
    ((), ("alice", "-o", "-"), "office.toml: --output: - is no file; leave it out, and it is printed"),
    ((), ("alice", "-o", "taken.psk"), "taken.psk: it is there already; choose another name, or remove it"),
    (
        (),
        ("alice", "-o", "no/a.conf"),
        "no/a.conf: cannot write it: no such file or directory; look at its folder",
    ),
    (
        (),
        ("alice", "-f", "no.toml"),
        "no.toml: cannot read it: no such file or directory; name a gateway's TOML file",
    ),
    (
        (),
        ("alice", "-f", "wg0.conf"),
        "wg0.conf: only the peers of a gateway's TOML file are added, removed and listed; name a file that ends in",
    ),
    (
        (("[interface]", "[interface"),),
        ("alice", "-f", "office.toml"),
        "office.toml:2:11: this is not TOML: expected ']'",
    ),
    (
        (("listen_port", "listen_prt"),),
        ("alice",),
        "office.toml:4:1: listen_prt is not a key of [interface]; did you",
    ),
    (
        (("office.key", "other.key"),),
        ("alice",),
        "office.toml:3:20: private_key_file: other.key: cannot read it: no such file or directory; name a file with",
    ),
    (
        (),
        ("alice", "--public-key", ALICE.to_base64(), "--qr"),
        "Invalid value: there is no QR code with --public-key: the private key is not here; try connlib peer add",
    ),
    (
        (),
        ("alice", "--public-key", ALICE.to_base64(), "-o", "alice.png"),
        "Invalid value: there is no QR code with --public-key: the private key is not here; try connlib peer add",
    ),
]


@pytest.mark.parametrize(("changes", "arguments", "said"), REFUSED, ids=[each[2][:60] for each in REFUSED])
def test_what_cannot_be_added_is_said_in_a_line_and_changes_nothing(
    connlib: Command,
    folder: Path,
    changes: tuple[tuple[str, str], ...],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    write(folder / "office.toml", text)
    write(folder / "taken.psk", SHARED.to_base64())
    before = contents(folder)
    code, out, err = connlib("peer", "add", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"connlib: {said}")
    assert contents(folder) == before


def test_a_file_that_everybody_may_read_or_change_is_refused(connlib: Command, folder: Path) -> None:
    (folder / "office.toml").chmod(0o666)
    code, _, err = connlib("peer", "add", "alice")
    assert code == 2 and "every user of this machine can read or change it (mode 0666)" in err
    (folder / "office.toml").chmod(0o644)
    assert connlib("peer", "add", "alice")[0] == 0
    assert stat.S_IMODE((folder / "office.toml").stat().st_mode) == 0o644
    (folder / "office.key").chmod(0o644)
    assert connlib("peer", "add", "bob")[0] == 2
    assert connlib("peer", "add", "bob", "--allow-world-readable")[0] == 0


@pytest.mark.parametrize(
    ("redirection", "said"), [(">/dev/full", "No space left on device"), (">&-", "is closed")]
)
def test_a_peer_whose_file_cannot_be_printed_is_not_added(folder: Path, redirection: str, said: str) -> None:
    before = contents(folder)
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, "peer", "add", "alice"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert contents(folder) == before


def test_the_only_gateway_s_file_of_the_folder_is_meant(connlib: Command, folder: Path) -> None:
    write(folder / "pyproject.toml", '[project]\nname = "x"\n')
    (folder / "folder.toml").mkdir()
    assert connlib("peer", "list")[0] == 0
    write(folder / "home.toml", FILE)
    assert connlib("peer", "add", "alice") == (
        2,
        "",
        "connlib: there are home.toml, office.toml; say which one: --file\n",
    )
    assert connlib("peer", "list", "--file", "home.toml")[0] == 0
    for name in ("home.toml", "office.toml"):
        (folder / name).unlink()
    assert connlib("peer", "remove", "alice") == (
        2,
        "",
        "connlib: there is no gateway's TOML file in the current folder; "
        "name one with --file, or make one: connlib init office.toml\n",
    )


def test_what_would_be_refused_afterwards_is_not_put_in_place(connlib: Command, folder: Path) -> None:
    """The new text is read again where it waits. That is the only place to see that it has become too large."""
    write(folder / "office.toml", FILE + "#" * (2 * 1024 * 1024 - len(FILE) - 50) + "\n")
    before = contents(folder)
    said = "connlib: office.toml: this file is larger than 2 MiB; is it a gateway's TOML file?\n"
    assert connlib("peer", "add", "alice") == (2, "", said)
    assert contents(folder) == before


def test_what_is_doubtful_in_the_file_is_not_said_again_and_again(folder: Path) -> None:
    write(folder / "office.toml", FILE + "rules = []\n")
    done = subprocess.run(
        [*COMMAND, "peer", "add", "alice"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.count("\n") == 3 and "may reach nothing" not in done.stderr


def test_remarks_never_get_among_what_is_printed(folder: Path) -> None:
    command = ["sh", "-c", '"$@" 2>&-', "sh", *COMMAND, "peer", "add", "alice"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.endswith("\nPersistentKeepalive = 25\n")


# peer remove and list


def test_a_peer_that_is_added_and_removed_leaves_nothing(connlib: Command, folder: Path) -> None:
    before = contents(folder)
    assert connlib("peer", "add", "alice")[0] == 0
    said = "alice is no longer in office.toml, and alice.psk is removed.\n"
    assert connlib("peer", "remove", "alice") == (0, "", said + RELOAD)
    assert contents(folder) == before


def test_a_peer_is_removed_by_its_key_too_and_keys_of_others_stay(connlib: Command, folder: Path) -> None:
    text = (
        FILE
        + f'{PSK} = "shared.key"\n\n[[peers]]\npublic_key = "{ALICE.to_base64()}"\n{PSK} = "shared.key"\n'
    )
    write(folder / "office.toml", text)
    write(folder / "shared.key", SHARED.to_base64())
    said = f"peer {ALICE.to_base64()[:8]} is no longer in office.toml.\nshared.key is left where it is.\n"
    assert connlib("peer", "remove", ALICE.to_base64()) == (0, "", said + RELOAD)
    assert contents(folder)["office.toml"].decode() == FILE + f'{PSK} = "shared.key"\n'
    # Not one that `peer add` has named.
    said = "branch is no longer in office.toml.\nshared.key is left where it is.\n"
    assert connlib("peer", "remove", "branch") == (0, "", said + RELOAD)
    assert contents(folder)["office.toml"].decode() == FILE.partition("\n# the branch")[0]
    assert (folder / "shared.key").exists()


@pytest.mark.parametrize("named", ["branch.psk", "./branch.psk", "keys/branch.psk", "link.psk"])
def test_a_key_file_that_another_peer_needs_stays_by_whatever_name(
    connlib: Command, folder: Path, named: str
) -> None:
    (folder / "keys").symlink_to(folder)
    (folder / "link.psk").symlink_to("branch.psk")
    other = f'\n[[peers]]\npublic_key = "{ALICE.to_base64()}"\n{PSK} = "{named}"\n'
    write(folder / "office.toml", FILE + f'{PSK} = "branch.psk"\n' + other)
    write(folder / "branch.psk", SHARED.to_base64())
    said = "branch is no longer in office.toml.\nbranch.psk is left where it is.\n"
    assert connlib("peer", "remove", "branch") == (0, "", said + RELOAD)
    (peer,) = load_gateway("office.toml").to_interface_config().peers
    assert peer.preshared_key == SHARED
    assert not [name for name in contents(folder) if name.startswith(".")]


def test_a_peer_whose_key_file_is_that_of_the_gateway_leaves_it(connlib: Command, folder: Path) -> None:
    (folder / "office.key").rename(folder / "branch.psk")
    text = FILE.replace('"office.key"', '"./branch.psk"')
    write(folder / "office.toml", text + f'{PSK} = "branch.psk"\n')
    assert connlib("peer", "remove", "branch")[0] == 0
    assert load_gateway("office.toml").to_interface_config().private_key == OWN


def test_a_key_file_that_cannot_be_removed_is_said_to_be_left(
    connlib: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "office.toml", FILE + f'{PSK} = "branch.psk"\n')
    write(folder / "branch.psk", SHARED.to_base64())
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path.endswith("branch.psk"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    said = "branch is no longer in office.toml.\nbranch.psk is left where it is.\n"
    assert connlib("peer", "remove", "branch") == (0, "", said + RELOAD)
    assert contents(folder)["office.toml"].decode() == FILE.partition("\n# the branch")[0]


def test_a_peer_can_be_removed_where_its_key_file_is_missing(connlib: Command, folder: Path) -> None:
    (folder / "office.key").unlink()
    write(folder / "office.toml", FILE + f'{PSK} = "branch.psk"\n')
    said = "branch is no longer in office.toml.\nbranch.psk is left where it is.\n"
    assert connlib("peer", "remove", "branch") == (0, "", said + RELOAD)


def test_a_peer_that_is_not_there_is_guessed_at(connlib: Command, folder: Path) -> None:
    before = contents(folder)
    said = "connlib: office.toml: there is no peer 'brunch'; did you mean branch?\n"
    assert connlib("peer", "remove", "brunch") == (2, "", said)
    assert contents(folder) == before


def test_the_list_has_a_line_for_each_peer(connlib: Command, folder: Path) -> None:
    write(folder / "office.toml", FILE + f'\n[[peers]]\npublic_key = "{ALICE.to_base64()}"\n')
    (folder / "office.key").unlink()
    assert connlib("peer", "list") == (
        0,
        f"branch  {BOB.to_base64()}  10.7.0.2/32, 192.168.20.0/24\n-       {ALICE.to_base64()}  -\n",
        "",
    )


# init


def test_a_gateway_s_first_file_is_made_with_its_key(
    connlib: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    networks = ("--network", "10.9.0.0/24", "--network", "fd09::/64", "--network", "10.8.0.7/16")
    code, out, err = connlib("init", "home.toml", "--endpoint", "vpn.example.org", "--port", "443", *networks)
    gateway = load_gateway("home.toml")
    assert (code, out) == (
        0,
        f"public key {gateway.to_interface_config().private_key.public_key().to_base64()}\n",
    )
    assert err == (
        "home.toml and home.key are made; the second one is secret.\n"
        "Next: connlib peer add NAME --file home.toml; connlib up home.toml\n"
    )
    assert (tmp_path / "home.toml").read_text() == (
        '[interface]\nprivate_key_file = "home.key"\nlisten_port = 443\n'
        'addresses = ["10.9.0.1/24", "fd09::1/64", "10.8.0.7/16"]\n'
        'role = "responder"  # peers start the sessions\n'
        'endpoint = "vpn.example.org:443"  # where peers reach this gateway\n'
    )
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        "home.toml": 0o600,
        "home.key": 0o600,
    }


def test_init_writes_over_nothing(connlib: Command, folder: Path) -> None:
    before = contents(folder)
    said = "connlib: office.toml: it is there already; choose another name, or remove it\n"
    assert connlib("init", "office.toml") == (2, "", said)
    (folder / "office.toml").unlink()
    code, _, err = connlib("init", "office.toml")
    assert code == 2 and err.startswith(
        "connlib: office.key: it is there already, and nothing is written over a key;"
    )
    assert contents(folder) == {"office.key": before["office.key"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("wg0.conf",), "wg0.conf: a gateway's TOML file has another ending; name a file that ends in .toml"),
        (("a b.toml",), "a b.toml: no network device can be called like this file; "),
        (
            ("wg0.toml", "--network", "10.7.0.1/32"),
            "--network: '10.7.0.1/32' has no room for peers; write a prefix such",
        ),
        (
            ("wg0.toml", "--network", "here"),
            "--network: 'here' is not an IP address with a prefix length; write",
        ),
        (
            ("wg0.toml", "--endpoint", "a b"),
            "endpoint: 'a b' is neither an address nor a host name; write host:port",
        ),
        (("wg0.toml", "--port", "0"), "Invalid value for '--port': "),
        (
            ("no/wg0.toml",),
            "no/wg0.toml: cannot write it: no such file or directory; look at its folder",
        ),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(
    connlib: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = connlib("init", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(f"connlib: {said}")
    assert contents(tmp_path) == {}
