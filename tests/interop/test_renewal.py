"""The renewal of a session by the clock: paper, section 6.1, Rekey-After-Time of 120 s. Runs last in this folder."""

from __future__ import annotations

import time

import pytest

from interop.machine import FOREIGN, require
from interop.netns import wait_for
from interop.tunnels import ROLES, OldTunnels

REKEY_AFTER_TIME = 120
PING_INTERVAL = 0.2


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("role", ROLES, ids=ROLES.values())
def test_the_client_renews_after_120_s_and_no_ping_is_lost(
    machine: None, old_tunnels: OldTunnels, foreign: str, role: int
) -> None:
    require(foreign)
    started = old_tunnels.get(foreign, role)
    assert started is not None
    tunnel, pinger, since = started
    age = time.monotonic() - since
    wait_for(
        lambda: tunnel.responses(tunnel.server) >= 2,
        "the renewal",
        timeout=max(1, REKEY_AFTER_TIME + 15 - age),
    )
    assert time.monotonic() - since > REKEY_AFTER_TIME - 1
    sent, lost = pinger.losses()
    assert sent > (REKEY_AFTER_TIME - 1) / PING_INTERVAL * 0.5
    assert lost == 0
    # Every initiation was the client's, and every one was answered.
    assert tunnel.initiations(tunnel.client) == tunnel.responses(tunnel.server)
    assert tunnel.initiations(tunnel.server) == 0
