"""Progress as a bar on a terminal and as plain lines in a pipe."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

LINE_EVERY = 10.0
"""Seconds between two plain lines."""

console = Console(soft_wrap=True)
"""Where the applications print."""


class Progress:
    """How far a loop has come, what it shows beside it, and how long it still takes.

    Args:
        title: what is under way.
        total: steps of the loop.
        start: steps done before (a resumed run).
    """

    def __init__(self, title: str, total: int, start: int = 0):
        self.title, self.total = title, total
        self._start, self._line = start, time.monotonic()
        self._first: tuple[int, float] | None = None  # the step that compiled, and when it ended
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=6),  # all of it fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._bars = Bars(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bars.add_task(title, total=total, completed=start, shown="")

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def update(self, done: int, shown: str) -> None:
        """`done` steps are behind us; `shown` says how it goes ("loss 3.21, 41,000 tokens/s")."""
        self._bars.update(self._task, completed=done, shown=shown)
        now = time.monotonic()
        self._first = self._first or (done, now)
        due = now - self._line >= LINE_EVERY or done == self.total
        if not console.is_terminal and due and done > self._start:
            self._line = now
            line = f"{self.title}: {done}/{self.total}  {shown}{self._left(done, now)}"
            console.print(line, markup=False, highlight=False)

    def _left(self, done: int, now: float) -> str:
        """Time left, at the pace since the first step; nothing where that is all there was."""
        first, ended = self._first or (done, now)
        if done == first:
            return "" if done < self.total else "  0 s left"
        return f"  {(now - ended) / (done - first) * (self.total - done):.0f} s left"
