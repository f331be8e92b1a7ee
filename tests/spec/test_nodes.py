"""What takes a node: receiver indices and endpoints (paper, sections 5.4.2 and 2.1; scenarios 32 and 36)."""

from __future__ import annotations

import itertools
from ipaddress import ip_network

import pytest

from connlib import ConfigError, NodeConfig, PeerConfig, Role, SessionEstablished
from connlib._native import LabNode
from spec.node_end import Addressed, NodeEnd
from spec.pair import (
    BOTH_ROLES,
    LARGER,
    LATENCY,
    SMALLER,
    UNIX_ORIGIN,
    Address,
    Host,
    Pair,
    Sent,
    mac2,
    receiver_index,
    sender_index,
)

L = LATENCY
A_FIRST, A_THEN, B_AT = ("192.0.2.1", 51820), ("198.51.100.7", 40_000), ("192.0.2.2", 51820)
ATTACKER = ("203.0.113.66", 6)


def nodes(roles: tuple[Role, Role], **for_b: object) -> Pair:
    """Two nodes; A knows where B is. What is sent to an address at which nobody is does not arrive."""
    pair = Pair(roles, engine=NodeEnd, for_a={"endpoint": B_AT}, for_b=for_b)

    def nobody_is_there(host: Host, sent: Sent) -> bool:
        assert isinstance(sent.datagram, Addressed)
        return sent.datagram.destination != pair.peer(host).address

    pair.drop = nobody_is_there
    return pair


def end(host: Host) -> NodeEnd:
    """A host's node."""
    assert isinstance(host.tunn, NodeEnd)
    return host.tunn


def destinations(host: Host, kinds: str) -> list[Address]:
    """Where it sent datagrams of these kinds."""
    return [
        s.datagram.destination for s in host.sent if s.kind in kinds and isinstance(s.datagram, Addressed)
    ]


def changed(datagram: bytes, at: int = -1) -> bytes:
    """A datagram with one bit flipped."""
    copy = bytearray(datagram)
    copy[at] ^= 1
    return bytes(copy)


@pytest.mark.scenario(32)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_600_renewals_reuse_no_index_that_is_live(roles: tuple[Role, Role]) -> None:
    pair = nodes(roles).connect()
    for k in range(600):
        pair.initiate(k + 1, pair.a)
        pair.send(k + 1.5, pair.a, k)
        pair.send(k + 1.5, pair.b, k)
    pair.run(900)
    assert pair.a.happened(SessionEstablished) == [round(k + 1 + 2 * L, 6) for k in range(600)]
    # The first of B's was confirmed after `connect`.
    assert pair.b.happened(SessionEstablished)[1:] == [round(k + 1 + 3 * L, 6) for k in range(600)]
    assert pair.a.numbers() == pair.b.numbers() == list(range(600))
    for host, kind, first in ((pair.a, "I", pair.a_index), (pair.b, "R", pair.b_index)):
        drawn = [first] + [sender_index(sent.datagram) for sent in host.sent if sent.kind == kind]
        assert len(drawn) == 601
        # Previous, current and the one that is being made.
        assert all(len(set(drawn[n : n + 3])) == 3 for n in range(599))
        # They are random: not counted up (paper, section 5.4.2), and of 601 among 2^32 hardly two are equal.
        assert len(set(drawn)) == 601
        steps = {
            int.from_bytes(b, "little") - int.from_bytes(a, "little") for a, b in itertools.pairwise(drawn)
        }
        assert len(steps) == 600


@pytest.mark.scenario(32, polled=False)
def test_a_second_tunnel_of_the_same_peer_is_refused_and_the_first_one_keeps_its_index() -> None:
    """Nobody hands an index to a node, it draws them: what a second tunnel could share with a live one is its peer."""
    peer = PeerConfig(public_key=LARGER.public_key(), endpoint=B_AT, allowed_ips=(ip_network("10.0.0.0/8"),))
    config = NodeConfig(private_key=SMALLER, peers=(peer,))
    node = LabNode(config, now=0, unix_time=UNIX_ORIGIN, seed=1)
    other = LabNode(
        NodeConfig(
            private_key=LARGER, peers=(PeerConfig(public_key=SMALLER.public_key(), endpoint=A_FIRST),)
        ),
        now=0,
        unix_time=UNIX_ORIGIN,
        seed=2,
    )
    node.initiate_handshake(peer.public_key, 0)
    (initiation,) = node.drain().transmits
    twice = NodeConfig(private_key=SMALLER, peers=(peer, PeerConfig(public_key=peer.public_key)))
    with pytest.raises(ConfigError, match="same public key"):
        node.apply(twice, 0)
    with pytest.raises(ConfigError, match="same public key"):
        LabNode(twice, now=0, unix_time=UNIX_ORIGIN, seed=1)
    other.handle_datagrams(initiation.datagram, [len(initiation.datagram)], [A_FIRST], 0)
    (response,) = other.drain().transmits
    assert receiver_index(response.datagram) == sender_index(initiation.datagram)
    node.handle_datagrams(response.datagram, [len(response.datagram)], [B_AT], 0)
    assert [event.event for event in node.drain().events] == [SessionEstablished(initiator=True)]


