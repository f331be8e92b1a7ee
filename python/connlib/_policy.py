"""What a peer may reach: rules, policies, and verdicts without a packet being sent. docs/policy.md tells how they work.

A policy is checked and compiled by the extension module, which also asks it about every packet. Here it is only written
down; `Policy.decide` asks the same code.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeGuard

from connlib._native import CompiledPolicy
from connlib._text import counted, host_and_port, listed


class Action(enum.Enum):
    """What becomes of a packet."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"
    """The hook of the interface decides about the first packet of a flow (`open_interface(decide=...)`), which is held
    meanwhile; without a hook it is refused."""


class Protocol(enum.Enum):
    """The protocols that rules know by name; others have numbers (IANA, Protocol Numbers)."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    """ICMP over IPv4, and ICMPv6 over IPv6."""


MOST_RULES, MOST_RANGES = 1024, 8192
"""Of one policy; the extension module insists on them."""

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
ECHO_REQUEST, ECHO_REQUEST_V6 = 8, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What it matches, and what becomes of it then. What is empty restricts nothing.

    Raises `ValueError` for what no packet could match: ports of another protocol than TCP and UDP, types of another one
    than ICMP, a range that ends before it begins. `TypeError` for a value of another type.
    """

    action: Action
    protocol: Protocol | int = Protocol.ANY
    destinations: tuple[IPv4Network | IPv6Network, ...] = ()
    """Where a packet of the peer goes to."""
    ports: tuple[int | tuple[int, int], ...] = ()
    """Destination ports: one, or the first and the last of a range."""
    icmp_types: tuple[int | tuple[int, int], ...] = ()
    """Types of ICMP or ICMPv6 messages: one, or the first and the last of a range."""
    name: str | None = None
    """For people: verdicts say it."""

    def __post_init__(self) -> None:
        if not isinstance(self.action, Action):
            raise TypeError("rule.action must be a member of connlib.Action")
        _check_protocol(self.protocol, "rule.protocol")
        for network in _tuple(self.destinations, "rule.destinations"):
            if not isinstance(network, IPv4Network | IPv6Network):
                raise TypeError("each of rule.destinations must be an ipaddress.IPv4Network or IPv6Network")
        _check_ranges(self.ports, "rule.ports", 65_535)
        _check_ranges(self.icmp_types, "rule.icmp_types", 255)
        if self.ports and self.protocol not in (Protocol.TCP, Protocol.UDP, TCP, UDP):
            raise ValueError(
                "rule.ports need a rule.protocol that has ports: use Protocol.TCP or Protocol.UDP"
            )
        if self.icmp_types and self.protocol not in (Protocol.ICMP, ICMP, ICMPV6):
            raise ValueError("rule.icmp_types need Protocol.ICMP as rule.protocol")
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError("rule.name must be a str or None")

    def __str__(self) -> str:
        """For people: "allow tcp to 10.0.0.0/24 ports 443, 8000-8099 (web)". Of long lists, the start."""
        said = [self.action.value]
        if self.protocol is not Protocol.ANY:
            said.append(_spelled(self.protocol))
        if self.destinations:
            said.append(f"to {listed(self.destinations)}")
        for kind, ranges in (("port", self.ports), ("type", self.icmp_types)):
            if ranges:
                texts = [each if isinstance(each, int) else f"{each[0]}-{each[1]}" for each in ranges]
                said.append(f"{kind}{'' if len(ranges) == 1 else 's'} {listed(texts)}")
        if len(said) == 1:
            said.append("everything")
        return " ".join(said) + (f" ({self.name})" if self.name is not None else "")


