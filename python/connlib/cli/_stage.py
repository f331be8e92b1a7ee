"""How the demonstrations look: numbered steps, a progress bar, a closing table; plain text where nobody watches."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

WIDTH = 80


class Show:
    """Writes a demonstration to standard output, at most 80 columns wide."""

    def __init__(self, title: str) -> None:
        self.console = Console(highlight=False, soft_wrap=False)
        if self.console.width > WIDTH:
            self.console.width = WIDTH
        self.steps = 0
        self.failures: list[str] = []
        self.console.print(Text(title, style="bold"))

    def step(self, title: str) -> None:
        self.steps += 1
        self.console.print()
        self.console.print(Text.assemble((f"{self.steps}  {title}", "bold cyan")))

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(f"   {text}", style=style))

    def check(self, holds: bool, text: str) -> None:
        """A line that says what was to be shown, and whether it was."""
        mark = ("ok    ", "green") if holds else ("FAILED", "bold red")
        self.console.print(Text.assemble("   ", mark, " ", text))
        if not holds:
            self.failures.append(text)

    def pings(self, target: str, milliseconds: Sequence[float], sent: int, size: int) -> None:
        for number, time in enumerate(milliseconds, 1):
            self.line(f"{size} bytes from {target}: seq {number}, {time:.2f} ms")
        if milliseconds:
            low, high = min(milliseconds), max(milliseconds)
            mean = sum(milliseconds) / len(milliseconds)
            self.line(f"round trip min / mean / max: {low:.2f} / {mean:.2f} / {high:.2f} ms")
        self.check(len(milliseconds) == sent, f"{len(milliseconds)} of {sent} pings answered")

    def progress(self) -> Progress:
        return Progress(
            "  ",
            BarColumn(bar_width=40),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self.console,
            refresh_per_second=10,
        )

    def table(self, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for name, cells in rows:
            table.add_row(name, *cells)
        self.console.print(table)


def rate(size: int, seconds: float) -> str:
    return f"{size * 8 / seconds / 1e9:.2f} Gbit/s"
