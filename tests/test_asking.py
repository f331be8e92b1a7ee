"""The hook that decides about first packets: through a `Node` in virtual time, and through `open_interface`."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import FrozenInstanceError, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import anyio
import pytest
import trio

from connlib import (
    Action,
    Denied,
    Direction,
    DropReason,
    Flow,
    FlowHook,
    FlowQuestion,
    InterfaceConfig,
    Node,
    NodeConfig,
    PeerConfig,
    Policy,
    PolicyStats,
    Protocol,
    Rule,
    TimeoutReason,
    Verdict,
    VerdictReason,
)
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from connlib.metrics import serve_metrics
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    Pair,
    client_config,
    gateway_config,
    in_real_time,
    in_virtual_time,
    loopback_socket,
    packet,
)
from helpers_netns import in_namespace, run_body
from test_metrics import OF_THE_CLIENT, samples
from two_tunnels import ALICE, BOB, START, UNIX_TIME

# docs/policy.md says so.
ANSWER_TIME, REFUSAL_TIME = 5.0, 10.0
MOST_HELD, MOST_PENDING_PER_PEER = 8, 64

ALICE_AT, BOB_AT = ("192.0.2.1", 51820), ("198.51.100.2", 51820)

ASKING = Policy((Rule(action=Action.DENY, protocol=47), Rule(action=Action.ASK, name="web")))


def udp(source: str, destination: str, ports: tuple[int, int], payload: bytes = b"") -> bytes:
    """A UDP packet without a checksum, of either family."""
    header = struct.pack("!HHHH", *ports, 8 + len(payload), 0)
    whole = bytearray(packet(source, destination, header + payload))
    whole[9 if whole[0] >> 4 == 4 else 6] = socket.IPPROTO_UDP
    return bytes(whole)


# --- A node ---------------------------------------------------------------------------------------------------------


class Nodes:
    """Alice, a gateway who is asked about Bob, and Bob; with a session."""

    def __init__(self, policy: Policy = ASKING) -> None:
        self.now = START
        addresses = (ip_network("10.0.0.2/32"), ip_network("fd00::2/128"))
        self.bob_of_alice = PeerConfig(
            public_key=BOB.public_key(), allowed_ips=addresses, endpoint=BOB_AT, policy=policy
        )
        everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
        alice_of_bob = PeerConfig(public_key=ALICE.public_key(), allowed_ips=everything, endpoint=ALICE_AT)
        self.config = NodeConfig(private_key=ALICE, peers=(self.bob_of_alice,))
        self.alice = Node(self.config, now=START, unix_time=UNIX_TIME)
        bob = NodeConfig(private_key=BOB, peers=(alice_of_bob,))
        self.bob = Node(bob, now=START, unix_time=UNIX_TIME)
        self.bob.initiate_handshake(ALICE.public_key(), START)
        self.exchange()
        self.alice.ask(True, START)

    def exchange(self) -> tuple[list[bytes], list[bytes]]:
        """What came out of the gateway and of the peer once everything on the way has arrived."""
        came: tuple[list[bytes], list[bytes]] = ([], [])
        quiet = False
        while not quiet:
            quiet = True
            for index, (node, other, at) in enumerate(
                ((self.alice, self.bob, ALICE_AT), (self.bob, self.alice, BOB_AT))
            ):
                output = node.drain()
                came[index].extend(output.packets)
                for _, datagram in output.transmits:
                    quiet = False
                    other.handle_datagrams(datagram, [len(datagram)], [at], self.now)
        return came

    def sends(self, *packets: bytes) -> tuple[list[bytes], list[bytes]]:
        self.bob.handle_packets(b"".join(packets), [len(each) for each in packets], self.now)
        return self.exchange()

    def gets(self, *packets: bytes) -> tuple[list[bytes], list[bytes]]:
        self.alice.handle_packets(b"".join(packets), [len(each) for each in packets], self.now)
        return self.exchange()

    @property
    def drops(self) -> dict[DropReason, int]:
        return dict(self.alice.stats(self.now).peers[0].tunnel.drops)

    @property
    def policy(self) -> PolicyStats:
        stats = self.alice.stats(self.now).peers[0].policy
        assert stats is not None
        return stats


def test_a_question_says_who_wants_what_and_which_rule_asks() -> None:
    nodes = Nodes(replace(ASKING, outbound=Action.ASK))
    nodes.sends(udp("10.0.0.2", "192.0.2.9", (5000, 53)))
    echo = bytearray(packet("fd00::2", "2001:db8::7", struct.pack("!BBHHH", 128, 0, 0, 7, 1)))
    echo[6] = socket.IPPROTO_ICMPV6
    nodes.sends(bytes(echo))
    nodes.gets(packet("192.0.2.8", "10.0.0.2"))
    first, second, third = nodes.alice.take_questions()
    assert first == FlowQuestion(
        id=1,
        peer=BOB.public_key(),
        direction=Direction.FROM_PEER,
        protocol=Protocol.UDP,
        source=IPv4Address("10.0.0.2"),
        source_port=5000,
        destination=IPv4Address("192.0.2.9"),
        destination_port=53,
        rule=2,
        rule_name="web",
    )
    assert second == replace(
        first,
        id=2,
        protocol=Protocol.ICMP,
        source=IPv6Address("fd00::2"),
        source_port=None,
        destination=IPv6Address("2001:db8::7"),
        destination_port=None,
        icmp_type=128,
    )
    assert (third.direction, third.protocol, third.rule, third.rule_name) == (
        Direction.TO_PEER,
        253,
        None,
        None,
    )
    assert third.source == ip_address("192.0.2.8") and third.name is None
    assert nodes.alice.take_questions() == []
    assert (nodes.policy.flows_pending, nodes.policy.questions, nodes.policy.flows) == (3, 3, 0)
    with pytest.raises(FrozenInstanceError):
        first.id = 3  # type: ignore[misc]


def test_an_answer_lets_everything_go_on_in_order_or_refuses_it() -> None:
    nodes = Nodes()
    nodes.alice.log_flows(10)
    allowed = [udp("10.0.0.2", "192.0.2.9", (5000, 53), bytes([number])) for number in range(3)]
    refused = [udp("10.0.0.2", "192.0.2.9", (5000, 80), bytes([number])) for number in range(2)]
    assert nodes.sends(*allowed, *refused) == ([], [])
    first, second = nodes.alice.take_questions()
    assert nodes.alice.decide(first.id, True, nodes.now) is True
    assert nodes.exchange() == (allowed, [])
    assert nodes.alice.decide(second.id, False, nodes.now) is True
    ((), (answer,)) = map(tuple, nodes.exchange())
    assert (answer[9], answer[20], answer[21], answer[28:]) == (socket.IPPROTO_ICMP, 3, 13, refused[0])
    assert nodes.drops == {DropReason.DENIED: 2}
    assert nodes.sends(allowed[0]) == ([allowed[0]], [])
    records, _ = nodes.alice.take_flows(nodes.now)
    verdicts = [record.verdict for record in records]
    assert verdicts == [
        Verdict(True, VerdictReason.HOOK, 2, "web"),
        Verdict(False, VerdictReason.HOOK, 2, "web"),
    ]
    assert records[1].refused == 2
    # Late, twice, and never asked.
    for question in (first.id, second.id, 3, 2**64 - 1):
        assert nodes.alice.decide(question, True, nodes.now) is False
    assert nodes.exchange() == ([], [])


def test_what_is_no_number_of_a_question_or_no_bool_raises() -> None:
    alice = Nodes().alice
    for question in (-1, 2**64, "1", None):
        with pytest.raises((TypeError, ValueError)):
            alice.decide(question, True, START)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        alice.decide(1, None, START)  # type: ignore[arg-type]


def test_the_deadline_of_a_question_is_the_nodes_and_has_its_own_reason() -> None:
    nodes = Nodes()
    nodes.sends(udp("10.0.0.2", "192.0.2.9", (5000, 53)))
    (question,) = nodes.alice.take_questions()
    deadline = nodes.alice.next_timeout()
    assert deadline == (START + ANSWER_TIME, TimeoutReason.UNANSWERED)
    nodes.now = deadline.at
    nodes.alice.handle_timeout(nodes.now)
    assert nodes.drops == {DropReason.UNANSWERED: 1}
    assert nodes.policy.flows_pending == 0
    assert nodes.alice.decide(question.id, True, nodes.now) is False
    after = nodes.alice.next_timeout()
    assert after is None or after.reason is not TimeoutReason.UNANSWERED


def test_what_is_over_a_bound_is_dropped_and_counted() -> None:
    nodes = Nodes()
    same = udp("10.0.0.2", "192.0.2.9", (5000, 53))
    assert nodes.sends(*[same] * (MOST_HELD + 3)) == ([], [])
    assert nodes.drops == {DropReason.PENDING_FULL: 3}
    nodes.sends(*[udp("10.0.0.2", "192.0.2.9", (5000, 1000 + number)) for number in range(80)])
    assert len(nodes.alice.take_questions()) == nodes.policy.flows_pending == MOST_PENDING_PER_PEER
    assert nodes.drops == {DropReason.PENDING_FULL: 3 + 81 - MOST_PENDING_PER_PEER}


def test_a_refusal_holds_for_ten_seconds() -> None:
    nodes = Nodes()
    question = udp("10.0.0.2", "192.0.2.9", (5000, 53))
    nodes.sends(question)
    nodes.alice.decide(1, False, nodes.now)
    for seconds, asked in ((9.999, 0), (REFUSAL_TIME, 1)):
        nodes.now = START + seconds
        nodes.sends(question)
        assert len(nodes.alice.take_questions()) == asked
    assert nodes.drops[DropReason.DENIED] == 2


def test_a_node_that_nobody_answers_for_refuses_at_once() -> None:
    nodes = Nodes()
    nodes.sends(udp("10.0.0.2", "192.0.2.9", (5000, 53)))
    nodes.alice.ask(False, nodes.now)
    ((_, event),) = nodes.alice.drain().events
    assert isinstance(event, Denied) and event.destination_port == 53
    assert event.verdict == Verdict(False, VerdictReason.NO_HOOK, 2, "web")
    nodes.sends(udp("10.0.0.2", "192.0.2.9", (5000, 54)))
    assert nodes.drops == {DropReason.DENIED: 2}
    assert nodes.alice.take_questions() == []


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict(True, VerdictReason.HOOK, 2, "web"), "allowed by the hook, asked by rule 2 (web)"),
        (Verdict(False, VerdictReason.HOOK), "denied by the hook"),
        (Verdict(False, VerdictReason.NO_HOOK, 2), "denied: there is no hook, asked by rule 2"),
        (ASKING.decide(Flow.parse("10.0.0.5/icmp:5")), "denied: it starts no flow, asked by rule 2 (web)"),
        (ASKING.decide(tcp("10.0.0.2", "192.0.2.9", RST)), "denied: it starts no flow, asked by rule 2 (web)"),
        (Verdict(False, VerdictReason.UNANSWERED, 1), "denied: no answer of the hook, asked by rule 1"),
        (Verdict(False, VerdictReason.CROWDED), "denied: too much waits for the hook"),
        (ASKING.decide(Flow.parse("10.0.0.5:443/tcp")), "asks the hook by rule 2 (web)"),
        (Policy(default=Action.ASK).decide(Flow.parse("10.0.0.5/icmp")), "asks the hook by default"),
    ],
)
def test_verdicts_say_who_was_asked_and_by_which_rule(verdict: Verdict, said: str) -> None:
    assert str(verdict) == said
    assert verdict.asks is said.startswith("asks")
    assert verdict.allowed is said.startswith("allowed")


# --- An interface ---------------------------------------------------------------------------------------------------


def asking(policy: Policy = ASKING) -> InterfaceConfig:
    config = gateway_config()
    return replace(config, peers=(replace(config.peers[0], policy=policy),))


@asynccontextmanager
async def pair(hook: FlowHook | None, config: InterfaceConfig | None = None) -> AsyncIterator[Pair]:
    """A gateway with a hook, and its client."""
    network, gateway_tun, client_tun = MemoryUdp(), MemoryTun(), MemoryTun()
    async with (
        open_interface(
            config or asking(), tun=gateway_tun, udp=network.host(GATEWAY_HOST), decide=hook
        ) as gateway,
        open_interface(client_config(), tun=client_tun, udp=network.host(CLIENT_HOST)) as client,
    ):
        yield Pair(network, gateway, client, gateway_tun, client_tun)


def flow(port: int) -> bytes:
    return udp(CLIENT, GATEWAY, (5000, port))


def drops(opened: Pair) -> dict[DropReason, int]:
    return dict(opened.gateway.stats().peers[0].tunnel.drops)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("kind", ["a function", "a coroutine function"])
def test_a_hook_of_either_kind_decides_on_either_event_loop(backend: str, kind: str) -> None:
    asked: list[FlowQuestion] = []

    def now(question: FlowQuestion) -> bool:
        asked.append(question)
        return question.destination_port == 443

    async def later(question: FlowQuestion) -> bool:
        await anyio.sleep(0)
        return now(question)

    async def main() -> None:
        with anyio.fail_after(60):
            async with pair(now if kind == "a function" else later) as opened:
                for _ in range(2):
                    await opened.client_tun.send(flow(443))
                    assert await opened.gateway_tun.receive() == flow(443)
                await opened.client_tun.send(flow(22))
                answer = await opened.client_tun.receive()
                assert (answer[9], answer[20], answer[21]) == (socket.IPPROTO_ICMP, 3, 13)
                assert drops(opened) == {DropReason.DENIED: 1}
                assert opened.gateway.stats().hook == {"asked": 2, "failed": 0, "late": 0, "skipped": 0}
        assert [(question.name, question.destination_port) for question in asked] == [
            ("client", 443),
            ("client", 22),
        ]

    anyio.run(main, backend=backend)


@in_real_time
async def test_what_the_hook_is_asked_is_served_to_prometheus() -> None:
    async with (
        pair(lambda question: question.destination_port == 443) as opened,
        serve_metrics(opened.gateway, port=0) as server,
    ):
        await opened.client_tun.send(flow(443))
        assert await opened.gateway_tun.receive() == flow(443)
        seen = await samples(server.port)
    assert seen["connlib_peer_questions_total", OF_THE_CLIENT] == 1
    assert seen["connlib_peer_flows_pending", OF_THE_CLIENT] == 0
    for what, count in (("asked", 1), ("failed", 0), ("late", 0), ("skipped", 0)):
        assert seen["connlib_hook_total", frozenset({("interface", "memory"), ("what", what)})] == count


@in_virtual_time
async def test_a_slow_answer_keeps_nobody_waiting_but_its_own_flow() -> None:
    order = []

    async def hook(question: FlowQuestion) -> bool:
        assert question.destination_port is not None
        await trio.sleep(question.destination_port / 1000)
        order.append(question.destination_port)
        return True

    async with pair(hook) as opened:
        begun = trio.current_time()
        for port in (3000, 2000, 1000):
            await opened.client_tun.send(flow(port))
        for port in (1000, 2000, 3000):
            assert await opened.gateway_tun.receive() == flow(port)
            assert trio.current_time() - begun == pytest.approx(port / 1000)
    assert order == [1000, 2000, 3000]


@in_virtual_time
async def test_a_hook_that_takes_five_seconds_is_cancelled_and_the_flow_refused() -> None:
    ended = []

    async def hook(_question: FlowQuestion) -> bool:
        begun = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time() - begun)
        return True

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        answer = await opened.client_tun.receive()
        assert (answer[20], answer[21]) == (3, 13)
        await trio.testing.wait_all_tasks_blocked()
        assert drops(opened) == {DropReason.UNANSWERED: 1}
        assert opened.gateway.stats().hook == {"asked": 1, "failed": 0, "late": 1, "skipped": 0}
    assert ended == [pytest.approx(ANSWER_TIME)]


@in_virtual_time
async def test_a_hook_that_fails_costs_the_flow_and_is_logged_once_a_minute_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(question: FlowQuestion) -> bool:
        if question.destination_port == 1000:
            return None  # type: ignore[return-value]
        raise RuntimeError("the password is hunter2")

    with caplog.at_level(logging.WARNING, "connlib"):
        async with pair(hook) as opened:
            for port in range(1000, 1020):
                await opened.client_tun.send(flow(port))
                await trio.sleep(0.1)
            assert drops(opened) == {DropReason.DENIED: 20}
            assert opened.gateway.stats().hook == {"asked": 20, "failed": 20, "late": 0, "skipped": 0}
            await trio.sleep(60)
            await opened.client_tun.send(flow(1020))
            await trio.sleep(0.1)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("the hook returned NoneType, which is not a bool, and the flow is refused")
    assert "raised RuntimeError (test_asking.py:" in second
    assert second.endswith("and the flow is refused; 19 more since the last such line")
    assert "hunter2" not in caplog.text and "Traceback" not in caplog.text


@in_virtual_time
async def test_a_hook_that_is_no_function_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(TypeError, match="decide must be a function"):
        async with pair("allow"):  # type: ignore[arg-type]
            raise AssertionError("it is up")


@in_virtual_time
async def test_leaving_the_block_cancels_the_hook() -> None:
    events = []

    async def hook(_question: FlowQuestion) -> bool:
        events.append("asked")
        try:
            await trio.sleep_forever()
        finally:
            events.append("cancelled")
        return True

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        await trio.sleep(0.1)
    assert events == ["asked", "cancelled"]


@in_virtual_time
async def test_an_answer_after_another_policy_has_decided_is_counted_as_late() -> None:
    async def hook(question: FlowQuestion) -> bool:
        assert question.name == "client"
        await trio.sleep(1)
        return False

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        await trio.sleep(0.1)
        explained = opened.gateway.explain(CLIENT_KEY.public_key())
        assert "1 flow waiting for the hook" in str(explained)
        await opened.gateway.apply(asking(Policy(default=Action.ALLOW)))
        assert await opened.gateway_tun.receive() == flow(443)
        await trio.sleep(1)
        assert opened.gateway.stats().hook == {"asked": 1, "failed": 0, "late": 1, "skipped": 0}
        assert drops(opened) == {}


@in_virtual_time
async def test_a_question_has_the_name_that_the_peer_has_by_then() -> None:
    names = []

    def hook(question: FlowQuestion) -> bool:
        names.append(question.name)
        return True

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        await opened.gateway_tun.receive()
        config = asking()
        await opened.gateway.apply(replace(config, peers=(replace(config.peers[0], name="laptop"),)))
        await opened.client_tun.send(flow(444))
        await opened.gateway_tun.receive()
    assert names == ["client", "laptop"]


@in_virtual_time
async def test_without_a_hook_flows_are_refused_at_once_and_one_line_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "connlib"):
        async with pair(None) as opened:
            begun = trio.current_time()
            await opened.client_tun.send(flow(443))
            answer = await opened.client_tun.receive()
            assert (answer[20], answer[21]) == (3, 13)
            assert trio.current_time() - begun < 1
            assert drops(opened) == {DropReason.DENIED: 1}
            assert opened.gateway.stats().hook == {}
    (line,) = (record.getMessage() for record in caplog.records)
    assert "the policy of client asks a hook" in line and "this interface has none" in line


@in_virtual_time
async def test_a_hook_that_cannot_be_cancelled_is_not_called_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connlib.asking.MOST_CALLS", 2)
    calls = []

    async def hook(question: FlowQuestion) -> bool:
        calls.append(question.destination_port)
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        return True

    async with pair(hook) as opened:
        for port in range(443, 447):
            await opened.client_tun.send(flow(port))
        await trio.sleep(10)
        assert set(calls) == {443, 444} and len(calls) == 2
        assert drops(opened) == {DropReason.UNANSWERED: 4}
        assert opened.gateway.stats().hook["asked"] == 2
        await trio.sleep(20)
        await opened.client_tun.send(flow(447))
        await trio.sleep(0.1)
        assert calls[2:] == [447]


@in_namespace
def test_connections_of_a_kernel_wait_for_the_hook_and_then_come_up_or_fail() -> None:
    """The SYN that was held is delivered: the connection needs no repetition, which would come after a second."""
    gateway_tun = MemoryTun()

    async def hook(question: FlowQuestion) -> bool:
        await trio.sleep(0.05)
        return question.destination_port == 443

    async def main() -> None:
        with loopback_socket() as udp_socket, trio.fail_after(60):
            config = replace(
                client_config(udp_socket.getsockname()), addresses=(ip_interface("10.0.0.2/24"),)
            )
            async with (
                open_interface(asking(), tun=gateway_tun, udp=udp_socket, decide=hook) as gateway,
                open_interface(replace(config, name="wgask1", mtu=1380)),
            ):
                with (
                    trio.socket.socket(trio.socket.AF_INET, socket.SOCK_STREAM) as tcp,
                    pytest.raises(OSError, match="No route to host"),
                ):
                    await tcp.connect((GATEWAY, 22))
                with trio.socket.socket(trio.socket.AF_INET, socket.SOCK_STREAM) as tcp:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(tcp.connect, (GATEWAY, 443))
                        while (arrived := await gateway_tun.receive())[9] != socket.IPPROTO_TCP:
                            pass
                        nursery.cancel_scope.cancel()
                assert arrived[22:24] == (443).to_bytes(2, "big")
                stats = gateway.stats()
                assert stats.hook["failed"] == 0 and stats.hook["asked"] >= 2
                assert stats.peers[0].tunnel.drops[DropReason.DENIED] >= 1

    trio.run(main)


run_body(globals())
