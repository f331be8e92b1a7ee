"""Fault 37: files that are wrong."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from connlib import format_config
from reliability import parties
from reliability.faults import Check, Run, at_most, count
from reliability.places import COMMAND


def bad_files(run: Run) -> list[Check]:
    """Fault 37: what `connlib check` says about each, and how soon. Starting Python is in the time."""
    config = parties.gateway_config([parties.GATEWAY + 1])
    good = format_config(config).encode()
    secret = config.private_key.to_base64()
    files: dict[str, Callable[[], bytes]] = {
        "a bad line": lambda: good + b"AllowedIPs = nonsense\n",
        "NULs": lambda: good.replace(b"Peer", b"P\0er"),
        "half a key": lambda: good.replace(secret.encode(), secret[:20].encode()),
        "100 MB": lambda: good + b"# filled up with comments\n" * 4_000_000,
        "not text": lambda: bytes(range(256)) * 64,
    }
    checks = []
    echoed = traces = accepted = 0
    with TemporaryDirectory() as folder:
        for what, content in list(files.items())[: run.count(len(files), 1)]:
            path = Path(folder, "wg0.conf")
            path.unlink(missing_ok=True)
            path.touch(0o600)
            path.write_bytes(content())
            begin = time.monotonic()
            done = subprocess.run([*COMMAND, "check", str(path)], capture_output=True, text=True, timeout=60)
            checks.append(at_most(what, time.monotonic() - begin, 1, "s", timed=True))
            said = done.stdout + done.stderr
            accepted += done.returncode == 0
            traces += "Traceback" in said
            echoed += secret[:16] in said
    return [
        count("accepted", accepted, 0),
        count("tracebacks", traces, 0),
        count("keys echoed", echoed, 0),
        *checks,
    ]
