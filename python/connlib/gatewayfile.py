"""A gateway's TOML file: read it into `connlib.gateway.Gateway`, and say everything that is wrong with it, and where.

    [interface]
    private_key_file = "gateway.key"
    listen_port = 51820
    addresses = ["10.7.0.1/24"]
    role = "responder"

    [[peers]]
    name = "alice"
    public_key = "..."
    allowed_ips = ["10.7.0.2/32"]

The fields are those of the classes in `connlib.gateway`. Every error is a `ConfigError` of one line,
`FILE:LINE:COLUMN: what is wrong; what to do`. No message holds a value that may be a key.

`msgspec.convert` would stop at the first value that is wrong, and quote some, so the values are read here one by one.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from . import _gatewayvalues
from . import _wgvalues as values
from ._configfile import (
    EXPOSED_HINT,
    ConfigFile,
    ConfigFileError,
    display_path,
    guess,
    is_like_a_key,
    read_file,
)
from ._errors import ConfigError
from ._gatewayrules import GatewayRule, check_protocol_of_ranges, check_some, first_excess
from ._native import PresharedKey, PrivateKey, PublicKey
from ._policy import Action
from ._tomlplaces import Path, Place, Places, dotted_keys
from ._types import Limits, Role, Timers
from ._wgvalues import BadValue
from .config import (
    MAX_FWMARK,
    MAX_MTU,
    MIN_MTU,
    MOST_QUEUES,
    MOST_THREADS,
    InterfaceConfig,
    check_interface_name,
    shown,
)
from .gateway import (
    Gateway,
    GatewayInterface,
    GatewayPeer,
    Secret,
    check_preshared_key,
    check_private_key,
    contradictions,
    read_key,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger("connlib.config")

T = TypeVar("T")

MAX_FILE_BYTES = 2 * 1024 * 1024
MAX_ITEMS = 100_000
"""Lines, commas and dots of keys: room for ten thousand peers, and what the parser gets through in about a second."""

MAX_PROBLEMS = 1000
"""After so many, the rest of the file is not read."""

# Of one key, with the square of whose dots the parser's time grows.
_MAX_DOTS = 31
_PARSER_SAYS = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


def load_gateway(path: str | os.PathLike[str], *, allow_world_readable: bool = False) -> Gateway:
    """Read a gateway's TOML file of at most 2 MiB, and the key files that it names, relative to its own folder.

    A file with a key in it, and a key file, that every user of the machine can read or change is refused, unless
    `allow_world_readable`; so is any file that every user can change. Raises `ConfigError`, a `ConfigFileError` with
    all problems where they have a place in the file.
    """
    return read_gateway(path, allow_world_readable=allow_world_readable)[0]


def parse_gateway(text: str, path: str = "<string>") -> Gateway:
    """Read the text of a gateway's TOML file, and no key file. `path` is what messages call it.

    Raises `ConfigFileError`, which is a `ConfigError`. Warnings go to the logger `connlib.config`.
    """
    return _Reader(text, display_path(path), folder="").gateway()


def read_gateway(
    path: str | os.PathLike[str], *, allow_world_readable: bool = False
) -> tuple[Gateway, InterfaceConfig]:
    """What `load_gateway` reads, and what is made of it and of its key files."""
    file = read_file(os.fspath(path), MAX_FILE_BYTES, kind="a gateway's TOML file")
    if file.others_may_write and not allow_world_readable:
        problem = file.exposed("it says who may connect")
        raise ConfigError(problem, hint=EXPOSED_HINT, path=file.name)
    reader = _Reader(file.text(), file.name, folder=os.path.dirname(os.fspath(path)))
    if not allow_world_readable:
        reader.require_private(file)
    reader.read_keys(allow_world_readable)
    gateway = reader.gateway()
    assert reader.private_key is not None  # noted otherwise
    return gateway, gateway.with_keys(reader.private_key, reader.preshared_keys)


class _Reader:
    """Reads what is right of a file, and notes what is wrong. Raises `ConfigFileError` if it is not TOML."""

    def __init__(self, text: str, path: str, folder: str) -> None:
        self.text = text
        self.path = path
        self.folder = folder
        self.problems: list[tuple[Path, bool, BadValue]] = []
        """Where, whether the key is meant and not the value, and what."""
        self.interface: GatewayInterface | None = None
        self.peers: list[tuple[int, GatewayPeer]] = []
        self.private_key: PrivateKey | None = None
        self.preshared_keys: dict[PublicKey, PresharedKey] = {}
        self._document = self._parse()
        top = self.table((), self._document, _TOP)
        self.interface = top.get("interface")
        if "interface" not in self._document:
            self.note((), BadValue("the file has no [interface] table", "add one, with a private_key_file"))
        self.peers = [(number, peer) for number, peer in enumerate(top.get("peers", ())) if peer is not None]
        if self.interface is not None:
            self.private_key = self.interface.private_key

    def require_private(self, file: ConfigFile) -> None:
        """Note the first key that stands in a file which every user can read."""
        if file.others_may_read:
            interface, peers = self._document.get("interface"), self._document.get("peers")
            tables: list[tuple[Path, object]] = [(("interface", "private_key"), interface)]
            tables += [
                (("peers", number, "preshared_key"), peer)
                for number, peer in enumerate(peers if isinstance(peers, list) else ())
            ]
            for place, table in tables:
                if isinstance(table, dict) and place[-1] in table:
                    self.note(place, BadValue(file.exposed("this is a key"), EXPOSED_HINT))
                    return

    def read_keys(self, allow_world_readable: bool) -> None:
        """Read the key files, and note what is wrong with them."""

        def read(kind: type[Secret], file: str, place: Path) -> Secret | None:
            try:
                return read_key(kind, file, allow_world_readable)
            except ConfigError as error:
                problem = f"{place[-1]}: {error.path}: {error.problem}"
                self.note(place, BadValue(problem, error.hint or "name a file with one key"))
                return None

        if self.interface is not None and self.interface.private_key_file is not None:
            place: Path = ("interface", "private_key_file")
            self.private_key = read(PrivateKey, self.interface.private_key_file, place)
        for number, peer in self.peers:
            if peer.preshared_key_file is not None:
                key = read(PresharedKey, peer.preshared_key_file, ("peers", number, "preshared_key_file"))
                if key is not None:
                    self.preshared_keys[peer.public_key] = key

    def gateway(self) -> Gateway:
        """What the file says. Raises `ConfigFileError` if anything is wrong."""
        own = self.private_key.public_key() if self.private_key is not None else None
        for found in contradictions(self.interface, self.peers, own):
            self.note(found.place, BadValue(found.problem, found.hint))
        if self.problems:
            raise ConfigFileError(tuple(self._errors()))
        assert self.interface is not None  # noted otherwise
        self._warn(self.interface)
        return Gateway(interface=self.interface, peers=tuple(peer for _, peer in self.peers))

    def _errors(self) -> list[ConfigError]:
        found = []
        places = Places(self.text, [path for path, _, _ in self.problems])
        for path, at_key, bad in self.problems:
            place = places.of_key(path) if at_key else places.of_value(path)
            found.append((place, bad))
        found.sort(key=lambda each: each[0])
        return [self._error(place, bad) for place, bad in found]

    def _error(self, place: Place, bad: BadValue) -> ConfigError:
        return ConfigError(bad.problem, hint=bad.hint, path=self.path, line=place.line, column=place.column)

    def _warn(self, interface: GatewayInterface) -> None:
        doubtful: list[tuple[Path, str]] = []
        for number, peer in self.peers:
            role = interface.role if peer.role is None else peer.role
            if role is Role.INITIATOR and peer.endpoint is None:
                problem = "this peer can never be reached: connlib is its initiator, and it has no endpoint"
                doubtful.append((("peers", number), problem))
            is_restricted = peer.rules is not None or peer.outbound is not None
            if is_restricted and peer.default is None and not any(rule.allow for rule in peer.rules or ()):
                problem = "this peer may reach nothing: no rule allows anything, and default is deny unless it is set"
                doubtful.append((("peers", number), problem))
        if doubtful:
            places = Places(self.text, [path for path, _ in doubtful])
            for path, problem in doubtful:
                log.warning("%s:%d:%d: %s", self.path, *places.of_value(path), problem)

    def note(self, path: Path, bad: BadValue, *, at_key: bool = False) -> None:
        """Note that something is wrong at a path: with its key, or with its value."""
        self.problems.append((path, at_key, bad))
        if len(self.problems) >= MAX_PROBLEMS:
            raise ConfigFileError(tuple(self._errors()), more=True)

    def _parse(self) -> dict[str, Any]:
        items = self.text.count("\n") + self.text.count(",")
        for start, dots in dotted_keys(self.text):
            if dots > _MAX_DOTS:
                raise self._no_toml("a key has too many parts", start)
            items += dots
        if items > MAX_ITEMS:
            problem = f"this file has more than {MAX_ITEMS:,} lines, commas and dots of keys"
            hint = "is it a gateway's TOML file?"
            raise ConfigFileError((ConfigError(problem, hint=hint, path=self.path),))
        try:
            document: dict[str, Any] = tomllib.loads(self.text)
        except RecursionError:
            raise self._no_toml("arrays and tables are nested too deeply", None) from None
        except ValueError as error:
            said = _PARSER_SAYS.fullmatch(str(error))
            if said is None:  # what int() says
                digits = re.search("[0-9_]{4000,}", self.text)
                raise self._no_toml("a number is too long", digits.start() if digits else None) from None
            problem = "this is not TOML: " + values.without_names(said[1])
            if said[2] is None:
                raise self._no_toml(problem, len(self.text.rstrip())) from None
            place = Place(int(said[2]), int(said[3]))
            raise ConfigFileError((self._error(place, BadValue(problem, _TOML_HINT)),)) from None
        return document

    def _no_toml(self, problem: str, offset: int | None) -> ConfigFileError:
        if offset is None:
            return ConfigFileError((ConfigError(problem, hint=_TOML_HINT, path=self.path),))
        start = self.text.rfind("\n", 0, offset) + 1
        place = Place(self.text.count("\n", 0, offset) + 1, offset - start + 1)
        return ConfigFileError((self._error(place, BadValue(problem, _TOML_HINT)),))

    def table(self, path: Path, value: object, fields: Mapping[str, Read]) -> dict[str, Any]:
        """What is right of a table. Raises `BadValue` if it is none."""
        if not isinstance(value, dict):
            what = f"an element of {path[-2]}" if isinstance(path[-1], int) else path[-1]
            hint = f"write {_title(path)} above its keys"
            raise BadValue(f"{what} must be a table, not {_kind(value)}", hint)
        right = {}
        for key, element in value.items():
            try:
                read = fields[key]
            except KeyError:
                self.note((*path, key), _unknown(path, key, fields), at_key=True)
                continue
            try:
                right[key] = read(self, (*path, key), element)
            except BadValue as bad:
                self.note((*path, key), bad)
        return right

    def build(
        self,
        path: Path,
        value: object,
        fields: Mapping[str, Read],
        kind: Callable[..., T],
        *checks: Callable[[dict[str, Any]], None],
        compared: tuple[str, ...] = (),
    ) -> T | None:
        """An object of a table. `checks` take the raw table.

        If something is wrong, which is noted, it is one of the fields that are `compared` with those of other tables,
        as far as they are right, or None.
        """
        problems = len(self.problems)
        right = self.table(path, value, fields)
        assert isinstance(value, dict)  # table() has looked
        try:
            for check in checks:
                check(value)
        except BadValue as bad:
            self.note(path, bad)
        if len(self.problems) > problems:
            return _reduced(kind, right, compared) if compared else None
        try:
            return kind(**right)
        except ConfigError as error:
            self.note(path, BadValue(error.problem, error.hint or "correct it"))
        except ValueError as error:  # timers that contradict each other
            self.note(path, BadValue(re.sub(r"timers\.", "", str(error)), "correct one of them"))
        return None


def _reduced(kind: Callable[..., T], right: dict[str, Any], fields: tuple[str, ...]) -> T | None:
    kept = {field: right[field] for field in fields if right.get(field) is not None}
    for field, value in kept.items():
        if isinstance(value, tuple):
            kept[field] = tuple(element for element in value if element is not None)
    # In place of a key that is missing or wrong, one of nobody's. A peer without a name is passed over.
    if kind is GatewayInterface and ("private_key" in kept) == ("private_key_file" in kept):
        kept = {**kept, "private_key": PrivateKey.generate(), "private_key_file": None}
    elif kind is GatewayPeer and "public_key" not in kept and "name" in kept:
        kept["public_key"] = PrivateKey.generate().public_key()
    try:
        return kind(**kept)
    except (TypeError, ConfigError):
        return None  # what it cannot be without is wrong


_TOML_HINT = "see https://toml.io for how TOML is written"

Read = Callable[[_Reader, Path, object], Any]


def _interface(reader: _Reader, path: Path, value: object) -> GatewayInterface | None:
    def check(given: dict[str, Any]) -> None:
        check_private_key("private_key" in given, "private_key_file" in given)

    compared = (
        *("private_key", "private_key_file", "addresses", "mtu", "routes", "role", "masquerade"),
        *("worker", "queues"),
    )
    return reader.build(path, value, _INTERFACE, GatewayInterface, check, compared=compared)


def _peer(reader: _Reader, path: Path, value: object) -> GatewayPeer | None:
    def check(given: dict[str, Any]) -> None:
        if "public_key" not in given:
            raise BadValue("this peer has no public_key", "add it")
        check_preshared_key("preshared_key" in given, "preshared_key_file" in given)

    compared = ("public_key", "name", "allowed_ips", "role", "preshared_key_file")
    return reader.build(path, value, _PEER, GatewayPeer, check, compared=compared)


def _rule(reader: _Reader, path: Path, value: object) -> GatewayRule | None:
    def check(given: dict[str, Any]) -> None:
        if "allow" not in given:
            raise BadValue("this rule does not say whether it allows", "add allow = true or allow = false")
        check_protocol_of_ranges(
            given.get("protocol"), bool(given.get("ports")), bool(given.get("icmp_types"))
        )

    return reader.build(path, value, _RULE, GatewayRule, check)


def _rules(reader: _Reader, path: Path, value: object) -> tuple[GatewayRule | None, ...]:
    rules: tuple[GatewayRule | None, ...] = _each(_rule)(reader, path, value)
    if excess := first_excess(rules):
        reader.note((*path, excess[0]), excess[1])
    return rules


def _timers(reader: _Reader, path: Path, value: object) -> Timers | None:
    return reader.build(path, value, _TIMERS, Timers)


def _limits(reader: _Reader, path: Path, value: object) -> Limits | None:
    return reader.build(path, value, _LIMITS, Limits)


def _each(read: Read, *, some: bool = False) -> Read:
    """A reader of an array, of which what is wrong is noted and left out as None. With `some`, it may not be empty."""

    def read_array(reader: _Reader, path: Path, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValue(f"{path[-1]} must be an array, not {_kind(value)}", _array_hint(path))
        if some:
            check_some(str(path[-1]), value)
        right = []
        for number, element in enumerate(value):
            try:
                right.append(read(reader, (*path, number), element))
            except BadValue as bad:
                reader.note((*path, number), bad)
                right.append(None)
        return tuple(right)

    return read_array


def _value(read: Callable[[str, Any], Any], kind: type, what: str, hint: str) -> Read:
    """A reader of a single value of one of TOML's types."""

    def read_value(_reader: _Reader, path: Path, value: object) -> Any:
        name = next(str(part) for part in reversed(path) if isinstance(part, str))
        # True is an int to Python, and 5 is a number of seconds as good as 5.0.
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise BadValue(f"{name} must be {what}, not {_kind(value)}", hint)
        return read(name, value)

    return read_value


