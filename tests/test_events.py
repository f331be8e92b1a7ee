"""What a `Node` and an `Interface` tell beside what happens in tunnels: where peers moved, what was refused, what was
applied; and the flow log. In virtual time."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import trio

from connlib import (
    Action,
    ClosedError,
    ConfigApplied,
    ConfigDiff,
    ConfigError,
    Denied,
    Direction,
    EndReason,
    FlowEnd,
    FlowRecord,
    InterfaceEvent,
    Node,
    NodeEvent,
    PeerChange,
    PeerEvent,
    PeerRoamed,
    Policy,
    Protocol,
    Role,
    Rule,
    Verdict,
    VerdictReason,
)
from connlib.uapi.device import Device
from connlib.uapi.protocol import PeerSection, SetRequest
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    PORT,
    client_config,
    gateway_config,
    in_virtual_time,
    open_pair,
)
from helpers_policy import PEER_AT, RST, SYN, Gated, allow, back, ip, tcp, there, udp
from two_tunnels import ALICE, START, UNIX_TIME

POLICY = Policy(
    (
        allow(Protocol.TCP, 443, name="web"),
        allow(Protocol.UDP, 53),
        Rule(action=Action.DENY, protocol=Protocol.TCP, ports=(22,), name="no shell"),
    )
)


def events_of(node: Node, kind: type[NodeEvent]) -> list[NodeEvent]:
    return [event for _, event in node.drain().events if isinstance(event, kind)]


# --- Moves ---------------------------------------------------------------------------------------------------------


class Moving(Gated):
    """Alice's datagrams come from wherever she is."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[NodeEvent] = []
        self.roams(0, PEER_AT)
        self.told.clear()

    def roams(self, seconds: float, place: tuple[str, int]) -> None:
        self.now += seconds
        packet = there(udp(1, 2))
        self.peer.handle_packets(packet, [len(packet)], self.now)
        for transmit in self.peer.drain().transmits:
            self.gateway.handle_datagrams(transmit.datagram, [len(transmit.datagram)], [place], self.now)
        self.told += events_of(self.gateway, PeerRoamed)


def place(number: int) -> tuple[str, int]:
    return ("2001:db8::7", number) if number % 2 else ("203.0.113.5", number)


def test_a_peer_that_moves_is_told_with_both_places() -> None:
    pair = Moving()
    pair.roams(2, place(1))
    pair.roams(2, place(2))
    pair.roams(2, place(2))
    assert pair.told == [PeerRoamed(PEER_AT, place(1)), PeerRoamed(place(1), place(2))]


def test_a_peer_that_moves_a_thousand_times_in_ten_seconds_is_told_eleven_times_at_most() -> None:
    pair = Moving()
    pair.now += 5
    for number in range(1, 1001):
        pair.roams(0.01, place(number))
    assert 10 <= len(pair.told) <= 11
    pair.roams(2, place(1000))
    ends = [(event.old, event.new) for event in pair.told if isinstance(event, PeerRoamed)]
    assert ends[0][0] == PEER_AT and ends[-1][1] == place(1000)
    assert [new for _, new in ends[:-1]] == [old for old, _ in ends[1:]]


def test_where_a_peer_was_put_is_where_it_is_told_to_have_moved_from() -> None:
    pair = Moving()
    pair.gateway.set_endpoint(ALICE.public_key(), place(7), pair.now)
    pair.roams(2, place(8))
    assert pair.told == [PeerRoamed(place(7), place(8))]


# --- Refusals ------------------------------------------------------------------------------------------------------


def guarded(policy: Policy = POLICY) -> Gated:
    pair = Gated(policy)
    pair.gateway.drain()
    return pair


def refused(pair: Gated, *packets: bytes, to_peer: bool = False) -> list[NodeEvent]:
    """What is told when Alice sends these, or the network behind Bob does."""
    if to_peer:
        pair.gateway.handle_packets(b"".join(packets), [len(packet) for packet in packets], pair.now)
    else:
        pair.peer.handle_packets(b"".join(packets), [len(packet) for packet in packets], pair.now)
        for transmit in pair.peer.drain().transmits:
            pair.gateway.handle_datagrams(transmit.datagram, [len(transmit.datagram)], [PEER_AT], pair.now)
    return events_of(pair.gateway, Denied)


