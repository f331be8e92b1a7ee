"""Where the processor's time goes: what perf says, and what ring alone would take for the same packets."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Sequence

from datapath import traffic
from datapath.ends import CONNLIB, Bench, tunnel
from datapath.series import Found, Goal, RunFailed, Series
from datapath.traffic import UP
from engines import RustEngines

PACKET = 1420
SEGMENT = PACKET - 20 - 20 - 12
"""What a packet of the tunnel's MTU carries: less IPv4, TCP and its timestamps."""
SHOWN = 15
"""Functions in the table."""

CIPHER, CONNLIB_RUST, KERNEL, PYTHON, OTHER = (
    "encryption (ring)",
    "connlib, Rust",
    "kernel",
    "Python",
    "other libraries",
)
_RING = re.compile(r"chacha20|poly1305", re.IGNORECASE)

Sample = tuple[str, str, float]
"""(part, function, share in percent)."""


def share(bench: Bench) -> Found:
    """The share of ring's own time, and of the largest functions."""
    series: list[Series] = []
    profiled: list[Sequence[Sample]] = []
    estimated: list[float] = []
    failed = ""
    rust = RustEngines(bench.program) if bench.program else None
    try:
        with tunnel(bench, CONNLIB, CONNLIB) as each:
            for _ in range(bench.pairs):
                if shutil.which("perf"):
                    with traffic.load(each, 4, UP):
                        text = traffic.profile_of(each, bench.seconds)
                    profiled.append(parse_perf(text))
                if rust is not None:
                    seal, open_ = rust.ask("ring", PACKET, 0.2)
                    seconds_per_gb = traffic.tcp(each, 4, UP, bench.seconds)["cpu"]
                    estimated.append(estimate(seal + open_, seconds_per_gb))
    except RunFailed as error:
        failed = str(error)
    finally:
        if rust is not None:
            rust.close()
    profile = averaged(profiled)
    if profiled:
        totals = [by_part(samples) for samples in profiled]
        for part in (CIPHER, CONNLIB_RUST, KERNEL, PYTHON, OTHER):
            values = tuple(total.get(part, 0.0) for total in totals)
            series.append(Series(f"{part}, perf", "%", values, failed=failed))
        over = tuple(_over_the_next(samples) for samples in profiled)
        goal = Goal(1.0, ratio=False) if bench.offload is None else None
        series.append(
            Series("encryption over the next largest function", "times", over, goal=goal, failed=failed)
        )
    if estimated:
        series.append(
            Series("encryption, ring alone for as many packets", "%", tuple(estimated), failed=failed)
        )
    if not series:
        series.append(Series("encryption", "%", failed=failed or "needs perf (Debian: linux-perf)"))
    return Found(tuple(series), tuple(profile[:SHOWN]))


def estimate(nanoseconds: float, seconds_per_gb: float) -> float:
    """Percent of the processor time that sealing and opening take, by what both take for a packet."""
    return 1e9 / SEGMENT * nanoseconds / 1e9 / seconds_per_gb * 100


def parse_perf(text: str) -> list[Sample]:
    """The lines of `perf report` with overhead, object and symbol between tabs. Raises `RunFailed`."""
    samples = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) >= 3 and fields[0].endswith("%"):
            percent, library, symbol = fields[:3]
            name = re.sub(r"^\[[.k]\]\s*", "", symbol)
            if name.startswith("0x"):
                # Of a library without names: one line for all of it, not one for each instruction.
                name = library
            samples.append((part_of(library, name), name, float(percent.rstrip("%"))))
    if not samples:
        raise RunFailed(f"perf has seen nothing: {text.strip()[:200]!r}")
    return samples


def part_of(library: str, symbol: str) -> str:
    """Whose a function is."""
    if library.startswith("[") and library != "[vdso]":
        return KERNEL
    if library.startswith("_native"):
        return CIPHER if _RING.search(symbol) else CONNLIB_RUST
    return PYTHON if library.startswith(("python", "libpython")) else OTHER


def by_part(samples: Sequence[Sample]) -> dict[str, float]:
    """Percent of each part."""
    total: dict[str, float] = defaultdict(float)
    for part, _, percent in samples:
        total[part] += percent
    return total


def averaged(runs: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The mean of several runs, the largest first; encryption is one function, however many ring has for it."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    for samples in runs:
        for part, name, percent in samples:
            total[part, "all of it" if part == CIPHER else name] += percent / len(runs)
    found = [(part, name, percent) for (part, name), percent in total.items()]
    return sorted(found, key=lambda sample: sample[2], reverse=True)


def _over_the_next(samples: Sequence[Sample]) -> float:
    merged = averaged([samples])
    cipher = sum(percent for part, _, percent in merged if part == CIPHER)
    return cipher / max((percent for part, _, percent in merged if part != CIPHER), default=1.0)
