"""`connlib bench`: which backend seals and opens packets here, why, and what it takes, by one thread and by several."""

from __future__ import annotations

import json
import os
from typing import TypedDict

from connlib._errors import ConfigError
from connlib._native import Encryption

BACKENDS = ("ring", "ipsec-mb")
SIZES = (64, 576, 1420, 8920)
"""Bytes of a packet: a short one, what every host takes, what the usual MTU leaves room for, and a jumbo frame's."""

MOST_THREADS = 8
"""Those that are measured. More of them would share batches that are too small for that."""


class Times(TypedDict):
    """Nanoseconds of a packet."""

    seal: float
    open: float


class Found(TypedDict):
    """What `--json` prints."""

    encryption: str
    why: str
    nanoseconds: dict[str, dict[int, Times]]
    """Of each backend that there is and each size."""
    threads: dict[int, dict[int, Times]]
    """Of the backend that is chosen, with so many threads each, and each size; of none where there is one processor."""
    missing: dict[str, str]
    """Of each backend, and each number of threads, that there is not: why."""


def run(*, seconds: float, as_json: bool) -> None:
    """Measure each size with each backend for so long, and print it."""
    found = measure(seconds)
    print(json.dumps(found) if as_json else "\n".join(_lines(found)))


def measure(seconds: float) -> Found:
    """What an interface without an `encryption` of its own would have, and what sealing and opening takes."""
    chosen = Encryption()
    there: dict[str, Encryption] = {}
    teams: dict[int, Encryption] = {}
    missing: dict[str, str] = {}
    for name in BACKENDS:
        try:
            there[name] = Encryption(name)
        except ConfigError as error:
            missing[name] = str(error)
    for count in _threads(_processors()):
        team = Encryption(threads=count)
        if team.threads == count:
            teams[count] = team
        else:
            missing[f"{count} threads"] = f"{count} threads: {team.why}"
    times: dict[str, dict[int, Times]] = {name: {} for name in there}
    by_threads: dict[int, dict[int, Times]] = {count: {} for count in teams}
    # In turn, so that what else the machine does meets all of them.
    for size in SIZES:
        for name, backend in there.items():
            times[name][size] = _times(backend, size, seconds)
        for count, team in teams.items():
            by_threads[count][size] = _times(team, size, seconds)
    return {
        "encryption": chosen.name,
        "why": chosen.why,
        "nanoseconds": times,
        "threads": by_threads,
        "missing": missing,
    }


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(processors: int) -> list[int]:
    """Two, and as many as there are processors."""
    return sorted({2, min(processors, MOST_THREADS)}) if processors > 1 else []


def _times(backend: Encryption, size: int, seconds: float) -> Times:
    seal, opened = backend.measure(size, seconds)
    return {"seal": round(seal, 1), "open": round(opened, 1)}


def _lines(found: Found) -> list[str]:
    times = found["nanoseconds"]
    titles = [f"{name} {way}" for name in times for way in ("seal", "open")]
    lines = [
        f"{found['encryption']}: {found['why']}",
        "",
        "nanoseconds a packet, in batches of 64, on one processor:",
        "",
        "".join(["bytes", *(f"{title:>15}" for title in titles)]),
    ]
    for size in SIZES:
        each = [value for name in times for value in (times[name][size]["seal"], times[name][size]["open"])]
        lines.append("".join([f"{size:>5}", *(f"{value:>15.0f}" for value in each)]))
    lines += _lines_of_threads(found)
    missing = [f"not measured: {why}" for why in found["missing"].values()]
    return [*lines, "", *missing] if missing else lines


def _lines_of_threads(found: Found) -> list[str]:
    teams = found["threads"]
    if not teams:
        return []
    one = found["nanoseconds"][found["encryption"]]
    titles = [title for count in teams for title in (f"{count} threads seal", "open", "gain")]
    lines = [
        "",
        f"{found['encryption']} by several threads, in batches of 256, and how many times as fast as by one:",
        "",
        "".join(["bytes", *(f"{title:>15}" for title in titles)]),
    ]
    for size in SIZES:
        line = f"{size:>5}"
        for each in teams.values():
            gain = sum(_both(one[size])) / sum(_both(each[size]))
            line += "".join(f"{value:>15.0f}" for value in _both(each[size])) + f"{gain:>14.2f}x"
        lines.append(line)
    return lines


def _both(times: Times) -> tuple[float, float]:
    return times["seal"], times["open"]
