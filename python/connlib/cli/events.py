"""`connlib events NAME`: what happens on a running interface, as it happens."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import trio

from connlib.control import ControlClient, ReportedEvents


def run(name: str, *, run_dir: str, as_json: bool) -> None:
    """Print a line for each event until the interface goes down or Ctrl-C comes. Raises `ControlError`."""

    async def follow() -> None:
        async with (
            ControlClient(name, directory=run_dir).events() as events,
            trio.open_nursery() as nursery,
        ):
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                nursery.start_soon(_stop, signals, nursery.cancel_scope)
                # Not among the events, which may go to a file or another program.
                print(f"{name}: following; stop with Ctrl-C", file=sys.stderr, flush=True)
                await _print(name, events, as_json)
                print(f"{name}: went down", file=sys.stderr, flush=True)
                nursery.cancel_scope.cancel()

    trio.run(follow)


async def _stop(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """A signal is the way to end it, and no failure."""
    await anext(signals)
    scope.cancel()


async def _print(name: str, events: ReportedEvents, as_json: bool) -> None:
    async for event in events:
        if as_json:
            print(msgspec.json.encode(event).decode(), flush=True)
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
        who = event.name or event.peer or name
        print(f"{when}.{int(event.time % 1 * 1000):03d}  {who}  {event.text}", flush=True)
