"""Where in a TOML text its keys and values stand.

The standard library's parser says what a document means, and not where. This finds the places, of a document that it
has accepted: so nothing is checked here, and what a scalar means does not matter.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Names of keys and numbers of elements, from the outside in."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_WORD = re.compile(r"[A-Za-z0-9_-]+")
# Without its ends, and without regard to what an escape means. A closing quote may have two more before it.
_STRINGS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r'"""(?:[^\\"]|\\.|"(?!""))*"{3,5}',
        r"'''(?:[^']|'(?!''))*'{3,5}",
        r'"(?:[^\\"]|\\.)*"',
        r"'[^']*'",
    )
)
_SCALAR = re.compile(r"[^,\]}#\n]+")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


class Place(NamedTuple):
    """Line and column, counted from 1, in characters."""

    line: int
    column: int


class Places:
    """The places of a document."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._keys: dict[Path, int] = {}
        self._values: dict[Path, int] = {}
        self._elements: dict[Path, int] = {}
        """How many tables each array of tables has so far."""
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._document()

    def of_key(self, path: Path) -> Place:
        """Where the last name of a path is written; for a table, its header, and for an element of an array, itself."""
        return self._nearest(self._keys, path)

    def of_value(self, path: Path) -> Place:
        """Where the value of a path begins; for a table with a header, the header."""
        return self._nearest(self._values, path)

    def _nearest(self, known: dict[Path, int], path: Path) -> Place:
        # What is missing is missing from the table or array around it.
        while path and path not in known:
            path = path[:-1]
        offset = known.get(path, 0)
        line = bisect_right(self._line_starts, offset)
        return Place(line, offset - self._line_starts[line - 1] + 1)

    def _document(self) -> None:
        table: Path = ()
        while self._skip() < len(self._text):
            start = self._at
            if self._text.startswith("[", start):
                self._at += 2 if (is_array := self._text.startswith("[[", start)) else 1
                table = self._header(self._key(), start, is_array)
                self._at += 2 if is_array else 1
            else:
                self._pair(table)

    def _header(self, names: list[str], start: int, is_array: bool) -> Path:
        path: Path = ()
        for name in names[:-1]:
            path = self._last((*path, name))
            self._note(path, start)
        path = (*path, names[-1])
        if is_array:
            self._note(path, start)
            number = self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, number)
        self._note(path, start)
        return path

    def _last(self, path: Path) -> Path:
        """What a header means by the name of an array of tables: its last one."""
        return (*path, self._elements[path]) if path in self._elements else path

    def _note(self, path: Path, start: int) -> None:
        self._keys.setdefault(path, start)
        self._values.setdefault(path, start)

    def _pair(self, table: Path) -> None:
        start = self._skip()
        path = table
        for name in self._key():
            path = (*path, name)
            self._keys.setdefault(path, start)
            self._values.setdefault(path, start)
        self._at += 1  # the =
        self._values[path] = self._skip()
        self._value(path)

    def _key(self) -> list[str]:
        """The parts of a dotted key."""
        names = []
        while True:
            self._skip()
            if word := _WORD.match(self._text, self._at):
                names.append(word[0])
                self._at = word.end()
            else:
                start = self._at
                self._string()
                quoted = self._text[start + 1 : self._at - 1]
                names.append(_ESCAPE.sub(_unescape, quoted) if self._text[start] == '"' else quoted)
            self._skip()
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _value(self, path: Path) -> None:
        match self._text[self._at]:
            case '"' | "'":
                self._string()
            case "[":
                self._at += 1
                number = 0
                while not self._ends("]"):
                    self._note((*path, number), self._at)
                    self._value((*path, number))
                    number += 1
            case "{":
                self._at += 1
                while not self._ends("}"):
                    self._pair(path)
            case _:
                scalar = _SCALAR.match(self._text, self._at)
                self._at = scalar.end() if scalar else len(self._text)

    def _ends(self, bracket: str) -> bool:
        """Pass over a comma, and over the closing bracket if it is there."""
        self._skip()
        if self._text.startswith(",", self._at):
            self._at += 1
            self._skip()
        if self._text.startswith(bracket, self._at) or self._at >= len(self._text):
            self._at += 1
            return True
        return False

    def _string(self) -> None:
        for pattern in _STRINGS:
            if found := pattern.match(self._text, self._at):
                self._at = found.end()
                return
        self._at = len(self._text)

    def _skip(self) -> int:
        """Pass over blanks, line ends and comments; where that leads."""
        blank = _BLANK.match(self._text, self._at)
        if blank:
            self._at = blank.end()
        return self._at


def _unescape(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else _ESCAPED.get(escape[3], escape[3])
