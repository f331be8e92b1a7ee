"""The engine's section of docs/benchmarks.md: what was measured, on what, as tables of medians and of ratios."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import idle_peers
import lab_day

ROOT = Path(__file__).resolve().parent.parent

# One measurement: (nanoseconds a packet of sealing, of opening).
Sample = tuple[float, float]
Results = Mapping[tuple[str, int], Sequence[Sample]]

SEAL, OPEN = 0, 1
PHASES = {SEAL: "sealing", OPEN: "opening"}

GOAL_SIZE = 1420
# (what, name of the engine, name of the engine that it is compared with, goal at 1,420 bytes)
RATIOS = [
    ("Rust `Tunn`, in place / ring", "in-place", "ring", 0.95),
    ("Rust `Tunn` / ring", "tunn", "ring", 0.95),
    ("Rust `Node` / ring", "node", "ring", 0.95),
    ("Rust `Tunn` / boringtun 0.7.1", "tunn", "boringtun", None),
    ("Python `Tunn`, batches of 64 / Rust `Tunn`", "python-batch", "tunn", 0.90),
    ("Python `Tunn`, one packet a call / Rust `Tunn`", "python-single", "tunn", None),
    ("Python `Node`, batches of 64 / Rust `Node`", "python-node", "node", None),
]
ENGINES = {
    "ring": "ring, ChaCha20-Poly1305 alone",
    "boringtun": "boringtun, pristine",
    "in-place": "connlib, Rust: `Tunn` in place",
    "tunn": "connlib, Rust: `Tunn`",
    "node": "connlib, Rust: `Node`",
    "python-batch": "connlib, Python: `Tunn`, batches of 64",
    "python-single": "connlib, Python: `Tunn`, one packet a call",
    "python-node": "connlib, Python: `Node`, batches of 64, packets as `bytes`",
}


def ratio(results: Results, engine: str, other: str, size: int, phase: int) -> tuple[float, float, float]:
    """(median, lower and upper quartile) of the speed of `engine` over that of `other`, repetition by repetition.

    The two were measured within a fraction of a second in each repetition, so that a drift of the machine cancels.
    """
    pairs = zip(results[engine, size], results[other, size], strict=True)
    return quartiles([theirs[phase] / ours[phase] for ours, theirs in pairs])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower and upper quartile)."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def gbits(results: Results, engine: str, size: int, phase: int) -> float:
    """The median rate in Gbit/s of IP packets."""
    return size * 8 / statistics.median(sample[phase] for sample in results[engine, size])


def render(
    results: Results,
    sizes: Sequence[int],
    repetitions: int,
    seconds: float,
    idle: tuple[int, int],
    days: Mapping[str, Sequence[float]],
) -> str:
    """The whole section. `idle`: what `idle_peers.measure` gave."""
    known = [name for name in ENGINES if (name, sizes[0]) in results]
    lines = [
        "## The engine",
        "",
        "Measured by `make bench`. Ratios say more than rates: every engine is measured in turn, "
        f"{repetitions} times,",
        f"{seconds * 1000:.0f} ms each time and size, on one core, and a ratio compares neighbours in time. "
        "Shown are medians.",
        "",
        f"- date: {datetime.date.today().isoformat()}",
        *(f"- {key}: {value}" for key, value in machine().items()),
        "",
        "Both ends of a tunnel are in the same process; 64 packets are sealed, then opened; only the calls are timed.",
        '"In place" seals and opens packets where they lie, as ring does; `Tunn` and `Node` copy from the caller',
        "into a contiguous buffer; `Node` also routes, checks addresses and counts. boringtun is the release, with the",
        "virtual clock of `connlib.upstream`.",
        "",
        "ring alone neither copies nor looks anything up. At 1,420 bytes the copy of a packet costs about 4 % of its",
        "encryption, and routing, the check of the inner source and the counters of `Node` another 2 to 4 %: where the",
        "goal says missed, that is what it is missed by.",
    ]
    for phase, title in PHASES.items():
        lines += ["", f"### {title.capitalize()}, Gbit/s on one core", ""]
        lines += _header("engine", sizes)
        for name in known:
            cells = [f"{gbits(results, name, size, phase):.2f}" for size in sizes]
            lines.append(f"| {ENGINES[name]} | {' | '.join(cells)} |")
    for phase, title in PHASES.items():
        lines += ["", f"### {title.capitalize()}, ratios (quartiles of {repetitions})", ""]
        lines += _header("of", sizes, "goal at 1,420 B")
        for what, engine, other, goal in RATIOS:
            if engine in known and other in known:
                values = [ratio(results, engine, other, size, phase) for size in sizes]
                cells = [f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in values]
                lines.append(f"| {what} | {' | '.join(cells)} | {_verdict(goal, sizes, values)} |")
    lines += ["", f"### {idle_peers.PEERS:,} idle peers, resident memory", "", *_idle(idle)]
    lines += ["", "### 24 simulated hours in `connlib.lab`, seconds", "", *_days(days)]
    return "\n".join(lines) + "\n"


def _idle(idle: tuple[int, int]) -> list[str]:
    with_config, without = idle
    rows = [("with the configuration in Python", with_config), ("without it", without)]
    return [
        "One Python `Node`, each peer with an endpoint and an address of each family, none with a session.",
        "",
        "| | MB | bytes a peer | goal in MB |",
        "|---|---|---|---|",
        *(
            f"| {what} | {size / 1e6:.1f} | {size / idle_peers.PEERS:,.0f} | {idle_peers.GOAL / 1e6:.0f} |"
            for what, size in rows
        ),
    ]


def _days(days: Mapping[str, Sequence[float]]) -> list[str]:
    lines = [
        "A pair of hosts whose session nobody uses; the median, lowest and highest of "
        f"{len(next(iter(days.values())))}.",
        "",
        "| pair | seconds | goal |",
        "|---|---|---|",
    ]
    for name, taken in days.items():
        goal = f"under {lab_day.GOAL:g}" if name.startswith("patched, idle") else "-"
        lines.append(f"| {name} | {statistics.median(taken):.3f} ({taken[0]:.3f}-{taken[-1]:.3f}) | {goal} |")
    return lines


def _verdict(goal: float | None, sizes: Sequence[int], values: Sequence[tuple[float, float, float]]) -> str:
    """The goal, and whether the median at its size meets it."""
    if goal is None or GOAL_SIZE not in sizes:
        return "-"
    return f"{goal}: {'met' if round(values[sizes.index(GOAL_SIZE)][0], 2) >= goal else 'missed'}"


def _header(first: str, sizes: Sequence[int], *last: str) -> list[str]:
    titles = [first, *(f"{size:,} B" for size in sizes), *last]
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(" ".join(re.findall(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)).split())
    vectors = [name for name in ("avx2", "avx512f") if name in flags]
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.split()
    return {
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {' '.join(vectors)}",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}",
        "versions": f"CPython {platform.python_version()}, rustc {rustc[1] if len(rustc) > 1 else 'unknown'}, "
        f"ring {locked('ring')}, boringtun {locked('boringtun')}, pyo3 {locked('pyo3')}",
    }


def locked(crate: str) -> str:
    """The version of a crate in Cargo.lock."""
    found = re.search(rf'name = "{crate}"\nversion = "([^"]+)"', (ROOT / "Cargo.lock").read_text())
    return found[1] if found else "unknown"
