"""`connlib bench`: which backend seals and opens packets here, why, and what each one takes."""

from __future__ import annotations

import json
from typing import TypedDict

from connlib._errors import ConfigError
from connlib._native import Encryption

BACKENDS = ("ring", "ipsec-mb")
SIZES = (64, 576, 1420, 8920)
"""Bytes of a packet: a short one, what every host takes, what the usual MTU leaves room for, and a jumbo frame's."""


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
    missing: dict[str, str]
    """Of each backend that there is not: why."""


def run(*, seconds: float, as_json: bool) -> None:
    """Measure each size with each backend for so long, and print it."""
    found = measure(seconds)
    print(json.dumps(found) if as_json else "\n".join(_lines(found)))


def measure(seconds: float) -> Found:
    """What an interface without an `encryption` of its own would have, and what sealing and opening takes."""
    chosen = Encryption()
    there: dict[str, Encryption] = {}
    missing: dict[str, str] = {}
    for name in BACKENDS:
        try:
            there[name] = Encryption(name)
        except ConfigError as error:
            missing[name] = str(error)
    times: dict[str, dict[int, Times]] = {name: {} for name in there}
    # In turn, so that what else the machine does meets all of them.
    for size in SIZES:
        for name, backend in there.items():
            seal, opened = backend.measure(size, seconds)
            times[name][size] = {"seal": round(seal, 1), "open": round(opened, 1)}
    return {"encryption": chosen.name, "why": chosen.why, "nanoseconds": times, "missing": missing}


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
    missing = [f"not measured: {why}" for why in found["missing"].values()]
    return [*lines, "", *missing] if missing else lines
