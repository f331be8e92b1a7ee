"""`connlib capture NAME -o FILE`: the packets of a running interface, for Wireshark."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import trio

from connlib._text import counted
from connlib.capture import Target, opened_target
from connlib.control import CapturedFile, ControlClient, ControlError

STANDARD_OUTPUT = "-"
_PRIVATE_KEY = (
    "{what} will hold the private key of {name}: whoever has it can read the traffic, and can be this end of the "
    "tunnels until the key is changed"
)


def run(name: str, file: str, *, run_dir: str, outer: bool, inner: bool, keys: bool, snaplen: int) -> None:
    """Write the file until Ctrl-C, or until the interface goes down. Raises `CaptureError` and `ControlError`."""
    client = ControlClient(name, directory=run_dir)
    if keys:
        what = "what is written" if file == STANDARD_OUTPUT else file
        _say("warning: " + _PRIVATE_KEY.format(what=what, name=name))

    async def follow() -> None:
        async with (
            client.capture(outer=outer, inner=inner, keys=keys, snaplen=snaplen) as captured,
            trio.open_nursery() as nursery,
        ):
            # Here, because a refusal must not leave a file.
            with _target(file) as target, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                nursery.start_soon(_stop, name, captured, signals)
                _say(f"{name}: capturing, stop with Ctrl-C")
                if keys:
                    _say("what is encrypted can be read from each peer's next handshake on")
                await _write(name, captured, target)
                nursery.cancel_scope.cancel()

    trio.run(follow)


async def _stop(name: str, captured: CapturedFile, signals: AsyncIterator[int]) -> None:
    """The first signal has the rest of the file come, and the second one does without it. Raises `ControlError`."""
    await anext(signals)
    await captured.stop()
    await anext(signals)
    raise ControlError("connection", [f"{name}: stopped before all of the file had come"])


async def _write(name: str, captured: CapturedFile, target: Target) -> None:
    packets = missed = 0
    async for news, data in captured:
        packets, missed = news.packets, news.missed
        for peer in news.readable:
            _say(f"{peer}: can be read from now on")
        target.write(data)
    _say(f"{name}: {counted(packets, 'packet')}" + (f", {missed:,} missed" if missed else ""))


@contextmanager
def _target(file: str) -> Iterator[Target]:
    if file != STANDARD_OUTPUT:
        with opened_target(file) as target:
            yield target
        return
    with open(os.dup(1), "wb", buffering=0) as stream, opened_target(stream, "standard output") as target:
        yield target


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
