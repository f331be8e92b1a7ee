"""Why a peer is up or down, what happens next, and when."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_network

import pytest
import trio

from connlib import (
    InterfaceConfig,
    Node,
    NodeConfig,
    PeerConfig,
    PeerState,
    PresharedKey,
    PrivateKey,
    Role,
    explain,
)
from connlib._native import LabNode
from connlib.driver import MemoryTun, open_interface
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    PORT,
    Counted,
    Pair,
    client_config,
    gateway_config,
    in_real_time,
    in_virtual_time,
    loopback_socket,
    open_pair,
    packet,
)

GATEWAY_PEER, CLIENT_PEER = GATEWAY_KEY.public_key(), CLIENT_KEY.public_key()


def says(pair: Pair, side: str) -> tuple[PeerState, str]:
    interface, peer = {"client": (pair.client, GATEWAY_PEER), "gateway": (pair.gateway, CLIENT_PEER)}[side]
    explanation = interface.explain(peer)
    text = str(explanation)
    assert text.isprintable() and "  " not in text
    return explanation.state, text


@in_virtual_time
async def test_a_peer_that_nothing_was_sent_to_is_idle_and_one_that_has_to_come_is_waited_for() -> None:
    async with open_pair() as pair:
        assert says(pair, "client") == (
            PeerState.IDLE,
            "idle: never heard, and nothing was sent to it; next: the next packet starts a handshake",
        )
        assert says(pair, "gateway") == (
            PeerState.WAITING,
            "waiting: never heard; next: this side waits for the peer to start a session",
        )


@in_virtual_time
async def test_what_a_responder_has_to_send_waits() -> None:
    async with open_pair() as pair:
        await pair.gateway_tun.send(packet(GATEWAY, CLIENT))
        await trio.sleep(30)
        assert says(pair, "gateway") == (
            PeerState.WAITING,
            "waiting: 1 packet for it, and this side does not start sessions; next: what waits is dropped in 60.0 s",
        )


@in_virtual_time
async def test_a_session_is_told_with_its_age_and_its_next_deadline() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        await trio.sleep(5)
        state, text = says(pair, "client")
        assert (state, text) == (
            PeerState.UP,
            "up: a session of 5.0 s, heard 5.0 s ago; next: a keepalive in 5.0 s, if nothing else is sent until then",
        )
        await trio.sleep(300)
        assert says(pair, "client") == (
            PeerState.IDLE,
            "idle: the last session has ended, heard 5 min ago; next: the next packet starts a handshake",
        )


@in_virtual_time
async def test_a_responder_that_hears_nothing_starts_nothing() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        await trio.sleep(60)
        await pair.gateway_tun.send(packet(GATEWAY, CLIENT))
        await trio.sleep(1)
        # 15 s after it was sent, and up to 333 ms of jitter.
        text = says(pair, "gateway")[1]
        assert re.search(
            r"; next: the peer counts as silent in 14\.\d s, if nothing is heard until then$", text
        )


@in_virtual_time
async def test_a_peer_that_does_not_answer_is_connecting_and_then_down() -> None:
    async with open_pair(client_config(("192.0.2.99", 7))) as pair:
        await pair.client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(1)
        state, text = says(pair, "client")
        assert state is PeerState.CONNECTING
        assert text.startswith("connecting: no reply from 192.0.2.99:7 ever: it is off, ")
        assert "; next: another initiation in 4." in text
        await trio.sleep(120)
        assert says(pair, "client")[0] is PeerState.DOWN
        assert says(pair, "client")[1].startswith("down: given up: no reply from 192.0.2.99:7 ever: ")
        assert says(pair, "client")[1].endswith("; next: the next packet starts a handshake")


@in_virtual_time
async def test_preshared_keys_that_differ_are_named() -> None:
    other = PresharedKey.generate()
    async with open_pair(client_config(preshared_key=other)) as pair:
        await pair.client_tun.send(packet(CLIENT, GATEWAY))
        await trio.sleep(1)
        state, text = says(pair, "client")
        assert state is PeerState.CONNECTING
        assert (
            f"what came from {GATEWAY_HOST}:{PORT} could not be decrypted: as a rule, the preshared keys differ"
            in text
        )
        # Once they agree, that is over.
        await pair.client.apply(client_config())
        await trio.sleep(10)
        assert says(pair, "client")[0] is PeerState.UP
        assert "preshared" not in says(pair, "client")[1]


@pytest.mark.parametrize("role", [Role.RESPONDER, Role.EITHER])
def test_the_side_that_answers_says_that_its_answers_are_not_used(role: Role) -> None:
    """The preshared keys differ, or the answers get lost: a gateway, which is the side that is asked, sees no more."""

    @in_virtual_time
    async def run() -> None:
        async with open_pair(client_config(preshared_key=PresharedKey.generate())) as pair:
            await pair.gateway.apply(gateway_config(role=role))
            await pair.client_tun.send(packet(CLIENT, GATEWAY))
            await trio.sleep(1)
            unused = (
                "it starts handshakes and has not used our answers: the preshared keys differ, or the answers do not "
                "reach it, heard "
            )
            state, text = says(pair, "gateway")
            assert state is PeerState.CONNECTING
            assert (
                text == f"connecting: {unused}1.0 s ago; next: what the peer has begun is forgotten in 3 min"
            )
            # The client gave up long ago, and whatever its attempts had begun is over.
            await trio.sleep(600)
            state, text = says(pair, "gateway")
            assert state is PeerState.WAITING
            assert text.startswith(f"{state.value}: {unused}")
            assert "session has ended" not in text and "the session ends" not in text

    run()


@in_virtual_time
async def test_addresses_that_are_not_allowed_are_named_though_the_session_is_up() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        await pair.client_tun.send(packet("10.9.9.9", GATEWAY))
        await pair.client_tun.send(packet("10.9.9.9", GATEWAY))
        await trio.sleep(1)
        state, text = says(pair, "gateway")
        assert state is PeerState.UP
        assert "but 2 packets came from addresses that are not among its allowed IPs" in text


@in_virtual_time
async def test_marks_of_congestion_that_cost_packets_are_named_though_the_session_is_up() -> None:
    async with open_pair() as pair:
        await pair.exchange()
        stats = pair.gateway.stats()
        (peer,) = stats.peers
        peer = replace(peer, trouble=peer.trouble._replace(congestion_marks=2))
        assert "but 2 packets came marked for congestion" in str(explain(peer, stats.now))


@in_real_time
async def test_what_this_machine_cannot_send_is_not_put_down_to_the_peer() -> None:
    """Nobody may send to the broadcast address unasked. Of a missing route, the system says as much."""
    peer = PeerConfig(public_key=GATEWAY_PEER, endpoint=("255.255.255.255", 7))
    other = PeerConfig(public_key=CLIENT_PEER, endpoint=("127.0.0.1", 9))
    config = InterfaceConfig(private_key=PrivateKey.generate(), peers=(peer, other))
    sockets = loopback_socket()
    with sockets:
        async with open_interface(config, tun=MemoryTun(), udp=sockets) as interface:
            interface.initiate_handshake(CLIENT_PEER)
            interface.initiate_handshake(GATEWAY_PEER)
            while not any("EACCES" in name for name in interface.stats().udp):
                await trio.sleep(0.01)
            explanation = interface.explain(GATEWAY_PEER)
            assert explanation.state is PeerState.CONNECTING
            assert explanation.why == "this machine cannot send to 255.255.255.255:7: Permission denied"
            assert explanation.then == "another initiation"
            assert interface.explain(CLIENT_PEER).why.startswith("no reply from 127.0.0.1:9 ever: ")


def test_that_a_peer_has_asked_for_a_cookie_is_one_reason_among_others() -> None:
    """In front of a gateway that demands a cookie from everybody (paper section 5.3).

    A cookie reply explains the silence after one initiation. Anybody who saw that can have sent it, and the gateway may
    be off since.
    """
    to_gateway = PeerConfig(
        public_key=GATEWAY_PEER, allowed_ips=(ip_network("10.0.0.1/32"),), endpoint=(GATEWAY_HOST, PORT)
    )
    client = Node(NodeConfig(private_key=CLIENT_KEY, peers=(to_gateway,)), now=0.0, unix_time=1.7e9)
    gateway = Node(NodeConfig(private_key=GATEWAY_KEY, handshake_limit=0), now=0.0, unix_time=1.7e9)
    first = packet(CLIENT, GATEWAY)
    client.handle_packets(first, [len(first)], 0.0)
    (initiation,) = client.drain().transmits
    gateway.handle_datagrams(initiation.datagram, [len(initiation.datagram)], [(CLIENT_HOST, PORT)], 0.0)
    (reply,) = gateway.drain().transmits
    client.handle_datagrams(reply.datagram, [len(reply.datagram)], [(GATEWAY_HOST, PORT)], 0.0)
    (stats,) = client.stats(1.0).peers
    assert stats.trouble == (0, 0, 1, 0, 0)
    assert stats.last_heard is None, "anybody who saw the initiation can have sent that"
    explanation = explain(stats, 1.0)
    assert explanation.state is PeerState.CONNECTING
    why = (
        "no reply from 192.0.2.1:51820 ever, but 1 demand for a cookie: it is under load, off, does not know our "
        "public key, has another one than we believe, or something between drops UDP"
    )
    assert explanation.why == why
    assert stats.next_timeout is not None
    assert explanation.at == stats.next_timeout.at - 1.0
    for second in range(2, 120):
        client.handle_timeout(float(second))
    explanation = explain(client.stats(120.0).peers[0], 120.0)
    assert (explanation.state, explanation.why) == (PeerState.DOWN, f"given up: {why}")


@in_virtual_time
async def test_one_peer_is_explained_without_the_statistics_of_the_others() -> None:
    async with open_pair() as pair:
        (peer,) = pair.gateway.config.peers
        node = Counted(pair.gateway)
        while_open = pair.gateway.explain(peer.public_key)
        assert node.calls == {"peer_stats": 1}
    assert pair.gateway.explain(peer.public_key) == while_open, "as it was at the end"


@in_virtual_time
async def test_an_unknown_peer_is_a_key_error() -> None:
    async with open_pair() as pair:
        with pytest.raises(KeyError):
            pair.client.explain(PrivateKey.generate().public_key())


def test_a_peer_in_whose_tunnel_connlib_failed_says_so() -> None:
    peer = PeerConfig(public_key=GATEWAY_PEER, endpoint=(GATEWAY_HOST, PORT))
    node = LabNode(NodeConfig(private_key=CLIENT_KEY, peers=(peer,)), now=0.0, unix_time=1.7e9, seed=1)
    node.panic(GATEWAY_PEER, 1.0)
    (stats,) = node.stats(1.0).peers
    assert str(explain(stats, 1.0)) == (
        "down: connlib failed in this peer's tunnel, which is a bug; "
        "next: nothing, until the peer is removed and added again"
    )
