"""Documents with sections that a command writes anew, and nobody else.

All of docs/benchmarks.md is such; in others, a section has its place between two marks.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
COMMANDS = ("make bench", "make bench-datapath")
"""In the order of their sections."""

_TITLE = """# Benchmarks

Written by `make bench` and `make bench-datapath`, a section each; do not edit.
"""


def replaced(document: str, command: str, text: str) -> str:
    """The document with another section of a command, and those of the others as they were."""
    # What is before the first mark is the title, which is written anew.
    _, *parts = re.split(r"^<!-- (.+) -->\n", document, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    sections[command] = text
    marked = (f"<!-- {name} -->\n\n{sections[name].strip()}\n" for name in COMMANDS if name in sections)
    return "\n".join([_TITLE, *marked])


def write(command: str, text: str) -> None:
    """Write the section of a command into the document."""
    old = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    DOCUMENT.write_text(replaced(old, command, text))


def filled(document: str, command: str, text: str) -> str:
    """A document of which a command writes only what is between its marks, with that anew.

    Raises `ValueError` if it has no such place.
    """
    marks = [f"<!-- {command}: {which} -->" for which in ("begin", "end")]
    before, begin, rest = document.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"there is no place for it: put the lines {marks[0]} and {marks[1]} there")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"
