"""What is measured. Each cell says how, and what is promised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from connlib import ConfigError
from connlib._native import Encryption
from datapath import profiles, traffic
from datapath.ends import CONNLIB, Bench, Tunnel, Without, tunnel
from datapath.series import Found, Goal, Measured, Series, compared, in_turns
from datapath.traffic import DOWN, UP, WAYS

WIREGUARD_GO = "wireguard-go"
FULL = 1392
"""The payload of the largest datagram that the MTU of 1,420 bytes leaves room for."""
PEERS = (1, 100, 10_000)
QUICK_PEERS = (1, 10, 100)

# By who the other is, and whether connlib runs with its offloads.
FASTER = {"wireguard-go": 1.5, "gotatun-cli": 4.0, "boringtun-cli": 5.0}
FASTER_WITHOUT = {"gotatun-cli": 1.0, "boringtun-cli": 1.0}


@dataclass(frozen=True)
class Cell:
    """A part of the document."""

    name: str
    title: str
    remark: str
    measure: Callable[[Bench], Found]


def _speed_goal(bench: Bench, against: str) -> Goal | None:
    bounds = FASTER if bench.offload is None else FASTER_WITHOUT
    return Goal(bounds[against]) if against in bounds else None


def _goal(bench: Bench, bound: float, *, least: bool = True, ratio: bool = True) -> Goal | None:
    """A goal that holds for the path with its offloads only."""
    return Goal(bound, least, ratio) if bench.offload is None else None


@contextmanager
def _tunnels(bench: Bench, names: Sequence[str]) -> Iterator[dict[str, Tunnel]]:
    """A tunnel of connlib and one of each of these, all there from the start: an idle one does nothing."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(tunnel(bench, name, name)) for name in (CONNLIB, *names)}


def _streams(number: int) -> str:
    return f"TCP x {number}"


def tcp(bench: Bench) -> Found:
    series = []
    with _tunnels(bench, bench.against) as tunnels:
        for streams in (1,) if bench.quick else (1, 4, 16):
            for way in WAYS:
                for name in bench.against:
                    what = f"{_streams(streams)}, {way}"
                    bench.say(f"{what}, {name}")
                    run = partial(traffic.tcp, streams=streams, way=way, seconds=bench.seconds)
                    runs = in_turns(bench.pairs, partial(run, tunnels[CONNLIB]), partial(run, tunnels[name]))
                    series.append(compared(runs, "rate", what, "Gbit/s", name, _speed_goal(bench, name)))
    return Found(tuple(series))


def gateway(bench: Bench) -> Found:
    series = []
    with (
        tunnel(bench, WIREGUARD_GO, CONNLIB) as ours,
        tunnel(bench, WIREGUARD_GO, WIREGUARD_GO) as theirs,
    ):
        for streams in (1,) if bench.quick else (1, 4):
            for way, what in ((UP, "into connlib"), (DOWN, "out of connlib")):
                label = f"{_streams(streams)}, {what}"
                bench.say(label)
                run = partial(traffic.tcp, streams=streams, way=way, seconds=bench.seconds)
                runs = in_turns(bench.pairs, partial(run, ours), partial(run, theirs))
                series.append(compared(runs, "rate", label, "Gbit/s", WIREGUARD_GO))
    return Found(tuple(series))


def udp(bench: Bench) -> Found:
    series: list[Series] = []

    def run(flood: traffic.Datagrams, size: int) -> Measured:
        """As much as can be sent, and then half of what has arrived."""
        overload = flood.flood(size, bench.seconds, None)
        half = flood.flood(size, bench.seconds, overload["rate"] / 2)
        return {"rate": overload["rate"], "offered": overload["offered"], "lost": half["lost"]}

    with ExitStack() as stack:
        tunnels = stack.enter_context(_tunnels(bench, (WIREGUARD_GO,)))
        ours, theirs = (stack.enter_context(traffic.datagrams(each)) for each in tunnels.values())
        for size in (FULL,) if bench.quick else (64, 512, FULL):
            what = f"{size:,} B"
            bench.say(what)
            runs = in_turns(bench.pairs, partial(run, ours, size), partial(run, theirs, size))
            faster = _goal(bench, 4.0) if size == FULL else None
            little = Goal(0.1, least=False, ratio=False)
            series += [
                compared(runs, "rate", f"{what}, delivered", "packets/s", WIREGUARD_GO, faster),
                compared(runs, "offered", f"{what}, sent", "packets/s", WIREGUARD_GO),
                compared(runs, "lost", f"{what}, lost at half of that rate", "%", WIREGUARD_GO, little),
            ]
    return Found(tuple(series))


