"""`connlib diff OLD NEW`: what a running tunnel of one file would change to become that of another."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from connlib.control import Difference
from connlib.diff import Change, compute_diff, describe_diff

from ._files import load

_STYLES = {"+": "green", "-": "red", "~": "yellow", "!": "bold red"}


def run(old: str, new: str, *, allow_world_readable: bool) -> None:
    """Print it, in colour on a terminal. Raises `ConfigError` for a file that is wrong."""
    before = load(old, allow_world_readable=allow_world_readable)
    after = load(new, allow_world_readable=allow_world_readable)
    print_changes(list(describe_diff(compute_diff(before, after), before, after)))


def print_changes(changes: Sequence[Change | Difference]) -> None:
    """A line for each."""
    console = Console(highlight=False, soft_wrap=True)
    for change in changes:
        console.print(Text(str(change), style=_STYLES.get(change.mark, "")))
    if not changes:
        console.print(Text("no difference"))
