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
    _warn_if_world_accessible()
    _print(PrivateKey.generate().to_base64())


def genpsk() -> None:
    """Print a new preshared key."""
    _warn_if_world_accessible()
    _print(PresharedKey.generate().to_base64())


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
    _print(private_key.public_key().to_base64())


def _print(line: str) -> None:
    if sys.stdout is None:
        raise ConnlibError("standard output is closed")
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _warn_if_world_accessible() -> None:
    try:
        mode = os.fstat(1).st_mode
    except OSError:
        return  # closed: _print says so
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        print("Warning: writing to world accessible file.", file=sys.stderr)
        print("Consider setting the umask to 077 and trying again.", file=sys.stderr)
