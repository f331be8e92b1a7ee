"""Changes of a device that somebody is cancelled in: all or nothing, whatever the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest
import trio

from connlib._threads import ThreadCall
from connlib.links import _wait_for

PATIENCE = 30.0


class Gate:
    """A call that ends when it is let through."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.ended = False

    def __call__(self) -> None:
        assert self.opened.wait(PATIENCE)
        self.ended = True


async def cancelled_by_task_cancel(gate: Gate) -> None:
    waiter = asyncio.create_task(_wait_for(ThreadCall(gate, "gate")))
    await asyncio.sleep(0)
    for _ in range(3):
        waiter.cancel()
        await asyncio.sleep(0.001)
        assert not waiter.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def cancelled_by_wait_for(gate: Gate) -> None:
    threading.Timer(0.05, gate.opened.set).start()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(_wait_for(ThreadCall(gate, "gate")), 0.001)


@pytest.mark.parametrize("cancelled", [cancelled_by_task_cancel, cancelled_by_wait_for])
def test_asyncio_s_own_cancellation_waits_for_the_end_too(
    cancelled: Callable[[Gate], asyncio.Future[None]],
) -> None:
    gate = Gate()
    asyncio.run(cancelled(gate))  # type: ignore[arg-type]
    assert gate.ended


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_scope_s_cancellation_waits_for_the_end(backend: str) -> None:
    gate = Gate()

    async def main() -> None:
        threading.Timer(0.05, gate.opened.set).start()
        with anyio.move_on_after(0.001) as scope:
            await _wait_for(ThreadCall(gate, "gate"))
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught

    anyio.run(main, backend=backend)
    assert gate.ended


def test_worker_threads_that_are_all_taken_do_not_matter() -> None:
    gate = Gate()
    gate.opened.set()

    async def main() -> None:
        trio.to_thread.current_default_thread_limiter().total_tokens = 1
        let_go = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, let_go.wait, PATIENCE)
            await trio.testing.wait_all_tasks_blocked()
            try:
                with trio.fail_after(PATIENCE / 2):
                    await _wait_for(ThreadCall(gate, "gate"))
            finally:
                let_go.set()

    trio.run(main)
    assert gate.ended
