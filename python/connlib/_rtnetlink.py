"""Routes into a device by rtnetlink, many in one message to the kernel.

Not by pyroute2, which waits for each: a gateway whose thousand peers need routes of their own took seconds to start.
Numbers and layouts are those of linux/netlink.h and linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network

AT_ONCE = 128
"""Routes in one message: the kernel's answers, some 800 bytes each, have to find room in the socket's buffer."""

_ANSWERS = 1 << 16
_BUFFER = 1 << 18
"""Bytes, in which all answers to a message have room, whatever the system's default is."""
_PATIENCE = 5.0
"""Seconds for an answer, which the kernel gives before a message counts as sent."""

# struct nlmsghdr; struct rtmsg; and two attributes, the first of which has an address behind it.
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_OIF = struct.Struct("=HHI")
_NLMSG_ERROR = 2
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_VERBS = {"add": (24, _REQUEST | _ACK | _CREATE | _EXCL), "del": (25, _REQUEST | _ACK)}
_RTA_DST, _RTA_OIF = 1, 4
_TABLE_MAIN = 254
_UNICAST = 1
# What `ip route add` sets, so that our routes look like those of people and scripts.
_PROTOCOL_BOOT = 3
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253


class RouteSocket:
    """A netlink socket for routes in the network namespace of the calling thread. Raises `OSError`."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.settimeout(_PATIENCE)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def change(
        self, verb: Literal["add", "del"], index: int, prefixes: Sequence[Network]
    ) -> Iterator[tuple[Network, int]]:
        """Add or remove routes into the device `index`; those of which that failed, each with its errno.

        To be iterated: what follows an error is tried too, up to `AT_ONCE` routes, if that is not gone on with.
        """
        for start in range(0, len(prefixes), AT_ONCE):
            several = prefixes[start : start + AT_ONCE]
            first = self._sequence + 1
            self._sequence += len(several)
            self._socket.send(
                b"".join(_message(verb, index, prefix, first + place) for place, prefix in enumerate(several))
            )
            codes = self._answers(first, len(several))
            yield from ((prefix, code) for prefix, code in zip(several, codes, strict=True) if code)

    def _answers(self, first: int, count: int) -> list[int]:
        """The errno, or 0, that answers each of so many messages."""
        codes: dict[int, int] = {}
        while len(codes) < count:
            answer = self._socket.recv(_ANSWERS)
            while len(answer) >= _HEADER.size:
                length, kind, _, sequence, _ = _HEADER.unpack_from(answer)
                if kind != _NLMSG_ERROR or length < _HEADER.size + 4:
                    raise OSError(errno.EPROTO, "an answer of the kernel that is none")
                (code,) = struct.unpack_from("=i", answer, _HEADER.size)
                # Others are to a message whose answers were not waited for to the end.
                if 0 <= sequence - first < count:
                    codes[sequence - first] = -code
                answer = answer[length + 3 & ~3 :]
        return [codes[place] for place in range(count)]


def _message(verb: Literal["add", "del"], index: int, prefix: Network, sequence: int) -> bytes:
    kind, flags = _VERBS[verb]
    address = prefix.network_address.packed
    if prefix.version == 4:
        family, scope = socket.AF_INET, _SCOPE_LINK
    else:
        family, scope = socket.AF_INET6, _SCOPE_UNIVERSE
    body = (
        _ROUTE.pack(family, prefix.prefixlen, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, scope, _UNICAST, 0)
        + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _RTA_DST)
        + address
        + _OIF.pack(_OIF.size, _RTA_OIF, index)
    )
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body
