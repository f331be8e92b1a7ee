"""`make test-all`: the Python tests on every CPython >= 3.10 that the machine has, with one abi3 wheel."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import json, platform, sys, sysconfig
print(json.dumps([platform.python_implementation(), list(sys.version_info[:3]), sys.executable,
    bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""


def interpreters() -> dict[str, str]:
    """ "3.x" -> path, the newest patch release of each, from PATH and from pyenv."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders += sorted(pyenv.glob("*/bin"))
    found: dict[tuple[int, int], tuple[list[int], str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("python3*")):
            if not re.fullmatch(r"python3(\.\d+t?)?", path.name):
                continue
            # A shim of pyenv for a version that is not active fails; that version is found in its own folder.
            try:
                asked = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=60)
            except (OSError, subprocess.TimeoutExpired):
                continue  # a link to nowhere, or no program
            if asked.returncode != 0:
                continue
            implementation, version, executable, free_threaded = json.loads(asked.stdout)
            key = (version[0], version[1])
            # An abi3 wheel does not fit a free-threaded interpreter.
            fits = implementation == "CPython" and key >= (3, 10) and not free_threaded
            if fits and (key not in found or found[key][0] < version):
                found[key] = (version, executable)
    return {f"{major}.{minor}": path for (major, minor), (_, path) in sorted(found.items())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other arguments go to pytest.")
    parser.add_argument("--profile", default="dev", help="cargo profile")
    options, for_pytest = parser.parse_known_args()
    results: list[tuple[str, str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "maturin", "build", "--locked", "--profile", options.profile]
        subprocess.run([*command, "--quiet", "--out", folder], cwd=ROOT, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        for version, python in interpreters().items():
            print(f"\n==> CPython {version}: {python}", flush=True)
            start = time.monotonic()
            result = test(version, python, wheel, for_pytest)
            results.append((version, result, time.monotonic() - start))
    print()
    for version, result, seconds in results:
        print(f"CPython {version:5} {seconds:6.1f} s  {result}")
    return 0 if results and all(result == "ok" for _, result, _ in results) else 1


def test(version: str, python: str, wheel: Path, arguments: list[str]) -> str:
    venv = ROOT / ".venvs" / version
    if subprocess.call([python, ROOT / "tools" / "make_venv.py", venv]) != 0:
        return "FAILED: no environment"
    inside = str(venv / "bin" / "python")
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.call([*install, "--force-reinstall", str(wheel)]) != 0:
        return "FAILED: the wheel does not install"
    # The tests import the installed package: the folder python/ is not on their path.
    code = subprocess.call([inside, "-m", "pytest", *arguments], cwd=ROOT)
    return "ok" if code == 0 else f"FAILED (pytest exit {code})"


if __name__ == "__main__":
    sys.exit(main())