def denied(verdict: Verdict, protocol: Protocol | int | None, **fields: Any) -> Denied:
    values = {
        "direction": Direction.FROM_PEER,
        "source": ip_address("10.0.0.1"),
        "destination": ip_address("10.9.9.9"),
        "destination_port": None,
        "icmp_type": None,
        "count": 1,
    }
    return Denied(**{**values, "verdict": verdict, "protocol": protocol, **fields})


BY_DEFAULT = Verdict(False, VerdictReason.DEFAULT)
LATER = bytearray(ip(17, udp(1, 2)))
LATER[6:8] = (100).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (
            ip(6, tcp(5000, 22, SYN)),
            denied(Verdict(False, VerdictReason.RULE, 3, "no shell"), Protocol.TCP, destination_port=22),
        ),
        (ip(17, udp(5000, 80)), denied(BY_DEFAULT, Protocol.UDP, destination_port=80)),
        (ip(1, bytes([8, 0, 0, 0, 0, 1, 0, 1])), denied(BY_DEFAULT, Protocol.ICMP, icmp_type=8)),
        (
            ip(58, bytes([128, 0, 0, 0, 0, 1, 0, 1]), "fd00::1", "fd09::9"),
            denied(
                BY_DEFAULT,
                Protocol.ICMP,
                icmp_type=128,
                source=ip_address("fd00::1"),
                destination=ip_address("fd09::9"),
            ),
        ),
        (ip(58, bytes(8)), denied(BY_DEFAULT, 58)),
        (ip(47, b""), denied(BY_DEFAULT, 47)),
        (bytes(LATER), denied(Verdict(False, VerdictReason.FRAGMENT), Protocol.UDP)),
    ],
    ids=["rule", "udp", "icmp", "icmpv6", "icmpv6 over ipv4", "protocol", "fragment"],
)
def test_a_refusal_is_told_with_what_the_packet_says_and_what_decided(
    packet: bytes, expected: Denied
) -> None:
    assert refused(guarded(), packet) == [expected]


def test_a_packet_that_cannot_be_read_is_told_by_its_addresses() -> None:
    pair = guarded()
    event = denied(
        Verdict(False, VerdictReason.UNPARSEABLE),
        None,
        direction=Direction.TO_PEER,
        source=ip_address("10.9.9.9"),
        destination=ip_address("10.0.0.1"),
    )
    cut_off = bytearray(back(udp(1, 2)))
    cut_off[3] += 1
    assert refused(pair, bytes(cut_off), to_peer=True) == [event]


def test_what_starts_on_this_side_is_refused_by_outbound() -> None:
    event = denied(
        Verdict(False, VerdictReason.OUTBOUND),
        Protocol.UDP,
        direction=Direction.TO_PEER,
        source=ip_address("10.9.9.9"),
        destination=ip_address("10.0.0.1"),
        destination_port=5000,
    )
    assert refused(guarded(), back(udp(53, 5000)), to_peer=True) == [event]


def test_what_may_pass_is_no_event() -> None:
    pair = guarded()
    assert refused(pair, there(udp(5000, 53))) == []
    assert refused(pair, back(udp(53, 5000)), to_peer=True) == []


def test_a_flood_of_refusals_is_one_event_a_second_with_all_of_them_counted() -> None:
    pair = guarded()
    counts = []
    for number in range(3000):
        pair.now = START + number / 1000
        told = refused(pair, there(udp(number, 22)))
        counts += [event.count for event in told if isinstance(event, Denied)]
    assert len(counts) == 3 and counts[0] == 1
    pair.now += 1
    (rest,) = refused(pair, there(udp(1, 53)))
    assert isinstance(rest, Denied) and sum(counts) + rest.count == 3000 == pair.denied


# --- The flow log --------------------------------------------------------------------------------------------------


def logged() -> Gated:
    pair = guarded()
    pair.gateway.log_flows(100)
    return pair


def test_a_flow_is_a_record_when_it_begins_and_one_when_it_ends() -> None:
    pair = logged()
    pair.now += 7
    pair.send(there(tcp(5000, 443, SYN), 6))
    pair.reply(back(tcp(443, 5000, SYN), 6))
    pair.now += 2.5
    pair.reply(back(tcp(443, 5000, RST), 6))
    (began,), missed = pair.gateway.take_flows(pair.now)
    assert missed == 0
    assert began == FlowRecord(
        time=UNIX_TIME + 7,
        peer=ALICE.public_key(),
        direction=Direction.FROM_PEER,
        protocol=Protocol.TCP,
        source=ip_address("10.0.0.1"),
        source_port=5000,
        destination=ip_address("10.9.9.9"),
        destination_port=443,
        icmp_type=None,
        verdict=Verdict(True, VerdictReason.RULE, 1, "web"),
        id=1,
        refused=0,
        end=None,
    )
    assert pair.gateway.take_flows(pair.now + 239) == ([], 0)
    (ended,), _ = pair.gateway.take_flows(pair.now + 500)
    end = FlowEnd(
        why=EndReason.CLOSED,
        start=UNIX_TIME + 7,
        seconds=2.5,
        packets_from_peer=1,
        bytes_from_peer=40,
        packets_to_peer=2,
        bytes_to_peer=80,
    )
    assert ended == began._replace(time=UNIX_TIME + 9.5 + 240, end=end)