def _text(read: Callable[[str, str], Any], hint: str = 'write it in quotes, "like this"') -> Read:
    return _value(read, str, "text", hint)


def _whole(low: int, high: int) -> Read:
    def read(name: str, number: int) -> int:
        if not low <= number <= high:
            # Python refuses to write down a number of many thousand digits.
            written = str(number) if abs(number) < 2**64 else "the number"
            raise BadValue(f"{name}: {written} is out of range", f"use {low} to {high}")
        return number

    return _value(read, int, "a whole number", f"use {low} to {high}, without quotes")


def _seconds(name: str, number: float) -> float:
    if not math.isfinite(number) or abs(number) > 2**64:
        raise BadValue(f"{name}: this is not a number of seconds", "use a number such as 5 or 0.5")
    return values.seconds(name, repr(number))


def _flag(hint: str) -> Read:
    return _value(lambda _name, value: value, bool, "true or false", hint)


_boolean = _flag("write true or false, without quotes")


def _key(kind: type[Secret]) -> Read:
    return _text(lambda name, text: values.key(kind, name, text))


def _device_name(_name: str, text: str) -> str:
    try:
        return check_interface_name(text)
    except ConfigError as error:
        raise BadValue(error.problem, error.hint or "use another name") from None


def _file(reader: _Reader, path: Path, value: object) -> str:
    def read(name: str, text: str) -> str:
        if not text or not text.isprintable():
            raise BadValue(f"{name}: this is not a path", "name a file with one key")
        if is_like_a_key(text):
            hint = f"name a file with the key in it, or write {name.removesuffix('_file')}"
            raise BadValue(f"{name}: this is a key, and not the path of a file with one", hint)
        return os.path.join(reader.folder, text)

    found: str = _text(read)(reader, path, value)
    return found


