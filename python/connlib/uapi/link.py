"""What others do with the TUN device: its MTU, and when it is first set up, in whatever network namespace it is.

The device is known by its descriptor only. Its name and its namespace are asked for anew whenever the kernel says that
some link has changed, so that neither renaming nor moving it matters. Nothing of ours stays in that namespace: a socket
would keep it, and the device in it, when everybody else has left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import math
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from connlib._threads import ThreadCall
from connlib.routes import open_notices, read_all

from .device import Device

_log = logging.getLogger("connlib.uapi")

T = TypeVar("T")

_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)
"""Descriptors, memory, threads: no answer of the kernel's to what it was asked."""

_PAUSE = 1.0
"""Seconds until it is asked again."""

# linux/if_tun.h, linux/sockios.h, linux/if.h, linux/sched.h
_TUNGETIFF = 0x8004_54D2
_TUNGETDEVNETNS = 0x54E3
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_IFF_UP = 0x1
_CLONE_NEWNET = 0x4000_0000
# struct ifreq: 16 bytes of name, then a union that begins with the flags (16 bits), or the MTU (32 bits).
_IFREQ_FLAGS = struct.Struct("16sH22x")
_IFREQ_MTU = struct.Struct("16si20x")

# linux/netlink.h, linux/rtnetlink.h, linux/net_namespace.h
_SOL_NETLINK = 270
_NETLINK_LISTEN_ALL_NSID = 8
_RTMGRP_LINK = 0x1
_RTM_NEWNSID = 88
_NLM_F_REQUEST = 1
_NETNSA_NSID = 1
_NETNSA_FD = 3
# struct nlmsghdr, struct rtgenmsg with its padding, and two attributes of 32 bits.
_NSID_REQUEST = struct.Struct("=IHHII4x HHi HHi")


@dataclass(frozen=True, slots=True)
class Link:
    """A device as it is now."""

    mtu: int
    up: bool


async def follow_link(device: Device, tun: int) -> None:
    """Tell a device what becomes of its link, until this is cancelled or the link is gone.

    tun: the descriptor of the TUN device.

    Where the kernel cannot say where the device is (before Linux 5.6), the link counts as up, with the MTU that the
    interface has. While the system only lacks something to ask with, the device is told nothing.
    """
    try:
        with await _once_possible(lambda: open_notices(_RTMGRP_LINK)) as notices:
            # And in any namespace that this one has a number for.
            notices.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            while True:
                link = await _once_possible(lambda: ThreadCall(lambda: _ask(tun), "connlib-link").result())
                is_done = link is None or await device.link_changed(link.mtu, up=link.up)
                # What failed is done again, not only when some link changes.
                with anyio.move_on_after(math.inf if is_done else _PAUSE):
                    await anyio.wait_readable(notices)
                read_all(notices)
    except OSError as error:
        if error.errno == errno.EBADFD:
            return  # it was deleted; whoever reads from it says so
        _log.warning("the MTU of the device cannot be followed: %s", error.strerror)
        await device.link_changed(None, up=True)


async def _once_possible(call: Callable[[], T]) -> T:
    """What a call returns, which is repeated while it fails for what the system may have again later."""
    said = False
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno not in _LACKS:
                raise
            if not said:
                _log.warning("the link of the device cannot be asked about for now: %s", error.strerror)
            said = True
        await anyio.sleep(_PAUSE)


def _ask(tun: int) -> Link | None:
    """The link now; None if it was renamed or moved meanwhile, of which there will be a notice.

    To be called in a thread of its own, which ends in another namespace than it began in.
    """
    namespace = fcntl.ioctl(tun, _TUNGETDEVNETNS)
    try:
        _number(namespace)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(namespace)
    name, _ = _IFREQ_FLAGS.unpack(fcntl.ioctl(tun, _TUNGETIFF, bytes(_IFREQ_FLAGS.size)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(name, 0))
            _, flags = _IFREQ_FLAGS.unpack(answer)
            _, mtu = _IFREQ_MTU.unpack(fcntl.ioctl(any_socket, _SIOCGIFMTU, _IFREQ_MTU.pack(name, 0)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
    return Link(mtu, bool(flags & _IFF_UP))


def _number(namespace: int) -> None:
    """Have this thread's namespace number another one, so that what happens there is told here.

    No answer is waited for: it has a number already, or the kernel gives it one before this returns.
    """
    size = _NSID_REQUEST.size
    request = _NSID_REQUEST.pack(
        *(size, _RTM_NEWNSID, _NLM_F_REQUEST, 0, 0), *(8, _NETNSA_FD, namespace), *(8, _NETNSA_NSID, -1)
    )
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as route_socket:
        route_socket.sendto(request, (0, 0))
