"""The hook of `open_interface`: when it is asked, what its answers do, and what is said if it fails or is missing."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_interface

import anyio
import pytest
import trio

from connlib import Action, ClosedError, DropReason, FlowHook, FlowQuestion, InterfaceConfig, Policy
from connlib.driver import MemoryTun, MemoryUdp, open_interface
from connlib.metrics import serve_metrics
from helpers_driver import (
    CLIENT,
    CLIENT_HOST,
    CLIENT_KEY,
    GATEWAY,
    GATEWAY_HOST,
    GATEWAY_KEY,
    Pair,
    client_config,
    gateway_config,
    in_real_time,
    in_virtual_time,
    loopback_socket,
)
from helpers_netns import in_namespace, run_body
from helpers_policy import ip, udp
from test_asking import ANSWER_TIME, ASKING
from test_metrics import OF_THE_CLIENT, samples
from two_tunnels import ALICE


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
    return ip(17, udp(5000, port), CLIENT, GATEWAY)


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
async def test_a_hook_that_takes_five_seconds_is_cancelled_and_the_flow_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "memory: the hook gave no answer within 5 s, and the flow is refused"


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
    assert "raised RuntimeError (test_asking_driver.py:" in second
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
async def test_where_another_policy_has_decided_nobody_waits_for_the_hook() -> None:
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
        assert opened.gateway.stats().hook == {"asked": 1, "failed": 0, "late": 0, "skipped": 0}
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
    assert line == (
        "memory: the policy of client asks a hook, and this interface has none (`decide` of open_interface is one): "
        "what it would be asked about is refused"
    )


@in_virtual_time
async def test_without_a_hook_each_peer_that_begins_to_ask_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet, loud = asking(Policy()), asking()
    another = replace(loud.peers[0], public_key=ALICE.public_key(), name="another", allowed_ips=())
    both = replace(loud, peers=(*loud.peers, another))
    async with pair(None, quiet) as opened:
        for config in (quiet, loud, replace(loud, mtu=1300), both, both, loud, loud):
            await opened.gateway.apply(config)
        assert [record.getMessage().partition(" asks ")[0] for record in caplog.records] == [
            "memory: the policy of client",
            "memory: the policy of another",
        ]
        # Once more, after it has stopped.
        await opened.gateway.apply(both)
        assert len(caplog.records) == 3


@in_virtual_time
async def test_a_hook_that_cannot_be_cancelled_is_not_called_without_end_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
        assert opened.gateway.stats().hook == {"asked": 2, "failed": 0, "late": 0, "skipped": 2}
        policy = opened.gateway.stats().peers[0].policy
        assert policy is not None and policy.questions == 4
        await trio.sleep(20)
        assert opened.gateway.stats().hook["late"] == 2
        await opened.client_tun.send(flow(447))
        await trio.sleep(0.1)
        assert calls[2:] == [447]
        await trio.sleep(40)
        await opened.client_tun.send(flow(448))
        await trio.sleep(10)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith(
        "the hook is not asked, because 2 calls of it are under way, and the flow is refused"
    )
    assert second.endswith(
        "the hook gave no answer within 5 s, and the flow is refused; 4 more since the last such line"
    )


@in_virtual_time
async def test_a_call_that_hangs_is_told_of_while_it_hangs(caplog: pytest.LogCaptureFixture) -> None:
    async def hook(question: FlowQuestion) -> bool:
        with trio.CancelScope(shield=question.destination_port == 443):
            await trio.sleep(60)
        return True

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        await trio.sleep(ANSWER_TIME + 0.1)
        # With the next that the interface does.
        await opened.client_tun.send(flow(444))
        await trio.sleep(0.1)
        (line,) = (record.getMessage() for record in caplog.records)
        assert line.endswith("the hook gave no answer within 5 s, and the flow is refused")
        assert opened.gateway.stats().hook["late"] == 0


@in_virtual_time
async def test_whom_the_hook_is_asked_about_again_has_nothing_that_it_let_begin_or_refused() -> None:
    may = {443}
    waits = trio.Event()

    async def hook(question: FlowQuestion) -> bool:
        answer = question.destination_port in may
        if question.destination_port == 445:
            await waits.wait()
        return answer

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        assert await opened.gateway_tun.receive() == flow(443)
        await opened.client_tun.send(flow(444))
        assert (await opened.client_tun.receive())[20:22] == bytes([3, 13])
        may.add(445)
        await opened.client_tun.send(flow(445))
        await trio.sleep(0.1)
        # Somebody else is at the other end from now on; an answer about the one before is on its way.
        may.clear()
        may.add(444)
        opened.gateway.ask_again(CLIENT_KEY.public_key())
        waits.set()
        assert (await opened.client_tun.receive())[20:22] == bytes([3, 13])
        await opened.client_tun.send(flow(443))
        assert (await opened.client_tun.receive())[20:22] == bytes([3, 13])
        await opened.client_tun.send(flow(444))
        assert await opened.gateway_tun.receive() == flow(444)
        assert drops(opened) == {DropReason.DENIED: 3}
        assert opened.gateway.stats().hook == {"asked": 6, "failed": 0, "late": 0, "skipped": 0}
        with pytest.raises(KeyError, match="no peer has"):
            opened.gateway.ask_again(GATEWAY_KEY.public_key())
        gateway = opened.gateway
    with pytest.raises(ClosedError):
        gateway.ask_again(CLIENT_KEY.public_key())


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
