"""What `follow_link` tells a device of its link where the kernel or the system does not answer."""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import cast

import anyio
import pytest

from connlib.uapi import link
from connlib.uapi.device import Device
from connlib.uapi.link import Link, follow_link
from test_uapi_server import Run, run

__all__ = ["run"]  # the fixture


class Told:
    """In place of a device: what was told of its link, until that is enough."""

    def __init__(self, enough: int, fails: int = 0) -> None:
        self.changes: list[tuple[int | None, bool]] = []
        self._enough = enough
        self._fails = fails

    async def link_changed(self, mtu: int | None, *, up: bool) -> bool:
        self.changes.append((mtu, up))
        if len(self.changes) == self._enough:
            self._scope.cancel()
        return len(self.changes) > self._fails

    async def follow(self) -> None:
        with anyio.CancelScope() as self._scope:
            await follow_link(cast(Device, self), -1)


def answers(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, lacks: list[Exception], last: object
) -> None:
    """Have a function raise one after the other, and then do as before, or return `last` if it is not None."""
    before, left = getattr(where, name), iter(lacks)

    def answer(*arguments: object) -> object:
        for error in left:
            raise error
        return before(*arguments) if last is None else last

    monkeypatch.setattr(where, name, answer)


def lack(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A device with an MTU of 1300 that is down, and no pause before it is asked about again."""
    monkeypatch.setattr(link, "_PAUSE", 0.0)
    monkeypatch.setattr(link, "_ask", lambda _: Link(1300, up=False))
    return monkeypatch


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
@pytest.mark.parametrize("name", ["_ask", "open_notices"])
def test_what_the_system_lacks_for_a_moment_is_waited_for_and_said_once(
    run: Run, down: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, name: str
) -> None:
    answers(down, link, name, [lack(number)] * 3, None)
    told = Told(1)
    run(told.follow)
    assert told.changes == [(1300, False)]
    said = f"the link of the device cannot be asked about for now: {os.strerror(number)}"
    assert caplog.record_tuples == [("connlib.uapi", logging.WARNING, said)]


def test_what_the_device_could_not_do_it_is_told_again_though_no_link_changes(
    run: Run, down: pytest.MonkeyPatch
) -> None:
    told = Told(3, fails=2)
    run(told.follow)
    assert told.changes == [(1300, False)] * 3


def test_where_no_thread_can_be_started_it_is_asked_again(run: Run, down: pytest.MonkeyPatch) -> None:
    answers(down, threading.Thread, "start", [RuntimeError("can't start new thread")], None)
    told = Told(1)
    run(told.follow)
    assert told.changes == [(1300, False)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTTY, errno.EPERM])
def test_a_kernel_that_cannot_say_where_the_device_is_makes_the_link_count_as_up(
    run: Run, down: pytest.MonkeyPatch, number: int
) -> None:
    answers(down, link, "_ask", [lack(number)], None)
    told = Told(2)
    run(told.follow)
    assert told.changes == [(None, True)]


def test_of_a_device_that_is_deleted_nothing_is_told(run: Run, down: pytest.MonkeyPatch) -> None:
    answers(down, link, "_ask", [lack(errno.EBADFD)], None)
    told = Told(1)
    run(told.follow)
    assert told.changes == []
