"""What the runs of training say: curves, learning rates, sizes inside, what became of each."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from normlab.report import charts
from normlab.report.charts import Row, Spec, thinned
from normlab.report.labels import Labels
from normlab.report.ranges import in_order
from normlab.report.sources import Trained
from normlab.report.table import Entry, PageTable
from normlab.results.settings import RATE, decides, shown
from normlab.results.spread import best_rates, groups
from normlab.results.table import number

ABOVE_START = 1.25
"""A curve of the loss ends where it is so many times the largest loss that a run began with."""


def at_best_rates(runs: Sequence[Trained]) -> list[Trained]:
    """Of each method, the runs at its best learning rate."""
    best = best_rates(groups(run.validated for run in runs))
    names = {r.model for group in best for r in group.records["fp32"]}
    return [run for run in runs if run.name in names]


def losses(runs: Sequence[Trained], labels: Labels, column: str, y: str) -> Spec | None:
    """A loss by step, a line a run, a colour a method; nothing where none was logged."""
    found = {run.name: run.curve(column) for run in runs}
    first = [points[0][1] for points in found.values() if points]
    top = ABOVE_START * max(first, default=math.inf)
    rows = [row for run in runs for row in _curve(run, found[run.name], labels, y, top)]
    return charts.curves(rows, y, "method", labels.methods) if rows else None


def _curve(
    run: Trained, points: Sequence[tuple[float, float]], labels: Labels, y: str, top: float
) -> Iterator[Row]:
    name = f"{labels.run(run.identity)} ({run.name})"
    kept = thinned([(step, value) for step, value in points if value <= top])
    for i, (step, value) in enumerate(kept):
        last = run.state == "diverged" and i == len(kept) - 1
        row = {"step": step, y: float(f"{value:.5g}"), "name": name}
        yield row | {"method": labels.method(run.identity)} | ({"last": True} if last else {})


def rates(runs: Sequence[Trained], labels: Labels) -> Spec | None:
    """Best validation loss by learning rate, of methods that were tried at several."""
    top = max((run.best_loss for run in runs if run.best_loss is not None), default=None)
    rows = [
        {
            "rate": run.config[RATE], "method": labels.method(run.identity), "state": run.state,
            "name": f"{labels.run(run.identity)} ({run.name})",
            "loss": top if run.best_loss is None else run.best_loss,
        }
        for run in runs
        if RATE in run.config and (run.best_loss is not None or run.state == "diverged")
    ]  # fmt: skip
    tried = Counter(method for method, _ in {(row["method"], row["rate"]) for row in rows})
    rows = [row for row in rows if tried[row["method"]] > 1 and row["loss"] is not None]
    return charts.rates(rows, labels.methods) if rows else None


def insides(run: Trained) -> list[tuple[str, Spec]]:
    """For a run with diagnostics: sizes of the residual stream and of norm inputs by step."""
    stream = _sizes(run, lambda row: dict(enumerate(row.get("stream", []))))
    sites = _sizes(run, lambda row: row.get("sites", {}))
    named = {f"block {i}" if i else "embedding": rows for i, rows in stream.items()}
    found = {
        "residual stream after each block": named,
        "what each norm was given": {site: sites[site] for site in in_order(sites)},
    }
    measures = (("mean_square", "mean x²"), ("max_abs", "largest |x|"))
    return [
        (f"{y}, {what}", charts.curves(rows, y, "name", list(places), log=True))
        for what, places in found.items()
        for measure, y in measures
        if (rows := _points(places, measure, y))
    ]


def _points(places: dict[str, "Sizes"], measure: str, y: str) -> list[Row]:
    return [
        {"step": step, y: size, "name": place}
        for place, seen in places.items()
        for step, sizes in thinned(seen)
        if (size := sizes.get(measure))
    ]


Sizes = list[tuple[float, dict[str, float | None]]]
"""What was seen of one place: (step, measure → value)."""


def _sizes(run: Trained, places: Callable[[dict[str, Any]], dict[Any, Any]]) -> dict[Any, Sizes]:
    found: dict[Any, Sizes] = {}
    for row in run.diagnostics:
        for place, sizes in places(row).items():
            found.setdefault(place, []).append((row["step"], sizes))
    return found


def table(runs: Sequence[Trained], labels: Labels) -> PageTable:
    """A row for each run, the best in validation first."""
    head = ["run", "state", "validation perplexity", "at step", "of steps", "parameters", "seconds"]
    rows = []
    for run in sorted(runs, key=lambda run: (not run.ended_well, run.best_loss or math.inf)):
        r, value = run.record, run.record.get("best_valid_perplexity")
        rows.append([
            Entry(labels.run(run.identity), anchor("run", run.name), [run.name]), run.state,
            None if value is None else number(value), r.get("best_step"), r.get("steps"),
            r.get("parameters"), None if r.get("seconds") is None else round(r["seconds"]),
        ])  # fmt: skip
    return PageTable.of("Runs as they ended, the best in validation first.", head, rows)


def differences(runs: Sequence[Trained]) -> PageTable | None:
    """Of the configs of all runs, every field in which they differ, types' defaults too."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.config.items():
            values.setdefault(key, set()).add(json.dumps(value))
    keys = [key for key, seen in values.items() if len(seen) > 1 and decides(key)]
    rows = [[run.name, *(str(shown(run.config[k])) if k in run.config else "" for k in keys)]
            for run in runs]  # fmt: skip
    return (
        PageTable.of("Fields in which the configs differ.", ["run", *keys], rows) if keys else None
    )


def anchor(kind: str, name: str) -> str:
    """An id for a run or a record, letters and digits only, so that a link finds it."""
    said = "".join(
        c if c.isascii() and (c.isalnum() or c in "-.") else f"_{ord(c):x}" for c in name
    )
    return f"{kind}-{said}"
