"""QR codes of configurations, to be scanned by a phone. Needs the extra `connlib[qr]`."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import TYPE_CHECKING

from connlib._configfile import display_path
from connlib._errors import ConfigError, ConnlibError

if TYPE_CHECKING:
    from segno import QRCode

QUIET = 4
"""Modules of the margin that a scanner needs (ISO/IEC 18004, section 9.1)."""

_PICTURES = (".png", ".svg")
_OTHER_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".tif", ".tiff", ".webp")

# Bright white blocks on black, whatever the colours of the terminal are.
_COLOURS, _RESET = "\x1b[97;40m", "\x1b[0m"


def picture_ending(path: str | None) -> str | None:
    """The ending that makes a file a picture, in small letters; None for a text, and for no file.

    Raises `ConfigError` for a picture of another kind: who names one does not want a text in it.
    """
    ending = os.path.splitext(path or "")[1].lower()
    if ending in _OTHER_PICTURES:
        problem = f"a QR code is a {' or a '.join(_PICTURES)}, and no {ending}"
        raise ConfigError(problem, hint="choose another ending", path=display_path(path or ""))
    return ending if ending in _PICTURES else None


def make_code(text: str) -> QRCode:
    """The QR code of a text. Raises `ConfigError` if it is too long, `ConnlibError` if segno is not there."""
    try:
        import segno
    except ImportError as error:
        raise ConnlibError(f"{error}; QR codes need: pip install 'connlib[qr]'") from None
    try:
        return segno.make_qr(text, error="l", encoding="utf-8")
    except segno.DataOverflowError:
        size = len(text.encode())
        hint = "route less to the peer, or write a file: -o NAME.conf"
        raise ConfigError(f"{size:,} bytes are too many for a QR code", hint=hint) from None


def terminal_code(code: QRCode) -> str:
    """A QR code for standard output: two modules a character, light on dark.

    Raises `ConfigError` if that is a terminal which is too narrow, or cannot show the characters.
    """
    out = io.StringIO()
    code.terminal(out, border=QUIET, compact=True)
    lines = out.getvalue().splitlines()
    other = "make a picture: -o NAME.png"
    if sys.stdout is not None:
        try:
            lines[0].encode(sys.stdout.encoding)
        except UnicodeEncodeError:
            raise ConfigError(f"no QR code can be written in {sys.stdout.encoding}", hint=other) from None
        if sys.stdout.isatty():
            columns = shutil.get_terminal_size().columns
            if columns < len(lines[0]):
                problem = f"the QR code is {len(lines[0])} columns wide, and the terminal {columns}"
                raise ConfigError(problem, hint=f"widen it, or {other}")
            lines = [f"{_COLOURS}{line}{_RESET}" for line in lines]
    return "\n".join(lines)


def picture(code: QRCode, ending: str) -> bytes:
    """A QR code as a PNG or an SVG file."""
    out = io.BytesIO()
    code.save(out, kind=ending.removeprefix("."), scale=8, border=QUIET, dark="black", light="white")
    return out.getvalue()
