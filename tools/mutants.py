"""`make mutants`: plants bugs in a copy of the engine, one at a time, and shows that the specification's tests find it.

The tree is copied to a cache outside it, with a build directory of its own; the bug is written into the copy's patches
or overlays, the extension is built from them, and those tests of tests/spec run that are about the rule. Without a bug
they must pass, with one they must fail; a bug whose text is no longer in the sources, or that changes nothing in the
extension, is an error of this file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "connlib" / "mutants"
TREE = CACHE / "tree"
TARGET = CACHE / "target"
PROFILE = "mutants"
PATIENCE = 600
"""Seconds for the tests of one mutant, on a machine that does something else as well."""
EXTENSION = TREE / "python" / "connlib" / "_native.abi3.so"

_NOISE = "patches/boringtun/overlay/src/noise/"


@dataclass(frozen=True, slots=True)
class Edit:
    """`old`, which a file has exactly once, becomes `new`."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug, and the tests of which at least one must find it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "a responder initiates",
        (
            Edit(
                _NOISE + "tunnel.rs",
                "if self.timers.attempt.is_some() || self.role == Role::Responder {",
                "if self.timers.attempt.is_some() {",
            ),
            Edit(
                _NOISE + "tunnel.rs",
                """env: &mut Env<'_>, out: &mut Output) {
        if self.role == Role::Responder {
            return;
        }
        let mut buffer""",
                """env: &mut Env<'_>, out: &mut Output) {
        let mut buffer""",
            ),
        ),
        ("tests/spec/test_roles.py",),
    ),
    Mutant(
        "expiry is strict",
        (Edit(_NOISE + "sessions.rs", "|s| now >= s.created + limit", "|s| now > s.created + limit"),),
        ("tests/spec/test_expiry.py",),
    ),
    Mutant(
        "each data packet postpones the passive keepalive",
        (Edit(_NOISE + "timers.rs", "if data && self.passive.is_none() {", "if data {"),),
        ("tests/spec/test_timers.py",),
    ),
    Mutant(
        "crossing initiations are both answered",
        (Edit(_NOISE + "tunnel.rs", "if crossing && self.is_larger {", "if crossing && false {"),),
        ("tests/spec/test_crossing.py",),
    ),
    Mutant(
        "the replay window is half as large",
        (
            Edit(
                "patches/boringtun/0008-data-path-in-place.patch",
                "+const N_WORDS: u64 = 128;",
                "+const N_WORDS: u64 = 64;",
            ),
        ),
        ("tests/spec/test_replay.py",),
    ),
    Mutant(
        "what comes on an old session shows that the peer hears us on the new one",
        (
            Edit(
                _NOISE + "tunnel.rs",
                "if is_current {\n            self.timers.answered();",
                "if true {\n            self.timers.answered();",
            ),
        ),
        ("tests/spec/test_handshake.py",),
    ),
    Mutant(
        "a session's initiator sends data until it expires",
        (
            Edit(
                _NOISE + "tunnel.rs",
                "true => self.timers.config.last_data(),",
                "true => self.timers.config.reject_after_time,",
            ),
        ),
        ("tests/spec/test_expiry.py",),
    ),
    Mutant(
        "the queue leaves from its end",
        (
            Edit(
                _NOISE + "tunnel.rs",
                "while let Some(queued) = self.queue.pop_front() {",
                "while let Some(queued) = self.queue.pop_back() {",
            ),
        ),
        ("tests/spec/test_handshake.py",),
    ),
)


class Failure(Exception):
    """What is wrong with the tests, the sources or this file."""


def planted(text: str, edit: Edit) -> str:
    """A file's text with the bug in it."""
    if text.count(edit.old) != 1:
        raise Failure(
            f"{edit.path} has {edit.old!r} {text.count(edit.old)} times, not once: adapt tools/mutants.py"
        )
    return text.replace(edit.old, edit.new)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only mutants with this in their names")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="run these in place of each mutant's own")
    arguments = parser.parse_args()
    names: list[str] = arguments.names
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    if not chosen:
        parser.error("no mutant has such a name")
    if arguments.tests:
        chosen = [dataclasses.replace(mutant, tests=tuple(arguments.tests)) for mutant in chosen]
    with _locked():
        try:
            _copy_tree()
            original = _build()
            files = sorted({path for mutant in chosen for path in mutant.tests})
            if failed := _failures(files, stop_at_first=False):
                raise Failure(f"without any bug: {', '.join(failed)}")
            survivors = [mutant.name for mutant in chosen if not _is_found(mutant, original)]
        except Failure as failure:
            print(f"mutants: {failure}", file=sys.stderr)
            return 1
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} planted bugs found")
    return 1 if survivors else 0


def _is_found(mutant: Mutant, original: str) -> bool:
    start = time.monotonic()
    before = {edit.path: (TREE / edit.path).read_text() for edit in mutant.edits}
    try:
        for edit in mutant.edits:
            _write(TREE / edit.path, planted((TREE / edit.path).read_text(), edit).encode())
        if _build() == original:
            raise Failure(f"{mutant.name!r} changes nothing in the extension")
        failed = _failures(mutant.tests, stop_at_first=True)
    finally:
        for path, text in before.items():
            _write(TREE / path, text.encode())
    result = f"found by {', '.join(failed)}" if failed else "NOT FOUND"
    print(f"{time.monotonic() - start:5.1f} s  {mutant.name}: {result}", flush=True)
    return bool(failed)


def _failures(files: list[str] | tuple[str, ...], *, stop_at_first: bool) -> list[str]:
    """The tests that fail in the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    command += ["-x"] if stop_at_first else []
    # Not the package that is installed here: the copy's.
    environment = {**os.environ, "PYTHONPATH": str(TREE / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        # A bug may well be one that never comes to an end.
        return [f"no end within {PATIENCE} s"]
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    # 0: all passed. 1: some failed. Anything else is no result, nor is a failure that nothing names.
    if done.returncode not in (0, 1) or bool(failed) != bool(done.returncode):
        raise Failure(f"pytest gave up (exit {done.returncode}):\n{done.stdout}{done.stderr}")
    return failed


def _build() -> str:
    """Builds the extension in the copy, and puts it where Python finds it. Returns its hash."""
    command = ["cargo", "build", "--quiet", "--locked", "--profile", PROFILE, "-p", "connlib"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET)}
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"the copy does not build:\n{done.stderr}")
    names = ("lib_native.so", "lib_native.dylib")
    built = next(path for name in names if (path := TARGET / PROFILE / name).exists())
    # Removed first: a process that has it open keeps the old one.
    EXTENSION.unlink(missing_ok=True)
    shutil.copy(built, EXTENSION)
    return hashlib.sha256(built.read_bytes()).hexdigest()


def _copy_tree() -> None:
    """Makes the copy equal to what git sees here. Equal files keep their times, so that cargo builds little."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()}
    for path in TREE.rglob("*"):
        if path.is_file() and str(path.relative_to(TREE)) not in wanted:
            path.unlink()
    for name in wanted:
        _write(TREE / name, (ROOT / name).read_bytes())


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Two runs on one machine: the second waits for the first."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