def test_what_is_denied_is_a_record_without_a_number() -> None:
    pair = logged()
    pair.send(there(udp(5000, 22)))
    (record,), _ = pair.gateway.take_flows(pair.now)
    assert (record.id, record.end, record.refused) == (None, None, 1)
    assert record.verdict == Verdict(False, VerdictReason.DEFAULT)
    assert (record.source_port, record.destination_port) == (5000, 22)


@pytest.mark.parametrize(
    ("seconds", "policy", "why"),
    [(120, POLICY, EndReason.EXPIRED), (1, Policy(), EndReason.REVOKED), (1, None, EndReason.REVOKED)],
)
def test_a_flow_that_is_silent_or_no_longer_allowed_says_so(
    seconds: float, policy: Policy | None, why: EndReason
) -> None:
    pair = logged()
    pair.send(there(udp(5000, 53)))
    pair.now += seconds
    pair.gateway.apply(pair.config(policy), pair.now)
    (_, ended), _ = pair.gateway.take_flows(pair.now)
    assert ended.end is not None
    assert (ended.end.why, ended.end.packets_from_peer, ended.verdict.rule) == (why, 1, 2)


def test_beyond_the_capacity_records_are_counted_and_zero_ends_the_log() -> None:
    pair = guarded()
    pair.gateway.log_flows(2)
    pair.send(*(there(udp(number, 53)) for number in range(5)))
    records, missed = pair.gateway.take_flows(pair.now)
    assert ([record.source_port for record in records], missed) == ([0, 1], 3)
    pair.gateway.log_flows(0)
    pair.send(there(udp(9, 53)))
    assert pair.gateway.take_flows(pair.now) == ([], 0)
    for capacity in (-1, 2**24 + 1, 1.5):
        with pytest.raises((ValueError, TypeError)):
            pair.gateway.log_flows(capacity)  # type: ignore[arg-type]


def test_a_rule_that_is_only_called_otherwise_is_another_one_and_ends_nothing() -> None:
    pair = logged()
    pair.send(there(udp(5000, 53)))
    renamed = Policy((allow(Protocol.ANY, name="all"),))
    assert pair.gateway.apply(pair.config(renamed), pair.now).changed == (
        PeerChange(ALICE.public_key(), ("policy",)),
    )
    assert pair.returns(back(udp(53, 5000)))
    (_, ended), _ = pair.gateway.take_flows(pair.now + 120)
    assert ended.verdict == Verdict(True, VerdictReason.RULE, 1, "all")


# --- An interface --------------------------------------------------------------------------------------------------


KEY = CLIENT_KEY.public_key()


@in_virtual_time
async def test_a_client_that_comes_and_moves_is_told_of() -> None:
    async with open_pair() as pair:
        events = pair.gateway.events()
        await pair.exchange()
        await trio.sleep(5)
        await pair.client.apply(replace(pair.client.config, listen_port=4500))
        await pair.exchange()
    told = [event async for event in events if isinstance(event.event, PeerRoamed)]
    first = (CLIENT_HOST, PORT)
    assert told == [
        PeerEvent(KEY, PeerRoamed(None, first)),
        PeerEvent(KEY, PeerRoamed(first, (CLIENT_HOST, 4500))),
    ]


@in_virtual_time
async def test_a_peer_that_is_where_it_was_configured_is_not_told_to_have_moved() -> None:
    async with open_pair() as pair:
        events = pair.client.events()
        await pair.exchange()
    assert not [event async for event in events if isinstance(event.event, PeerRoamed)]


