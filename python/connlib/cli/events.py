"""`connlib events NAME`: what happens on a running interface, as it happens."""

from __future__ import annotations

import sys
import time

import msgspec
import trio

from connlib.control import ControlClient


def run(name: str, *, run_dir: str, as_json: bool) -> None:
    """Print a line for each event until the interface goes down or Ctrl-C comes. Raises `ControlError`."""

    async def follow() -> None:
        async with ControlClient(name, directory=run_dir).events() as events:
            # Not among the events, which may go to a file or another program.
            print(f"{name}: following; stop with Ctrl-C", file=sys.stderr, flush=True)
            async for event in events:
                if as_json:
                    print(msgspec.json.encode(event).decode(), flush=True)
                    continue
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
                who = event.name or event.peer or name
                print(f"{when}.{int(event.time % 1 * 1000):03d}  {who}  {event.text}", flush=True)
            print(f"{name}: went down", file=sys.stderr, flush=True)

    trio.run(follow)
