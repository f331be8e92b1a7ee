"""What goes through a tunnel, and what programs say about it: iperf3, ping, and floods of datagrams."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from datapath.ends import IPERF3_PORT, Tunnel
from datapath.series import RunFailed, percentile
from interop.netns import Background
from reliability.places import Child, child, cpu_seconds

UP, DOWN = "near to far", "far to near"
WAYS = (UP, DOWN)
DATAGRAM_PORT = 5202
_LONG = 600.0
"""Seconds after which a load ends by itself, if nothing has ended it."""
LOST_PING = 1000.0
"""Milliseconds that a ping without an answer counts as: as long as is waited for one."""


def tcp(tunnel: Tunnel, streams: int, way: str, seconds: float) -> dict[str, float]:
    """One run of iperf3: Gbit/s that the receivers had, and seconds of processor time for each GB of them."""
    tunnel.serve()
    before = tunnel.cpu()
    text = _said(tunnel, iperf3(tunnel, streams, way, seconds), seconds + 40)
    used = tunnel.cpu() - before
    received, rate = parse_iperf3(text)
    return {"rate": rate / 1e9, "cpu": used / (received / 1e9)}


def _said(tunnel: Tunnel, command: Sequence[str], timeout: float) -> str:
    """What a program at the near end printed, whether it was content or not."""
    try:
        return tunnel.near.host.run(*command, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{command[0]} did not end within {timeout:g} s") from None


def iperf3(tunnel: Tunnel, streams: int, way: str, seconds: float) -> tuple[str, ...]:
    """The client's command; its end is the near one."""
    command = ["iperf3", "-c", tunnel.far.end.v4, "-p", str(IPERF3_PORT), "-J", "--connect-timeout", "5000"]
    command += ["-P", str(streams), "-t", f"{max(1, round(seconds))}"]
    return (*command, "-R") if way == DOWN else tuple(command)


def parse_iperf3(text: str) -> tuple[int, float]:
    """(bytes, bits a second) that the receivers had, of what `iperf3 -J` wrote. Raises `RunFailed`."""
    try:
        said = json.loads(text)
    except ValueError:
        raise RunFailed(f"iperf3 wrote no JSON: {text.strip()[:200]!r}") from None
    if "error" in said:
        raise RunFailed(f"iperf3: {said['error']}")
    received = said.get("end", {}).get("sum_received", {})
    if not received.get("bytes"):
        raise RunFailed("iperf3: nothing was received")
    return int(received["bytes"]), float(received["bits_per_second"])


@contextmanager
def load(tunnel: Tunnel, streams: int, way: str) -> Iterator[None]:
    """TCP streams that run beside something else, which begins when they are under way, and end with it."""
    tunnel.serve()
    log = tunnel.folder / "load.json"
    running = Background(tunnel.near.host.command(*iperf3(tunnel, streams, way, _LONG)), log)
    try:
        time.sleep(1)
        yield
        if running.returncode is not None:
            parse_iperf3(running.output())
            raise RunFailed("the load ended before what was measured under it")
    finally:
        running.stop()
        log.unlink()


def pings(tunnel: Tunnel, count: int, interval: float) -> dict[str, float]:
    """Median and 99th percentile of the round trips, in milliseconds."""
    command = ("ping", "-n", "-i", f"{interval:g}", "-c", str(count), "-W", "1", tunnel.far.end.v4)
    times = parse_ping(_said(tunnel, command, count * interval * 2 + 30))
    return {"p50": percentile(times, 50), "p99": percentile(times, 99)}


def cpu_of_a_ping(tunnel: Tunnel, count: int) -> float:
    """Seconds of processor time that the far end takes to receive a ping and send its reply, both alone."""
    before = cpu_seconds(tunnel.pids[1])
    pings(tunnel, count, 0.01)
    return (cpu_seconds(tunnel.pids[1]) - before) / count


def parse_ping(text: str) -> list[float]:
    """The round trips in milliseconds of what `ping` printed, those without an answer included. Raises `RunFailed`."""
    times = [float(found) for found in re.findall(r"icmp_seq=\d+ .*\btime=([\d.]+) ms$", text, re.MULTILINE)]
    sent = re.search(r"^(\d+) packets transmitted", text, re.MULTILINE)
    if sent is None or not times:
        raise RunFailed(f"no ping was answered: {text.strip()[-200:]!r}")
    return times + [LOST_PING] * max(0, int(sent[1]) - len(times))


class Datagrams:
    """Who floods the far end of a tunnel from the near one, and who counts what arrives."""

    def __init__(self, sender: Child, receiver: Child) -> None:
        self._sender, self._receiver = sender, receiver

    def flood(self, size: int, seconds: float, rate: float | None) -> dict[str, float]:
        """Packets a second that arrived and were sent, and the percentage lost. rate: None for all that can be sent."""
        self._receiver.tell("receive")
        sent = self._sender.ask("send", size=size, seconds=seconds, rate=rate, patience=seconds + 60)
        # What is still in some queue.
        time.sleep(0.3)
        arrived = self._receiver.ask("stop")
        if not arrived:
            raise RunFailed(f"of {sent:,} datagrams, none arrived")
        lost = max(0, sent - arrived) / sent * 100
        return {"rate": arrived / seconds, "offered": sent / seconds, "lost": lost}


@contextmanager
def datagrams(tunnel: Tunnel) -> Iterator[Datagrams]:
    """Start both."""
    where = {"address": tunnel.far.end.v4, "port": DATAGRAM_PORT}
    module = "datapath.datagrams"
    with (
        child(tunnel.far.host, module, {**where, "role": "receive"}) as receiver,
        child(tunnel.near.host, module, {**where, "role": "send"}) as sender,
    ):
        yield Datagrams(sender, receiver)


class Memory:
    """The most memory that both ends of a tunnel have while this is entered."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.most = 0.0
        self._tunnel = tunnel
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            try:
                self.most = max(self.most, self._tunnel.resident())
            except (OSError, RunFailed):
                return

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def profile_of(tunnel: Tunnel, seconds: float) -> str:
    """What `perf report` says of both ends, while something goes through."""
    recorded = tunnel.folder / "perf.data"
    pids = ",".join(map(str, tunnel.pids))
    host = tunnel.near.host
    host.run(
        *("perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-p", pids, "-o", str(recorded)),
        *("--", "sleep", f"{seconds:g}"),
        timeout=seconds + 60,
    )
    columns = ("--fields", "overhead,dso,symbol", "--field-separator", "\t")
    return host.run("perf", "report", "-q", "--stdio", "-i", str(recorded), *columns, timeout=120)
