"""Requests and answers of the configuration protocol, without I/O.

A request is lines `key=value` that an empty line ends. The first line is its operation, `get=1` or `set=1`. Those of a
`set` are settings of the interface up to the first `public_key`, and from then on of the peer that was named last.

`RequestParser` takes bytes as they come, keeps only what it has understood of them, and never raises for what is in
them: a bad request is read to its end and becomes a `Refused`, with the line, what is wrong, and the errno for the
client. No message holds a value that may be a key.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Literal, NamedTuple, TypeAlias

from connlib._native import PresharedKey, PrivateKey, PublicKey
from connlib._text import host_and_port
from connlib.config import MAX_FWMARK

LONGEST_LINE = 256
"""Bytes. The longest one that says something has 78: `preshared_key=` and 64 digits."""

LARGEST_REQUEST = 1 << 26
"""Bytes. A million allowed IPs in one request are half of it."""

Network = IPv4Network | IPv6Network


class Unchanged(enum.Enum):
    """The value of a setting that a request does not mention, where None means to remove it."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@dataclass(slots=True, kw_only=True)
class PeerSection:
    """What a request says of one peer. Complete once the parser has handed it out."""

    public_key: PublicKey
    remove: bool = False
    update_only: bool = False
    """Whether a peer that is not there yet stays so."""
    preshared_key: PresharedKey | Literal[Unchanged.UNCHANGED] | None = UNCHANGED
    endpoint: tuple[str, int] | None = None
    """None: not mentioned. An endpoint cannot be removed."""
    persistent_keepalive: int | None = None
    """Seconds, 0 for none; None: not mentioned."""
    replace_allowed_ips: bool = False
    allowed_ips: list[tuple[Network, bool]] = field(default_factory=list)
    """Prefixes, in order, each with whether it is added (or else taken away)."""


@dataclass(slots=True, kw_only=True)
class SetRequest:
    """`set=1`: settings to change. Complete once the parser has handed it out."""

    private_key: PrivateKey | Literal[Unchanged.UNCHANGED] | None = UNCHANGED
    listen_port: int | None = None
    """0: any port; None: not mentioned."""
    fwmark: int | None = None
    """0: none; None: not mentioned."""
    replace_peers: bool = False
    peers: list[PeerSection] = field(default_factory=list)
    """In order; a peer may come more than once."""


class GetRequest(NamedTuple):
    """`get=1`: tell everything."""


