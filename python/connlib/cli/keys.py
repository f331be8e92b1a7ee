"""`genkey`, `pubkey` and `genpsk`: the same bytes in and out as the commands of `wg`."""

from __future__ import annotations

import os
import stat
import sys

from connlib._errors import ConnlibError, KeyFormatError
from connlib._native import PresharedKey, PrivateKey

BASE64_LENGTH = 44


def genkey() -> None:
    """Print a new private key, already clamped."""
    warn_if_world_accessible()
    print_line(PrivateKey.generate().to_base64())


def genpsk() -> None:
    """Print a new preshared key."""
    warn_if_world_accessible()
    print_line(PresharedKey.generate().to_base64())


def pubkey() -> None:
    """Read a private key on standard input, and print its public key.

    The key must come first; only white space may follow. Raises `ConnlibError` otherwise.
    """
    if sys.stdin is None:
        raise ConnlibError("standard input is closed; give a private key there")
    source = sys.stdin.buffer
    text = source.read(BASE64_LENGTH)
    if len(text) != BASE64_LENGTH:
        raise ConnlibError("the key on standard input is not the correct length or format")
    while more := source.read(4096):
        if more.strip(b"\t\n\v\f\r \0"):
            raise ConnlibError("trailing characters were found after the key on standard input")
    try:
        private_key = PrivateKey.from_base64(text.decode("ascii", "replace"))
    except KeyFormatError:
        raise ConnlibError("the key on standard input is not the correct length or format") from None
    print_line(private_key.public_key().to_base64())


def print_line(line: str) -> None:
    """A line on standard output, at once. Raises `ConnlibError` if that is closed."""
    if sys.stdout is None:
        raise ConnlibError("standard output is closed")
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def warn_if_world_accessible() -> None:
    """Warn, as `wg` does, if a key that goes to standard output goes to a file that others can read."""
    try:
        mode = os.fstat(1).st_mode
    except OSError:
        return  # closed: print_line says so
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        print("Warning: writing to world accessible file.", file=sys.stderr)
        print("Consider setting the umask to 077 and trying again.", file=sys.stderr)
