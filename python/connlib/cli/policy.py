"""`connlib policy test FILE`: what would become of flows between a peer and this side, and which rule says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from connlib._errors import ConfigError
from connlib._policy import Flow, Policy, VerdictReason
from connlib.gateway import Gateway, GatewayPeer

from ._files import find_peer, load_without_keys

_NO_POLICIES = "only a gateway's TOML file has policies: in a wg-quick file, everything is allowed"


def run(file: str, peer: str, flows: Iterable[Flow], *, towards: bool) -> int:
    """Print a line for each flow that the peer starts or, if `towards` it, that starts on this side; the exit code.

    Key files are not read, so that rules can be tested where no keys are. Raises `ConfigError` for a file or a peer
    that is wrong.
    """
    gateway = load_without_keys(file, _NO_POLICIES)
    tested = find_peer(gateway, peer, file)
    decide = _towards if towards else _from
    code = 0
    for flow, steps in [(flow, list(decide(gateway, tested, flow))) for flow in flows]:
        print(f"{flow}: {'; then '.join(text for _, text in steps)}")
        if not all(passes for passes, _ in steps):
            code = 1
    return code


Step = tuple[bool, str]
"""Whether a policy that is asked lets the flow pass, and what is said of it."""


def _from(gateway: Gateway, peer: GatewayPeer, flow: Flow) -> Iterator[Step]:
    """What decides about a flow that the peer starts, up to the first that denies it."""
    policy = peer.to_policy()
    if policy is None:
        passes, text = True, f"allowed: {peer} has no policy, and may reach everything"
    else:
        verdict = policy.decide(flow)
        passes, text = verdict.allowed, str(verdict)
        if verdict.rule is not None and verdict.name is None:
            text += f": {policy.rules[verdict.rule - 1]}"
    yield passes, text
    receiver = _owner(gateway, flow.destination)
    if passes and receiver is not None:
        # Out of the device, and back in.
        yield _outbound(receiver, flow, " itself" if receiver is peer else "")


def _towards(gateway: Gateway, peer: GatewayPeer, flow: Flow) -> Iterator[Step]:
    """What decides about a flow to the peer that starts on this side."""
    owner = _owner(gateway, flow.destination)
    if owner is not peer:
        whose = f"belongs to {owner}" if owner is not None else "is in no peer's allowed_ips"
        problem = f"{flow} does not go to {peer}: the address {whose}"
        raise ConfigError(problem, hint="give an address of the peer's")
    yield _outbound(peer, flow)


def _outbound(peer: GatewayPeer, flow: Flow, itself: str = "") -> Step:
    """What becomes of a flow to the peer that it did not start."""
    policy = peer.to_policy()
    if policy is None:
        return True, f"allowed towards {peer}{itself}, which has no policy"
    field, action = ("default", policy.default) if policy.outbound is None else ("outbound", policy.outbound)
    verdict = Policy(default=action).decide(flow)
    if verdict.reason is VerdictReason.NO_FLOW:
        return False, f"denied towards {peer}{itself}: it starts no flow, asked by {field}"
    said = "asks the hook" if verdict.asks else "allowed" if verdict.allowed else "denied"
    return verdict.allowed, f"{said} towards {peer}{itself} by {field}"


def _owner(gateway: Gateway, address: IPv4Address | IPv6Address) -> GatewayPeer | None:
    """The peer that packets to this address go to: the one with the longest prefix (paper, section 2)."""
    found = [
        (prefix.prefixlen, number)
        for number, peer in enumerate(gateway.peers)
        for prefix in peer.allowed_ips
        if address in prefix
    ]
    return gateway.peers[max(found)[1]] if found else None
