"""The display of `datadream study`: live lines on a terminal, else one line per minute and run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..progress import Run

MINUTE = 60.0  # seconds between two plain lines of a run
BAR = 8  # columns
WIDE = 100  # columns from which there is room for words, "7 of 10" instead of "7/10"


class Terminal:
    """Show runs on `console` (None: the standard output); a context manager.

    `clock` returns seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self.console, self.clock = console or Console(), clock
        self.live = (
            self.console.is_terminal
            and not self.console.is_dumb_terminal
            and not self.console.is_jupyter
        )
        self.lines = (
            Live(console=self.console, auto_refresh=False, transient=True) if self.live else None
        )
        self.told: dict[str, float] = {}  # when a plain line of a run was last printed

    def __enter__(self) -> Terminal:
        if self.lines:
            self.lines.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.lines:
            self.lines.update(Text(""))
            self.lines.stop()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        if self.live:
            self.console.print(Text(text), soft_wrap=True)
        else:
            print(text, flush=True)

    def show(self, runs: Iterable[Run]) -> None:
        """Show how far these runs are, and what their processes complained of."""
        runs = list(runs)
        for run in runs:
            run.look()
            self.complaints(run)
        if self.lines:
            self.lines.update(_table(runs, self.console.width), refresh=True)
            return
        for run in runs:
            if self.clock() - self.told.setdefault(run.name, self.clock()) >= MINUTE:
                self.told[run.name] = self.clock()
                self.say(f"  {run.line()}")

    def complaints(self, run: Run) -> None:
        """Print what a run's processes have written to their standard error since the last call."""
        for message in run.messages():
            self.say(f"  {run.name}: {message}")


def _table(runs: list[Run], width: int) -> Table:
    """Return a table with a row per run, truncated rather than wrapped on a narrow terminal."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=18)
    table.add_column(width=BAR)
    table.add_column(no_wrap=True, justify="right", width=4)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True, justify="right")
    for run in runs:
        share, left = run.estimate.share, run.time_left()
        where = run.where if width >= WIDE else run.where.replace(" of ", "/")
        table.add_row(
            Text(f"  {run.name}"),
            ProgressBar(1.0, share, width=BAR),
            Text(f"{share:.0%}"),
            Text(where),
            Text(left and f"{left} left"),
        )
    return table