@in_virtual_time
async def test_what_was_applied_is_told_to_every_subscriber_before_what_comes_of_it() -> None:
    async with open_pair() as pair:
        streams = [pair.client.events(), pair.client.events()]
        config = client_config(persistent_keepalive=25.0)
        diff = await pair.client.apply(config)
        assert diff == ConfigDiff(
            changed=(PeerChange(config.peers[0].public_key, ("persistent_keepalive",)),)
        )
        for stream in streams:
            happened = await anext(stream)
            assert happened == InterfaceEvent(None, ConfigApplied(diff))
            peer, event = await anext(stream)
            assert peer == config.peers[0].public_key and not isinstance(event, ConfigApplied)


@in_virtual_time
async def test_what_only_the_device_has_is_told_and_what_changed_nothing_is_not() -> None:
    async with open_pair() as pair:
        events = pair.gateway.events()
        await pair.gateway.apply(gateway_config())
        with pytest.raises(ConfigError):
            await pair.gateway.apply(replace(gateway_config(), name="other", listen_port=1))
        await pair.gateway.apply(replace(gateway_config(), listen_port=4500))
    assert [event async for event in events] == [
        InterfaceEvent(None, ConfigApplied(ConfigDiff(node=("listen_port",))))
    ]


@in_virtual_time
async def test_what_the_configuration_protocol_applies_is_told() -> None:
    async with open_pair() as pair:
        events = pair.gateway.events()
        (answer,) = await Device(pair.gateway).answer(SetRequest(listen_port=3333))
        assert answer == b"errno=0\n\n"
        diff = ConfigDiff(node=("listen_port",))
        assert await anext(events) == InterfaceEvent(None, ConfigApplied(diff))


@in_virtual_time
async def test_a_peer_of_the_configuration_protocol_starts_sessions_and_answers() -> None:
    """With the gateway as `connlib-wg` has it: whoever has a packet first begins."""
    (peer,) = client_config().peers
    peer = replace(peer, role=Role.EITHER)
    for first in ("gateway", "client"):
        async with open_pair() as pair:
            section = PeerSection(
                public_key=CLIENT_KEY.public_key(),
                endpoint=(CLIENT_HOST, pair.client.listen_port),
                allowed_ips=[(ip_network(f"{CLIENT}/32"), True)],
            )
            await pair.gateway.apply(gateway_config(role=Role.EITHER, peers=()))
            await pair.client.apply(replace(pair.client.config, role=Role.EITHER, peers=(peer,)))
            (answer,) = await Device(pair.gateway).answer(SetRequest(peers=[section]))
            assert answer == b"errno=0\n\n"
            assert [peer.role for peer in pair.gateway.config.peers] == [Role.EITHER]
            if first == "client":
                await pair.exchange()
            else:
                pair.gateway.initiate_handshake(CLIENT_KEY.public_key())
                await trio.sleep(1)
            assert pair.gateway.stats().peers[0].tunnel.session_age is not None


@in_virtual_time
async def test_an_interface_tells_refusals_and_keeps_the_flow_log() -> None:
    (peer,) = gateway_config().peers
    policy = Policy((allow(253, name="experiments"),))
    async with open_pair() as pair:
        await pair.gateway.apply(gateway_config(peers=(replace(peer, policy=policy),)))
        events = pair.gateway.events()
        pair.gateway.log_flows(100)
        await pair.exchange()
        await pair.client_tun.send(ip(17, udp(1, 2), CLIENT, GATEWAY))
        await trio.sleep(1)
        records, missed = pair.gateway.take_flows()
        assert [(record.peer, record.verdict.name, record.id) for record in records] == [
            (KEY, "experiments", 1),
            (KEY, None, None),
        ]
        assert missed == 0
        now = pair.gateway.stats().unix_time
        assert now - 2 <= records[0].time <= now
        await trio.sleep(200)
        (ended,), _ = pair.gateway.take_flows()
        assert ended.end is not None and ended.end.packets_to_peer == 1
    (told,) = [event.event async for event in events if isinstance(event.event, Denied)]
    assert told == Denied(
        Direction.FROM_PEER,
        Protocol.UDP,
        ip_address(CLIENT),
        ip_address(GATEWAY),
        2,
        None,
        Verdict(False, VerdictReason.DEFAULT),
        1,
    )
    assert pair.gateway.take_flows() == ([], 0)
    with pytest.raises(ClosedError):
        pair.gateway.log_flows(1)


@in_virtual_time
async def test_a_peer_without_a_policy_has_no_flows() -> None:
    async with open_pair() as pair:
        pair.gateway.log_flows(100)
        await pair.exchange()
        assert pair.gateway.take_flows() == ([], 0)
