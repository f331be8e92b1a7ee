"""What lies between two configurations: the diff that `Interface.apply` makes of them, and how a person reads it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import anyio

from ._native import Node
from ._nodeconfig import node_config, with_what_the_node_does_not_see
from ._policy import Action, Policy, Rule
from ._text import MOST_SHOWN, counted, host_and_port, listed
from ._types import ConfigDiff, PeerConfig
from .config import InterfaceConfig, describe_offload, describe_peer
from .driver import Interface
from .links import DEFAULT_MTU


class Change(NamedTuple):
    """One difference, as a line."""

    mark: str
    """+ for what is added, - for what is removed, ~ for what changes, ! for what cannot change at run time."""
    text: str

    def __str__(self) -> str:
        return f"{self.mark} {self.text}"


class Applier:
    """Changes a running interface for several who may want to at once, and says what has changed.

    told: is called with each configuration that was applied, before anything else happens on the event loop.
    """

    def __init__(
        self, interface: Interface, told: Callable[[InterfaceConfig], None] = lambda config: None
    ) -> None:
        self._interface = interface
        self._told = told
        self._turn = anyio.Lock()

    async def apply(self, config: InterfaceConfig) -> list[Change]:
        """`Interface.apply`; raises what that does."""
        async with self._turn:
            before = self._interface.config
            diff = await self._interface.apply(config)
            self._told(config)
            return list(describe_diff(diff, before, config))


def count_changes(changes: Sequence[Change]) -> str:
    """How many, in words."""
    return counted(len(changes), "change") if changes else "no change"


def compute_diff(old: InterfaceConfig, new: InterfaceConfig) -> ConfigDiff:
    """What `Interface.apply(new)` would return on an interface of `old`, with a node of its own that sends nothing.

    Raises `ConfigError` or `ValueError` as that does.
    """
    # What is compared may be for another machine, which has another encryption and more processors.
    before, after = (
        dataclasses.replace(node_config(config), encryption="ring", threads=1) for config in (old, new)
    )
    node = Node(before, now=0.0, unix_time=0.0)
    return with_what_the_node_does_not_see(node.apply(after, 0.0), old, new)


def describe_diff(diff: ConfigDiff, old: InterfaceConfig, new: InterfaceConfig) -> Iterator[Change]:
    """A line for each difference, without keys that are secret; none if there is no difference."""
    # None leaves it as it is.
    if new.name is not None and new.name != old.name:
        yield Change("!", f"name: {old.name or 'any'} -> {new.name}, which takes a restart")
    if new.queues != old.queues:
        yield Change("!", f"queues: {old.queues} -> {new.queues}, which takes a restart")
    for field in diff.node:
        yield Change("~", _INTERFACE.get(field, _plain(field))(old, new))
    peers = {peer.public_key: peer for peer in (*new.peers, *old.peers)}
    for key in diff.removed:
        yield Change("-", _described(peers[key]))
    before_of = {peer.public_key: peer for peer in old.peers}
    after_of = {peer.public_key: peer for peer in new.peers}
    for key in diff.added:
        yield Change("+", _described(after_of[key]))
    for key, fields in diff.changed:
        was, is_ = before_of[key], after_of[key]
        for field in fields:
            if field == "policy":
                texts = list(_policy_changes(was.policy, is_.policy))
            else:
                texts = [_PEER.get(field, _plain(field))(was, is_)]
            yield from (Change("~", f"{describe_peer(was)}: {text}") for text in texts)


def _described(peer: PeerConfig) -> str:
    said = [f"peer {peer.public_key.to_base64()}"]
    if peer.name is not None:
        said.insert(0, peer.name)
    if peer.allowed_ips:
        said.append(f"allowed IPs {listed(peer.allowed_ips)}")
    if peer.endpoint is not None:
        said.append(f"endpoint {_endpoint(peer.endpoint)}")
    if peer.policy is not None:
        said.append(str(peer.policy))
    return ", ".join(said)


def _plain(field: str) -> Callable[[object, object], str]:
    """How a field whose value may be shown has changed."""

    def describe(old: object, new: object) -> str:
        return f"{_spelled(field)}: {_value(getattr(old, field))} -> {_value(getattr(new, field))}"

    return describe


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g} s"
    return str(getattr(value, "value", value))


def _spelled(field: str) -> str:
    return field.replace("_", " ").replace("mtu", "MTU").replace("ips", "IPs").replace("dns", "DNS")


def _members(field: str) -> Callable[[object, object], str]:
    """What was added to a list, and what was removed."""

    def describe(old: object, new: object) -> str:
        before: Sequence[Hashable] = getattr(old, field)
        after: Sequence[Hashable] = getattr(new, field)
        had, has = set(before), set(after)
        parts = []
        if added := [element for element in after if element not in had]:
            parts.append("+ " + listed(added))
        if removed := [element for element in before if element not in has]:
            parts.append("- " + listed(removed))
        return f"{_spelled(field)}: {'; '.join(parts) or 'in another order'}"

    return describe


def _constants(field: str) -> Callable[[object, object], str]:
    def describe(old: object, new: object) -> str:
        before, after = getattr(old, field), getattr(new, field)
        changed = [
            f"{each.name} {getattr(before, each.name):g} -> {getattr(after, each.name):g}"
            for each in dataclasses.fields(before)
            if getattr(before, each.name) != getattr(after, each.name)
        ]
        return f"{field}: {', '.join(changed)}"

    return describe


def _private_key(old: InterfaceConfig, new: InterfaceConfig) -> str:
    keys = (config.private_key.public_key().to_base64() for config in (old, new))
    return f"private key: the public one was and becomes {' -> '.join(keys)}; all sessions start anew"


def _listen_port(old: InterfaceConfig, new: InterfaceConfig) -> str:
    return f"UDP port: {old.listen_port or 'any'} -> {new.listen_port or 'any'}"


def _fwmark(old: InterfaceConfig, new: InterfaceConfig) -> str:
    return f"mark: {old.fwmark:#x} -> {new.fwmark:#x}"


def _mtu(old: InterfaceConfig, new: InterfaceConfig) -> str:
    return f"MTU: {old.mtu or DEFAULT_MTU} -> {new.mtu or DEFAULT_MTU}"


def _preshared_key(old: PeerConfig, new: PeerConfig) -> str:
    if old.preshared_key is None:
        return "preshared key: added"
    return "preshared key: removed" if new.preshared_key is None else "preshared key: another one"


def _endpoint(endpoint: tuple[str, int] | None) -> str:
    if endpoint is None:
        return "none"
    return host_and_port(*endpoint)


def _policy_changes(old: Policy | None, new: Policy | None) -> Iterator[str]:
    """What of a policy has changed, a line for each."""
    if old is None or new is None:
        before, after = (policy or "none, everything is allowed" for policy in (old, new))
        yield f"policy: {before} -> {after}"
    yield from _rule_changes(old.rules if old is not None else (), new.rules if new is not None else ())
    if old is not None and new is not None:
        for field in ("default", "outbound"):
            was, is_ = getattr(old, field), getattr(new, field)
            if was is not is_:
                yield f"{field}: {_action(was)} -> {_action(is_)}"


def _rule_changes(old: Sequence[Rule], new: Sequence[Rule]) -> Iterator[str]:
    removed, kept_of_old = _without(old, new)
    added, kept_of_new = _without(new, old)
    for verb, rules in (("removed", removed), ("added", added)):
        for number, rule in rules[:MOST_SHOWN]:
            yield f"rule {number} {verb}: {rule}"
        if len(rules) > MOST_SHOWN:
            yield f"{len(rules) - MOST_SHOWN:,} more rules {verb}"
    if kept_of_old != kept_of_new:
        # The first one that fits decides.
        yield f"the {'other ' if removed or added else ''}rules are in another order"


def _without(rules: Sequence[Rule], others: Sequence[Rule]) -> tuple[list[tuple[int, Rule]], list[Rule]]:
    """The rules that are not among the others, with their numbers, and those that are."""
    left = Counter(others)
    gone, kept = [], []
    for number, rule in enumerate(rules, 1):
        if left[rule]:
            left[rule] -= 1
            kept.append(rule)
        else:
            gone.append((number, rule))
    return gone, kept


def _action(action: Action | None) -> str:
    return "as default" if action is None else action.value


_INTERFACE: dict[str, Callable[[InterfaceConfig, InterfaceConfig], str]] = {
    "private_key": _private_key,
    "listen_port": _listen_port,
    "fwmark": _fwmark,
    "mtu": _mtu,
    "addresses": _members("addresses"),
    "masquerade": _members("masquerade"),
    "dns": _members("dns"),
    "offload": lambda old, new: (
        f"offload: {describe_offload(old.offload)} -> {describe_offload(new.offload)}"
    ),
    "encryption": lambda old, new: f"encryption: {old.encryption} -> {new.encryption}",
    "timers": _constants("timers"),
    "limits": _constants("limits"),
}
_PEER: dict[str, Callable[[PeerConfig, PeerConfig], str]] = {
    "preshared_key": _preshared_key,
    "allowed_ips": _members("allowed_ips"),
    "endpoint": lambda old, new: f"endpoint: {_endpoint(old.endpoint)} -> {_endpoint(new.endpoint)}",
}
