"""The little of nftables that `connlib.firewall` needs, by netlink: one table, its chains and its rules.

Not by the program `nft`, because a table can belong to a netlink socket (Linux 5.12 and later): then nobody else
changes it, and the kernel removes it when that socket is closed, also where its process was killed. A program that has
ended keeps no socket. Nor by pyroute2, which sends each change as a transaction of its own.

Numbers and layouts are those of linux/netfilter/nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Expression = tuple[str, bytes]
"""One step of a rule: its kind, and its attributes."""

PREROUTING = 0
POSTROUTING = 4
PRIORITY_RAW = -300
"""Before connections are tracked."""
PRIORITY_SRCNAT = 100

IIF = 4
OIF = 5

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_ANSWER = 65_536
_PATIENCE = 5.0
"""Seconds for an answer, which the kernel gives before a message counts as sent."""

_HEADER = struct.Struct("=IHHII")
_NLMSG_ERROR = 2
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_INET = 1
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_NESTED = 0x8000
_OWNER = 0x2

_REGISTER = 1
_EQUAL, _UNEQUAL = 0, 1
_NFPROTO = 15
_NETWORK_HEADER = 1
_FIB_ADDRESS_TYPE = 3
_FIB_DESTINATION, _FIB_IIF = 0x2, 0x8
_TYPE_LOCAL = 2


class Command:
    """A change of one table, as a part of a transaction."""

    def __init__(self, kind: int, flags: int, attributes: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.attributes = attributes


def add_table(name: str, *, owned: bool = False) -> Command:
    """Make a table of IPv4 and IPv6, unless there is one. owned: it lives as long as the socket."""
    flags = _number(2, _OWNER) if owned else b""
    return Command(_NEW_TABLE, _CREATE, _text(1, name) + flags)


def delete_table(name: str) -> Command:
    """Remove a table with all that is in it."""
    return Command(_DELETE_TABLE, 0, _text(1, name))


def add_chain(table: str, name: str, kind: str, hook: int, priority: int) -> Command:
    """Make a chain, `kind` being filter or nat, that packets pass at a hook. What no rule decides goes on."""
    at = _nested(4, _number(1, hook) + _number(2, priority & 0xFFFF_FFFF))
    return Command(_NEW_CHAIN, _CREATE, _text(1, table) + _text(3, name) + at + _text(7, kind))


def add_rule(table: str, chain: str, *expressions: Iterable[Expression]) -> Command:
    """Append a rule. The packets that it decides about are counted."""
    flat = [each for several in expressions for each in several]
    flat.insert(-1, ("counter", b""))
    elements = b"".join(_nested(1, _text(1, kind) + _nested(2, data)) for kind, data in flat)
    return Command(_NEW_RULE, _CREATE | _APPEND, _text(1, table) + _text(2, chain) + _nested(4, elements))


def device_is_not(side: int, index: int) -> list[Expression]:
    """Fits packets that came in by (`IIF`), or leave by (`OIF`), another device."""
    return [_meta(side), _compare(_UNEQUAL, struct.pack("=I", index))]


def destination_is(address: IPv4Address | IPv6Address) -> list[Expression]:
    """Fits packets to an address."""
    offset = 16 if address.version == 4 else 24
    return [*_version_is(address.version), _address_at(offset, address), _compare(_EQUAL, address.packed)]


def source_in(network: IPv4Network | IPv6Network) -> list[Expression]:
    """Fits packets from a network."""
    first, mask = network.network_address, network.netmask.packed
    masked = (
        _number(1, _REGISTER)
        + _number(2, _REGISTER)
        + _number(3, len(mask))
        + _data(4, mask)
        + _data(5, bytes(len(mask)))
    )
    return [
        *_version_is(network.version),
        _address_at(12 if network.version == 4 else 8, first),
        ("bitwise", masked),
        _compare(_EQUAL, first.packed),
    ]


def destination_is_not_of_its_device() -> list[Expression]:
    """Fits packets to what is no address of the device that they came in by."""
    looked_up = (
        _number(1, _REGISTER) + _number(2, _FIB_ADDRESS_TYPE) + _number(3, _FIB_DESTINATION | _FIB_IIF)
    )
    return [("fib", looked_up), _compare(_UNEQUAL, struct.pack("=I", _TYPE_LOCAL))]


def drop() -> list[Expression]:
    """What becomes of the packet: nothing, and nobody is told."""
    return [("immediate", _number(1, 0) + _nested(2, _nested(2, _number(1, 0))))]


def masquerade() -> list[Expression]:
    """What becomes of the packet: it, and those of its flow, get the address of the device that they leave by."""
    return [("masq", b"")]


class Tables:
    """A netlink socket for changes of tables, and the owner of those that are made with `owned`."""

    def __init__(self) -> None:
        """Raises `OSError`. It is for the network namespace of the calling thread, wherever it is used."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(_PATIENCE)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def commit(self, commands: Iterable[Command]) -> None:
        """Do all of it at once, or, with an `OSError`, nothing."""
        batch = [_message(_BATCH_BEGIN, _REQUEST, self._next(), 0, _SUBSYSTEM)]
        for command in (several := list(commands)):
            # An error is always told; that there is none, once.
            flags = _REQUEST | command.flags | (_ACK if command is several[-1] else 0)
            kind = _SUBSYSTEM << 8 | command.kind
            batch.append(_message(kind, flags, self._next(), _INET, 0, command.attributes))
        batch.append(_message(_BATCH_END, _REQUEST, self._next(), 0, _SUBSYSTEM))
        sent = b"".join(batch)
        with suppress(OSError):  # what is not allowed may not be needed
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(sent) + _ANSWER)
        self._socket.send(sent)
        self._take_answer()

    def _take_answer(self) -> None:
        answer = self._socket.recv(_ANSWER)
        # There may be more errors, which follow from the first.
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(_ANSWER)
        self._socket.settimeout(_PATIENCE)
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        (code,) = struct.unpack_from("=i", answer, _HEADER.size) if kind == _NLMSG_ERROR else (-errno.EPROTO,)
        if code:
            raise OSError(-code, os.strerror(-code))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def close(self) -> None:
        """Close the socket; the tables that it owns are gone then."""
        self._socket.close()


def _message(
    kind: int, flags: int, sequence: int, family: int, resource: int, attributes: bytes = b""
) -> bytes:
    body = struct.pack(">BBH", family, 0, resource) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, attributes)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


def _data(kind: int, value: bytes) -> bytes:
    return _nested(kind, _attribute(1, value))


def _meta(key: int) -> Expression:
    return "meta", _number(1, _REGISTER) + _number(2, key)


def _compare(operation: int, value: bytes) -> Expression:
    return "cmp", _number(1, _REGISTER) + _number(2, operation) + _data(3, value)


def _version_is(version: int) -> list[Expression]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return [_meta(_NFPROTO), _compare(_EQUAL, bytes([family]))]


def _address_at(offset: int, address: IPv4Address | IPv6Address) -> Expression:
    read = _number(1, _REGISTER) + _number(2, _NETWORK_HEADER) + _number(3, offset)
    return "payload", read + _number(4, len(address.packed))
