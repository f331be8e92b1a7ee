"""`make bench`: measures, prints the tables and writes its section of docs/benchmarks.md.

The Rust program and the extension are built with the release profile; the extension is installed in a scratch folder,
so that the one that the tests use stays as it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import sections

ROOT = Path(__file__).resolve().parent.parent
SIZES = (64, 576, 1420, 8920)


def build(folder: Path) -> Path:
    """Build both; the package goes to `folder`. Returns the path of the Rust program."""
    build_package(folder)
    cargo = ["cargo", "build", "--quiet", "--release", "--locked", "-p", "connlib-benches"]
    subprocess.run(cargo, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / "release" / "connlib-benches"


def build_package(folder: Path) -> None:
    """Build the package with the release profile, into `folder`."""
    print("building with the release profile", flush=True)
    maturin = [
        sys.executable,
        "-m",
        "maturin",
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--out",
        str(folder),
    ]
    subprocess.run(maturin, cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True)


def call_built(module: str, folder: Path, arguments: Sequence[str]) -> int:
    """Run a package of benches/ with what was built into `folder`; its exit code."""
    path = os.pathsep.join([str(folder), str(ROOT / "benches"), str(ROOT / "tests")])
    command = [sys.executable, "-m", module, "--built", *arguments]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # A Ctrl-C of the terminal has reached it, too; it ends when what it has started is gone.
                continue


def measure(
    program: Path | None, repetitions: int, seconds: float
) -> Mapping[tuple[str, int], list[tuple[float, float]]]:
    """Every engine at every size, in turn. Without a program, only what Python can measure."""
    import engines

    if hasattr(os, "sched_setaffinity"):
        # Python and the Rust program wait for each other, so one core is enough for both, and has the same caches.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rust = engines.RustEngines(program) if program else None
    to_measure: dict[tuple[str, int], engines.Engine] = {}
    for size in SIZES:
        if rust is not None:
            for name in ("ring", "boringtun", "in-place", "tunn", "node"):
                to_measure[name, size] = engines.RustEngine(rust, name, size)
        to_measure["python-batch", size] = engines.ContiguousBatches(size)
        to_measure["python-single", size] = engines.OnePacketACall(size)
        to_measure["python-node", size] = engines.NodeBatches(size)
    results: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in to_measure}
    for engine in to_measure.values():
        engine.measure(seconds / 10)
    for repetition in range(repetitions):
        if repetition % 10 == 0:
            print(f"repetition {repetition + 1} of {repetitions}", flush=True)
        # There and back again: what drifts meanwhile is for and against each engine equally often.
        in_turn = list(to_measure.items())
        for key, engine in in_turn if repetition % 2 == 0 else reversed(in_turn):
            results[key].append(engine.measure(seconds))
    if rust is not None:
        rust.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one short repetition in Python, and write nothing"
    )
    parser.add_argument("--repetitions", type=int, default=80)
    parser.add_argument(
        "--seconds", type=float, default=0.02, help="for each engine and size in a repetition"
    )
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        print(render(None, 1, 0.0))
    elif options.program is None:
        with tempfile.TemporaryDirectory() as name:
            program = build(Path(name))
            # A new process, which finds the package that was just built.
            command = [sys.executable, __file__, "--program", str(program)]
            command += ["--repetitions", str(options.repetitions), "--seconds", str(options.seconds)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": name})
    else:
        text = render(options.program, options.repetitions, options.seconds)
        sections.write("make bench", text)
        print(text)


def render(program: Path | None, repetitions: int, seconds: float) -> str:
    import idle_peers
    import lab_day
    import report

    idle = idle_peers.measure()
    days = lab_day.measure(min(repetitions, 3))
    return report.render(measure(program, repetitions, seconds), SIZES, repetitions, seconds, idle, days)


if __name__ == "__main__":
    main()