@dataclass(frozen=True, slots=True)
class Policy:
    """What one peer may reach: the first rule that matches the first packet of a flow decides about the flow.

    Raises `ValueError` for more than 1,024 rules, or more than 8,192 destinations, ports and types together.
    """

    rules: tuple[Rule, ...] = ()
    """For what comes from the peer, in order."""
    default: Action = Action.DENY
    """For what comes from the peer and matches no rule."""
    outbound: Action | None = None
    """For flows towards the peer that start on this side of the tunnel; None is the same as `default`. Answers to what
    the peer started need no rule."""

    def __post_init__(self) -> None:
        for rule in _tuple(self.rules, "policy.rules"):
            if not isinstance(rule, Rule):
                raise TypeError("each of policy.rules must be a connlib.Rule")
        if not isinstance(self.default, Action):
            raise TypeError("policy.default must be a member of connlib.Action")
        if self.outbound is not None and not isinstance(self.outbound, Action):
            raise TypeError("policy.outbound must be a member of connlib.Action or None")
        CompiledPolicy(self)

    def __str__(self) -> str:
        """For people: "2 rules, default deny, outbound allow"."""
        said = f"{counted(len(self.rules), 'rule')}, default {self.default.value}"
        return said + (f", outbound {self.outbound.value}" if self.outbound is not None else "")

    def decide(self, first: Flow | bytes) -> Verdict:
        """What would become of a flow that the peer starts, or of a packet of the peer's that starts one."""
        compiled = CompiledPolicy(self)
        if isinstance(first, Flow):
            number, detail = first._selector()
            action, reason, index = compiled.decide_flow(first.destination.packed, number, detail)
        else:
            action, reason, index = compiled.decide_packet(first)
        allowed, asks = action == Action.ALLOW.value, action == Action.ASK.value
        if index is None:
            return Verdict(allowed, VerdictReason[reason], asks=asks)
        return Verdict(allowed, VerdictReason[reason], index + 1, self.rules[index].name, asks)


# An IPv6 address in brackets may have a port, and one without has none.
_DESTINATION = re.compile(
    r"(?:(?:\[(?P<v6>[0-9a-fA-F:.]{2,45})\]|(?P<v4>[0-9.]{7,15}))(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<bare>[0-9a-fA-F:.]{2,45}))"
    r"/(?P<protocol>[a-z]+|[0-9]{1,3})(?::(?P<type>[0-9]{1,3}))?"
)


@dataclass(frozen=True, slots=True)
class Flow:
    """What rules look at in the first packet of a flow.

    Raises `ValueError` if TCP or UDP has no port, or something else has one.
    """

    destination: IPv4Address | IPv6Address
    protocol: Protocol | int
    port: int | None = None
    """The destination port, of TCP and UDP only."""
    icmp_type: int | None = None
    """The type of an ICMP or ICMPv6 message, of ICMP only; None is an echo request."""

    def __post_init__(self) -> None:
        if not isinstance(self.destination, IPv4Address | IPv6Address):
            raise TypeError("flow.destination must be an ipaddress.IPv4Address or IPv6Address")
        _check_protocol(self.protocol, "flow.protocol")
        if self.protocol is Protocol.ANY:
            raise ValueError("flow.protocol must be one protocol: a packet has no other")
        number = self._number()
        if (self.port is not None) != (number in (TCP, UDP)):
            raise ValueError("flow.port is for TCP and UDP, which need one")
        if self.icmp_type is not None and number != self._icmp():
            raise ValueError("flow.icmp_type is for ICMP only")
        if self.port is not None:
            _check_ranges((self.port,), "flow.port", 65_535)
        if self.icmp_type is not None:
            _check_ranges((self.icmp_type,), "flow.icmp_type", 255)

    @classmethod
    def parse(cls, text: str) -> Flow:
        """From `10.0.0.5:443/tcp`, `[fd00::5]:53/udp`, `10.0.0.5/icmp`, `10.0.0.5/icmp:13` (a message of that type) or,
        by a protocol's number, `10.0.0.5/47`.

        Raises `ValueError` for anything else.
        """
        try:
            return cls._parsed(text)
        except ValueError as error:
            raise ValueError(
                f"{text[:80]!r} is no destination ({error}): write 10.0.0.5:443/tcp, [fd00::5]:53/udp or 10.0.0.5/icmp"
            ) from None

    @classmethod
    def _parsed(cls, text: str) -> Flow:
        match = _DESTINATION.fullmatch(text)
        if match is None:
            raise ValueError("an IP address, a port or a protocol is missing")
        address: IPv4Address | IPv6Address
        address = IPv4Address(match["v4"]) if match["v4"] else IPv6Address(match["v6"] or match["bare"])
        protocol: Protocol | int
        if match["protocol"].isdigit():
            protocol = int(match["protocol"])
        elif match["protocol"] in ("tcp", "udp", "icmp"):
            protocol = Protocol(match["protocol"])
        else:
            raise ValueError("the protocol is tcp, udp, icmp or a number")
        port, icmp_type = (int(match[part]) if match[part] else None for part in ("port", "type"))
        return cls(address, protocol, port, icmp_type)

    def __str__(self) -> str:
        protocol = self.protocol.value if isinstance(self.protocol, Protocol) else str(self.protocol)
        if self.icmp_type is not None:
            protocol += f":{self.icmp_type}"
        if self.port is None:
            return f"{self.destination}/{protocol}"
        return f"{host_and_port(str(self.destination), self.port)}/{protocol}"

    def _icmp(self) -> int:
        return ICMP if self.destination.version == 4 else ICMPV6

    def _number(self) -> int:
        if isinstance(self.protocol, int):
            return self.protocol
        return {Protocol.TCP: TCP, Protocol.UDP: UDP, Protocol.ICMP: self._icmp()}[self.protocol]

    def _selector(self) -> tuple[int, int]:
        """The protocol's number, and the port or the type."""
        number = self._number()
        echo = ECHO_REQUEST if self.destination.version == 4 else ECHO_REQUEST_V6
        if number == self._icmp():
            return number, echo if self.icmp_type is None else self.icmp_type
        return number, self.port or 0


