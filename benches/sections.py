"""docs/benchmarks.md: what each command measures is a section of it, which that command alone writes anew."""

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
