"""What the machine must have. It needs no package of ours, and is asked before one is built."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from interop.build import missing_tool
from interop.machine import missing


def lacking(against: Sequence[str]) -> str | None:
    """What this machine lacks for tunnels of these implementations and of ours, None if it has everything."""
    if reason := missing():
        return reason
    if not shutil.which("iperf3"):
        return "needs iperf3 (Debian: iperf3)"
    # To wireguard-go some cells compare in any case.
    needed = dict.fromkeys(("wireguard-go", *against))
    return next((reason for name in needed if (reason := missing_tool(name))), None)
