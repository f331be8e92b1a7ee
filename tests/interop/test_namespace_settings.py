"""What can be set of a device of `connlib-wg`, in any order, in any number, and in ways that make no sense."""

from __future__ import annotations

import base64
import itertools
import re
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from interop.devices import INNER, End
from interop.netns import Wire, shell, wait_for
from interop.traffic import Handshakes, arrives, is_lost, ping

P = 2**255 - 19
# The points of Curve25519 whose order is small: whatever the private key, there is no secret (cr.yp.to/ecdh.html).
LOW_ORDER = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
)


def _file(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def _generated() -> str:
    return shell("wg", "genkey").strip()


def _public(private: str) -> str:
    return shell("wg", "pubkey", stdin=private).strip()


def test_a_keepalive_that_was_set_before_the_key_was_known_starts_a_session_with_the_key(
    ends: tuple[End, End],
) -> None:
    one, other = ends
    one.wg("private-key", "/dev/null", "peer", other.public, "persistent-keepalive", "1")
    assert one.show("persistent-keepalive") == [[other.public, "1"]]
    assert one.show("transfer") == [[other.public, "0", "0"]]
    one.wg("private-key", str(one.key))
    wait_for(lambda: one.show("latest-handshakes") != [[other.public, "0"]], "the session, without a packet")
    wait_for(lambda: int(other.show("transfer")[0][1]) >= 148 + 3 * 32, "keepalives")


def test_a_keepalive_that_is_set_before_the_device_is_up_starts_when_it_is(
    stack: ExitStack, wire: Wire, tmp_path: Path
) -> None:
    one, other = (End(stack, host, tmp_path) for host in wire.hosts)
    other.wg("private-key", str(other.key), "listen-port", "51821", "peer", one.public)
    other.address(INNER[1])
    one.wg("private-key", str(one.key), "peer", other.public, "persistent-keepalive", "1")
    one.wg("peer", other.public, "endpoint", "192.0.2.2:51821")
    assert one.show("transfer") == [[other.public, "0", "0"]]
    one.host.run("ip", "link", "set", one.name, "up")
    wait_for(lambda: one.show("latest-handshakes") != [[other.public, "0"]], "the session, without a packet")


def test_a_hundred_and_thirty_thousand_allowed_ips_are_set_in_one_call(
    ends: tuple[End, End], tmp_path: Path
) -> None:
    one, other = ends
    numbers = itertools.product(range(256), range(255))
    allowed = [
        prefix for i, j in numbers for prefix in (f"10.{i}.{j}.0/24", f"fd00:{i + 1:x}:{j + 1:x}::/64")
    ]
    assert len(allowed) == 130_560
    lines = "".join(
        f"AllowedIPs = {','.join(allowed[at : at + 1000])}\n" for at in range(0, len(allowed), 1000)
    )
    conf = _file(
        tmp_path / "many.conf", f"[Peer]\nPublicKey = {other.public}\nEndpoint = 192.0.2.2:51821\n{lines}"
    )
    shell("wg", "addconf", one.name, conf, timeout=60)
    ((peer, *shown),) = one.show("allowed-ips")
    assert peer == other.public and len(shown) == len(allowed) and not set(shown) ^ set(allowed)
    ping(one.host, INNER[1])


def test_many_peers_and_prefixes_are_shown_as_they_were_set_and_some_are_taken_away(
    stack: ExitStack, wire: Wire, tmp_path: Path
) -> None:
    end = End(stack, wire.hosts[0], tmp_path)
    privates = [base64.b64encode(number.to_bytes(32, "big")).decode() for number in range(1, 41)]
    peers = {_public(private): [f"10.{i}.{j}.0/24" for j in range(52)] for i, private in enumerate(privates)}
    conf = "".join(
        f"[Peer]\nPublicKey = {peer}\nAllowedIPs = {','.join(ips)}\n" for peer, ips in peers.items()
    )
    shell("wg", "setconf", end.name, _file(tmp_path / "forty.conf", conf))
    assert {peer: ips for peer, *ips in end.show("allowed-ips")} == peers
    gone, kept = list(peers)[:10], list(peers)[10:]
    end.wg(*itertools.chain.from_iterable(("peer", peer, "remove") for peer in gone))
    assert sorted(end.show("peers")) == sorted([peer] for peer in kept)
    # 394 prefixes for one of them, of which six are taken away and one is moved to another.
    first, second = kept[:2]
    many = [f"172.16.{number}.0/24" for number in range(197)] + [f"fd01:0:0:{n:x}::/64" for n in range(197)]
    end.wg("peer", first, "allowed-ips", ",".join(many))
    away = [many[index] for index in (0, 1, 196, 197, 300, 393)]
    answer = _request(
        end,
        f"public_key={base64.b64decode(first).hex()}",
        *(f"allowed_ip=-{prefix}" for prefix in away),
        f"public_key={base64.b64decode(second).hex()}",
        f"allowed_ip={many[5]}",
    )
    assert answer == "errno=0\n\n"
    shown = {peer: ips for peer, *ips in end.show("allowed-ips")}
    assert sorted(shown[first]) == sorted(set(many) - {*away, many[5]})
    assert sorted(shown[second]) == sorted([*peers[second], many[5]])


def _request(end: End, *lines: str) -> str:
    """For what this `wg` has no words for."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(end.socket))
        client.sendall("\n".join(("set=1", *lines, "", "")).encode())
        return client.recv(4096).decode()


def test_keys_are_clamped_taken_away_and_never_their_own_peer(ends: tuple[End, End], tmp_path: Path) -> None:
    one, other = ends
    ping(one.host, INNER[1])
    one.wg("private-key", "/dev/null")
    assert one.show("private-key") == [["(none)"]] and one.show("public-key") == [["(none)"]]
    assert one.show("transfer") == [[other.public, "0", "0"]]
    is_lost(one.host, INNER[1])
    is_lost(other.host, INNER[0])
    assert one.show("transfer") == [[other.public, "0", "0"]]
    # RFC 7748, section 5: the lowest three bits and the highest are cleared, the second highest is set.
    ones = base64.b64encode(b"\xff" * 32).decode()
    clamped = base64.b64encode(b"\xf8" + b"\xff" * 30 + b"\x7f").decode()
    one.wg("private-key", _file(tmp_path / "ones", ones))
    assert one.show("private-key") == [[clamped]]
    assert one.show("public-key") == [[_public(clamped)]] == [[_public(ones)]]
    one.wg("private-key", str(one.key))
    arrives(one.host, INNER[1])
    # A key whose public half is that of a peer: that peer would be the device itself.
    one.wg("private-key", str(other.key))
    assert one.show("peers") == []
    one.wg("peer", other.public, "allowed-ips", "10.66.0.2/32")
    assert one.show("peers") == []


def test_a_device_that_was_there_has_no_settings(tmp_path: Path, ends: tuple[End, End]) -> None:
    one, other = ends
    key = _file(tmp_path / "key", _generated())
    assert one.show("public-key") == [[one.public]]
    one.host.run("ip", "link", "del", one.name)
    wait_for(lambda: not one.socket.exists(), "the end of its socket")
    for command in (["show", one.name], ["set", one.name, "private-key", key]):
        done = subprocess.run(["wg", *command], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and re.search(r"No such device|Protocol not supported", done.stderr)
    assert other.show("public-key") == [[other.public]]


@pytest.mark.parametrize("with_high_bit", [False, True])
def test_nothing_is_ever_sent_to_a_peer_of_low_order(
    stack: ExitStack, ends: tuple[End, End], wire: Wire, with_high_bit: bool
) -> None:
    one, _ = ends
    ping(one.host, INNER[1])
    seen = stack.enter_context(Handshakes(wire.hosts[1], Wire.DEVICE))
    peers = []
    for number, point in enumerate(LOW_ORDER):
        # The highest bit is nobody's: the same point (RFC 7748, section 5).
        peer = base64.b64encode((point | with_high_bit << 255).to_bytes(32, "little")).decode()
        peers.append(peer)
        one.wg(
            *("peer", peer, "endpoint", f"192.0.2.2:{6000 + number}", "persistent-keepalive", "1"),
            *("allowed-ips", f"10.66.0.{100 + number}/32"),
        )
    for number in range(len(LOW_ORDER)):
        is_lost(one.host, f"10.66.0.{100 + number}")
    counted = {peer: (received, sent) for peer, received, sent in one.show("transfer")}
    assert [counted[peer] for peer in peers] == [("0", "0")] * len(peers)
    assert seen.total(Handshakes.INITIATION) == 0
    ping(one.host, INNER[1])


def test_a_tunnel_whose_endpoint_is_routed_into_itself_does_not_spin(ends: tuple[End, End]) -> None:
    """What is sent would come back as a packet to send, larger each time, for ever."""
    one, other = ends
    ping(one.host, INNER[1])

    def into_the_tunnel() -> int:
        return int(one.host.run("cat", f"/sys/class/net/{one.name}/statistics/tx_packets"))

    one.wg("peer", other.public, "allowed-ips", f"{INNER[1]}/32,192.0.2.2/32")
    one.host.run("ip", "route", "add", "192.0.2.2/32", "dev", one.name)
    before, sent = into_the_tunnel(), int(one.show("transfer")[0][2])
    is_lost(one.host, INNER[1])
    is_lost(one.host, INNER[1])
    # Two pings, and each once more as the datagram that it became.
    print(into_the_tunnel() - before, int(one.show("transfer")[0][2]) - sent)
    assert into_the_tunnel() - before <= 4
    assert int(one.show("transfer")[0][2]) - sent == 2 * (16 + 96 + 16)
    one.host.run("ip", "route", "del", "192.0.2.2/32", "dev", one.name)
    arrives(one.host, INNER[1])