class VerdictReason(enum.Enum):
    """What decided about a packet."""

    RULE = "rule"
    DEFAULT = "default"
    OUTBOUND = "outbound"
    """It starts on this side of the tunnel: `Policy.outbound`."""
    FRAGMENT = "fragment"
    """A fragment without ports, which shares the fate of the first one: none was seen."""
    UNPARSEABLE = "unparseable"
    """Not an IP packet, cut off, source-routed, or readable in more than one way."""
    HOOK = "hook"
    """The hook of the interface said so. Here and below, `Verdict.rule` is the rule that asks; None: it is
    `Policy.default` or `.outbound`."""
    NO_HOOK = "no hook"
    """The policy asks, and there is no hook."""
    NO_FLOW = "no flow"
    """The policy asks, and the packet starts no flow that could be asked about: an answer, RST, an ICMP error."""
    UNANSWERED = "unanswered"
    """The hook gave no answer within five seconds, or none that is one."""
    CROWDED = "crowded"
    """As much waits for answers of the hook as may."""


class Verdict(NamedTuple):
    """What becomes of a packet, and why. `str()` is for people: "allowed by rule 2 (web)"."""

    allowed: bool
    reason: VerdictReason
    rule: int | None = None
    """Which rule decided, counted from 1."""
    name: str | None = None
    """What that rule is called."""
    asks: bool = False
    """It is neither allowed nor denied yet: a hook would be asked. Only `Policy.decide` gives such verdicts."""

    def __str__(self) -> str:
        verb = "asks the hook" if self.asks else "allowed" if self.allowed else "denied"
        rule = f"rule {self.rule}" + (f" ({self.name})" if self.name is not None else "")
        asked = f", asked by {rule}" if self.rule is not None else ""
        return {
            VerdictReason.RULE: f"{verb} by {rule}",
            VerdictReason.DEFAULT: f"{verb} by default",
            VerdictReason.OUTBOUND: f"{verb} by outbound",
            VerdictReason.FRAGMENT: f"{verb}: a fragment without the first one",
            VerdictReason.HOOK: f"{verb} by the hook{asked}",
            VerdictReason.NO_HOOK: f"{verb}: there is no hook{asked}",
            VerdictReason.NO_FLOW: f"{verb}: it starts no flow{asked}",
            VerdictReason.UNANSWERED: f"{verb}: no answer of the hook{asked}",
            VerdictReason.CROWDED: f"{verb}: too much waits for the hook{asked}",
        }.get(self.reason, f"{verb}: not a packet that can be judged")


def _spelled(protocol: Protocol | int) -> str:
    return protocol.value if isinstance(protocol, Protocol) else f"protocol {protocol}"


def _check_protocol(protocol: object, name: str) -> None:
    if isinstance(protocol, Protocol):
        return
    if not _is_number(protocol):
        raise TypeError(f"{name} must be a member of connlib.Protocol or a number")
    if not 0 <= protocol <= 255:
        raise ValueError(f"{name} must be 0 to 255, not {protocol}")


def _check_ranges(ranges: object, name: str, most: int) -> None:
    for item in _tuple(ranges, name):
        first, last = item if isinstance(item, tuple) and len(item) == 2 else (item, item)
        if not _is_number(first) or not _is_number(last):
            raise TypeError(f"each of {name} must be a number, or a tuple of the first and the last one")
        if not 0 <= first <= most or not 0 <= last <= most:
            raise ValueError(f"each of {name} must be 0 to {most}")
        if first > last:
            raise ValueError(f"a range of {name} ends before it begins: {first} to {last}")


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _tuple(value: object, name: str) -> tuple[object, ...]:
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a tuple")
    return value
