"""The values of a configuration file, one at a time: text in, a typed value out, or `BadValue`.

No message quotes a value that may be key material (`connlib.config.shown` decides), and the functions for keys quote
nothing at all.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TypeVar

from ._errors import ConfigError, KeyFormatError
from ._native import PresharedKey, PrivateKey, PublicKey
from ._types import LONGEST_TIMER, SHORTEST_TIMER, Limits, Role
from .config import (
    MAX_FWMARK,
    ZONE_HINT,
    ZONE_PROBLEM,
    check_dns_entry,
    check_encryption,
    check_offload,
    shown,
)

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Key = TypeVar("Key", PublicKey, PrivateKey, PresharedKey)

# ASCII digits only: int() and float() also take other scripts' digits, underscores and blanks.
_NUMBER = re.compile(r"[0-9]{1,20}")
_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,25})?(e-?[0-9]{1,2})?", re.ASCII)
_PREFIXED = re.compile(r"[0-9a-fA-F:.]{2,45}(/[0-9]{1,3})?")


# The u-coordinates of low order on Curve25519: those of order 1, 2, 4 and 8, and the same plus 2^255 - 19 where that
# fits into 255 bits (RFC 7748 section 6.1 has the check for zero that catches them afterwards).
_PRIME = 2**255 - 19
_ORDER_8 = (
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)
_LOW_ORDER = frozenset((0, 1, *_ORDER_8, _PRIME - 1, _PRIME, _PRIME + 1))


class BadValue(Exception):
    """What is wrong with a value, and what to do about it; the caller knows the file and the line."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


@contextmanager
def as_config_error() -> Iterator[None]:
    """Raise `ConfigError` in place of `BadValue`, for who has no file and no line."""
    try:
        yield
    except BadValue as bad:
        raise ConfigError(bad.problem, hint=bad.hint) from None


def key(kind: type[Key], name: str, value: str) -> Key:
    """A key of 32 bytes in base64. The value is in no message, and in no exception that is chained to one."""
    try:
        return kind.from_base64(value)
    except KeyFormatError:
        length = f"it has {len(value)} characters" if len(value) != 44 else "it is not base64"
        raise BadValue(
            f"{name} is not a key: {length}", "a key is 32 bytes in base64: 44 characters, the last of them ="
        ) from None


def public_key(value: str, name: str = "PublicKey") -> PublicKey:
    """A peer's key. The few points of low order, with which there is no secret to agree on, are refused."""
    public = key(PublicKey, name, value)
    require_peers_key(public, name)
    return public


def require_peers_key(public: PublicKey, name: str) -> None:
    """Raise `BadValue` for a point of low order."""
    if is_low_order(public):
        raise BadValue(f"{name} is a point of low order, which is no peer's key", "correct it")


def is_low_order(public: PublicKey) -> bool:
    """Whether it is one of the points with which every private key makes the same secret."""
    # X25519 ignores the highest bit.
    return int.from_bytes(public.to_bytes(), "little") & (2**255 - 1) in _LOW_ORDER


