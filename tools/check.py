"""`make test` and `make lint`: every check, each timed, a summary, and pytest last.

A check that fails does not stop the others. What the machine lacks is skipped with the reason; with CI=true that is a
failure, as it is for a test (conftest.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What moves most through real devices: by `connlib up`, by `connlib-wg` and by the library. `make test-portable` runs
# all the others without offloads, too.
TELLING = (
    "tests/interop/test_namespace_traffic.py",
    "tests/interop/test_peers.py::test_carries_traffic",
    "tests/test_faults_system.py",
    "tests/test_tun_device.py",
    "tests/test_without_offloads.py",
)
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


@dataclass
class Check:
    name: str
    command: list[str]
    # Returns why this machine cannot run the check, None if it can.
    lacks: Callable[[], str | None] = lambda: None
    environment: dict[str, str] = field(default_factory=dict)


def cargo(component: str) -> Callable[[], str | None]:
    def lacks() -> str | None:
        if shutil.which("cargo") is None:
            return "no cargo"
        found = (
            subprocess.run(["cargo", component, "--version"], cwd=ROOT, capture_output=True).returncode == 0
        )
        return (
            None
            if found
            else f"no cargo {component} (rustup component add {component.replace('fmt', 'rustfmt')})"
        )

    return lacks


def lints(profile: list[str]) -> list[Check]:
    python = sys.executable
    return [
        Check("rustfmt", ["cargo", "fmt", "--all", "--check"], cargo("fmt")),
        Check(
            "clippy",
            [
                "cargo",
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--quiet",
                *profile,
                "--",
                "-Dwarnings",
            ],
            cargo("clippy"),
        ),
        Check("ruff check", [python, "-m", "ruff", "check", "--quiet"]),
        Check("ruff format", [python, "-m", "ruff", "format", "--check", "--quiet"]),
        Check("mypy", [python, "-m", "mypy", "--no-error-summary"]),
        Check(
            "stubtest",
            [python, "-m", "mypy.stubtest", "connlib._native", "--mypy-config-file", "pyproject.toml"],
        ),
    ]


def in_git() -> str | None:
    """The copy that the bugs are planted in is made of what git lists."""
    return None if (ROOT / ".git").exists() else "no git repository"


def tests(profile: list[str]) -> list[Check]:
    return [
        Check("cargo test", ["cargo", "test", "--workspace", "--locked", "--quiet", *profile]),
        Check(
            "peers", [sys.executable, "-m", "interop.build"], environment={"PYTHONPATH": str(ROOT / "tests")}
        ),
        Check("mutants", [sys.executable, "tools/mutants.py"], in_git),
        Check(
            "no offloads",
            [sys.executable, "-m", "pytest", "-q", "--offload", "off", "-k", "not outer-v6", *TELLING],
        ),
    ]


def run(check: Check) -> tuple[str, float]:
    """The result (ok, FAILED or skipped with the reason) and the seconds that it took."""
    print(f"==> {check.name}", flush=True)
    if reason := check.lacks():
        print(reason, flush=True)
        return (f"FAILED: {reason}" if IN_CI else f"skipped: {reason}"), 0.0
    start = time.monotonic()
    code = subprocess.call(check.command, cwd=ROOT, env={**os.environ, **check.environment})
    return ("ok" if code == 0 else f"FAILED (exit {code})"), time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="dev", help="cargo profile")
    parser.add_argument("--lint", action="store_true", help="only the checks that run nothing")
    options = parser.parse_args()
    profile = ["--profile", options.profile]
    checks = lints(profile) + ([] if options.lint else tests(profile))
    results = [(check.name, *run(check)) for check in checks]
    print()
    for name, result, seconds in results:
        print(f"{name:12} {seconds:6.1f} s  {result}")
    failed = [name for name, result, _ in results if result.startswith("FAILED")]
    code = 0
    if not options.lint:
        print("\n==> pytest", flush=True)
        code = subprocess.call([sys.executable, "-m", "pytest"], cwd=ROOT)
        if code:
            failed.append("pytest")
    if failed:
        # On the error stream: the last line of the output stays pytest's.
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