class Refused(NamedTuple):
    """A request that is wrong in itself."""

    errno: int
    line: int
    """In the request, counted from 1."""
    problem: str
    final: bool = False
    """Whether what follows on the connection cannot be understood any more."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}"


Request: TypeAlias = GetRequest | SetRequest | Refused


class _Wrong(Exception):
    """What is wrong with a line."""

    def __init__(self, problem: str, number: int = errno.EINVAL) -> None:
        super().__init__(problem)
        self.problem = problem
        self.errno = number


class RequestParser:
    """Makes requests of bytes that arrive in pieces of any size."""

    def __init__(self, largest: int = LARGEST_REQUEST) -> None:
        self._largest = largest
        self._rest = b""
        self._request: GetRequest | SetRequest | None = None
        self._refused: Refused | None = None
        self._line = 0
        self._size = 0

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come since the last one was complete."""
        return self._line == 0 and not self._rest

    def feed(self, data: bytes) -> Iterator[Request]:
        """Take the next bytes; the requests that they complete, in order. To be iterated to its end.

        After a `Refused` that is `final`, nothing comes any more.
        """
        if self._refused is not None and self._refused.final:
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._size += len(line) + 1
            if line:
                self._take(line)
            elif (request := self._complete()) is not None:
                yield request
        if len(self._rest) > LONGEST_LINE:
            # It is refused when it is complete, however long it will be: of what follows, one byte stands for all.
            self._size += len(self._rest) - LONGEST_LINE - 1
            self._rest = self._rest[: LONGEST_LINE + 1]
        if self._size > self._largest:
            self._refuse(f"a request of more than {self._largest} bytes", errno.E2BIG)
            assert self._refused is not None
            self._refused = self._refused._replace(errno=errno.E2BIG, final=True)
            self._request, self._rest = None, b""
            yield self._refused

    def _take(self, line: bytes) -> None:
        self._line += 1
        if self._refused is not None:
            return
        try:
            self._understand(line)
        except _Wrong as wrong:
            self._refuse(wrong.problem, wrong.errno)

    def _refuse(self, problem: str, number: int) -> None:
        # The first error of a request is its answer.
        if self._refused is None:
            self._refused = Refused(number, self._line, problem)

    def _complete(self) -> Request | None:
        """The end of a request, or an empty line where there is none."""
        request = self._refused or self._request
        self._request, self._refused, self._line, self._size = None, None, 0, 0
        return request

    def _understand(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            raise _Wrong(f"a line of more than {LONGEST_LINE} bytes", errno.EPROTO)
        name, equals, value = line.partition(b"=")
        if not equals:
            raise _Wrong("not of the form key=value", errno.EPROTO)
        request = self._request
        if request is None:
            self._request = _operation(name, value)
        elif isinstance(request, GetRequest):
            raise _Wrong("get=1 takes no settings")
        elif name == b"public_key":
            request.peers.append(PeerSection(public_key=PublicKey.from_bytes(_key(name, value))))
        elif request.peers:
            _setting(_PEER_SETTINGS, name, "a peer")(request.peers[-1], value)
        else:
            _setting(_SETTINGS, name, "the interface")(request, value)


def _operation(name: bytes, value: bytes) -> GetRequest | SetRequest:
    if name not in (b"get", b"set"):
        raise _Wrong("a request begins with get=1 or set=1", errno.EPROTO)
    if value != b"1":
        raise _Wrong(f"{name.decode()}: only version 1 is known", errno.EPROTO)
    return GetRequest() if name == b"get" else SetRequest()


# --- Settings, each with what it does to a request --------------------------------------------------------------------


def _private_key(request: SetRequest, value: bytes) -> None:
    key = _key(b"private_key", value)
    request.private_key = PrivateKey.from_bytes(key) if any(key) else None


def _listen_port(request: SetRequest, value: bytes) -> None:
    request.listen_port = _number(b"listen_port", value, 65535)


def _fwmark(request: SetRequest, value: bytes) -> None:
    request.fwmark = _number(b"fwmark", value, MAX_FWMARK)


def _replace_peers(request: SetRequest, value: bytes) -> None:
    request.replace_peers = _true(b"replace_peers", value)


def _remove(peer: PeerSection, value: bytes) -> None:
    peer.remove = _true(b"remove", value)


def _update_only(peer: PeerSection, value: bytes) -> None:
    peer.update_only = _true(b"update_only", value)


def _preshared_key(peer: PeerSection, value: bytes) -> None:
    key = _key(b"preshared_key", value)
    peer.preshared_key = PresharedKey.from_bytes(key) if any(key) else None


def _endpoint(peer: PeerSection, value: bytes) -> None:
    host, colon, port = value.rpartition(b":")
    try:
        if host[:1] + host[-1:] == b"[]":
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(
                host[1:-1].decode("ascii")
            )
        else:
            address = ipaddress.IPv4Address(host.decode("ascii"))
    except ValueError:
        raise _Wrong("endpoint: not of the form 192.0.2.1:51820 or [2001:db8::1]:51820") from None
    if not colon or "%" in str(address):
        raise _Wrong("endpoint: an address with a zone is not supported")
    number = _number(b"endpoint", port, 65535)
    if number == 0:
        raise _Wrong("endpoint: the port 0 is nobody's")
    peer.endpoint = (str(address), number)


def _persistent_keepalive(peer: PeerSection, value: bytes) -> None:
    peer.persistent_keepalive = _number(b"persistent_keepalive_interval", value, 65535)


def _replace_allowed_ips(peer: PeerSection, value: bytes) -> None:
    peer.replace_allowed_ips = _true(b"replace_allowed_ips", value)
    # What was said to be added goes again, and does not go back to whoever had it.
    added = dict.fromkeys(network for network, is_added in peer.allowed_ips if is_added)
    peer.allowed_ips[:] = [(network, is_added) for is_added in (True, False) for network in added]


# Without a netmask, a zone or a bare address, which `ipaddress` would take.
_PREFIX = re.compile(rb"-?([0-9a-fA-F:.]{2,45})/([0-9]{1,3})")


def _allowed_ip(peer: PeerSection, value: bytes) -> None:
    match = _PREFIX.fullmatch(value)
    try:
        if match is None:
            raise ValueError
        network = _network(match[1].decode("ascii"), int(match[2]))
    except (ValueError, OSError):
        raise _Wrong(
            "allowed_ip: not of the form 10.0.0.0/24 or fd00::/64, with a - before it or not"
        ) from None
    peer.allowed_ips.append((network, value[:1] != b"-"))


def _network(address: str, length: int) -> Network:
    """Bits beyond the prefix are cleared: `wg` sends them as they were given. Raises `ValueError` or `OSError`.

    Reading the text by `ipaddress` would take five times as long, and there may be a hundred thousand of them.
    """
    if ":" in address:
        return IPv6Network((inet_pton(AF_INET6, address), length), strict=False)
    return IPv4Network((inet_pton(AF_INET, address), length), strict=False)


def _protocol_version(peer: PeerSection, value: bytes) -> None:
    if value != b"1":
        raise _Wrong("protocol_version: only version 1 is known")


_SETTINGS: dict[bytes, Callable[[SetRequest, bytes], None]] = {
    b"private_key": _private_key,
    b"listen_port": _listen_port,
    b"fwmark": _fwmark,
    b"replace_peers": _replace_peers,
}
_PEER_SETTINGS: dict[bytes, Callable[[PeerSection, bytes], None]] = {
    b"allowed_ip": _allowed_ip,
    b"remove": _remove,
    b"update_only": _update_only,
    b"preshared_key": _preshared_key,
    b"endpoint": _endpoint,
    b"persistent_keepalive_interval": _persistent_keepalive,
    b"replace_allowed_ips": _replace_allowed_ips,
    b"protocol_version": _protocol_version,
}
_KNOWN = {*_SETTINGS, *_PEER_SETTINGS}
_READ_ONLY = {b"last_handshake_time_sec", b"last_handshake_time_nsec", b"rx_bytes", b"tx_bytes", b"errno"}


def _setting(
    settings: dict[bytes, Callable[..., None]], name: bytes, owner: str
) -> Callable[[object, bytes], None]:
    if (found := settings.get(name)) is not None:
        return found
    # An unknown name is not repeated: it may be a key that lost its name.
    if name in _READ_ONLY:
        raise _Wrong(f"{name.decode()} cannot be set")
    if name in _KNOWN:
        raise _Wrong(f"{name.decode()} is not a setting of {owner}")
    raise _Wrong(f"no setting of {owner}")


_HEX_KEY = re.compile(rb"[0-9a-fA-F]{64}")
_DIGITS = re.compile(rb"[0-9]{1,10}")


def _key(name: bytes, value: bytes) -> bytes:
    if not _HEX_KEY.fullmatch(value):
        raise _Wrong(f"{name.decode()}: not a key of 64 hexadecimal digits")
    return bytes.fromhex(value.decode("ascii"))


def _number(name: bytes, value: bytes, most: int) -> int:
    number = int(value) if _DIGITS.fullmatch(value) else -1
    if not 0 <= number <= most:
        raise _Wrong(f"{name.decode()}: not a number from 0 to {most}")
    return number


def _true(name: bytes, value: bytes) -> Literal[True]:
    if value != b"true":
        raise _Wrong(f"{name.decode()}: can only be true")
    return True


# --- Answers ----------------------------------------------------------------------------------------------------------


class PeerState(NamedTuple):
    """A peer as an answer shows it."""

    public_key: PublicKey
    preshared_key: PresharedKey | None
    endpoint: tuple[str, int] | None
    last_handshake: tuple[int, int]
    """Seconds since 1970 and nanoseconds; zeros if there was none."""
    tx_bytes: int
    rx_bytes: int
    persistent_keepalive: int
    """Seconds; 0 for none."""
    allowed_ips: Iterable[Network]


LINES_A_PIECE = 512
"""How many lines of an answer are made at a time."""


def answer_to_get(
    private_key: PrivateKey | None, listen_port: int, fwmark: int, peers: Iterable[PeerState]
) -> Iterator[bytes]:
    """The answer to a `GetRequest`, piece by piece: a peer may have more allowed IPs than are formatted in a moment."""
    piece: list[str] = []
    for line in _lines(private_key, listen_port, fwmark, peers):
        piece.append(line)
        if len(piece) >= LINES_A_PIECE:
            yield _encoded(piece)
            piece = []
    yield _encoded([*piece, "errno=0", ""])


def _encoded(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _lines(
    private_key: PrivateKey | None, listen_port: int, fwmark: int, peers: Iterable[PeerState]
) -> Iterator[str]:
    if private_key is not None:
        yield f"private_key={private_key.to_bytes().hex()}"
    yield f"listen_port={listen_port}"
    if fwmark:
        yield f"fwmark={fwmark}"
    for peer in peers:
        yield f"public_key={peer.public_key.to_bytes().hex()}"
        if peer.preshared_key is not None:
            yield f"preshared_key={peer.preshared_key.to_bytes().hex()}"
        yield "protocol_version=1"
        if peer.endpoint is not None:
            yield f"endpoint={host_and_port(*peer.endpoint)}"
        seconds, nanoseconds = peer.last_handshake
        yield f"last_handshake_time_sec={seconds}"
        yield f"last_handshake_time_nsec={nanoseconds}"
        yield f"tx_bytes={peer.tx_bytes}"
        yield f"rx_bytes={peer.rx_bytes}"
        yield f"persistent_keepalive_interval={peer.persistent_keepalive}"
        for network in peer.allowed_ips:
            yield f"allowed_ip={network}"


def answer_to_set(number: int) -> bytes:
    """The answer to a `SetRequest`, and to a request that was refused: 0, or an errno.

    With a minus, as the kernel returns errors: `wg` takes the number for one of those.
    """
    return f"errno={-number}\n\n".encode("ascii")
