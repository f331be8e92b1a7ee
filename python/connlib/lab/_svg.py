"""A small canvas that becomes SVG, and what has to be known about text to place it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]

FONTS = "DejaVu Sans, Verdana, Liberation Sans, Noto Sans, Helvetica, Arial, sans-serif"
"""The first is the widest, and what `text_width` is about: in another font a text takes less room than it has."""

# In parts of the font size, rounded up.
_WIDTHS = {
    **dict.fromkeys("ijl.,:;'| ", 0.34),
    **dict.fromkeys("ftr()[]/-I!", 0.42),
    **dict.fromkeys("mMW@%", 1.0),
    **dict.fromkeys("w+=<>#~&^", 0.84),
}
_CAPITAL = 0.79
_OTHER = 0.64
_WIDE = 1.0
_BOLD = 1.13


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """How wide a text is at most, in pixels, in a font of `size` pixels."""
    return size * sum(map(_width, text)) * (_BOLD if bold else 1.0)


def _width(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return _WIDE
    return _WIDTHS.get(char, _CAPITAL if char.isupper() else _OTHER)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they have a point in common that is not on an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def cuts(self, start: Point, end: Point) -> tuple[float, float] | None:
        """Which part of a straight line is inside, 0 to 1; None if it does not run through."""
        first, last = 0.0, 1.0
        for low, high, a, b in (
            (self.left, self.right, start[0], end[0]),
            (self.top, self.bottom, start[1], end[1]),
        ):
            if a == b:
                if not low < a < high:
                    return None
                continue
            near, far = sorted(((low - a) / (b - a), (high - a) / (b - a)))
            first, last = max(first, near), min(last, far)
        return (first, last) if first < last else None

    def wider(self, by: float) -> Box:
        """With room on all sides."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


class Canvas:
    """What is drawn, in order: later things lie on top."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._definitions: list[str] = []

    def define(self, definition: str) -> None:
        """Add something that is drawn only where it is named."""
        self._definitions.append(definition)

    def line(self, points: Sequence[Point], stroke: str, *, width: float = 1.0, dash: str = "") -> None:
        """A line through points. dash: lengths of strokes and gaps."""
        path = " ".join(f"{'L' if n else 'M'}{_number(x)} {_number(y)}" for n, (x, y) in enumerate(points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{_number(width)}"{dashed}/>'
        )

    def polygon(self, points: Sequence[Point], fill: str) -> None:
        """A filled area."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._parts.append(f'<polygon points="{path}" fill="{fill}"/>')

    def rect(self, box: Box, fill: str, *, stroke: str = "none", radius: float = 0.0) -> None:
        """A rectangle, maybe with round corners."""
        self._parts.append(
            f'<rect x="{_number(box.left)}" y="{_number(box.top)}" width="{_number(box.right - box.left)}" '
            f'height="{_number(box.bottom - box.top)}" rx="{_number(radius)}" fill="{fill}" stroke="{stroke}"/>'
        )

    def circle(
        self, center: Point, radius: float, fill: str, *, stroke: str = "none", width: float = 1.0
    ) -> None:
        """A disc."""
        x, y = center
        self._parts.append(
            f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{_number(width)}"/>'
        )

    def text(
        self, at: Point, text: str, fill: str, *, size: float, anchor: str = "start", bold: bool = False
    ) -> None:
        """A text whose middle is at that height. anchor: which part of it is at `at`: start, middle or end."""
        x, y = at
        # Half of the height of a capital below the middle. Not by `dominant-baseline`, which not every viewer knows.
        attributes = f'x="{_number(x)}" y="{_number(y + 0.36 * size)}" font-size="{_number(size)}"'
        if anchor != "start":
            attributes += f' text-anchor="{anchor}"'
        if bold:
            attributes += ' font-weight="bold"'
        self._parts.append(f'<text {attributes} fill="{fill}">{escape(text)}</text>')

    def svg(self, width: float, height: float, title: str) -> str:
        """The document, on white."""
        size = f'width="{_number(width)}" height="{_number(height)}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {_number(width)} {_number(height)}" '
            f"font-family={quoteattr(FONTS)}>",
            f"<title>{escape(title)}</title>",
            *(f"<defs>{definition}</defs>" for definition in self._definitions),
            f'<rect {size} fill="#ffffff"/>',
            *self._parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """At most one decimal."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
