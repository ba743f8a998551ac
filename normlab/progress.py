"""Progress as a bar on a terminal and as plain lines in a pipe."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars

P = ParamSpec("P")
R = TypeVar("R")

LINE_EVERY = 10.0
"""Seconds between two plain lines."""

TICK = 1.0
"""Seconds of compiling after which it is said, and between two updates of a bar."""

console = Console(soft_wrap=True, markup=False)  # a path may hold brackets
"""Where the applications print."""


class Sweep:
    """Several runs in one process, one after another: which one it is, and when all have ended."""

    def __init__(self) -> None:
        self.run, self.runs, self.label = 1, 1, ""
        self._took: list[float] = []  # seconds of each run so far that had steps to make
        self._began = 0.0
        self._worked = False

    def begin(self, run: int, runs: int, label: str = "") -> None:
        """The run of this number, from 1 on, begins; the label sets it apart from the others."""
        now = time.monotonic()
        if self._worked:
            self._took.append(now - self._began)
        self.run, self.runs, self.label = run, runs, label
        self._began, self._worked = now, False

    def left(self, own: float) -> float:
        """Seconds until the last run has ended, where this one takes `own` more.

        The others will take what those before took, or what this one takes if it is the first.
        """
        self._worked = True
        took = self._took or [time.monotonic() - self._began + own]
        return own + (self.runs - self.run) * sum(took) / len(took)


sweep = Sweep()
"""That of this process; a single run is one of one."""


class Progress:
    """How far a loop has come, what it shows beside it, and how long it still takes.

    In a sweep it also says which run of how many this is, and when the last one will have ended.

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
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=6),  # all of it fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bars = Bars(*columns, console=console, disable=not console.is_terminal)
        several = sweep.runs > 1
        own = "steps" if several else title
        self._task = self._bars.add_task(own, total=total, completed=start, shown="", left="")
        self._all = None
        if several:
            told = f"run {sweep.run} of {sweep.runs}"
            self._all = self._bars.add_task(
                told, total=sweep.runs, completed=sweep.run - 1, shown="", left=""
            )

    def __enter__(self) -> "Progress":
        if console.is_terminal and self._all is not None:  # a name of any length, above the bars
            console.print(f"run {sweep.run} of {sweep.runs}: {self.title}", highlight=False)
        self._bars.start()
        _under_way.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _under_way.remove(self)
        self._bars.stop()

    def update(self, done: int, shown: str) -> None:
        """`done` steps are over; `shown` says how it goes ("loss 3.21, 41,000 tokens/s")."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        left = self._left(done, now)
        ends = "" if left is None or sweep.runs == 1 else f"all end {clock(sweep.left(left))}"
        said = "" if left is None else f"{duration(left)} left"
        self._bars.update(self._task, completed=done, shown=shown, left=said)
        if self._all is not None and ends:
            self._bars.update(self._all, shown=ends)
        due = now - self._line >= LINE_EVERY or done == self.total
        if not console.is_terminal and due and done > self._start:
            self._print(f"{done}/{self.total}", shown, said, ends)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Inside, every now and then, say for how long XLA has been compiling."""
        began, over = time.monotonic(), threading.Event()

        def tell() -> None:
            while not over.wait(TICK):
                now = time.monotonic()
                said = f"compiling, {now - began:.0f} s"
                self._bars.update(self._task, shown=said)
                if not console.is_terminal and (now - self._line >= LINE_EVERY or not told):
                    told.append(said)
                    self._print(said)

        told: list[str] = []
        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _print(self, *parts: str) -> None:
        """A plain line."""
        self._line = time.monotonic()
        run = f"run {sweep.run} of {sweep.runs}, " if sweep.runs > 1 else ""
        line = f"{run}{self.title}: {'  '.join(filter(None, parts))}"
        console.print(line, highlight=False)

    def _left(self, done: int, now: float) -> float | None:
        """Seconds left, at the pace since the first step; None where that is all there was."""
        first, ended = self._first or (done, now)
        if done == first:
            return None if done < self.total else 0.0
        return (now - ended) / (done - first) * (self.total - done)


_under_way: list[Progress] = []
"""The loops of this process, the innermost last."""


def announced(program: Callable[P, R]) -> Callable[P, R]:
    """A compiled function whose first call, which compiles it, the loop under way tells of."""
    called = False

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal called
        if called or not _under_way:
            return program(*args, **kwargs)
        called = True
        with _under_way[-1].compiling():
            return program(*args, **kwargs)

    return call


def duration(seconds: float) -> str:
    """A time as one says it: 9 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """When so many seconds will be over: at 14:32, or on another day at 3 Dec 14:32."""
    now = datetime.now()
    then = now + timedelta(seconds=seconds)
    return f"at {then:%H:%M}" if then.date() == now.date() else f"at {then.day} {then:%b %H:%M}"
