"""What a run logs: one line of JSON for each logged step, kept consistent with checkpoints."""

import json
import time
from typing import Any

from normlab.run import Run


class MetricsLog:
    """The metrics.jsonl of a run, and the clock that goes with it.

    Lines are appended whole. After a kill the file may be ahead of the newest checkpoint: `rewind`
    drops what will be computed again, so that no step is in it twice.
    """

    def __init__(self, run: Run):
        self._run = run
        self._seconds = 0.0
        self._rate = 0.0
        self._mark: tuple[int, float] | None = None

    def rewind(self, step: int | None) -> None:
        """Keep what was logged up to `step` (None: nothing), and start the clock."""
        rows = [r for r in self._run.metrics if step is not None and r["step"] <= step]
        self._seconds = rows[-1]["seconds"] if rows else 0.0
        text = "".join(json.dumps(r) + "\n" for r in rows)
        half = self._run[".metrics.jsonl.half"]
        half.write_text(text)
        half.replace(self._run["metrics.jsonl"])
        self._clock = time.monotonic()
        self._mark = None

    def write(self, step: int, **values: Any) -> None:
        """Append one line."""
        row = {"step": step, "seconds": round(self.seconds(), 3), **values}
        with open(self._run["metrics.jsonl"], "a") as file:
            file.write(json.dumps(row) + "\n")

    def seconds(self) -> float:
        """Time spent on this run, over all calls."""
        return self._seconds + time.monotonic() - self._clock

    def rate(self, step: int, tokens: int) -> float:
        """Tokens per second, smoothed; `tokens` are those of one step."""
        now = time.monotonic()
        if self._mark is not None and step > self._mark[0]:
            current = tokens * (step - self._mark[0]) / max(now - self._mark[1], 1e-9)
            self._rate = 0.9 * self._rate + 0.1 * current if self._rate else current
        self._mark = (step, now)
        return self._rate

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
