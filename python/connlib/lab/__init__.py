"""A laboratory for tunnels: hosts, links, NAT boxes and sleeping machines in virtual time.

    world = World(seed=7)
    a, b = world.host("A"), world.host("B")
    world.tunnel(a, b)
    a.send(b, at=1.0)
    world.run(until=200.0)
    print(world.trace.table())
    world.trace.draw("trace.svg")

`compare` plays a script (a `Scenario`) on the patched engine and on upstream, and says what each did.

Nothing here touches a network or a clock, and whoever knows the seed knows every key: it is for experiments only.
"""

from connlib.lab._crosscheck import Comparison, Measure, compare, measure
from connlib.lab._engines import ENGINES, Engine, Tunnel
from connlib.lab._errors import LabError
from connlib.lab._host import Host
from connlib.lab._links import Link
from connlib.lab._nat import Nat
from connlib.lab._png import PictureError
from connlib.lab._recordings import (
    RecordedInput,
    RecordedPeer,
    Recording,
    RecordingWriter,
    load_recording,
    replays,
)
from connlib.lab._records import (
    Address,
    Arrived,
    Changed,
    Copied,
    Delivered,
    Discarded,
    Happened,
    Kind,
    LossReason,
    Lost,
    Offered,
    Record,
    Sent,
    Woke,
)
from connlib.lab._scenarios import SCENARIOS, Asked, Elsewhere, Scenario, Stage
from connlib.lab._trace import Fate, Outcome, Trace
from connlib.lab._world import World

__all__ = [
    "ENGINES",
    "SCENARIOS",
    "Address",
    "Arrived",
    "Asked",
    "Changed",
    "Comparison",
    "Copied",
    "Delivered",
    "Discarded",
    "Elsewhere",
    "Engine",
    "Fate",
    "Happened",
    "Host",
    "Kind",
    "LabError",
    "Link",
    "LossReason",
    "Lost",
    "Measure",
    "Nat",
    "Offered",
    "Outcome",
    "PictureError",
    "Record",
    "RecordedInput",
    "RecordedPeer",
    "Recording",
    "RecordingWriter",
    "Scenario",
    "Sent",
    "Stage",
    "Trace",
    "Tunnel",
    "Woke",
    "World",
    "compare",
    "load_recording",
    "measure",
    "replays",
]