def _role(_name: str, text: str) -> Role:
    if text != text.lower():
        raise BadValue(f"{shown(text)} is not a role", f"write {values.role(text).value}, in small letters")
    return values.role(text)


def _one_of(*words: str) -> Read:
    def read(name: str, text: str) -> str:
        if text not in words:
            raise BadValue(f"{name}: {shown(text)} is none of {', '.join(words)}", "use one of them")
        return text

    return _text(read)


def _either(kind: type, one: Read, other: Read) -> Read:
    """A reader of a value of one kind, or of any other."""

    def read(reader: _Reader, path: Path, value: object) -> Any:
        return (one if type(value) is kind else other)(reader, path, value)

    return read


def _ranges(field: str) -> Read:
    def read(name: str, text: str) -> str:
        _gatewayvalues.read_range(name, text)
        return text

    low, high = _gatewayvalues.RANGES[field]
    text = _text(read, f'write a number, or a range in quotes: "{low}-{high}"')
    return _each(_either(int, _whole(low, high), text), some=True)


def _allow(reader: _Reader, path: Path, value: object) -> Any:
    return (
        value
        if value == "ask"
        else _flag('write true or false, without quotes, or "ask"')(reader, path, value)
    )


def _action(reader: _Reader, path: Path, value: object) -> Action:
    return Action(_one_of("allow", "deny", "ask")(reader, path, value))


