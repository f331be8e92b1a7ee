"""What a rule of a gateway's file says, alone and among the others of its peer."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from . import _wgvalues as values
from ._gatewayvalues import NAME, RANGE, RANGES, read_range, whole_text
from ._policy import ICMP, ICMPV6, MOST_RANGES, MOST_RULES, TCP, UDP, Action, Protocol, Rule
from ._wgvalues import BadValue, as_config_error
from .config import Prefix


class GatewayRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a peer may reach, or may not. The first rule that fits a packet decides."""

    allow: Annotated[
        bool | Literal["ask"],
        Meta(
            description="Whether what fits this rule passes; ask leaves that to the hook of the program that runs "
            "the gateway. connlib up has none, and refuses it."
        ),
    ]
    name: Annotated[
        str | None,
        Meta(
            description="What the rule is called where it decides. Up to 64 printable characters.",
            extra_json_schema=NAME,
        ),
    ] = None
    protocol: Annotated[
        Literal["tcp", "udp", "icmp"] | Annotated[int, Meta(ge=0, le=255)] | None,
        Meta(description="The protocol, or its number; every one if left out. icmp is ICMPv6 as well."),
    ] = None
    to: Annotated[
        Annotated[tuple[Prefix, ...], Meta(min_length=1)] | None,
        Meta(description="Destinations, as prefixes; everywhere if left out."),
    ] = None
    ports: Annotated[
        Annotated[
            tuple[
                Annotated[str, Meta(pattern=whole_text(RANGE["ports"]))]
                | Annotated[int, Meta(ge=1, le=65535)],
                ...,
            ],
            Meta(min_length=1),
        ]
        | None,
        Meta(description='Destination ports of tcp or udp, such as 443 and "8000-8080"; all if left out.'),
    ] = None
    icmp_types: Annotated[
        Annotated[
            tuple[
                Annotated[str, Meta(pattern=whole_text(RANGE["icmp_types"]))]
                | Annotated[int, Meta(ge=0, le=255)],
                ...,
            ],
            Meta(min_length=1),
        ]
        | None,
        Meta(description='Types of icmp messages, such as 8 and "133-136"; all if left out.'),
    ] = None

    def __post_init__(self) -> None:
        # What is neither would count as true, and allow.
        if not isinstance(self.allow, bool) and self.allow != "ask":
            raise TypeError('allow must be a bool or "ask"')
        with as_config_error():
            if self.name is not None:
                values.display_name(self.name)
            if isinstance(self.protocol, int):
                values.whole("protocol", str(self.protocol), 0, 255)
            elif self.protocol not in (None, "tcp", "udp", "icmp"):
                raise BadValue("protocol: there is none of this name", "use tcp, udp, icmp or a number")
            for field in ("to", "ports", "icmp_types"):
                check_some(field, getattr(self, field))
            check_protocol_of_ranges(self.protocol, bool(self.ports), bool(self.icmp_types))
            self.to_rule()

    def to_rule(self) -> Rule:
        """What a `Policy` is made of."""
        protocol = self.protocol
        return Rule(
            action=Action.ASK if self.allow == "ask" else Action.ALLOW if self.allow else Action.DENY,
            protocol=protocol if isinstance(protocol, int) else Protocol(protocol or "any"),
            destinations=() if self.to is None else self.to,
            ports=_ranges("ports", self.ports),
            icmp_types=_ranges("icmp_types", self.icmp_types),
            name=self.name,
        )


def _ranges(field: str, ranges: tuple[str | int, ...] | None) -> tuple[int | tuple[int, int], ...]:
    if ranges is None:
        return ()
    if not isinstance(ranges, tuple):  # a text would be read letter by letter
        raise TypeError(f"{field} must be a tuple")
    read = []
    for each in ranges:
        first, last = read_range(field, each) if isinstance(each, str) else (each, each)
        values.whole(field, str(first), *RANGES[field])
        read.append(first if first == last else (first, last))
    return tuple(read)


def check_some(field: str, elements: Sized | None) -> None:
    """Raise `BadValue` for a list of what a rule fits that is empty: a program may write it that found nothing."""
    if elements is not None and len(elements) == 0:
        raise BadValue(f"{field} is empty, and so would restrict nothing", "leave it out if that is meant")


def check_protocol_of_ranges(protocol: object, has_ports: bool, has_types: bool) -> None:
    """Raise `BadValue` unless the ports or types that a rule has are those of its protocol."""
    if has_ports and protocol not in ("tcp", "udp", TCP, UDP):
        raise BadValue("ports: only tcp and udp have ports", 'add protocol = "tcp", or remove the ports')
    if has_types and protocol not in ("icmp", ICMP, ICMPV6):
        raise BadValue("icmp_types: only icmp has types", 'add protocol = "icmp", or remove the types')


def first_excess(rules: Iterable[GatewayRule | None]) -> tuple[int, BadValue] | None:
    """The number of the first rule that is too much for one policy, and what is to be said of it."""
    ranges = 0
    for number, rule in enumerate(rules):
        if rule is not None:
            ranges += sum(len(each) for each in (rule.to, rule.ports, rule.icmp_types) if each is not None)
        if number >= MOST_RULES:
            return number, BadValue(f"rules: a peer has at most {MOST_RULES:,}", "merge some of them")
        if ranges > MOST_RANGES:
            problem = (
                f"rules: a peer has at most {MOST_RANGES:,} destinations, ports and types in all of them"
            )
            return number, BadValue(problem, "merge some of them")
    return None
