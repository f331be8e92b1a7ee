"""The JSON Schema of a gateway's TOML file, for editors and other programs."""

from __future__ import annotations

from typing import Any

import msgspec

from ._gatewayvalues import ADDRESS, KEY, whole_text
from ._native import PresharedKey, PrivateKey, PublicKey
from ._types import LIMIT_RANGES, LONGEST_TIMER, SHORTEST_TIMER
from .gateway import Gateway


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a gateway's file.

    It says what single values may be, as far as it has words for that (docs/gateway.md lists the rest). What
    contradicts another value is for `connlib check` to say.
    """
    made = _without_null(msgspec.json.schema(Gateway, schema_hook=_custom_type))
    definitions = made["$defs"]
    one_key: dict[str, Any] = {"oneOf": [{"required": [f]} for f in ("private_key", "private_key_file")]}
    definitions["GatewayInterface"].update(one_key)
    definitions["Address"] = {
        "description": "An IPv4 or IPv6 address, or a prefix: with a length, or for a single host without.",
        "type": "string",
        "pattern": whole_text(ADDRESS),
    }
    definitions["GatewayPeer"]["not"] = {"required": ["preshared_key", "preshared_key_file"]}
    for definition in definitions.values():
        # The first paragraph; the others are for those who write Python.
        definition["description"] = " ".join(definition["description"].partition("\n\n")[0].split())
    for kind, properties in (("Timers", _timer_schema), ("Limits", _limit_schema)):
        definitions[kind]["additionalProperties"] = False
        for name, property_ in definitions[kind]["properties"].items():
            property_.update(properties(name))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "connlib gateway", **made}


def _custom_type(kind: type) -> dict[str, Any]:
    if kind in (PrivateKey, PresharedKey, PublicKey):
        return {"type": "string", "pattern": whole_text(KEY)}
    return {"$ref": "#/$defs/Address"}


def _without_null(part: Any) -> Any:
    """A part of a schema without null, which TOML does not have."""
    if isinstance(part, list):
        return [_without_null(element) for element in part]
    if not isinstance(part, dict):
        return part
    part = {key: _without_null(value) for key, value in part.items() if value is not None}
    kinds = part.get("anyOf", [])
    if {"type": "null"} in kinds:
        kinds.remove({"type": "null"})
        if len(kinds) == 1:
            del part["anyOf"]
            part = {**kinds[0], **part}
    if isinstance(part.get("enum"), list):
        part["enum"] = [word for word in part["enum"] if word is not None]
    return part


_TIMER_DESCRIPTIONS = {
    "rekey_after_time": "A session of this age is renewed by its initiator when it sends.",
    "reject_after_time": "A session of this age is not used any more.",
    "rekey_attempt_time": "For how long an unanswered initiation is repeated.",
    "rekey_timeout": "After how long an unanswered initiation is repeated.",
    "keepalive_timeout": "After how long received data is acknowledged if nothing else was sent.",
}
_LIMIT_DESCRIPTIONS = {
    "rekey_after_messages": "After how many messages a session is renewed.",
    "reject_after_messages": "How many messages a session carries at most.",
    "queue_packets": "How many packets wait for a session at most.",
}


def _timer_schema(name: str) -> dict[str, Any]:
    return {
        "description": _TIMER_DESCRIPTIONS[name],
        "minimum": SHORTEST_TIMER,
        "maximum": LONGEST_TIMER,
    }


def _limit_schema(name: str) -> dict[str, Any]:
    low, high = LIMIT_RANGES[name]
    return {"description": _LIMIT_DESCRIPTIONS[name], "minimum": low, "maximum": high}