@pytest.mark.scenario(36)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_when_a_moves_at_30_b_follows_after_one_datagram_without_a_handshake(
    roles: tuple[Role, Role],
) -> None:
    pair = nodes(roles).connect()
    pair.send(10, pair.a, 1)
    pair.send(20, pair.b, 2)
    pair.send(25, pair.a, 3)

    def move() -> None:
        pair.a.address = A_THEN

    pair.at(30, move)
    pair.send(31, pair.b, 4)
    pair.send(32, pair.a, 5)
    pair.send(33, pair.b, 6)
    pair.run(31.5)
    assert end(pair.b).endpoint() == A_FIRST
    pair.run(32 + L + 0.001)
    assert end(pair.b).endpoint() == A_THEN
    pair.run(119)
    assert destinations(pair.b, "D") == [A_FIRST, A_FIRST, A_THEN]
    assert pair.a.received == [(20 + L, 2), (33 + L, 6)]
    assert pair.b.numbers() == [1, 3, 5]
    assert pair.a.times("I") == pair.b.times("I") == []
    assert end(pair.a).endpoint() == B_AT


@pytest.mark.scenario(36)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_forged_and_repeated_datagrams_never_move_b(roles: tuple[Role, Role]) -> None:
    pair = nodes(roles).connect()
    pair.send(1, pair.a, 1)
    pair.send(2, pair.a, 2)
    pair.initiate(5, pair.a)
    pair.run(6)
    data = [sent.datagram for sent in pair.a.sent if sent.kind == "D"]
    (initiation,) = (sent.datagram for sent in pair.a.sent if sent.kind == "I")
    (response,) = (sent.datagram for sent in pair.b.sent if sent.kind == "R")
    # A counter that never was, data and a response that were, an initiation that was and one that nobody made.
    later = data[1][:8] + (99).to_bytes(8, "little") + data[1][16:]
    forged = [
        changed(data[1]),
        later,
        *data,
        initiation,
        changed(initiation, 100),
        response,
        bytes(64),
        b"\3" + bytes(63),
    ]
    for n, datagram in enumerate(forged):
        pair.deliver(10 + n, pair.b, datagram, ATTACKER)
    for n in range(len(forged)):
        pair.run(10.5 + n)
        assert end(pair.b).endpoint() == A_FIRST, n
    assert len(pair.b.errors) == len(forged)
    pair.send(30, pair.b, 3)
    pair.run(31)
    assert pair.a.numbers() == [3]
    assert ATTACKER not in destinations(pair.b, "IRCDK")


@pytest.mark.scenario(36)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_genuine_initiation_from_elsewhere_is_answered_there_and_moves_nothing(
    roles: tuple[Role, Role],
) -> None:
    pair = nodes(roles).connect()
    here = pair.drop
    pair.lose("I")
    pair.initiate(5, pair.a)
    pair.run(5)
    pair.drop = here
    pair.deliver(5.01, pair.b, pair.a.sent[0].datagram, ATTACKER)
    pair.run(6)
    assert destinations(pair.b, "R") == [ATTACKER]
    assert end(pair.b).endpoint() == A_FIRST
    # The response never reached A, which goes on with the session that there was.
    pair.send(7, pair.b, 1)
    pair.run(12)
    assert pair.a.received == [(7 + L, 1)]


@pytest.mark.scenario(36)
@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_genuine_cookie_reply_from_elsewhere_is_used_and_moves_nothing(roles: tuple[Role, Role]) -> None:
    pair = nodes(roles, handshake_limit=0)
    here = pair.drop
    pair.lose("C")
    pair.initiate(0, pair.a)
    pair.run(1)
    pair.drop = here
    pair.deliver(1, pair.a, pair.b.sent[0].datagram, ATTACKER)
    pair.run(11)
    assert end(pair.a).endpoint() == B_AT
    assert destinations(pair.a, "IK") == [B_AT] * 3
    assert [mac2(sent.datagram) is not None for sent in pair.a.sent if sent.kind == "I"] == [False, True]
    assert pair.b.kinds() == "CR"


@pytest.mark.parametrize("roles", BOTH_ROLES)
def test_a_response_moves_the_side_that_initiated(roles: tuple[Role, Role]) -> None:
    pair = nodes(roles)
    elsewhere = ("198.51.100.9", 9)
    lost = pair.lose("R", 1)
    pair.initiate(0, pair.a)
    pair.run(1)
    pair.b.address = elsewhere
    pair.deliver(1, pair.a, lost[0].datagram)
    pair.send(2, pair.a, 1)
    pair.run(3)
    assert destinations(pair.a, "IKD") == [B_AT, elsewhere, elsewhere]
    assert pair.b.numbers() == [1]
