"""Calls of the hook that end otherwise than by an answer in time."""

from __future__ import annotations

import asyncio

import anyio
import trio

from connlib import DropReason, FlowQuestion
from helpers_driver import in_virtual_time
from test_asking_driver import drops, flow, pair


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
