"""What a running interface is asked by other programs: what it does, why, and to change.

    async with connlib.serve_control(interface):
        ...

serves `/run/connlib/NAME.sock`, and in another program

    client = connlib.ControlClient("wg0")
    for peer in (await client.show()).peers:
        print(peer.name, peer.state, peer.why)

- `protocol`: requests and answers, as JSON lines. Pure.
- `wire`: configurations as JSON, in the form that `connlib schema` describes. Pure.
- `status`: what an interface says of itself.
- `server` and `client`: the two ends of the socket.

The commands `connlib show`, `explain`, `apply`, `events` and `capture` are clients of it.
"""

from .client import CapturedFile, ControlClient, ReportedEvents, running
from .protocol import CaptureNews, ControlError, Difference
from .server import DIRECTORY, ControlServer, serve_control
from .status import PeerExplanation, PeerStatus, ReportedEvent, Status

__all__ = [
    "DIRECTORY",
    "CaptureNews",
    "CapturedFile",
    "ControlClient",
    "ControlError",
    "ControlServer",
    "Difference",
    "PeerExplanation",
    "PeerStatus",
    "ReportedEvent",
    "ReportedEvents",
    "Status",
    "running",
    "serve_control",
]
