"""What single texts of a gateway's file may be, stated once: `connlib schema` prints the patterns, and the reader holds
each text to the same ones. `tests/test_gateway_schema.py` compares the two.

A pattern is for a whole text, and written so that Python and ECMAScript, in which JSON Schema has them, understand it
alike: classes of ASCII, and neither `\\d`, `\\w`, `\\s` nor `\\Z`.
"""

from __future__ import annotations

import re
from functools import cache

from . import _wgvalues as values
from ._wgvalues import BadValue, Interface, Network
from .config import DOMAIN, INTERFACE_NAME, shown

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"

# RFC 4291, section 2.2: eight groups; the last two may be an IPv4 address, and `::` stands for one or more.
_GROUP = "[0-9A-Fa-f]{1,4}"
_GROUPS = f"{_GROUP}(?::{_GROUP})*"


def _at_most(number: int) -> str:
    """Not more groups than so many from here."""
    return f"(?!(?::{{0,2}}{_GROUP}(?![0-9A-Fa-f])){{{number + 1}}})"


_IPV6 = "|".join(
    (
        f"(?:{_GROUP}:){{7}}{_GROUP}",
        f"(?:{_GROUP}:){{6}}{_IPV4}",
        f"{_at_most(7)}(?:{_GROUPS})?::(?:{_GROUPS})?",
        f"{_at_most(6)}(?:{_GROUPS})?::(?:{_GROUP}:)*{_IPV4}",  # whose first number counts as a group
    )
)
_UP_TO_32 = "(?:3[0-2]|[12]?[0-9])"
_UP_TO_128 = "(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
_PORT = "(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"

# Of ASCII, letters, digits and the underscore to begin with, and then the dot and the hyphen too. What is no digit and
# no letter of another script, the reader refuses besides: the two dialects have no common word for those.
_HOST = r"(?![0-9.]+:)[^\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f][^\x00-\x2c\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]{0,252}"

ADDRESS = f"(?:{_IPV4}(?:/{_UP_TO_32})?|(?:{_IPV6})(?:/{_UP_TO_128})?)"
"""Also a prefix: there, bits beyond it are cleared."""
ENDPOINT = rf"(?:\[(?:{_IPV6})\]|{_IPV4}|{_HOST}):{_PORT}"
DNS = f"(?:{_IPV4}|{_IPV6}|{DOMAIN})"
DEVICE_NAME = INTERFACE_NAME
KEY = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
PRINTABLE = r"[^\x00-\x1f\x7f-\x9f]+"
"""Less than the reader asks for: what is printable, only Unicode's tables say."""
RANGES = {"ports": (1, 65535), "icmp_types": (0, 255)}
"""Of the lists of ranges that a rule has: the lowest number, and the highest."""
RANGE = {field: f"{number}(?:-{number})?" for field, number in (("ports", _PORT), ("icmp_types", _BYTE))}


def whole_text(pattern: str) -> str:
    """The pattern as JSON Schema wants it, where it may fit anywhere."""
    return f"^(?:{pattern})$"


NAME = {
    "minLength": 1,
    "maxLength": values.MOST_OF_NAME,
    "pattern": whole_text(PRINTABLE),
    "not": {"pattern": values.KEY_IN_A_NAME},
}
"""What JSON Schema is told of the name of a peer, or of a rule."""


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _require(pattern: str, name: str, text: str, example: str) -> None:
    """Raise `BadValue` for what has been understood, but is not written as a gateway's file has it."""
    if not _compiled(pattern).fullmatch(text):
        problem = f"{name}: {shown(text)} has blanks, or zeros in front of a number"
        raise BadValue(problem, f"write it like {example}")


def address(name: str, text: str) -> Interface:
    """An address with the length of its prefix; without one, a single host. Raises `BadValue`."""
    found = list(values.addresses(name, text))
    _require_one(name, text, len(found), "10.0.0.1/24")
    return found[0]


def prefix(name: str, text: str) -> Network:
    """A prefix. Bits beyond it are cleared. Raises `BadValue`."""
    found = list(values.prefixes(name, text))
    _require_one(name, text, len(found), "10.0.0.0/24")
    return found[0]


def _require_one(name: str, text: str, number: int, example: str) -> None:
    if number != 1:
        raise BadValue(f"{name}: {shown(text)} is not one address", f'write each in quotes: ["{example}"]')
    _require(ADDRESS, name, text, example)


def endpoint(name: str, text: str) -> str:
    """`host:port`, `a.b.c.d:port` or `[v6]:port`, as it is. Raises `BadValue`."""
    values.endpoint(text, name)
    _require(ENDPOINT, name, text, "host:51820, 192.0.2.1:51820 or [2001:db8::1]:51820")
    return text


def read_range(field: str, text: str) -> tuple[int, int]:
    """The first and the last number of a range, or the same one twice. Raises `BadValue` if it is none."""
    first, *last = (values.whole(field, end, *RANGES[field]) for end in text.split("-", 1))
    if last and first > last[0]:
        raise BadValue(f"{field}: the range {text} ends before it begins", "write the lower number first")
    low, high = RANGES[field]
    _require(RANGE[field], field, text, f"{low}-{high}")
    return first, last[0] if last else first
