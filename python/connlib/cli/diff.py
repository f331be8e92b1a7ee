"""`connlib diff OLD NEW`: what a running tunnel of one file would change to become that of another."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from connlib.diff import compute_diff, describe_diff

from ._files import load

_STYLES = {"+": "green", "-": "red", "~": "yellow", "!": "bold red"}


def run(old: str, new: str, *, allow_world_readable: bool) -> None:
    """Print it, in colour on a terminal. Raises `ConfigError` for a file that is wrong."""
    before = load(old, allow_world_readable=allow_world_readable)
    after = load(new, allow_world_readable=allow_world_readable)
    console = Console(highlight=False, soft_wrap=True)
    changes = list(describe_diff(compute_diff(before, after), before, after))
    for change in changes:
        console.print(Text(str(change), style=_STYLES[change.mark]))
    if not changes:
        console.print(Text("no difference"))
