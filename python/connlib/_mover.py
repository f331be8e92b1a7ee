"""How packets get from one end of an interface to the other: three ways, of which each interface has the best that its
ends and its configuration allow.

- `WorkerMover`: a thread of its own waits and moves packets, without the interpreter, which it calls only for what is
  worth it: events, questions, timestamps, a device that is gone. A device with several queues has one for each.
- `PumpMover`: the event loop waits for all descriptors as one, and one call moves what there is, both ways.
- `Mover`: a task of the event loop for each end. Ends in memory, and systems other than Linux.

Whatever happened, the interface then calls `take` for what the node has to say, and `rest` when it has seen to that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from ._native import Node
from ._pump import DescriptorPump, WorkerThread, pump_for, worker_for
from ._turns import BUDGET, serve
from ._types import PeerEvent
from .clock import Alarm
from .tun import TunEnd
from .udp import UdpEnd

_DRAIN_PAUSE = 0.001
"""Seconds between two attempts to send what waits for a descriptor."""


class Ends(NamedTuple):
    """What a mover moves between, and what it has of the interface."""

    tun: TunEnd
    udp: UdpEnd
    node: Node
    alarm: Alarm
    now: Callable[[], float]
    """The time for the next call of the node."""
    settle: Callable[[], None]
    """Sees to what the node has to say."""


class Mover:
    """Tasks that wait for each end, and move batches."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._tasks: TaskGroup | None = None
        self._draining: set[tuple[UdpEnd | TunEnd, int]] = set()

    @property
    def timer_wakes(self) -> int:
        """Deadlines that it has met by itself."""
        return 0

    def start(self, tasks: TaskGroup) -> None:
        """Move packets until the tasks are cancelled."""
        self._tasks = tasks
        tasks.start_soon(self._read_tun)
        for family in self._ends.udp.families:
            tasks.start_soon(self._receive, family)

    def take(self) -> Sequence[PeerEvent]:
        """Take out what the node put out, and send it; returns the events."""
        tun, udp, node = self._ends.tun, self._ends.udp, self._ends.node
        udp.send(node)
        tun.write(node)
        output = node.drain()
        # Real ends have taken their part; what comes as Python objects is for ends in memory.
        udp.deliver(output.transmits)
        tun.deliver(output.packets)
        return output.events

    def rest(self) -> None:
        """Learn when the node wants to be called next, and what is full."""
        self._set_alarm()
        for end in (self._ends.udp, self._ends.tun):
            for descriptor in end.blocked():
                if self._tasks is not None and (end, descriptor) not in self._draining:
                    self._draining.add((end, descriptor))
                    self._tasks.start_soon(self._drain, end, descriptor)

    def give_up_rights(self) -> None:
        """What moves packets needs no capabilities: give up what this thread of the program does not give up itself."""

    def stop(self) -> None:
        """Another one moves packets from now on; its tasks are cancelled, but have not ended."""

    def close(self) -> None:
        """Its tasks have ended."""
        self._tasks = None

    def _set_alarm(self) -> None:
        deadline = self._ends.node.next_timeout()
        self._ends.alarm.set(None if deadline is None else deadline.at)

    async def _read_tun(self) -> None:
        ends = self._ends

        def turn() -> int:
            count = ends.tun.read(ends.node, ends.now(), BUDGET)
            ends.settle()
            ends.tun.check()
            return count

        await serve(ends.tun.wait_readable, turn)

    async def _receive(self, family: int) -> None:
        ends = self._ends

        def turn() -> int:
            count = ends.udp.receive(ends.node, ends.now(), BUDGET, family)
            ends.settle()
            ends.tun.check()
            return count

        async def wait_readable() -> None:
            await ends.udp.wait_readable(family)

        await serve(wait_readable, turn, lambda: ends.node.unclaimed)

    async def _drain(self, end: UdpEnd | TunEnd, descriptor: int) -> None:
        """Send what a descriptor did not take at once."""
        try:
            while descriptor in end.blocked():
                await anyio.wait_writable(descriptor)
                self._ends.settle()
                # Something is taken, but the next buffer full of it will take a while to leave.
                await anyio.sleep(_DRAIN_PAUSE)
        finally:
            self._draining.discard((end, descriptor))


class PumpMover(Mover):
    """One task that waits for all descriptors, and moves much in one call."""

    def __init__(self, ends: Ends, pump: DescriptorPump) -> None:
        super().__init__(ends)
        self._pump = pump

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._move)

    def rest(self) -> None:
        self._set_alarm()
        self._pump.watch()

    def close(self) -> None:
        self._pump.close()

    async def _move(self) -> None:
        ends, pump = self._ends, self._pump

        def turn() -> int:
            count, deadline, is_notable = pump.turn(ends.now())
            ends.alarm.set(deadline)
            if is_notable:
                ends.settle()
                ends.tun.check()
            return count

        await serve(pump.wait, turn, lambda: pump.refused, pump.pause)


class WorkerMover(Mover):
    """A thread that keeps the node's time, too, and a task that sees to what it says."""

    def __init__(self, ends: Ends, worker: WorkerThread) -> None:
        super().__init__(ends)
        self._worker = worker

    @property
    def timer_wakes(self) -> int:
        return self._worker.timer_wakes

    def start(self, tasks: TaskGroup) -> None:
        # What was set before is met by the thread.
        self._ends.alarm.set(None)
        tasks.start_soon(self._heed)

    def take(self) -> Sequence[PeerEvent]:
        return self._ends.node.take_events()

    def rest(self) -> None:
        self._worker.wake()

    def give_up_rights(self) -> None:
        self._worker.give_up()

    def stop(self) -> None:
        self._worker.stop()

    def close(self) -> None:
        self._worker.close()

    async def _heed(self) -> None:
        while True:
            await self._worker.wait()
            # Says if the wall clock was set, and the node knows it.
            self._ends.now()
            self._ends.settle()
            self._ends.tun.check()


def queues_for(wanted: int) -> int:
    """How many queues of a device would be served, of so many that are wanted: the event loop serves one."""
    return wanted if sys.platform == "linux" else 1


def mover_for(ends: Ends, worker_epoch: float | None) -> Mover:
    """The best way between these ends.

    worker_epoch: what the wall clock showed when the node's was at zero, in seconds since 1970, if a thread may move
    packets, which knows the system's clocks only; None if not.

    Raises `DeviceError` if the kernel cannot wait for them.
    """
    if sys.platform == "linux":
        if worker_epoch is not None and (worker := worker_for(ends.tun, ends.udp, ends.node, worker_epoch)):
            return WorkerMover(ends, worker)
        if (pump := pump_for(ends.tun, ends.udp, ends.node)) is not None:
            return PumpMover(ends, pump)
    return Mover(ends)
