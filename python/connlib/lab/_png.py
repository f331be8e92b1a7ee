"""SVG as PNG, with resvg: a library that is only needed, and only imported, when a PNG is made."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from connlib._errors import ConnlibError

_PROBE = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="30" font-family="{}">{}</svg>'


class PictureError(ConnlibError):
    """No PNG can be made here. `str()` is one line that says what to install."""


def to_png(svg: str, *, zoom: float = 2.0) -> bytes:
    """A picture of an SVG document. zoom: how many pixels a unit of it becomes.

    Raises `PictureError` where resvg-py is not installed, or no font.
    """
    resvg = _library()
    _check_fonts()
    picture: bytes = resvg.svg_to_bytes(svg_string=svg, zoom=zoom)
    return picture


def _library() -> ModuleType:
    try:
        import resvg_py
    except ImportError:
        raise PictureError("a PNG needs resvg-py: pip install 'connlib[lab]'; an SVG does not") from None
    return resvg_py


@cache
def _check_fonts() -> None:
    """Without a font every text would be missing, and nothing would say so."""
    from ._svg import FONTS

    text = '<text x="5" y="20" font-size="20">M</text>'
    with_text, without = (
        _library().svg_to_bytes(svg_string=_PROBE.format(FONTS, part)) for part in (text, "")
    )
    if with_text == without:
        raise PictureError(
            "a PNG needs a font, and this machine has none; on Debian: apt-get install fonts-dejavu-core"
        )