_TIMERS: dict[str, Read] = {
    field: _value(_seconds, float, "a number of seconds", "write it without quotes, such as 5 or 0.5")
    for field in Timers.__dataclass_fields__
}
_LIMITS: dict[str, Read] = {
    field: _whole(*values.limit_range(field)) for field in Limits.__dataclass_fields__
}
_INTERFACE: dict[str, Read] = {
    "name": _text(_device_name),
    "private_key": _key(PrivateKey),
    "private_key_file": _file,
    "listen_port": _whole(0, 65535),
    "addresses": _each(_text(_gatewayvalues.address)),
    "mtu": _whole(MIN_MTU, MAX_MTU),
    "fwmark": _whole(0, MAX_FWMARK),
    "routes": _boolean,
    "endpoint": _text(_gatewayvalues.endpoint),
    "role": _text(_role),
    "timers": _timers,
    "limits": _limits,
    "masquerade": _either(bool, _boolean, _each(_text(_gatewayvalues.prefix))),
    "protect_addresses": _boolean,
    "dns": _each(_text(values.dns_entry)),
    "offload": _either(bool, _boolean, _each(_text(values.offload))),
    "encryption": _text(values.encryption),
    "threads": _whole(1, MOST_THREADS),
    "worker": _boolean,
    "queues": _whole(1, MOST_QUEUES),
}
_RULE: dict[str, Read] = {
    "allow": _allow,
    "name": _text(lambda _name, text: values.display_name(text)),
    "protocol": _either(int, _whole(0, 255), _one_of("tcp", "udp", "icmp")),
    "to": _each(_text(_gatewayvalues.prefix), some=True),
    "ports": _ranges("ports"),
    "icmp_types": _ranges("icmp_types"),
}
_PEER: dict[str, Read] = {
    "public_key": _text(lambda name, text: values.public_key(text, name)),
    "name": _text(lambda _name, text: values.display_name(text)),
    "preshared_key": _key(PresharedKey),
    "preshared_key_file": _file,
    "allowed_ips": _each(_text(_gatewayvalues.prefix)),
    "endpoint": _text(_gatewayvalues.endpoint),
    "persistent_keepalive": _whole(0, 65535),
    "role": _text(_role),
    "rules": _rules,
    "default": _action,
    "outbound": _action,
}
_TOP: dict[str, Read] = {"interface": _interface, "peers": _each(_peer)}


def _unknown(path: Path, key: str, fields: Mapping[str, Read]) -> BadValue:
    # A key in the wrong place may be a private one: quote it only if it has the shape of a name.
    quoted = f"{key} is" if re.fullmatch("[A-Za-z_-]{1,20}", key) else "this is"
    if near := guess(key.lower().replace("-", "_"), fields):
        hint = f"did you mean {near}?"
    else:
        hint = f"use one of {', '.join(fields)}"
    return BadValue(f"{quoted} not a key of {_title(path)}", hint)


def _title(path: Path) -> str:
    """How a table is called where it begins."""
    names = ".".join(part for part in path if isinstance(part, str))
    if not names:
        return "this file"
    return f"[[{names}]]" if isinstance(path[-1], int) else f"[{names}]"


def _array_hint(path: Path) -> str:
    if path[-1] in ("peers", "rules"):
        return f"write [[{'.'.join(part for part in path if isinstance(part, str))}]] above each"
    return f'write {path[-1]} = ["...", "..."]'


def _kind(value: object) -> str:
    kinds = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    for kind, name in {**kinds, dict: "a table", list: "an array"}.items():
        if isinstance(value, kind):
            return name
    return "a date or a time"
