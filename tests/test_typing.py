"""What a type checker sees: mypy checks this file, and the tests check that the values agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import connlib
from connlib import (
    Batch,
    ConfigDiff,
    DropReason,
    Event,
    Node,
    NodeConfig,
    NodeOutput,
    NodeStats,
    Output,
    PeerConfig,
    PeerEvent,
    Policy,
    PolicyStats,
    PresharedKey,
    PrivateKey,
    PublicKey,
    Role,
    Timeout,
    TimeoutReason,
    Transmit,
    Tunn,
    TunnStats,
    Verdict,
    VerdictReason,
    upstream,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value: Any, kind: Any) -> Any:
        return value


def test_keys() -> None:
    private = assert_type(PrivateKey.generate(), PrivateKey)
    public = assert_type(private.public_key(), PublicKey)
    assert isinstance(assert_type(public.to_base64(), str), str)
    assert isinstance(assert_type(public.to_bytes(), bytes), bytes)
    assert isinstance(assert_type(PresharedKey.from_bytes(bytearray(32)), PresharedKey), PresharedKey)
    assert isinstance(assert_type({public: 1}, dict[PublicKey, int]), dict)


def check_engine(engine: Tunn | upstream.Tunn) -> None:
    output = assert_type(engine.encapsulate(b"", 1.0), Output)
    assert_type(output.datagrams, list[bytes])
    assert_type(output.packets, list[bytes])
    assert_type(output.events, list[Event])
    assert_type(output.error, DropReason | None)
    datagrams, packets, events, error = output
    assert (type(datagrams), type(packets), type(events)) == (list, list, list)
    assert error is None or isinstance(error, DropReason)
    assert_type(engine.decapsulate(b"", 1.0, ("192.0.2.1", 1)), Output)
    assert_type(engine.handle_timeout(1), Output)
    assert_type(engine.initiate_handshake(1.0), Output)
    timeout = assert_type(engine.next_timeout(), Timeout | None)
    assert timeout is not None
    assert isinstance(assert_type(timeout.at, float), float)
    assert isinstance(assert_type(timeout.reason, TimeoutReason), TimeoutReason)
    batch = assert_type(engine.encapsulate_batch(b"", (), 1.0), Batch)
    assert isinstance(assert_type(batch.data, bytes), bytes)
    assert_type(batch.lengths, list[int])
    assert_type(batch.errors, list[tuple[int, DropReason]])
    assert isinstance(batch, Batch)
    stats = assert_type(engine.stats(1.0), TunnStats)
    assert isinstance(assert_type(stats.drops, Mapping[DropReason, int]), Mapping)
    assert_type(stats.rtt, float | None)
    assert isinstance(assert_type(stats.tx_bytes, int), int)
    assert isinstance(assert_type(stats.loss, float), float)
    assert isinstance(assert_type(stats.handshake_pending, bool), bool)


def test_tunnels() -> None:
    own, peer = PrivateKey.generate(), PrivateKey.generate().public_key()
    tunn = assert_type(Tunn(own, peer, now=0, unix_time=0, role=Role.INITIATOR), Tunn)
    tunn.set_preshared_key(None, 0)
    check_engine(tunn)
    check_engine(upstream.Tunn(own, peer, now=0, unix_time=0))


def test_events_narrow_by_their_class() -> None:
    def describe(event: Event) -> str:
        if isinstance(event, connlib.GaveUp):
            return f"gave up on {assert_type(event.dropped, int)}"
        if isinstance(event, connlib.SessionEstablished):
            return "initiator" if assert_type(event.initiator, bool) else "responder"
        if isinstance(event, connlib.Dropped):
            assert_type(event.reason, DropReason)
        return type(event).__name__

    assert describe(connlib.GaveUp(3)) == "gave up on 3"
    assert describe(connlib.SessionEstablished(initiator=True)) == "initiator"
    assert describe(connlib.Dropped(DropReason.QUEUE_TIMEOUT, 2)) == "Dropped"
    assert describe(connlib.PeerSilent()) == "PeerSilent"


def test_nodes() -> None:
    peer = PeerConfig(public_key=PrivateKey.generate().public_key(), endpoint=("192.0.2.1", 1))
    config = NodeConfig(private_key=PrivateKey.generate(), peers=(peer,))
    node = assert_type(Node(config, now=0.0, unix_time=0.0), Node)
    assert isinstance(assert_type(node.apply(config, 0.0), ConfigDiff), ConfigDiff)
    node.initiate_handshake(peer.public_key, 0.0)
    output = assert_type(node.drain(), NodeOutput)
    (transmit,) = assert_type(output.transmits, list[Transmit])
    assert isinstance(transmit, Transmit)
    host, port = assert_type(transmit.destination, tuple[str, int])
    assert (host, port) == ("192.0.2.1", 1)
    (event,) = assert_type(output.events, list[PeerEvent])
    assert assert_type(event.peer, PublicKey) == peer.public_key
    stats = assert_type(node.stats(0.0), NodeStats)
    assert isinstance(stats.peers, tuple)
    assert_type(stats.peers[0].endpoint, tuple[str, int] | None)
    assert assert_type(node.pending(), tuple[int, int, int]) == (0, 0, 0)


def test_policies() -> None:
    verdict = assert_type(Policy().decide(b""), Verdict)
    assert assert_type(verdict.allowed, bool) is False
    assert assert_type(verdict.reason, VerdictReason) is VerdictReason.UNPARSEABLE
    assert assert_type(verdict.rule, int | None) is None
    peer = PeerConfig(public_key=PrivateKey.generate().public_key(), policy=Policy())
    node = Node(NodeConfig(private_key=PrivateKey.generate(), peers=(peer,)), now=0.0, unix_time=0.0)
    (stats,) = node.stats(0.0).peers
    assert isinstance(assert_type(stats.policy, PolicyStats | None), PolicyStats)