def ping(bench: Bench) -> Found:
    interval = 0.01
    count = max(20, round(bench.seconds / interval))

    def run(each: Tunnel, way: str | None) -> Measured:
        if way is None:
            return traffic.pings(each, count, interval)
        with traffic.load(each, 4, way):
            return traffic.pings(each, count, interval)

    series: list[Series] = []
    with _tunnels(bench, (WIREGUARD_GO,)) as tunnels:
        for way in (None, *WAYS):
            what = "idle" if way is None else f"under {_streams(4)}, {way}"
            bench.say(what)
            runs = in_turns(bench.pairs, *(partial(run, each, way) for each in tunnels.values()))
            no_worse = _goal(bench, 1.0, least=False)
            series += [
                compared(runs, "p50", f"{what}, p50", "ms", WIREGUARD_GO, no_worse),
                compared(runs, "p99", f"{what}, p99", "ms", WIREGUARD_GO, no_worse if way else None),
            ]
    return Found(tuple(series))


def cost(bench: Bench) -> Found:
    series: list[Series] = []

    def run(each: Tunnel) -> Measured:
        with traffic.Memory(each) as memory:
            measured = traffic.tcp(each, 4, UP, bench.seconds)
        return {"cpu": measured["cpu"], "memory": memory.most}

    with _tunnels(bench, bench.against) as tunnels:
        at_rest = {name: each.resident() for name, each in tunnels.items()}
        for name in bench.against:
            bench.say(name)
            runs = in_turns(bench.pairs, partial(run, tunnels[CONNLIB]), partial(run, tunnels[name]))
            series += [
                compared(runs, "cpu", "processor time", "s/GB", name),
                Series("memory at rest", "MB", (at_rest[CONNLIB],), name, (at_rest[name],)),
                compared(runs, "memory", "memory at full load", "MB", name),
            ]
    return Found(tuple(series))


def peers(bench: Bench) -> Found:
    alone, *numbers = QUICK_PEERS if bench.quick else PEERS
    series: list[Series] = []

    def wakes(each: Tunnel) -> Measured:
        return {"cpu": traffic.cpu_of_a_ping(each, 50 if bench.quick else 500) * 1e6}

    with ExitStack() as stack:
        tunnels = {
            number: stack.enter_context(tunnel(bench, CONNLIB, CONNLIB, idle_peers=number - 1))
            for number in (alone, *numbers)
        }
        for number in numbers:
            ends = tunnels[number], tunnels[alone]
            bench.say(f"{number:,} peers")
            against, most = f"connlib, {alone} peer", number == numbers[-1]
            for way in WAYS:
                run = partial(traffic.tcp, streams=4, way=way, seconds=bench.seconds)
                runs = in_turns(bench.pairs, *(partial(run, each) for each in ends))
                what = f"{number:,} peers, {_streams(4)}, {way}"
                series.append(compared(runs, "rate", what, "Gbit/s", against, Goal(0.95) if most else None))
            runs = in_turns(bench.pairs, *(partial(wakes, each) for each in ends))
            what = f"{number:,} peers, processor time of a ping"
            no_more = Goal(1.05, least=False) if most else None
            series.append(compared(runs, "cpu", what, "us", against, no_more))
    return Found(tuple(series))


EVERYTHING = Without("everything")
WITHOUT = (
    Without("two threads for a batch", settings=("threads = 2",)),
    Without("two queues, a thread each", settings=("queues = 2",)),
    Without("no offloads of the device", settings=("offload = false",)),
    Without("no cutting (TSO, USO)", settings=("offload = checksum, coalesce_tcp, coalesce_udp",)),
    Without("no merging", settings=("offload = tso4, tso6, tso_ecn, uso",)),
    Without("no UDP_SEGMENT", sockets="gso"),
    Without("no UDP_GRO", sockets="gro"),
    Without("none of these", settings=("offload = false",), sockets="gso,gro"),
    Without("no thread, trio", settings=("worker = false",)),
    Without("no thread, asyncio", settings=("worker = false",), backend="asyncio"),
)


