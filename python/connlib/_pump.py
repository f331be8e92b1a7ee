"""Both ends of an interface at once, where both have descriptors: one wait for all of them, and one call that moves
what there is, both ways, for as long as there is enough of it. Or a thread that does nothing else.

The event loop and the Python around a turn cost as much as a hundred packets, because nothing of them is in the
processor's caches any more after these. So a turn moves many hundreds, in rounds that are small enough for the caches.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import anyio

from ._errors import DeviceError
from ._native import Node, Pump, Worker
from .tun import TunEnd, queues_of
from .udp import UdpEnd, sockets_of

_BUDGET = 1024
"""Packets and datagrams that one turn moves before other tasks have theirs: two milliseconds or so."""


class DescriptorPump:
    """Waits for the descriptors of both ends as one, and moves what there is."""

    def __init__(self, pump: Pump, device: int, name: str) -> None:
        self.refused = 0
        """Datagrams and packets so far that no peer was found for."""
        self._pump = pump
        self._device = device
        self._name = name
        self._wait_readable = _waiter()

    async def wait(self) -> None:
        """Until there is something to do."""
        await self._wait_readable(self._pump)

    async def pause(self, seconds: float) -> None:
        """Leave what comes from the network alone for so long, unless the device has something meanwhile."""
        with anyio.move_on_after(seconds):
            await anyio.wait_readable(self._device)

    def turn(self, now: float) -> tuple[int, float | None, bool]:
        """Move what there is, within bounds: how much that was, the node's next deadline, and whether it has more to
        say: events, questions, timestamps, a device that is down or gone."""
        try:
            moved, refused, deadline, is_notable = self._pump.turn(now, _BUDGET)
        except OSError as error:
            raise _error(self._name, error) from error
        self.refused += refused
        return moved, deadline, is_notable

    def watch(self) -> None:
        """The ends were called otherwise: wait for what is full now."""
        try:
            self._pump.watch()
        except OSError as error:
            raise _error(self._name, error) from error

    def close(self) -> None:
        """Nobody may be waiting."""
        self._pump.close()


class WorkerThread:
    """A thread that moves packets, or one for each queue of the device, and what they say."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker = worker
        self._name = name
        self._wait_readable = _waiter()

    @property
    def timer_wakes(self) -> int:
        """How often a deadline of the node was reached."""
        return self._worker.timer_wakes

    async def wait(self) -> None:
        """Until the node has something to say, or the device is down or gone, or the wall clock was set.

        Raises what ended the thread, if anything did: `DeviceError`, `EngineError`, `ClosedError`.
        """
        await self._wait_readable(self._worker)
        try:
            self._worker.take()
        except OSError as error:
            raise _error(self._name, error) from error

    def wake(self) -> None:
        """The node was called otherwise: have the thread send what it put out, and learn its next deadline."""
        self._worker.wake()

    def give_up(self) -> None:
        """Have the thread give up its capabilities."""
        self._worker.give_up()

    def stop(self) -> None:
        """End the thread, once its turn is over: a few milliseconds at most."""
        self._worker.stop()

    def close(self) -> None:
        """The same, and give its descriptors back. Nobody may be waiting."""
        self._worker.close()


def _waiter() -> Callable[[Pump | Worker], Awaitable[None]]:
    """What waits in this event loop. In trio's that is trio's own function: the way to it through anyio is as long as a
    third of all that a wake costs, in caches that are cold."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return trio.lowlevel.wait_readable
    return anyio.wait_readable


def pump_for(tun: TunEnd, udp: UdpEnd, node: Node) -> DescriptorPump | None:
    """None where an end is in memory. Raises `DeviceError` if the kernel cannot wait for them."""
    queues, sockets = queues_of(tun), sockets_of(udp)
    if not queues or not sockets:
        return None
    tun_io, descriptor = queues[0]
    try:
        return DescriptorPump(Pump(tun_io, sockets[0], node), descriptor, tun.name)
    except OSError as error:
        raise _error(tun.name, error) from error


def worker_for(tun: TunEnd, udp: UdpEnd, node: Node, unix_epoch: float) -> WorkerThread | None:
    """None where an end is in memory. Raises `DeviceError` if the kernel cannot wait for them, or makes no thread.

    unix_epoch: what the wall clock shows less the time of `BootClock`, in seconds, as the node knows it.
    """
    devices, sockets = [io for io, _ in queues_of(tun)], sockets_of(udp)
    if not devices or not sockets:
        return None
    beside = list(zip(devices[1:], sockets[1:], strict=True))
    try:
        return WorkerThread(Worker(devices[0], sockets[0], node, unix_epoch, beside), tun.name)
    except OSError as error:
        raise _error(tun.name, error) from error


def _error(name: str, error: OSError) -> DeviceError:
    hint = "see whether the descriptors are a device's and sockets', and whether the system lacks memory"
    return DeviceError.from_os(f"cannot wait for packets of {name}", error, hint=hint)
