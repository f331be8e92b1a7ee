"""wg-quick files: read them into `InterfaceConfig`, and write them back.

What connlib does with each key (names are case-insensitive, as in wg-quick; `#` starts a comment):

    [Interface]
    PrivateKey           required
    ListenPort           0 to 65535; 0, the default, lets the system choose
    Address              one or more, separated by commas or repeated; without a prefix length it is a single host
    MTU                  576 to 65472, with an IPv6 Address 1280 or more; default 1420
    Table                auto: the allowed IPs become routes; off: they do not. A number is an error
    FwMark               off, or a number, 0x... in hexadecimal: the mark of what is sent by UDP
    DNS                  addresses of name servers and domains to search, separated by commas or repeated
    SaveConfig           false; true is a warning, because the file is never written
    PreUp, PostUp,       an error: a configuration file never makes connlib run a command
    PreDown, PostDown

    [Peer]
    PublicKey            required
    PresharedKey
    AllowedIPs           prefixes, separated by commas or repeated; bits beyond the prefix are cleared, as wg does.
                         The same prefix for two peers is an error (wg would move it to the later one in silence)
    Endpoint             host:port, a.b.c.d:port or [v6]:port, without a zone; a host name is kept as it is
    PersistentKeepalive  seconds, 1 to 65535; 0 or off switches it off

Settings that wg-quick has no word for are comments to it, `# connlib: key = value`, inside a section:

    [Interface]
    role                 either, initiator or responder: for the peers that do not say themselves
    interface            the device's name
    rekey-after-time, reject-after-time, rekey-attempt-time, rekey-timeout, keepalive-timeout
                         seconds, 0.1 or more; a session must be renewed before it ends, and must outlast
                         keepalive-timeout, rekey-timeout and 0.333 s together
    rekey-after-messages, reject-after-messages
                         counts, from 2 and from 1, to 2^64 - 2^13 - 1
    queue-packets        0 to 65536
    masquerade           prefixes: sources that get this machine's address where they leave it elsewhere
    protect-addresses    true or false: whether Address answers only what comes through the tunnel; default true
    offload              true, false or names of `connlib.config.OFFLOADS`: what the device does many packets at once
    encryption           one of `connlib.config.ENCRYPTIONS`: what seals and opens packets
    threads              1 to 64: how many threads share the sealing and opening of packets; default 1
    worker               true or false: whether a thread of its own moves packets; default true
    queues               1 to 16: how many queues the device has; more than one need worker = true; default 1
    [Peer]
    role                 initiator or responder (either only if the interface does not say otherwise)
    name                 what logs call the peer

Every error is a `ConfigError` of one line, `FILE:LINE:COLUMN: what is wrong; what to do`. No message holds a value that
may be a private or preshared key, also not where a key was put in the wrong place or after a mistyped name.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import NoReturn

from . import _wgvalues as values
from ._configfile import ConfigFileError, display_path, guess, read_file
from ._errors import ConfigError
from ._native import PublicKey
from ._text import host_and_port
from ._types import Limits, PeerConfig, Role, Timers
from ._wgsections import (
    INTERFACE_EXTENSIONS,
    LIMITS,
    PEER_EXTENSIONS,
    REPEATABLE,
    TIMERS,
    InterfaceSection,
    PeerSection,
    no_equals,
    unknown_key,
)
from ._wgvalues import BadValue
from .config import (
    IPV6_MTU_HINT,
    QUEUES_HINT,
    InterfaceConfig,
    describe_offload,
    mtu_is_too_small,
    queues_without_worker,
    shown,
    without_policies,
)

log = logging.getLogger("connlib.config")

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_PROBLEMS = 1000

_EXTENSION = re.compile(r"\s*connlib\s*:(.*)", re.IGNORECASE | re.DOTALL)
# Without its colon, it is a comment like any other: that must not go unseen.
# Two runs of blanks have a sign between them: in a row, they could be divided in as many ways as they are long.
_ALMOST_EXTENSION = re.compile(r"\s*connlib[ \t]*(?:[;=,.-][ \t]*)?([a-z-]{1,32})\s*[=:]", re.IGNORECASE)


def load_config(path: str | os.PathLike[str], *, allow_world_readable: bool = False) -> InterfaceConfig:
    """Read a wg-quick file of at most 16 MiB.

    A file that every user of the machine can read or change is refused, because it holds a private key, unless
    `allow_world_readable`. Raises `ConfigError` for that, for a file that cannot be read, and for what
    `parse_config` refuses.
    """
    file = read_file(os.fspath(path), MAX_FILE_BYTES, kind="a wg-quick file")
    if not allow_world_readable:
        file.require_private()
    return parse_config(file.text(), file.name)


def parse_config(text: str, path: str = "<string>") -> InterfaceConfig:
    """Read the text of a wg-quick file; `path` is only what messages call it.

    Raises `ConfigFileError`, which is a `ConfigError`. Warnings go to the logger `connlib.config`.
    """
    return _Parser(path).parse(text)


def format_config(config: InterfaceConfig) -> str:
    """The text of a wg-quick file that `parse_config` reads as an equal configuration.

    The text holds the private key and the preshared keys: write it to a file that only its owner can read.
    Raises `ConfigError` for what the format cannot say: a policy, a keepalive of half a second, a line break in a name.
    """
    lines = ["[Interface]"]
    lines += _extension("interface", config.name)
    lines += _extension("role", config.role.name.lower() if config.role is not Role.EITHER else None)
    for name, seconds in _changed(config.timers, Timers(), TIMERS):
        lines += _extension(name, seconds)
    for name, count in _changed(config.limits, Limits(), LIMITS):
        lines += _extension(name, count)
    lines += _extension("masquerade", ", ".join(map(str, config.masquerade)) or None)
    lines += _extension("protect-addresses", None if config.protect_addresses else "false")
    lines += _extension("offload", None if config.offload is True else describe_offload(config.offload))
    lines += _extension("encryption", None if config.encryption == "auto" else config.encryption)
    lines += _extension("threads", None if config.threads == 1 else config.threads)
    lines += _extension("worker", None if config.worker else "false")
    lines += _extension("queues", None if config.queues == 1 else config.queues)
    lines.append(f"PrivateKey = {config.private_key.to_base64()}")
    if config.listen_port:
        lines.append(f"ListenPort = {config.listen_port}")
    if config.fwmark:
        lines.append(f"FwMark = {config.fwmark:#x}")
    lines += [f"Address = {address}" for address in config.addresses]
    lines += [f"DNS = {entry}" for entry in config.dns]
    if config.mtu is not None:
        lines.append(f"MTU = {config.mtu}")
    if not config.routes:
        lines.append("Table = off")
    for peer in without_policies(config.peers):
        lines += ["", "[Peer]", *_peer_lines(peer, config.role)]
    return "\n".join(lines) + "\n"


def _peer_lines(peer: PeerConfig, default: Role) -> list[str]:
    lines = []
    if peer.name is not None:
        # A line break in a name would be a line of the file.
        _check_writable("name", peer.name, values.display_name, peer.name)
        lines += _extension("name", peer.name)
    lines += _extension("role", peer.role.name.lower() if peer.role is not default else None)
    lines.append(f"PublicKey = {peer.public_key.to_base64()}")
    if peer.preshared_key is not None:
        lines.append(f"PresharedKey = {peer.preshared_key.to_base64()}")
    lines += [f"AllowedIPs = {prefix}" for prefix in peer.allowed_ips]
    if peer.endpoint is not None:
        endpoint = host_and_port(*peer.endpoint)
        _check_writable("endpoint", endpoint, values.endpoint, peer.endpoint)
        lines.append(f"Endpoint = {endpoint}")
    if peer.persistent_keepalive:
        seconds = f"{peer.persistent_keepalive:.9f}".rstrip("0").rstrip(".")
        _check_writable("persistent keepalive", seconds, values.keepalive, peer.persistent_keepalive)
        lines.append(f"PersistentKeepalive = {seconds}")
    return lines


def _check_writable(what: str, text: str, read: Callable[[str], object], value: object) -> None:
    """Raise `ConfigError` unless `text`, on a line of a file, is read as `value`."""
    try:
        if text == text.strip() and read(text) == value:
            return
        hint = "it would be read as another one"
    except BadValue as bad:
        hint = bad.hint
    raise ConfigError(f"a wg-quick file cannot say this {what} of a peer: {shown(text)}", hint=hint)


def _extension(key: str, value: object) -> list[str]:
    return [] if value is None else [f"# connlib: {key} = {value}"]


def _changed(values: object, defaults: object, names: dict[str, str]) -> list[tuple[str, object]]:
    pairs = [(name, getattr(values, field), getattr(defaults, field)) for name, field in names.items()]
    return [(name, value) for name, value, default in pairs if value != default]


class _Parser:
    """Reads the lines one by one, notes what is wrong with each, and looks at the whole of what is right."""

    def __init__(self, path: str) -> None:
        self.path = display_path(path)
        self.problems: list[ConfigError] = []
        self.interface: InterfaceSection | None = None
        self.peers: list[PeerSection] = []
        self.section: InterfaceSection | PeerSection | None = None
        self.unknown_section = False
        self.lines: list[str] = []
        # Where in its line is what is being read, counted from 0.
        self.offset = 0

    def parse(self, text: str) -> InterfaceConfig:
        line = 0
        self.lines = text.split("\n")
        for line, content in enumerate(self.lines, 1):
            try:
                self._read(content, line)
            except BadValue as bad:
                self._note(line, bad, self.offset)
        self._check(line)
        if self.problems:
            self._give_up()
        return self._build()

    def _note(self, line: int, bad: BadValue, offset: int | None = None) -> None:
        """Note a problem of a line, at `offset`, or where the line begins."""
        if offset is None:
            offset = _indent(self.lines[line - 1])
        place = {"line": line, "column": offset + 1}
        self.problems.append(ConfigError(bad.problem, hint=bad.hint, path=self.path, **place))
        if len(self.problems) >= MAX_PROBLEMS:
            self._give_up()

    def _give_up(self) -> NoReturn:
        self.problems.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
        raise ConfigFileError(tuple(self.problems), more=len(self.problems) >= MAX_PROBLEMS)

    def _read(self, content: str, line: int) -> None:
        if (nul := content.find("\0")) >= 0:
            self.offset = nul
            raise BadValue("there is a NUL byte", "save the file as plain UTF-8 text")
        setting, hash_, comment = content.partition("#")
        self.offset, comment_at = _indent(content), len(setting)
        setting = setting.strip()
        if setting.startswith("["):
            self._open_section(setting, line)
        elif setting:
            self._set(setting, line)
        extension = _EXTENSION.fullmatch(comment) if hash_ else None
        if extension is not None:
            self.offset = comment_at
            self._extend(extension[1], line, comment_at + 1 + extension.start(1))
        elif hash_ and (almost := _ALMOST_EXTENSION.match(comment)):
            key = almost[1].lower()
            if key in INTERFACE_EXTENSIONS or key in PEER_EXTENSIONS:
                log.warning(
                    "%s:%d: this is only a comment; if it is to be a setting, write # connlib: %s = value",
                    self.path,
                    line,
                    key,
                )

    def _open_section(self, header: str, line: int) -> None:
        self.section, self.unknown_section = None, False
        # Blanks inside the brackets are nothing to `wg`.
        match "".join(header.lower().split()) if len(header) < 64 else header:
            case "[interface]":
                self.section = InterfaceSection(line)
                if self.interface is not None:
                    raise BadValue(
                        f"[Interface] is already at line {self.interface.line}", "keep one of the two"
                    )
                self.interface = self.section
            case "[peer]":
                self.section = PeerSection(line)
                self.peers.append(self.section)
            case _:
                self.unknown_section = True
                raise BadValue(f"{shown(header)} is not a section", "use [Interface] or [Peer]")

    def _set(self, setting: str, line: int) -> None:
        name, equals, value = (part.strip() for part in setting.partition("="))
        section = self.section
        if section is None:
            if self.unknown_section:
                return  # its header is reported already
            raise BadValue("this line is in no section", "begin the file with [Interface]")
        key = name.lower()
        if not equals or key not in section.keys:
            raise unknown_key(name, value, section) if equals else no_equals(section)
        if key not in REPEATABLE:
            first = section.seen.setdefault(key, line)
            if first != line:
                raise BadValue(f"{section.keys[key]} is already set at line {first}", "keep one of the two")
        self.offset += _value_at(setting)
        warning = section.set(key, value, line)
        if warning is not None:
            log.warning("%s:%d: %s", self.path, line, warning)

    def _extend(self, text: str, line: int, offset: int) -> None:
        name, equals, value = (part.strip() for part in text.partition("="))
        section = self.section
        if section is None:
            raise BadValue("this connlib setting is in no section", "move it below [Interface] or a [Peer]")
        key = name.lower()
        if not equals or key not in section.extensions:
            known = ", ".join(section.extensions)
            near = guess(key, section.extensions)
            hint = f"did you mean {near}?" if near else f"write # connlib: key = value with one of {known}"
            raise BadValue(f"this is not a connlib setting of {section.title}", hint)
        first = section.seen.setdefault("# " + key, line)
        if first != line:
            raise BadValue(f"{key} is already set at line {first}", "keep one of the two")
        self.offset = offset + _value_at(text)
        section.extend(key, value)

    def _check(self, last_line: int) -> None:
        """Note what is wrong with the file as a whole, except for what follows from a line that is wrong."""
        interface = self.interface
        if interface is None:
            if not self.problems:  # which would be about the header, or about lines above it
                bad = BadValue("the file has no [Interface] section", "add one, with a PrivateKey")
                self._note(last_line, bad)
            return
        if "privatekey" not in interface.seen:
            hint = "add one; `connlib genkey` makes a key"
            self._note(interface.line, BadValue("[Interface] has no PrivateKey", hint))
        routed = [prefix for peer in self.peers for prefix in peer.allowed_ips if interface.routes]
        if too_small_for := mtu_is_too_small(interface.mtu, interface.addresses, routed):
            problem = f"MTU: {interface.mtu} is too small for {too_small_for}"
            self._note(interface.seen["mtu"], BadValue(problem, IPV6_MTU_HINT))
        if queues := queues_without_worker(interface.queues, interface.worker):
            self._note(interface.seen["# queues"], BadValue(queues, QUEUES_HINT))
        try:
            if all(TIMERS[key[2:]] in interface.timers for key in interface.seen if key[2:] in TIMERS):
                Timers(**interface.timers)
        except ValueError as error:  # each is in range, but they contradict each other
            problem = re.sub(r"timers\.(\w+)", lambda name: name[1].replace("_", "-"), str(error))
            line = max(
                line for key, line in interface.seen.items() if key[2:] in problem and key[2:] in TIMERS
            )
            self._note(line, BadValue(problem, "correct it, or the others to go with it"))
        own = interface.private_key.public_key() if interface.private_key is not None else None
        keys: dict[PublicKey, int] = {}
        owners: dict[IPv4Network | IPv6Network, tuple[PeerSection, int]] = {}
        for peer in self.peers:
            if "publickey" not in peer.seen:
                self._note(peer.line, BadValue("this [Peer] has no PublicKey", "add the peer's public key"))
            elif peer.public_key is not None:
                line = peer.seen["publickey"]
                if peer.public_key == own:
                    hint = "give the peer's key: this one belongs to the PrivateKey of this file"
                    self._note(line, BadValue("PublicKey is the interface's own", hint))
                first = keys.setdefault(peer.public_key, line)
                if first != line:
                    self._note(
                        line,
                        BadValue(f"the peer of line {first} has the same PublicKey", "merge the two peers"),
                    )
            if peer.role is Role.EITHER and interface.role is not Role.EITHER:
                hint = "set it to either there, and give each peer its own role"
                problem = f"role = either contradicts the interface's role = {interface.role.name.lower()}"
                self._note(peer.seen["# role"], BadValue(problem, hint))
            for prefix, line in peer.allowed_ips.items():
                owner, owned_at = owners.setdefault(prefix, (peer, line))
                if owner is not peer:
                    problem = f"AllowedIPs: {prefix} already belongs to another peer, at line {owned_at}"
                    self._note(line, BadValue(problem, "remove it from one of the two"))
            role = interface.role if peer.role is None else peer.role
            if role is Role.INITIATOR and "endpoint" not in peer.seen:
                log.warning(
                    "%s:%d: this peer can never be reached: connlib is its initiator, and it has no Endpoint",
                    self.path,
                    peer.line,
                )

    def _build(self) -> InterfaceConfig:
        interface = self.interface
        assert interface is not None and interface.private_key is not None  # _check noted it otherwise
        try:
            return InterfaceConfig(
                private_key=interface.private_key,
                listen_port=interface.listen_port,
                fwmark=interface.fwmark,
                addresses=tuple(interface.addresses),
                mtu=interface.mtu,
                peers=tuple(_peer(section) for section in self.peers),
                name=interface.name,
                role=interface.role,
                routes=interface.routes,
                timers=Timers(**interface.timers),
                limits=Limits(**interface.limits),
                masquerade=interface.masquerade,
                protect_addresses=interface.protect_addresses,
                dns=tuple(interface.dns),
                offload=interface.offload,
                encryption=interface.encryption,
                threads=interface.threads,
                worker=interface.worker,
                queues=interface.queues,
            )
        except ConfigError as error:
            hint = error.hint
            raise ConfigError(error.problem, hint=hint, path=self.path, line=interface.line) from None
        except ValueError as error:  # timers or limits that _check did not know to be wrong
            hint = "correct the # connlib: lines of [Interface]"
            raise ConfigError(str(error), hint=hint, path=self.path, line=interface.line) from None


def _peer(section: PeerSection) -> PeerConfig:
    assert section.public_key is not None  # _check noted it otherwise
    return PeerConfig(
        public_key=section.public_key,
        preshared_key=section.preshared_key,
        allowed_ips=tuple(section.allowed_ips),
        endpoint=section.endpoint,
        persistent_keepalive=section.persistent_keepalive,
        role=Role.EITHER if section.role is None else section.role,
        name=section.name,
    )


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _value_at(setting: str) -> int:
    """Where the value begins."""
    after = setting.index("=") + 1
    return after + _indent(setting[after:])
