"""Where in a TOML text its keys and values stand.

The standard library's parser says what a document means, and not where. This finds the places, of a document that it
has accepted: so nothing is checked here, and what a scalar means does not matter.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Names of keys and numbers of elements, from the outside in."""

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_DOTTED_KEY = re.compile(
    r"""(?:^|[\[{,])[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')(?:[ \t]*\.[ \t]*(?:[\w-]+|"[^"\n]*"|'[^'\n]*'))+""",
    re.MULTILINE | re.ASCII,
)
_WORD = re.compile(r"[A-Za-z0-9_-]+")
# Without regard to what an escape means. A closing quote may have two more before it.
_STRING = re.compile(
    r'"""(?:[^\\"]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^\\"]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")
# What is within brackets, up to the next one.
_UP_TO_BRACKET = re.compile(rf"(?:{_STRING.pattern}|#[^\n]*|[^\[\]{{}}\"'#]+)*", re.DOTALL)
# TOML 1.1 has \x and \e, which some versions of the parser know.
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


class Place(NamedTuple):
    """Line and column, counted from 1, in characters."""

    line: int
    column: int


def headers(text: str) -> list[tuple[int, Path]]:
    """Where the tables of a document begin, in characters from its start, and what they are: those with a header."""
    # A path that no document has, so that it is read to its end.
    return Places(text, [(0,)]).headers


def dotted_keys(text: str) -> Iterator[tuple[int, int]]:
    """Where keys of several parts may begin, of a text that no parser has seen, and how many dots each has."""
    for key in _DOTTED_KEY.finditer(text):
        yield key.start(), key[0].count(".")


class Places:
    """The places of some paths of a document. Of one that the document does not have, that of what should hold it."""

    def __init__(self, text: str, paths: Iterable[Path]) -> None:
        self._text = text
        self._at = 0
        self._missing = set(paths)
        # To be looked into, and to be noted: the others are passed over, which is much faster.
        self._wanted = {path[:length] for path in self._missing for length in range(len(path) + 1)}
        self._keys: dict[Path, int] = {}
        self._values: dict[Path, int] = {}
        self._elements: dict[Path, int] = {}
        """The number of the last table of each array of tables."""
        self.headers: list[tuple[int, Path]] = []
        """The headers up to where the last of the paths was found."""
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._document()

    def of_key(self, path: Path) -> Place:
        """Where a path's key is written; for a table with a header, the header, and for an element, itself."""
        return self._nearest(self._keys, path)

    def of_value(self, path: Path) -> Place:
        """Where the value of a path begins; for a table with a header, the header."""
        return self._nearest(self._values, path)

    def _nearest(self, known: dict[Path, int], path: Path) -> Place:
        while path and path not in known:
            path = path[:-1]
        offset = known.get(path, 0)
        line = bisect_right(self._line_starts, offset)
        return Place(line, offset - self._line_starts[line - 1] + 1)

    def _document(self) -> None:
        table: Path = ()
        while self._missing and self._skip() < len(self._text):
            start = self._at
            if self._text.startswith("[", start):
                self._at += 2 if (is_array := self._text.startswith("[[", start)) else 1
                table = self._header(self._key(), start, is_array)
                self.headers.append((start, table))
                self._at += 2 if is_array else 1
            else:
                self._pair(table)

    def _header(self, names: list[str], start: int, is_array: bool) -> Path:
        path: Path = ()
        for name in names[:-1]:
            path = (*path, name)
            self._note(path, start, start)
            if path in self._elements:
                # By its name, a header means the last of an array of tables.
                path = (*path, self._elements[path])
        path = (*path, names[-1])
        self._note(path, start, start)
        if is_array:
            number = self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, number)
            self._note(path, start, start)
        return path

    def _note(self, path: Path, key: int, value: int) -> None:
        if path in self._wanted:
            self._keys.setdefault(path, key)
            self._values.setdefault(path, value)
            self._missing.discard(path)

    def _pair(self, table: Path) -> None:
        start = self._skip()
        *outer, last = self._key()
        path = table
        for name in outer:
            path = (*path, name)
            self._note(path, start, start)
        path = (*path, last)
        self._at += 1  # the =
        self._note(path, start, self._skip())
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
                self._pass(_STRING)
                quoted = self._text[start + 1 : self._at - 1]
                names.append(_ESCAPE.sub(_unescape, quoted) if self._text[start] == '"' else quoted)
            self._skip()
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1

    def _value(self, path: Path) -> None:
        match self._text[self._at]:
            case '"' | "'":
                self._pass(_STRING)
            case "[" | "{" if path not in self._wanted:
                self._pass_brackets()
            case "[":
                self._at += 1
                number = 0
                while not self._ends("]"):
                    self._note((*path, number), self._at, self._at)
                    self._value((*path, number))
                    number += 1
            case "{":
                self._at += 1
                while not self._ends("}"):
                    self._pair(path)
            case _:
                self._pass(_SCALAR)

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

    def _pass_brackets(self) -> None:
        depth = 0
        while self._at < len(self._text):
            depth += 1 if self._text[self._at] in "[{" else -1
            self._at += 1
            if depth == 0:
                return
            self._pass(_UP_TO_BRACKET)

    def _skip(self) -> int:
        """Pass over blanks, line ends and comments; where that leads."""
        self._pass(_BLANK)
        return self._at

    def _pass(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else len(self._text)


def _unescape(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    return chr(int(code, 16)) if code else _ESCAPED.get(escape[4], escape[4])
