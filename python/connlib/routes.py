"""Notice when the machine has other addresses or routes than before, and would send to a peer from elsewhere.

A node sends to a peer from the address that the peer has reached. The system refuses one that is gone, and another is
taken; but one that is still there, on a way that leads nowhere any more, it does not refuse.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio
import anyio.lowlevel

from ._native import Node

# linux/rtnetlink.h: links, and for both families addresses, routes and rules.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18

_ANYBODY = (("198.51.100.1", 9), ("2001:db8::1", 9))
"""Addresses for documentation, which stand for the default routes: the peers of now may be elsewhere than those of the
last change. Nothing is sent there."""

_PAUSE = 0.5
"""Seconds for which further notices wait: what changes changes in bursts, and asking costs some 50 us a peer."""
_SLICE = 32
"""Peers that are asked for before others have their turn."""


_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Of an error that says nothing about the network, and passes."""

T = TypeVar("T")


def open_notices(groups: int) -> socket.socket:
    """A netlink socket that becomes readable when something of these groups (RTMGRP_*) changes in this namespace.

    Raises `OSError` where there is none.
    """
    family: int | None = getattr(socket, "AF_NETLINK", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, "no netlink")
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    notices = socket.socket(family, kind, socket.NETLINK_ROUTE)
    try:
        notices.bind((0, groups))
    except BaseException:
        notices.close()
        raise
    return notices


def read_all(notices: socket.socket) -> None:
    """Throw away what the notices say: what there is now is to be asked for, since some may have been lost."""
    while True:
        try:
            notices.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


async def forget_stale_sources(node: Node, set_up: Callable[[socket.socket], None]) -> None:
    """Have the node forget from where it sends, whenever the system would send from another address than before.

    It runs until it is cancelled; it returns at once on a system that does not tell.

    set_up: makes a socket of the function's own like those that send, which may have a mark.
    """

    async def opened() -> socket.socket:
        return open_notices(_GROUPS)

    try:
        notices, waited = await _as_soon_as_possible(opened)
    except OSError:
        return
    with notices:
        before, waited_again = await _as_soon_as_possible(lambda: _choices(node, set_up))
        if waited or waited_again:
            # What has changed meanwhile, nobody knows.
            node.forget_sources()
        while True:
            await anyio.wait_readable(notices)
            read_all(notices)
            now, _ = await _as_soon_as_possible(lambda: _choices(node, set_up))
            if any(now[remote] != source for remote, source in before.items() if remote in now):
                node.forget_sources()
            before = now
            await anyio.sleep(_PAUSE)


async def _as_soon_as_possible(function: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
    """What a function returns as soon as it finds descriptors and memory, and whether that took time."""
    waited = False
    while True:
        try:
            return await function(), waited
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
        waited = True
        await anyio.sleep(_PAUSE)


async def _choices(
    node: Node, set_up: Callable[[socket.socket], None]
) -> Mapping[tuple[str, int], str | None]:
    """From which address the system would send to each peer, and to anybody; None if it cannot.

    Raises `OSError` where that cannot be found out now.
    """
    choices: dict[tuple[str, int], str | None] = {}
    for endpoint in {*_ANYBODY, *node.endpoints().values()}:
        choices[endpoint] = _choice(endpoint, set_up)
        if len(choices) % _SLICE == 0:
            await anyio.lowlevel.checkpoint()
    return choices


def _choice(remote: tuple[str, int], set_up: Callable[[socket.socket], None]) -> str | None:
    try:
        return source_towards(remote, set_up)
    except OSError as error:
        if error.errno in _SCARCE:
            raise
        return None


def source_towards(remote: tuple[str, int], set_up: Callable[[socket.socket], None]) -> str:
    """From which address the system would send there now. Raises `OSError` if it would not; nothing is sent."""
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        set_up(probe)
        # For UDP this sends nothing: it only looks the way up.
        probe.connect(remote)
        return str(probe.getsockname()[0])
