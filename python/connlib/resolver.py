"""Host names of peers.

The node knows addresses only. What is written as a name in a configuration is looked up here, and again and again
while that fails, so that a name server which is not up yet is no reason not to start.

A peer that has moved to another address, and says so by its name only, leaves handshakes unanswered: then the name is
looked up again, and of several addresses the next one gets its turn.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import anyio
from anyio.abc import TaskGroup

from ._errors import DeviceError
from ._explain import Obstacle
from ._native import PublicKey
from ._types import GaveUp, HandshakeStarted, NodeEvent, PeerConfig, SessionEstablished
from .config import describe_peer

_log = logging.getLogger("connlib")

Endpoint = tuple[str, int]

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two attempts; each pause is twice the one before."""

UNANSWERED = 15.0
"""Seconds of a handshake after which its peer is looked up again: three initiations (paper section 6.1)."""


@functools.lru_cache(maxsize=4096)
def is_literal(host: str) -> bool:
    """Whether this is an address already. One with a zone (`fe80::1%eth0`) is not: no node can use it."""
    try:
        return ip_address(host) is not None and "%" not in host
    except ValueError:
        return False


async def look_up_now(
    peers: Collection[PeerConfig], can_reach: Callable[[str], bool], counts: Counter[str], *, patient: bool
) -> dict[Endpoint, str]:
    """The addresses of all endpoints that are host names, as long as they can be had.

    For those whom a change of the name servers would keep from being looked up at all: the new ones are asked through
    the tunnel. If one of them has none, it is asked for again and again by whoever is `patient`; others get a
    `DeviceError`.
    """
    answers: dict[Endpoint, str] = {}
    errors: list[str] = []

    async def look_up(endpoint: Endpoint) -> None:
        counts["asked"] += 1
        try:
            answers[endpoint] = (await _usable_addresses(endpoint, can_reach))[0]
        except (OSError, UnicodeError) as error:
            counts["failed"] += 1
            errors.append(f"cannot look up {endpoint[0]} before its own DNS is set: {_reason(error)}")

    pause = FIRST_PAUSE
    while True:
        async with anyio.create_task_group() as tasks:
            for endpoint in {peer.endpoint for peer in peers}.difference(answers):
                if endpoint is not None and not is_literal(endpoint[0]):
                    tasks.start_soon(look_up, endpoint)
        if not errors:
            return answers
        if not patient:
            raise DeviceError(min(errors), hint="give the peer an address as its endpoint, or leave DNS out")
        _log.warning("%s; next attempt in %g s", min(errors), pause)
        errors.clear()
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _usable_addresses(endpoint: Endpoint, can_reach: Callable[[str], bool]) -> list[str]:
    """Those that there is a socket for, at least one. Raises `OSError`."""
    answers = await anyio.getaddrinfo(*endpoint, type=socket.SOCK_DGRAM)
    found = dict.fromkeys(str(address[0]) for *_, address in answers)
    usable = [address for address in found if is_literal(address) and can_reach(address)]
    if not usable:
        raise OSError("it has no address of a family that this system has")
    return usable


def _reason(error: OSError | UnicodeError) -> object:
    return (error.strerror if isinstance(error, OSError) else None) or error


@dataclass(eq=False)
class _Name:
    """A host name of a peer."""

    peer: PeerConfig
    endpoint: Endpoint
    scope: anyio.CancelScope
    """Of all that is done for this name."""
    replace: bool
    """Whether the first answer takes the place of an address that the peer may have."""
    answer: str | None = None
    """The last one."""
    problem: object = None
    """Why there is none."""
    next_at: float = 0.0
    """When the next attempt to get the first one begins, on the clock of the event loop."""
    waiting: anyio.CancelScope | None = None
    """Of what is done until a handshake has an end."""


