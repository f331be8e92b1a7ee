"""Host names of peers.

The node knows addresses only. What is written as a name in a configuration is looked up here, and again and again
while that fails, so that a name server which is not up yet is no reason not to start.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection
from ipaddress import ip_address

import anyio
from anyio.abc import TaskGroup

from ._native import PublicKey
from ._types import PeerConfig
from .config import describe_peer

_log = logging.getLogger("connlib")

Endpoint = tuple[str, int]

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two attempts; each pause is twice the one before."""


def is_literal(host: str) -> bool:
    """Whether this is an address already. One with a zone (`fe80::1%eth0`) is not: no node can use it."""
    try:
        return ip_address(host) is not None and "%" not in host
    except ValueError:
        return False


class Resolver:
    """Looks up the endpoints that are host names.

    found: called with a peer and its address once there is one, and whether it takes the place of an address that the
        peer may have already: for a name that a peer got in place of another one, or of an address.
    can_reach: whether there is a socket for the family of an address.
    """

    def __init__(
        self,
        found: Callable[[PublicKey, Endpoint, bool], None],
        can_reach: Callable[[str], bool],
        tasks: TaskGroup,
    ) -> None:
        self._found = found
        self._can_reach = can_reach
        self._tasks = tasks
        self._names: dict[PublicKey, tuple[Endpoint, anyio.CancelScope]] = {}
        self._seen: set[PublicKey] = set()

    def update(self, peers: Collection[PeerConfig]) -> None:
        """Look up the names that are new, and forget those that are gone."""
        wanted = {
            peer.public_key: peer
            for peer in peers
            if peer.endpoint is not None and not is_literal(peer.endpoint[0])
        }
        for key, (endpoint, scope) in list(self._names.items()):
            if key not in wanted or wanted[key].endpoint != endpoint:
                scope.cancel()
                del self._names[key]
        for key, peer in wanted.items():
            if key not in self._names and peer.endpoint is not None:
                scope = anyio.CancelScope()
                self._names[key] = (peer.endpoint, scope)
                self._tasks.start_soon(self._look_up, peer, peer.endpoint, scope, key in self._seen)
        self._seen = {peer.public_key for peer in peers}

    async def _look_up(
        self, peer: PeerConfig, endpoint: Endpoint, scope: anyio.CancelScope, replace: bool
    ) -> None:
        with scope:
            pause = FIRST_PAUSE
            while True:
                try:
                    address = await self._address(*endpoint)
                except (OSError, UnicodeError) as error:
                    _log.warning(
                        "%s: cannot look up %s: %s; next attempt in %g s",
                        describe_peer(peer),
                        endpoint[0],
                        (error.strerror if isinstance(error, OSError) else None) or error,
                        pause,
                    )
                    await anyio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    if scope.cancel_called:
                        return  # the peer has gone, or has another name, and the answer came at the same time
                    _log.info("%s: %s is %s", describe_peer(peer), endpoint[0], address)
                    self._found(peer.public_key, (address, endpoint[1]), replace)
                    return

    async def _address(self, host: str, port: int) -> str:
        """The first address that there is a socket for. Raises `OSError`."""
        answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        for *_, address in answers:
            if is_literal(str(address[0])) and self._can_reach(str(address[0])):
                return str(address[0])
        raise OSError("it has no address of a family that this system has")
