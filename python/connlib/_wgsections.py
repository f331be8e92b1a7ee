"""The sections of a wg-quick file: which keys each has, and what its lines have said so far."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from . import _wgvalues as values
from ._configfile import guess
from ._errors import ConfigError
from ._native import PresharedKey, PrivateKey, PublicKey
from ._types import Limits, Role, Timers
from ._wgvalues import BadValue
from .config import MAX_MTU, MIN_MTU, MOST_QUEUES, MOST_THREADS, address_identity, check_interface_name

INTERFACE_KEYS = {
    key.lower(): key
    for key in (
        *("PrivateKey", "ListenPort", "Address", "MTU", "Table", "FwMark", "DNS", "SaveConfig"),
        *("PreUp", "PostUp", "PreDown", "PostDown"),
    )
}
PEER_KEYS = {
    key.lower(): key for key in ("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive")
}
REPEATABLE = {"address", "dns", "allowedips", "preup", "postup", "predown", "postdown"}
TIMERS = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(Timers)}
LIMITS = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(Limits)}
INTERFACE_EXTENSIONS = {
    key: key
    for key in (
        "role",
        "interface",
        "masquerade",
        "protect-addresses",
        "offload",
        "encryption",
        "threads",
        "worker",
        "queues",
        *TIMERS,
        *LIMITS,
    )
}
PEER_EXTENSIONS = {key: key for key in ("role", "name")}


@dataclasses.dataclass
class InterfaceSection:
    """What the lines of an [Interface] section have said so far."""

    line: int
    seen: dict[str, int] = dataclasses.field(default_factory=dict)
    private_key: PrivateKey | None = None
    listen_port: int = 0
    fwmark: int = 0
    addresses: list[IPv4Interface | IPv6Interface] = dataclasses.field(default_factory=list)
    address_lines: dict[IPv4Interface | IPv6Address, int] = dataclasses.field(default_factory=dict)
    mtu: int | None = None
    routes: bool = True
    name: str | None = None
    role: Role = Role.EITHER
    timers: dict[str, float] = dataclasses.field(default_factory=dict)
    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    masquerade: tuple[IPv4Network | IPv6Network, ...] = ()
    protect_addresses: bool = True
    offload: bool | tuple[str, ...] = True
    encryption: str = "auto"
    threads: int = 1
    worker: bool = True
    queues: int = 1
    dns: list[str] = dataclasses.field(default_factory=list)

    keys = INTERFACE_KEYS
    extensions = INTERFACE_EXTENSIONS
    title = "[Interface]"

    def set(self, key: str, value: str, line: int) -> str | None:
        """Take one line. Returns a warning, or None; raises `BadValue`."""
        match key:
            case "privatekey":
                self.private_key = values.key(PrivateKey, "PrivateKey", value)
            case "listenport":
                self.listen_port = values.whole("ListenPort", value, 0, 65535)
            case "address":
                for address in values.addresses("Address", value):
                    identity = address_identity(address)
                    if (first := self.address_lines.get(identity)) is not None:
                        problem = f"Address: {address} is there twice, first at line {first}"
                        raise BadValue(problem, "remove one of the two")
                    self.address_lines[identity] = line
                    self.addresses.append(address)
            case "mtu":
                self.mtu = values.whole("MTU", value, MIN_MTU, MAX_MTU)
            case "table":
                self.routes = values.table(value)
            case "fwmark":
                self.fwmark = values.fwmark(value)
            case "dns":
                self.dns += values.dns("DNS", value)
            case "saveconfig":
                if values.flag("SaveConfig", value):
                    return "SaveConfig is ignored: connlib never writes to this file"
            case _:
                hint = "remove the line, and run the command yourself; for NAT, a TOML file has masquerade"
                raise BadValue(f"{INTERFACE_KEYS[key]}: connlib runs no hooks", hint)
        return None

    def extend(self, key: str, value: str) -> None:
        """Take one `# connlib:` line. Raises `BadValue`."""
        if key == "role":
            self.role = values.role(value)
        elif key == "interface":
            try:
                self.name = check_interface_name(value)
            except ConfigError as error:
                raise BadValue(error.problem, error.hint or "use another name") from None
        elif key == "masquerade":
            self.masquerade = tuple(values.prefixes(key, value))
        elif key == "protect-addresses":
            self.protect_addresses = values.flag(key, value)
        elif key == "offload":
            self.offload = _offload(value)
        elif key == "encryption":
            self.encryption = values.encryption(key, value)
        elif key == "threads":
            self.threads = values.whole(key, value, 1, MOST_THREADS)
        elif key == "worker":
            self.worker = values.flag(key, value)
        elif key == "queues":
            self.queues = values.whole(key, value, 1, MOST_QUEUES)
        elif key in TIMERS:
            self.timers[TIMERS[key]] = values.seconds(key, value)
        else:
            self.limits[LIMITS[key]] = values.whole(key, value, *values.limit_range(LIMITS[key]))


@dataclasses.dataclass
class PeerSection:
    """What the lines of one [Peer] section have said so far."""

    line: int
    seen: dict[str, int] = dataclasses.field(default_factory=dict)
    public_key: PublicKey | None = None
    preshared_key: PresharedKey | None = None
    allowed_ips: dict[IPv4Network | IPv6Network, int] = dataclasses.field(default_factory=dict)
    endpoint: tuple[str, int] | None = None
    persistent_keepalive: float | None = None
    name: str | None = None
    role: Role | None = None

    keys = PEER_KEYS
    extensions = PEER_EXTENSIONS
    title = "[Peer]"

    def set(self, key: str, value: str, line: int) -> str | None:
        """Take one line. Returns a warning, or None; raises `BadValue`."""
        match key:
            case "publickey":
                self.public_key = values.public_key(value)
            case "presharedkey":
                self.preshared_key = values.key(PresharedKey, "PresharedKey", value)
            case "allowedips":
                for prefix in values.prefixes("AllowedIPs", value):
                    self.allowed_ips.setdefault(prefix, line)
            case "endpoint":
                self.endpoint = values.endpoint(value)
            case _:
                self.persistent_keepalive = values.keepalive(value)
        return None

    def extend(self, key: str, value: str) -> None:
        """Take one `# connlib:` line. Raises `BadValue`."""
        if key == "role":
            self.role = values.role(value)
        else:
            self.name = values.display_name(value)


def _offload(value: str) -> bool | tuple[str, ...]:
    if value.lower() in ("true", "false"):
        return values.flag("offload", value)
    return tuple(values.offload("offload", name.strip()) for name in value.split(","))


def no_equals(section: InterfaceSection | PeerSection) -> BadValue:
    """What is said of a line without a value."""
    return BadValue(
        f"this line of {section.title} has no =", "write Key = value, or put a # before a comment"
    )


def unknown_key(name: str, value: str, section: InterfaceSection | PeerSection) -> BadValue:
    """What is said of a line with a key that its section does not have."""
    # On a broken line, what stands before the = may be part of a key: quote it only if it has the shape of a name.
    has_shape = re.fullmatch("[A-Za-z]{1,20}", name) and value.strip("=")
    quoted = f"{name} is" if has_shape else "this is"
    other = PEER_KEYS if section.keys is INTERFACE_KEYS else INTERFACE_KEYS
    title = "[Peer]" if other is PEER_KEYS else "[Interface]"
    if name.lower() in other:
        return BadValue(f"{other[name.lower()]} does not belong in {section.title}", f"move it to {title}")
    if near := guess(name.lower(), section.keys):
        hint = f"did you mean {section.keys[near]}?"
    elif near := guess(name.lower(), other):
        hint = f"did you mean {other[near]}? That belongs in {title}"
    else:
        hint = f"use one of {', '.join(section.keys.values())}"
    return BadValue(f"{quoted} not a key of {section.title}", hint)