class Resolver:
    """Looks up the endpoints that are host names.

    found: called with a peer and its address once there is one, and whether it takes the place of an address that the
        peer may have already: for a name that a peer got in place of another one, or of an address, and for one that
        does not answer. Returns whether the peer's address is another one now.
    can_reach: whether there is a socket for the family of an address.
    counts: `asked` counts the look-ups, `failed` those without a usable answer, and `moved` those that gave another
        address to a peer which did not answer.
    """

    def __init__(
        self,
        found: Callable[[PublicKey, Endpoint, bool], bool],
        can_reach: Callable[[str], bool],
        tasks: TaskGroup,
        counts: Counter[str],
    ) -> None:
        self._found = found
        self._can_reach = can_reach
        self._tasks = tasks
        self._counts = counts
        self._names: dict[PublicKey, _Name] = {}
        self._seen: set[PublicKey] = set()

    def update(self, peers: Collection[PeerConfig], known: Mapping[Endpoint, str] | None = None) -> None:
        """Look up the names that are new, unless they are `known`, and forget those that are gone."""
        wanted = {
            peer.public_key: peer
            for peer in peers
            if peer.endpoint is not None and not is_literal(peer.endpoint[0])
        }
        for key, name in list(self._names.items()):
            if key not in wanted or wanted[key].endpoint != name.endpoint:
                name.scope.cancel()
                self._stop_waiting(name)
                del self._names[key]
        for key, peer in wanted.items():
            if key in self._names:
                self._names[key].peer = peer
            elif peer.endpoint is not None:
                name = _Name(peer, peer.endpoint, anyio.CancelScope(), replace=key in self._seen)
                self._names[key] = name
                self._tasks.start_soon(self._look_up, name, (known or {}).get(peer.endpoint))
        self._seen = {peer.public_key for peer in peers}

    def notice(self, peer: PublicKey, event: NodeEvent) -> None:
        """Learn of an event of a peer: one that does not answer is looked up again."""
        name = self._names.get(peer)
        if name is None:
            return
        match event:
            case HandshakeStarted() if name.waiting is None:
                name.waiting = anyio.CancelScope()
                self._tasks.start_soon(self._look_up_again, name, name.waiting)
            case GaveUp():
                self._stop_waiting(name)
                # The next attempt begins with a new address, if there is one.
                name.waiting = anyio.CancelScope()
                self._tasks.start_soon(self._look_up_once, name, name.waiting)
            case SessionEstablished():
                self._stop_waiting(name)

    def obstacle(self, peer: PublicKey) -> Obstacle | None:
        """Why there is no address for a peer that has a host name, if there is none."""
        name = self._names.get(peer)
        if name is None or name.answer is not None:
            return None
        host = name.endpoint[0]
        if name.problem is None:
            return Obstacle(f"{host} is being looked up", "it is tried again, if there is no answer")
        at = max(0.0, name.next_at - anyio.current_time())
        return Obstacle(f"{host} cannot be looked up: {name.problem}", "another look-up", at)

    def _stop_waiting(self, name: _Name) -> None:
        if name.waiting is not None:
            name.waiting.cancel()
            name.waiting = None

    async def _look_up(self, name: _Name, known: str | None) -> None:
        with name.scope:
            pause = FIRST_PAUSE
            while True:
                try:
                    address = known or await self._address(name)
                except (OSError, UnicodeError) as error:
                    self._complain(name, error, f"; next attempt in {pause:g} s")
                    name.problem, name.next_at = _reason(error), anyio.current_time() + pause
                    await anyio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    if name.scope.cancel_called:
                        return  # the peer has gone, or has another name, and the answer came at the same time
                    _log.info("%s: %s is %s", describe_peer(name.peer), name.endpoint[0], address)
                    name.answer = address
                    self._found(name.peer.public_key, (address, name.endpoint[1]), name.replace)
                    return

    async def _look_up_again(self, name: _Name, waiting: anyio.CancelScope) -> None:
        """Look up a peer for as long as a handshake with it goes on, now and then."""
        with waiting:
            pause = UNANSWERED
            while True:
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                await self._ask_again(name, waiting)

    async def _look_up_once(self, name: _Name, waiting: anyio.CancelScope) -> None:
        with waiting:
            await self._ask_again(name, waiting)
        if name.waiting is waiting:
            name.waiting = None

    async def _ask_again(self, name: _Name, waiting: anyio.CancelScope) -> None:
        if name.answer is None:
            return  # the first look-up goes on
        try:
            address = await self._address(name)
        except (OSError, UnicodeError) as error:
            self._complain(name, error, "")
            return
        # It has answered by now, or has gone: what is known of it is newer than what was asked.
        if waiting.cancel_called:
            return
        name.answer = address
        if self._found(name.peer.public_key, (address, name.endpoint[1]), True):
            self._counts["moved"] += 1
            _log.info("%s does not answer: %s is %s now", describe_peer(name.peer), name.endpoint[0], address)

    def _complain(self, name: _Name, error: OSError | UnicodeError, then: str) -> None:
        self._counts["failed"] += 1
        _log.warning(
            "%s: cannot look up %s: %s%s",
            describe_peer(name.peer),
            name.endpoint[0],
            _reason(error),
            then,
        )

    async def _address(self, name: _Name) -> str:
        """The first address that there is a socket for, or the one after the last answer. Raises `OSError`."""
        self._counts["asked"] += 1
        usable = await _usable_addresses(name.endpoint, self._can_reach)
        following = usable.index(name.answer) + 1 if name.answer in usable else 0
        return usable[following % len(usable)]
