"""What a run logs: one line of JSON for each logged step, kept consistent with checkpoints."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.runs.run import Run, json_lines, named
from normlab.training.tracking import Tracker


class StepLines:
    """A file of JSON lines, each with its `step`.

    After a kill the file may be ahead of the newest checkpoint, after a full disk it may end in
    half a line. So `rewind` drops what will be computed again: no step is in it twice.
    """

    def __init__(self, path: Path):
        self._path = path

    def rewind(self, step: int | None) -> list[dict[str, Any]]:
        """Keep, and return, the lines up to `step` (None: nothing)."""
        rows = [r for r in json_lines(self._path) if step is not None and r["step"] <= step]
        if rows or self._path.exists():
            half = self._path.with_name(f".{self._path.name}.half")
            with named(half):
                half.write_text("".join(json.dumps(r) + "\n" for r in rows))
                half.replace(self._path)
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Add one line."""
        with named(self._path), open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")


class MetricsLog:
    """The metrics.jsonl of a run, and the clock that goes with it.

    What is logged goes to `trackers` too, as far as it is numbers.
    """

    def __init__(self, run: Run):
        self.trackers: Sequence[Tracker] = ()
        self._run = run
        self._lines = StepLines(run["metrics.jsonl"])
        self._seconds = 0.0
        self._recent = (0.0, 0.0)  # tokens and the seconds that they took, older ones fading
        self._mark: tuple[int, float] | None = None

    def rewind(self, step: int | None) -> None:
        """Keep what was logged up to `step` (None: nothing), and start the clock."""
        rows = self._lines.rewind(step)
        self._seconds = rows[-1]["seconds"] if rows else 0.0
        self._clock = time.monotonic()
        self._mark = None

    def write(self, step: int, **values: Any) -> None:
        """Append one line."""
        self._lines.append({"step": step, "seconds": round(self.seconds(), 3), **values})
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def seconds(self) -> float:
        """Time spent on this run, over all calls."""
        return self._seconds + time.monotonic() - self._clock

    def rate(self, step: int, tokens: int) -> float:
        """Recent tokens over the seconds that they took; `tokens` are those of one step."""
        now, (seen, spent) = time.monotonic(), self._recent
        if self._mark is not None and step > self._mark[0]:
            seen = 0.9 * seen + tokens * (step - self._mark[0])
            spent = 0.9 * spent + now - self._mark[1]
            self._recent = seen, spent
        self._mark = (step, now)
        return seen / max(spent, 1e-9)

    def pause(self, seconds: float) -> None:
        """Take time that no step spent (a validation) out of the rate."""
        if self._mark is not None:
            self._mark = (self._mark[0], self._mark[1] + seconds)

    def valid(self) -> list[dict[str, Any]]:
        """The rows of validations."""
        return [r for r in self._run.metrics if "valid_loss" in r]

    def best(self) -> dict[str, Any]:
        """The row of the lowest validation loss, the earliest of equals; {} before the first."""
        return min(self.valid(), key=lambda r: r["valid_loss"], default={})

    def stale(self) -> int:
        """Validations since the best one."""
        rows = self.valid()
        return len(rows) - 1 - rows.index(self.best())
