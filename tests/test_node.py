"""`Node` from Python: configuration in, batches in and out, statistics."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from connlib import (
    ConfigDiff,
    ConfigError,
    DropReason,
    EngineError,
    HandshakeStarted,
    InputKind,
    Node,
    NodeConfig,
    NodeInput,
    PeerChange,
    PeerConfig,
    PeerEvent,
    PeerRoamed,
    Poisoned,
    PresharedKey,
    PrivateKey,
    PublicKey,
    Role,
    SessionEstablished,
    TimeoutReason,
)
from connlib._native import LabNode, TunIo, Tunnels, UdpIo
from two_tunnels import ALICE, BOB, START, UNIX_TIME, ipv4, ipv6

# Bob is the gateway, on the second address of the networks that the documentation may use (RFC 5737, RFC 3849).
ALICE_AT, BOB_AT = ("192.0.2.1", 51820), ("198.51.100.2", 51820)
CAROL = PrivateKey.from_bytes(bytes([3] * 32))


def peer(key: PrivateKey, *allowed: str, **options: Any) -> PeerConfig:
    networks = tuple(ip_network(text) for text in allowed)
    return PeerConfig(public_key=key.public_key(), allowed_ips=networks, **options)


def node(key: PrivateKey, *peers: PeerConfig, **options: Any) -> Node:
    config = NodeConfig(private_key=key, peers=peers, **options)
    return Node(config, now=START, unix_time=UNIX_TIME)


def send(to: Node, packets: Sequence[bytes], now: float = START) -> None:
    to.handle_packets(b"".join(packets), [len(packet) for packet in packets], now)


def arrive(at: Node, datagrams: Sequence[bytes], source: tuple[str, int], now: float = START) -> None:
    lengths = [len(datagram) for datagram in datagrams]
    at.handle_datagrams(b"".join(datagrams), lengths, [source] * len(lengths), now)


def carry(sender: Node, receiver: Node, source: tuple[str, int], now: float = START) -> list[tuple[str, int]]:
    """Drain the sender and hand its datagrams over; where they were sent to."""
    transmits = sender.drain().transmits
    arrive(receiver, [transmit.datagram for transmit in transmits], source, now)
    return [transmit.destination for transmit in transmits]


@pytest.fixture
def pair() -> tuple[Node, Node]:
    """Alice, who knows where Bob is, and Bob, who waits; no session yet."""
    alice = node(ALICE, peer(BOB, "10.0.0.2/32", "fd00::2/128", endpoint=BOB_AT))
    bob = node(BOB, peer(ALICE, "10.0.0.1/32", "fd00::1/128", role=Role.RESPONDER))
    return alice, bob


@pytest.fixture
def connected(pair: tuple[Node, Node]) -> tuple[Node, Node]:
    """The same with a session."""
    alice, bob = pair
    alice.initiate_handshake(BOB.public_key(), START)
    carry(alice, bob, ALICE_AT)
    carry(bob, alice, BOB_AT)
    carry(alice, bob, ALICE_AT)
    bob.drain()
    return alice, bob


def test_a_packet_finds_its_peer_and_comes_out_of_the_other_node(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    packets = [ipv4(bytes([n])) for n in range(3)]
    send(alice, packets)
    output = alice.drain()
    assert [(t.destination, len(t.datagram)) for t in output.transmits] == [(BOB_AT, 148)]
    assert output.events == [PeerEvent(BOB.public_key(), HandshakeStarted())]
    arrive(bob, [output.transmits[0].datagram], ALICE_AT)
    assert carry(bob, alice, BOB_AT) == [ALICE_AT]
    transmits = alice.drain().transmits
    arrive(bob, [transmit.datagram for transmit in transmits], ALICE_AT)
    received = bob.drain()
    assert received.packets == packets
    events = (SessionEstablished(initiator=False), PeerRoamed(None, ALICE_AT))
    assert received.events == [PeerEvent(ALICE.public_key(), event) for event in events]


def test_traffic_flows_both_ways_in_batches(connected: tuple[Node, Node]) -> None:
    alice, bob = connected
    send(alice, [ipv4(bytes(n)) for n in range(100)] + [ipv6(b"six")])
    carry(alice, bob, ALICE_AT)
    assert bob.drain().packets == [ipv4(bytes(n)) for n in range(100)] + [ipv6(b"six")]
    back = ipv4(source="10.0.0.2", destination="10.0.0.1")
    send(bob, [back] * 64)
    assert carry(bob, alice, BOB_AT) == [ALICE_AT] * 64
    assert alice.drain().packets == [back] * 64


def test_draining_takes_everything_out_and_pending_says_how_much(pair: tuple[Node, Node]) -> None:
    alice, _ = pair
    assert alice.pending() == (0, 0, 0)
    send(alice, [ipv4()])
    assert alice.pending() == (1, 0, 1)
    alice.drain()
    assert alice.pending() == (0, 0, 0)
    assert alice.drain() == ([], [], [])


def test_the_longest_prefix_owns_a_packet() -> None:
    gateway = node(
        BOB,
        peer(ALICE, "10.0.0.0/8", endpoint=ALICE_AT),
        peer(CAROL, "10.0.0.2/32", endpoint=("192.0.2.3", 3)),
    )
    for destination, endpoint in (("10.0.0.2", ("192.0.2.3", 3)), ("10.0.0.3", ALICE_AT)):
        send(gateway, [ipv4(destination=destination)])
        assert [transmit.destination for transmit in gateway.drain().transmits] == [endpoint]


def test_what_no_peer_owns_is_dropped_and_counted(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    send(alice, [ipv4(destination="172.16.0.1"), b"\x99" * 40, b"", ipv4()[:10]])
    assert alice.drain() == ([], [], [])
    assert alice.stats(START).drops == {DropReason.NO_ROUTE: 1, DropReason.NOT_IP: 3}
    assert alice.unclaimed == 4
    arrive(bob, [b"garbage"], ALICE_AT)
    assert bob.stats(START).drops == {DropReason.INVALID_PACKET: 1}
    assert bob.unclaimed == 1


def test_a_peer_without_an_address_gets_nothing_and_that_is_counted() -> None:
    alice = node(ALICE, peer(BOB, "10.0.0.2/32"))
    send(alice, [ipv4()])
    assert alice.drain().transmits == []
    (stats,) = alice.stats(START).peers
    assert stats.tunnel.drops == {DropReason.NO_ENDPOINT: 1}
    with pytest.raises(ValueError, match="endpoint"):
        alice.initiate_handshake(BOB.public_key(), START)
    alice.set_endpoint(BOB.public_key(), BOB_AT, START)
    alice.initiate_handshake(BOB.public_key(), START)
    assert [transmit.destination for transmit in alice.drain().transmits] == [BOB_AT]


def test_a_source_address_of_somebody_else_is_dropped_and_counted(connected: tuple[Node, Node]) -> None:
    alice, bob = connected
    send(alice, [ipv4(b"mine"), ipv4(source="10.0.0.99"), ipv4(b"again")])
    carry(alice, bob, ALICE_AT)
    assert bob.drain().packets == [ipv4(b"mine"), ipv4(b"again")]
    assert bob.stats(START).peers[0].tunnel.drops == {DropReason.SOURCE_NOT_ALLOWED: 1}


def test_an_initiation_of_a_stranger_is_not_answered(pair: tuple[Node, Node]) -> None:
    _, bob = pair
    carol = node(CAROL, peer(BOB, "10.0.0.2/32", endpoint=BOB_AT))
    send(carol, [ipv4()])
    carry(carol, bob, ("192.0.2.3", 3))
    assert bob.drain() == ([], [], [])
    assert bob.stats(START).drops == {DropReason.UNKNOWN_PEER: 1}


def test_the_endpoint_follows_authentic_packets_only(connected: tuple[Node, Node]) -> None:
    alice, bob = connected
    moved = ("2001:db8::7", 7)
    send(alice, [ipv4()])
    datagram = alice.drain().transmits[0].datagram
    forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
    arrive(bob, [forged], moved)
    assert bob.stats(START).peers[0].endpoint == ALICE_AT
    arrive(bob, [datagram], moved)
    assert bob.stats(START).peers[0].endpoint == moved
    send(bob, [ipv4(source="10.0.0.2", destination="10.0.0.1")])
    assert [transmit.destination for transmit in bob.drain().transmits] == [moved]


def test_a_link_local_endpoint_keeps_its_scope() -> None:
    alice = node(ALICE, peer(BOB, "10.0.0.2/32", endpoint=("fe80::2%3", 51820)))
    send(alice, [ipv4()])
    assert alice.drain().transmits[0].destination == ("fe80::2%3", 51820)
    arrive(alice, [b"x"], ("fe80::9", 1, 0, 4))  # type: ignore[arg-type]


def test_deadlines_fire_when_they_are_fed_back(connected: tuple[Node, Node]) -> None:
    alice, bob = connected
    for each in (alice, bob):
        timeout = each.next_timeout()
        assert timeout == (START + 180, TimeoutReason.SESSION_EXPIRY)
        each.handle_timeout(timeout.at - 0.001)
        assert each.next_timeout() == timeout
        each.handle_timeout(timeout.at)
        assert each.next_timeout() is None
        assert [type(event.event).__name__ for event in each.drain().events] == ["SessionExpired"]


def test_keepalives_begin_at_once_where_the_endpoint_is_known() -> None:
    alice = node(ALICE, peer(BOB, "10.0.0.2/32", endpoint=BOB_AT, persistent_keepalive=25))
    assert alice.next_timeout() == (START, TimeoutReason.PERSISTENT_KEEPALIVE)
    alice.handle_timeout(START)
    assert [len(transmit.datagram) for transmit in alice.drain().transmits] == [148]


def test_applying_says_what_changed(connected: tuple[Node, Node]) -> None:
    alice, _ = connected
    same = (peer(BOB, "fd00::2/128", "10.0.0.2/32", endpoint=BOB_AT),)
    config = NodeConfig(private_key=ALICE, peers=same)
    assert not alice.apply(config, START)
    bob_changed = dataclasses.replace(
        same[0], persistent_keepalive=25.0, preshared_key=PresharedKey.generate()
    )
    config = dataclasses.replace(config, peers=(peer(CAROL, "10.0.0.3/32"), bob_changed), mtu=1280)
    diff = alice.apply(config, START)
    assert diff == ConfigDiff(
        added=(CAROL.public_key(),),
        changed=(PeerChange(BOB.public_key(), ("preshared_key", "persistent_keepalive")),),
        node=("mtu",),
    )
    assert diff
    diff = alice.apply(dataclasses.replace(config, peers=config.peers[1:]), START)
    assert diff == ConfigDiff(removed=(CAROL.public_key(),))


def test_a_session_survives_a_change_that_allows_it(connected: tuple[Node, Node]) -> None:
    alice, bob = connected
    alice.apply(
        NodeConfig(private_key=ALICE, peers=(peer(BOB, "10.0.0.0/24", "fd00::2/128", endpoint=BOB_AT),)),
        START,
    )
    send(alice, [ipv4()])
    carry(alice, bob, ALICE_AT)
    assert bob.drain().packets == [ipv4()]


# Low order: the point at zero.
LOW_ORDER = PublicKey.from_bytes(bytes(32))


@pytest.mark.parametrize(
    ("peers", "problem"),
    [
        ((peer(BOB, "10.0.0.1/32"), peer(CAROL, "10.0.0.1/32")), "10.0.0.1/32"),
        ((peer(BOB, "::/0"), peer(CAROL, "::/0")), "::/0"),
        ((peer(BOB), peer(BOB)), "same public key"),
        ((peer(ALICE),), "own public key"),
        ((PeerConfig(public_key=LOW_ORDER),), "low order"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_and_changes_nothing(
    peers: tuple[PeerConfig, ...], problem: str
) -> None:
    config = NodeConfig(private_key=ALICE, peers=peers)
    with pytest.raises(ConfigError, match=problem) as raised:
        Node(config, now=START, unix_time=UNIX_TIME)
    assert "\n" not in str(raised.value)
    assert raised.value.hint is not None and raised.value.path is None
    alice = node(ALICE, peer(BOB, "10.0.0.2/32", endpoint=BOB_AT))
    with pytest.raises(ConfigError, match=problem):
        alice.apply(config, START)
    send(alice, [ipv4()])
    assert len(alice.drain().transmits) == 1


@pytest.mark.parametrize(
    ("options", "problem", "named"),
    [
        ({"mtu": 1}, ValueError, "mtu"),
        ({"handshake_limit": -1}, ValueError, "handshake_limit"),
        ({"handshake_limit": 1.5}, TypeError, "handshake_limit"),
        ({"private_key": "x"}, TypeError, "private_key"),
        ({"peers": ("x",)}, TypeError, "peers"),
        ({"peers": None}, TypeError, "iterable"),
        ({"timers": None}, TypeError, "timers"),
    ],
)
def test_a_value_of_the_configuration_that_is_wrong_is_named(
    options: dict[str, Any], problem: type[Exception], named: str
) -> None:
    config = NodeConfig(**{"private_key": ALICE, **options})
    with pytest.raises(problem, match=named):
        Node(config, now=START, unix_time=UNIX_TIME)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"endpoint": ("example.com", 1)}, ValueError),
        ({"endpoint": ("192.0.2.1", 0)}, ValueError),
        ({"endpoint": "192.0.2.1:1"}, TypeError),
        ({"allowed_ips": ("10.0.0.0/8",)}, TypeError),
        ({"persistent_keepalive": 0.1}, ValueError),
        ({"persistent_keepalive": math.nan}, ValueError),
        ({"preshared_key": b"x"}, TypeError),
        ({"public_key": "x"}, TypeError),
        ({"role": "responder"}, TypeError),
    ],
)
def test_a_value_of_a_peer_that_is_wrong_is_refused(
    options: dict[str, Any], problem: type[Exception]
) -> None:
    config = PeerConfig(**{"public_key": BOB.public_key(), **options})
    with pytest.raises(problem) as raised:
        node(ALICE, config)
    assert "\n" not in str(raised.value)


def test_unknown_peers_are_a_key_error_that_names_the_key(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    with pytest.raises(KeyError, match=re.escape(CAROL.public_key().to_base64())):
        alice.initiate_handshake(CAROL.public_key(), START)
    with pytest.raises(KeyError):
        alice.set_endpoint(CAROL.public_key(), ALICE_AT, START)
    with pytest.raises(KeyError, match=re.escape(CAROL.public_key().to_base64())):
        alice.peer_stats(CAROL.public_key(), START)
    with pytest.raises(ValueError, match="role"):
        bob.initiate_handshake(ALICE.public_key(), START)
    with pytest.raises(ValueError, match="port"):
        alice.set_endpoint(BOB.public_key(), ("192.0.2.1", 0), START)


def test_batches_that_do_not_fit_are_refused_before_anything_happens(pair: tuple[Node, Node]) -> None:
    alice, _ = pair
    for lengths in ([19], [20, 1], [-1], [2**65]):
        with pytest.raises(ValueError, match="length"):
            alice.handle_packets(ipv4(), lengths, START)
        with pytest.raises(ValueError, match="length"):
            alice.handle_datagrams(ipv4(), lengths, [ALICE_AT] * len(lengths), START)
    with pytest.raises(ValueError, match="sources"):
        alice.handle_datagrams(ipv4(), [20], [], START)
    with pytest.raises(ValueError, match="literal"):
        alice.handle_datagrams(ipv4(), [20], [("nowhere", 1)], START)
    assert alice.pending() == (0, 0, 0)
    assert alice.stats(START).drops == {}


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 1e10])
def test_what_is_no_time_is_a_value_error(pair: tuple[Node, Node], seconds: float) -> None:
    alice, _ = pair
    calls: list[Any] = [
        lambda: alice.handle_timeout(seconds),
        lambda: alice.handle_packets(b"", [], seconds),
        lambda: alice.handle_datagrams(b"", [], [], seconds),
        lambda: alice.stats(seconds),
        lambda: alice.set_unix_time(seconds, START),
        lambda: alice.initiate_handshake(BOB.public_key(), seconds),
        lambda: Node(NodeConfig(private_key=ALICE), now=seconds, unix_time=0),
        lambda: Node(NodeConfig(private_key=ALICE), now=0, unix_time=seconds),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="a time must be"):
            call()


def test_statistics_are_per_peer_and_in_the_order_of_their_keys() -> None:
    keys = [PrivateKey.generate() for _ in range(10)]
    gateway = node(BOB, *(peer(key, f"10.0.1.{n}/32") for n, key in enumerate(keys)))
    peers = gateway.stats(START).peers
    assert [each.public_key for each in peers] == sorted(
        (key.public_key() for key in keys), key=lambda key: key.to_bytes()
    )
    assert all(each.endpoint is None and each.tunnel.sessions == 0 for each in peers)


def test_the_statistics_of_one_peer_are_those_among_all(connected: tuple[Node, Node]) -> None:
    for each in connected:
        (among_all,) = each.stats(START + 1).peers
        one = each.peer_stats(among_all.public_key, START + 1)
        assert one == among_all and hash(one.trouble) == hash(among_all.trouble)
        # Every field is there, and none can be set: what makes them knows their names by itself.
        assert dataclasses.asdict(one)["tunnel"]["sessions"] == 1
        for whole in (one, one.tunnel, each.stats(START)):
            for field in dataclasses.fields(whole):
                with pytest.raises(dataclasses.FrozenInstanceError):
                    setattr(whole, field.name, getattr(whole, field.name))
        assert each.endpoints() == {one.public_key: one.endpoint}


def test_only_peers_that_are_somewhere_have_an_endpoint() -> None:
    both = node(ALICE, peer(BOB, "10.0.0.2/32", endpoint=BOB_AT), peer(CAROL, "10.0.0.3/32"))
    assert both.endpoints() == {BOB.public_key(): BOB_AT}


def with_tunnels_of(made_for: NodeConfig) -> tuple[Node, Node]:
    """Alice gets Bob by `apply`, with tunnels that were made for a configuration; Bob is a node as any."""
    config = NodeConfig(private_key=ALICE, peers=(peer(BOB, "10.0.0.2/32", endpoint=BOB_AT),))
    alice = node(ALICE)
    tunnels = Tunnels(made_for, now=START, unix_time=UNIX_TIME - 1e6)
    assert alice.apply(config, START + 1, tunnels).added == (BOB.public_key(),)
    alice.apply(config, START + 1, tunnels)  # which has none any more
    return alice, node(BOB, peer(ALICE, "10.0.0.1/32", endpoint=ALICE_AT))


@pytest.mark.parametrize(
    "made_for",
    [
        NodeConfig(private_key=ALICE, peers=(peer(BOB),)),
        NodeConfig(private_key=ALICE, peers=(peer(BOB, preshared_key=PresharedKey.generate()),)),
        NodeConfig(private_key=ALICE, peers=(peer(BOB, role=Role.RESPONDER),)),
        NodeConfig(private_key=CAROL, peers=(peer(BOB),)),
        NodeConfig(private_key=ALICE, peers=(peer(BOB),), mtu=1280),
        NodeConfig(private_key=ALICE, peers=(peer(CAROL),)),
    ],
)
def test_tunnels_that_were_made_ahead_are_taken_where_they_fit(made_for: NodeConfig) -> None:
    """And made anew where not: with another key of ours or preshared key there would be no session."""
    alice, bob = with_tunnels_of(made_for)
    alice.initiate_handshake(BOB.public_key(), START + 1)
    (initiation,) = (each.datagram for each in alice.drain().transmits)
    arrive(bob, [initiation], ALICE_AT, START + 1)
    # By the wall clock of the node, and not by that of the tunnel's making.
    received, _ = bob.timestamps()
    seconds = int.from_bytes(received[ALICE.public_key()][:8], "big") - 2**62
    assert abs(seconds - UNIX_TIME) < 60
    arrive(alice, [each.datagram for each in bob.drain().transmits], BOB_AT, START + 1)
    assert alice.peer_stats(BOB.public_key(), START + 1).tunnel.sessions == 1


def test_tunnels_of_what_cannot_be_are_refused() -> None:
    for wrong in (
        NodeConfig(private_key=ALICE, peers=(peer(ALICE),)),
        NodeConfig(private_key=ALICE, peers=(peer(BOB, "10.0.0.0/8"), peer(CAROL, "10.0.0.0/8"))),
        NodeConfig(private_key=ALICE, peers=(PeerConfig(public_key=PublicKey.from_bytes(bytes(32))),)),
    ):
        with pytest.raises(ConfigError):
            Tunnels(wrong, now=START, unix_time=UNIX_TIME)


def test_equal_seeds_give_equal_traces() -> None:
    def initiation(seed: int) -> bytes:
        config = NodeConfig(private_key=ALICE, peers=(peer(BOB, "10.0.0.2/32", endpoint=BOB_AT),))
        lab = LabNode(config, now=START, unix_time=UNIX_TIME, seed=seed)
        send(lab, [ipv4()])
        return lab.drain().transmits[0].datagram

    assert initiation(1) == initiation(1)
    assert initiation(1) != initiation(2)


def test_descriptors_refuse_a_node_of_the_laboratory() -> None:
    import socket

    lab = LabNode(NodeConfig(private_key=ALICE), now=START, unix_time=UNIX_TIME, seed=1)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with left, right, udp:
        tun, udp_io = TunIo(left.fileno()), UdpIo(udp.fileno(), None)
        calls: list[Any] = [
            lambda: tun.read(lab, START, 1),
            lambda: tun.write(lab),
            lambda: udp_io.receive(lab, START, 1),
            lambda: udp_io.send(lab),
        ]
        for call in calls:
            with pytest.raises(TypeError, match="LabNode"):
                call()
        tun.close()
        udp_io.close()


def test_a_panic_poisons_one_peer_which_works_again_when_it_was_removed_and_added() -> None:
    """Fault 28: the others go on."""
    to_bob = peer(BOB, "10.0.0.2/32", endpoint=BOB_AT)
    to_carol = peer(CAROL, "10.0.0.3/32", endpoint=("203.0.113.3", 51820))
    config = NodeConfig(private_key=ALICE, peers=(to_bob, to_carol))
    alice = LabNode(config, now=START, unix_time=UNIX_TIME, seed=1)
    send(alice, [ipv4()])
    alice.drain()
    alice.panic(BOB.public_key(), START)
    assert alice.drain().events == [PeerEvent(BOB.public_key(), Poisoned())]
    send(alice, [ipv4()])
    send(alice, [ipv4(destination="10.0.0.3")])
    assert [transmit.destination for transmit in alice.drain().transmits] == [("203.0.113.3", 51820)]
    drops = {stats.public_key: dict(stats.tunnel.drops) for stats in alice.stats(START).peers}
    # The packet that waited in the tunnel, and the one that came later.
    assert drops == {BOB.public_key(): {DropReason.PEER_POISONED: 2}, CAROL.public_key(): {}}
    with pytest.raises(EngineError, match="remove it from the configuration and add it again"):
        alice.initiate_handshake(BOB.public_key(), START)

    for peers in ((to_carol,), (to_bob, to_carol)):
        alice.apply(dataclasses.replace(config, peers=peers), START)
    send(alice, [ipv4()])
    assert [transmit.destination for transmit in alice.drain().transmits] == [BOB_AT]
    with pytest.raises(KeyError):
        alice.panic(ALICE.public_key(), START)
    assert not hasattr(Node, "panic")


def test_a_node_writes_down_what_came_in_without_payloads(pair: tuple[Node, Node]) -> None:
    alice, bob = pair
    alice.record(3)
    bob.record(100)
    send(alice, [ipv4(b"secret")] * 5)
    carry(alice, bob, ALICE_AT)
    carry(bob, alice, BOB_AT, START + 0.1)
    packet = NodeInput(START, BOB.public_key(), InputKind.PACKET, len(ipv4(b"secret")), True)
    assert alice.take_recorded() == ([packet] * 3, 3)
    initiation = NodeInput(START, ALICE.public_key(), InputKind.INITIATION, 148, True)
    assert bob.take_recorded() == ([initiation], 0)
    bob.record(0)
    bob.handle_timeout(START + 600)
    assert bob.take_recorded() == ([], 0)


@pytest.mark.parametrize(("capacity", "error"), [(-1, ValueError), (2**24 + 1, ValueError), ("1", TypeError)])
def test_a_capacity_that_is_none_is_refused(
    pair: tuple[Node, Node], capacity: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^capacity must be "):
        pair[0].record(capacity)
