"""Leaving the terminal: the process that was started ends when the one that goes on is ready, with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def take_standard_descriptors() -> None:
    """Have the null device in place of each standard stream that the process was started without.

    To be called before anything else is opened: that would have their numbers, and whoever lets go of the standard
    streams, or writes to them, would mean them.
    """
    # What is opened has the lowest number that is free.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def detach(*, keep_output: bool) -> Callable[[int], None]:
    """Go on in a process of its own session, without a terminal; only there, this returns.

    To be called while there is one thread, and no key. What it returns is to be called with the exit code of the
    process that was started: 0 when everything is ready; later calls do nothing. It lets go of the standard streams
    then, except that output goes where it went if `keep_output`. Without that call, the exit code is 1 at the end.

    Raises `SystemExit` in the process that was started. `BrokenPipeError` comes from the call in the other one, if the
    first has ended before: nobody waits for it any more.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        raise SystemExit(_await(child, reader))
    os.close(reader)
    # A process that leads no session never gets a terminal again.
    os.setsid()
    if os.fork():
        os._exit(0)

    waiting = [writer]

    def report(code: int) -> None:
        while waiting:
            if code == 0:
                _let_go(keep_output)
            pipe = waiting.pop()
            try:
                os.write(pipe, bytes([code]))
            finally:
                os.close(pipe)

    return report


def _await(child: int, reader: int) -> int:
    """The exit code that comes through the pipe; 1 if the other process ends without a word."""
    try:
        os.waitpid(child, 0)
        code = os.read(reader, 1)
    finally:
        os.close(reader)
    return code[0] if code else 1


def _let_go(keep_output: bool) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, 0)
        if not keep_output:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os.dup2(null, 1)
            os.dup2(null, 2)
    finally:
        if null > 2:
            os.close(null)
