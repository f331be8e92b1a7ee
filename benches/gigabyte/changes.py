"""Other MTUs while something goes through: from outside, as an administrator does, and by connlib's own `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gigabyte import MTUS
from gigabyte.path import Tunnel, set_mtu

COUNT = 24
"""How often the MTU changes in a transfer: at each end, in each of the two ways, to each size twice."""


def changes(tunnel: Tunnel) -> Iterator[Callable[[], None]]:
    """One after the other; each end has its turn, and the other one has another MTU most of the time."""
    for step in range(COUNT):
        end = 1 + step % 2
        # What is asked of `apply` must not be what was asked of it before: it would have nothing to do.
        mtu = MTUS[(step // 4 + step % 2) % len(MTUS)]
        if step % 4 < 2:
            yield lambda end=end, mtu=mtu: set_mtu(tunnel.host(end), mtu)  # type: ignore[misc]
        else:
            yield lambda end=end, mtu=mtu: tunnel.apply(end, mtu)  # type: ignore[misc]
