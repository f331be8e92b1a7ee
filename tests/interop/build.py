"""Builds the peers that peers.ini names, once, into a cache outside the tree.

`python -m interop.build` builds those that the tests use and prints where they are.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PEERS", "build", "missing_tool"]

PEERS = configparser.ConfigParser()
PEERS.read(Path(__file__).with_name("peers.ini"))


def missing_tool(name: str) -> str | None:
    """Why the peer cannot be had on this machine, None if it can."""
    tool = PEERS[name]["tool"]
    if _program(name).exists() or shutil.which(tool):
        return None
    return f"{name} is not built yet, and there is no `{tool}` to build it with"


def build(name: str) -> Path:
    """The program of a peer, built now unless the cache has it."""
    program = _program(name)
    with _locked(program):
        if not program.exists():
            print(f"building {name} {PEERS[name]['version']} into {_folder(name)}", flush=True)
            _build(name)
    return program


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "connlib" / "peers"


def _folder(name: str) -> Path:
    return _cache() / f"{name}-{PEERS[name]['version']}"


def _program(name: str) -> Path:
    return _folder(name) / PEERS[name]["binary"]


@contextlib.contextmanager
def _locked(program: Path) -> Iterator[None]:
    """Two test runs on one machine: the second waits for the first one's build."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(name: str) -> None:
    peer = PEERS[name]
    # Built beside its place and renamed, so that an interrupted build leaves nothing that looks finished.
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        if peer["tool"] == "go":
            command = ["go", "install", f"{peer['module']}@{peer['version']}"]
            environment = {"GOBIN": str(made), "CGO_ENABLED": "0"}
        else:
            command = ["cargo", "install", peer["crate"], "--version", peer["version"], "--locked", "--quiet"]
            command += ["--root", str(made), "--target-dir", str(Path(scratch) / "target")]
            environment = {}
        done = subprocess.run(
            command,
            cwd=scratch,
            env={**os.environ, **environment},
            text=True,
            stderr=subprocess.PIPE,
            timeout=1200,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        shutil.rmtree(_folder(name), ignore_errors=True)
        made.rename(_folder(name))


if __name__ == "__main__":
    for peer_name in PEERS.sections():
        if PEERS[peer_name].getboolean("tested", True):
            print(f"{peer_name}: {missing_tool(peer_name) or build(peer_name)}")