def whole(name: str, value: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    if not _NUMBER.fullmatch(value.removeprefix("-")):
        raise BadValue(f"{name}: {shown(value)} is not a whole number", f"use {low} to {high}")
    if value.startswith("-") or not low <= int(value) <= high:
        raise BadValue(f"{name}: {value} is out of range", f"use {low} to {high}")
    return int(value)


def seconds(name: str, value: str) -> float:
    """A number of seconds that a timer can have."""
    number = float(value) if _SECONDS.fullmatch(value) else math.nan
    if not 0 < number < math.inf:
        raise BadValue(
            f"{name}: {shown(value)} is not a positive number of seconds", "use a number such as 5 or 0.5"
        )
    if not SHORTEST_TIMER <= number <= LONGEST_TIMER:
        raise BadValue(
            f"{name}: {number:g} seconds is out of range", f"use {SHORTEST_TIMER} to {LONGEST_TIMER:.0f}"
        )
    return number


def limit_range(field: str) -> tuple[int, int]:
    """The lowest and the highest count that `Limits` takes for one of its fields."""
    try:
        Limits(**{field: -1})
    except ValueError as error:
        low, high = str(error).rpartition(" must be ")[2].split(" to ")
        return int(low), int(high)
    raise AssertionError(f"{field} may be anything")


def flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise BadValue(f"{name}: {shown(value)} is neither true nor false", "use one of the two")
    return value.lower() == "true"


def role(value: str) -> Role:
    try:
        return {"either": Role.EITHER, "initiator": Role.INITIATOR, "responder": Role.RESPONDER}[
            value.lower()
        ]
    except KeyError:
        raise BadValue(f"{shown(value)} is not a role", "use either, initiator or responder") from None


def addresses(name: str, value: str) -> Iterator[Interface]:
    """Addresses with prefix lengths, separated by commas or blanks; without a length, a single host."""
    for item in _items(name, value):
        try:
            yield ipaddress.ip_interface(item)
        except ValueError:
            raise _not_an_address(name, item) from None


def prefixes(name: str, value: str) -> Iterator[Network]:
    """Prefixes, separated by commas or blanks. Bits beyond the prefix are cleared."""
    for item in _items(name, value):
        try:
            yield ipaddress.ip_network(item, strict=False)
        except ValueError:
            raise _not_an_address(name, item) from None


def dns(name: str, value: str) -> Iterator[str]:
    """Name servers and domains, separated by commas or blanks."""
    for item in _words(name, value):
        yield dns_entry(name, item)


def dns_entry(name: str, value: str) -> str:
    """The address of a name server, or a domain to search."""
    try:
        return check_dns_entry(value)
    except ConfigError as error:
        raise BadValue(f"{name}: {error.problem}", error.hint or "correct it") from None


def offload(name: str, value: str) -> str:
    """The name of an offload."""
    try:
        return check_offload(value)
    except ConfigError as error:
        raise BadValue(f"{name}: {error.problem}", error.hint or "correct it") from None


def encryption(name: str, value: str) -> str:
    """The name of an encryption."""
    try:
        return check_encryption(value)
    except ConfigError as error:
        raise BadValue(f"{name}: {error.problem}", error.hint or "correct it") from None


def _items(name: str, value: str) -> Iterator[str]:
    # `wg` ignores blanks wherever they are. Here they also separate, except around a slash.
    for item in _words(name, "/".join(part.strip() for part in value.split("/"))):
        # A netmask after the slash, or a zone after a percent sign, is Python's syntax, not WireGuard's.
        if not _PREFIXED.fullmatch(item):
            raise _not_an_address(name, item)
        yield item


def _words(name: str, value: str) -> Iterator[str]:
    for part in value.split(",") if value else ():
        words = part.split()
        if not words:
            raise BadValue(
                f"{name}: nothing between two commas, or at an end", "remove the comma that is too many"
            )
        yield from words


def _not_an_address(name: str, item: str) -> BadValue:
    return BadValue(
        f"{name}: {shown(item)} is not an IP address with a prefix length", "write 10.0.0.1/24 or fd00::1/64"
    )


def endpoint(value: str, name: str = "Endpoint") -> tuple[str, int]:
    """`host:port`, `a.b.c.d:port` or `[v6]:port`, with blanks between the parts. Names are not looked up here."""
    form = "write host:port, 192.0.2.1:51820 or [2001:db8::1]:51820"
    host, colon, port = (part.strip() for part in value.rpartition(":"))
    if not colon or not host:
        raise BadValue(f"{name}: {shown(value)} has no host or no port", form)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1].strip()
        if "%" in host:
            raise BadValue(f"{name}: {shown(host)} {ZONE_PROBLEM}", ZONE_HINT)
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise BadValue(f"{name}: {shown(host)} is not an IPv6 address", form) from None
    elif ":" in host:
        raise BadValue(f"{name}: {shown(value)} has an IPv6 address without brackets", form)
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise BadValue(f"{name}: {shown(host)} is not an IPv4 address", form) from None
    elif not re.fullmatch(r"\w[\w.-]{0,252}", host):
        raise BadValue(f"{name}: {shown(host)} is neither an address nor a host name", form)
    return host, whole(f"{name}: port", port, 1, 65535)


def keepalive(value: str) -> float | None:
    """Seconds between persistent keepalives; None if they are off."""
    if value.lower() == "off":
        return None
    number = whole("PersistentKeepalive", value, 0, 65535)
    return float(number) if number else None


def table(value: str) -> bool:
    """Whether the allowed IPs become routes."""
    if value.lower() not in ("auto", "off"):
        raise BadValue(
            f"Table: connlib does not place routes in table {shown(value)}",
            "use auto, or off and add the routes yourself",
        )
    return value.lower() == "auto"


def fwmark(value: str) -> int:
    """The mark of the sockets; 0 if there is none."""
    if value.lower() == "off":
        return 0
    if (
        not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,10}", value)
        or (number := int(value, 16 if value.startswith("0x") else 10)) > MAX_FWMARK
    ):
        raise BadValue(f"FwMark: {shown(value)} is not a mark", "use off, or 0 to 0xffffffff")
    return number


MOST_OF_NAME = 64
KEY_IN_A_NAME = "[A-Za-z0-9+/]{42,}="


def display_name(value: str) -> str:
    """What logs call a peer. One printable line, so that a log cannot be forged with it."""
    if not 1 <= len(value) <= MOST_OF_NAME or not value.isprintable():
        raise BadValue("the name is empty, longer than 64 characters, or not printable", "use a short name")
    if re.search(KEY_IN_A_NAME, value):
        raise BadValue("the name looks like a key", "use a short name")
    return value


def without_names(said: str) -> str:
    """What the parser says, without the names that it quotes: one may be a key."""
    said = re.sub(r"\(.*\)|'[^']{5,}'|\"[^\"]{5,}\"", "it", said, flags=re.DOTALL)
    said = "".join(c if c.isprintable() else " " for c in re.sub(r"[A-Za-z0-9+/=_]{13,}", "it", said))
    return said[:1].lower() + said[1:]
