"""What it takes to change a file as a whole, and one process after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress


def write_new(path: str, data: bytes, prepare: Callable[[int], None] | None = None) -> None:
    """Write a new file, for its owner to read, down to the disk; `prepare` gives it another owner and mode.

    Raises `OSError`, `FileExistsError` for instance; there is no new file then.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            if prepare is not None:
                prepare(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        remove(path)
        raise


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync_folder(of: str) -> None:
    """Have it on the disk which files there are in the folder of a file. Raises `OSError`."""
    folder = os.open(os.path.dirname(of) or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(descriptor: int, patience: float, pause: float) -> bool:
    """Lock what is open against other processes that lock it; False if one keeps it for `patience` seconds.

    The lock ends with the descriptor. Whoever can open the file, be it only to read, can lock it too.
    """
    # Not everywhere, unlike this module.
    import fcntl

    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(pause)


def holder(descriptor: int) -> str:
    """Who keeps locked what is open, as far as the system tells: `process 4711 (less)`, or `another process`."""
    found = os.fstat(descriptor)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/locks", encoding="ascii") as locks:
            lines = [line.split() for line in locks]
        # 1: FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF; of one that waits, the second word is an arrow.
        process = next((int(words[4]) for words in lines if words[1] == "FLOCK" and words[5] == file), 0)
        if process > 0:  # of another namespace's it says 0
            with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as comm:
                name = comm.read().strip()
            return f"process {process} ({name if name.isprintable() else ascii(name)})"
    return "another process"