def _libraries() -> tuple[Without, ...]:
    """A row for the backend that there is beside the one that is chosen by itself, if there is one."""
    try:
        library, chosen = Encryption("ipsec-mb"), Encryption()
    except ConfigError:
        return ()
    if library.name == chosen.name:
        return (Without("ring in place of ipsec-mb", settings=("encryption = ring",)),)
    return (Without("ipsec-mb in place of ring", settings=("encryption = ipsec-mb",)),)


def parts(bench: Bench) -> Found:
    series: list[Series] = []
    # The last three are of every kind.
    without_what = WITHOUT[-3:] if bench.quick else (*_libraries(), *WITHOUT)
    with ExitStack() as stack:
        ends = {each: stack.enter_context(tunnel(bench, each, each)) for each in (EVERYTHING, *without_what)}
        for streams in (1,) if bench.quick else (1, 4):
            for without in without_what:
                what = f"{without.what}, {_streams(streams)}"
                bench.say(what)
                run = partial(traffic.tcp, streams=streams, way=UP, seconds=bench.seconds)
                runs = in_turns(bench.pairs, partial(run, ends[without]), partial(run, ends[EVERYTHING]))
                series.append(compared(runs, "rate", what, "Gbit/s", EVERYTHING.what))
    return Found(tuple(series))


CELLS = (
    Cell(
        "tcp",
        "TCP, connlib at both ends",
        "iperf3 with 1, 4 and 16 streams, both ends of the tunnel being the same implementation; the rate is what the "
        "receivers had, payload only.",
        tcp,
    ),
    Cell(
        "gateway",
        "TCP, connlib at one end",
        "The far end is connlib, or wireguard-go to compare with; the near end, which sends to it or receives from it, "
        "is wireguard-go in both cases and takes its share of the same processors, so that the ratio understates the "
        "difference.",
        gateway,
    ),
    Cell(
        "udp",
        "UDP",
        "One thread sends datagrams of that payload into the near end as fast as it can (sendmmsg, 64 a call), and a "
        "process at the far end counts what arrives, in a buffer of 64 MiB; it all shares the processors. Then half of "
        "the rate that has just arrived is sent, by each to its own rate, and what is lost of it is counted.",
        udp,
    ),
    Cell(
        "ping",
        "Latency",
        "A ping every 10 ms, alone or beside four TCP streams one way; each run has its own median and 99th "
        "percentile. One without an answer counts as 1 s. The load is what each tunnel can carry, so that the faster "
        "one is the fuller one.",
        ping,
    ),
    Cell(
        "cost",
        "Processor time and memory",
        "Both ends together, while four TCP streams run from the near to the far end. Processor time is that of the "
        "two processes, in the kernel too (their CPU-time clocks), for each GB of payload; what the kernel does "
        "elsewhere on their behalf, in interrupts, is not in it. Memory is resident memory: before any load, and the "
        "most while it runs, looked at 20 times a second. connlib's holds two Python interpreters.",
        cost,
    ),
    Cell(
        "peers",
        "Many peers",
        "The far end has so many configured peers, of which one is there; the others have keys, an address each and "
        "no session. The ratio is to a tunnel whose far end has one. The processor time of a ping is that of the far "
        "end, which wakes twice for one.",
        peers,
    ),
    Cell(
        "parts",
        "What each technique brings",
        "connlib at both ends without one of what makes it fast, beside connlib with everything, from the near to the "
        "far end, and, in the first rows, with what is off by default. "
        "Calls for many messages (sendmmsg, recvmmsg) and turns that move packets both ways are in all rows; "
        "without the thread it is the event loop that takes these turns. "
        "Without UDP_SEGMENT the datagrams have no checksum, which makes the kernel refuse it; such ones it does not "
        "put together either (UDP_GRO).",
        parts,
    ),
    Cell(
        "share",
        "Against the limit",
        "Four TCP streams from the near to the far end. perf samples both processes 997 times a second of processor "
        "time, the kernel's share of them included. The row without perf is arithmetic: packets of 1,420 bytes times "
        "what ring alone takes to seal and to open one (`benches/rust`, measured before each run), over the processor "
        "time of both.",
        profiles.share,
    ),
)
