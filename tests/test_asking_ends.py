"""Calls of the hook that end otherwise than by an answer in time."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest
import trio

from connlib import Action, DropReason, FlowQuestion, Policy
from helpers_driver import CLIENT, CLIENT_KEY, GATEWAY, Pair, in_virtual_time
from helpers_policy import ip, udp
from test_asking import MOST_PENDING_PER_PEER
from test_asking_driver import asking, drops, flow, pair

ON_BOTH = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def back(port: int) -> bytes:
    return ip(17, udp(port, 5000), GATEWAY, CLIENT)


def test_a_look_up_that_calls_share_and_that_is_cancelled_with_one_of_them_ends_no_interface() -> None:
    """On asyncio, the other one gets the cancellation too, which is nobody's of its own."""
    shared: asyncio.Future[bool] | None = None

    async def hook(question: FlowQuestion) -> bool:
        nonlocal shared
        if question.destination_port == 445:
            return True
        shared = shared or asyncio.get_running_loop().create_future()
        if question.destination_port == 444:
            asyncio.get_running_loop().call_soon(shared.cancel)
        return await shared

    async def main() -> None:
        with anyio.fail_after(60):
            async with pair(hook) as opened:
                for port in (443, 444):
                    await opened.client_tun.send(flow(port))
                while opened.gateway.stats().hook["failed"] < 2:
                    await asyncio.sleep(0.01)
                await opened.client_tun.send(flow(445))
                assert await opened.gateway_tun.receive() == flow(445)
                assert drops(opened) == {DropReason.DENIED: 2}
                ended.append(True)

    ended: list[bool] = []
    asyncio.run(main())
    assert ended


@in_virtual_time
async def test_an_answer_that_comes_when_the_interface_has_ended_lets_nothing_begin() -> None:
    called = trio.Event()

    async def hook(question: FlowQuestion) -> bool:
        called.set()
        # As a call in a thread does, which nobody can cancel.
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return True

    async with pair(hook) as opened:
        await opened.client_tun.send(flow(443))
        await called.wait()
        gateway = opened.gateway
    stats = gateway.stats()
    assert stats.hook == {"asked": 1, "failed": 0, "late": 1, "skipped": 0}
    policy = stats.peers[0].policy
    assert policy is not None and (policy.flows, policy.flows_pending) == (0, 1)


async def until_called(calls: list[int], count: int) -> None:
    while len(calls) < count:
        await anyio.sleep(0.01)


async def ask_about_many(opened: Pair, calls: list[int]) -> None:
    """As many flows as a peer may have pending, with a call for each."""
    for port in range(1000, 1000 + MOST_PENDING_PER_PEER):
        await opened.client_tun.send(flow(port))
    await until_called(calls, MOST_PENDING_PER_PEER)


@ON_BOTH
def test_calls_about_questions_that_are_put_once_more_are_cancelled_and_use_up_nobodys_calls(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    under_way = 0

    async def hook(question: FlowQuestion) -> bool:
        nonlocal under_way
        calls.append(question.id)
        under_way += 1
        try:
            await anyio.sleep(3600)
        finally:
            under_way -= 1
        return True

    async def main() -> None:
        with anyio.fail_after(60):
            async with pair(hook) as opened:
                await ask_about_many(opened, calls)
                # More often than there are calls for: 64 * 20 > 1,024.
                for _ in range(20):
                    opened.gateway.ask_again(CLIENT_KEY.public_key())
                await until_called(calls, 2 * MOST_PENDING_PER_PEER)
                while under_way > MOST_PENDING_PER_PEER:
                    await anyio.sleep(0.01)
                assert under_way == MOST_PENDING_PER_PEER
                # Nobody is called about a question that was over before its turn came.
                asked = 2 * MOST_PENDING_PER_PEER
                assert opened.gateway.stats().hook == {"asked": asked, "failed": 0, "late": 0, "skipped": 0}
                # The same in turns of the loop.
                for number in range(3, 23):
                    opened.gateway.ask_again(CLIENT_KEY.public_key())
                    await until_called(calls, number * MOST_PENDING_PER_PEER)
                hook_stats = opened.gateway.stats().hook
                assert (hook_stats["late"], hook_stats["skipped"]) == (0, 0)
        assert caplog.records == []

    anyio.run(main, backend=backend)


@ON_BOTH
@pytest.mark.parametrize("how", ["allow", "deny", "no policy", "no peer", "let pass"])
def test_a_call_about_a_flow_that_is_decided_otherwise_is_cancelled_and_not_late(
    backend: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not this that ends the call.
    monkeypatch.setattr("connlib.asking.ANSWER_TIME", 3600.0)
    calls: list[int] = []
    ended: list[int] = []

    async def hook(question: FlowQuestion) -> bool:
        calls.append(question.id)
        try:
            await anyio.sleep(3600)
        finally:
            ended.append(question.id)
        return True

    async def main() -> None:
        with anyio.fail_after(20):
            asks = asking(Policy(default=Action.ASK, outbound=Action.ALLOW))
            async with pair(hook, asks) as opened:
                await opened.client_tun.send(flow(443))
                await until_called(calls, 1)
                (peer,) = asks.peers
                if how == "let pass":
                    await opened.gateway_tun.send(back(443))
                    assert await opened.client_tun.receive() == back(443)
                else:
                    policy = {
                        "allow": Policy(default=Action.ALLOW),
                        "deny": Policy(),
                    }.get(how)
                    peers = () if how == "no peer" else (replace(peer, policy=policy),)
                    await opened.gateway.apply(replace(asks, peers=peers))
                await until_called(ended, 1)
                await anyio.sleep(0.05)
                assert opened.gateway.stats().hook == {"asked": 1, "failed": 0, "late": 0, "skipped": 0}

    anyio.run(main, backend=backend)


@ON_BOTH
def test_a_call_in_a_thread_about_a_question_that_is_over_counts_until_it_ends(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("connlib.asking.MOST_CALLS", 2)
    calls: list[int] = []
    goes_on = threading.Event()

    async def hook(question: FlowQuestion) -> bool:
        calls.append(question.id)
        await anyio.to_thread.run_sync(goes_on.wait, 60)
        return True

    async def main() -> None:
        with anyio.fail_after(60):
            async with pair(hook) as opened:
                try:
                    await opened.client_tun.send(flow(443))
                    for number in range(1, 4):
                        await until_called(calls, number)
                        opened.gateway.ask_again(CLIENT_KEY.public_key())
                        # Long enough for everything that can be cancelled.
                        await anyio.sleep(0.05)
                    assert len(calls) == 3
                    assert opened.gateway.stats().hook["skipped"] == 1
                finally:
                    goes_on.set()
                await anyio.sleep(0.05)
                assert opened.gateway.stats().hook == {"asked": 3, "failed": 0, "late": 0, "skipped": 1}
                # They have ended, and the next flow is asked about.
                await opened.client_tun.send(flow(444))
                assert await opened.gateway_tun.receive() == flow(444)
        (line,) = (record.getMessage() for record in caplog.records)
        assert line.endswith(
            "the hook is not asked, because 2 calls of it are under way, and the flow is refused"
        )

    anyio.run(main, backend=backend)
