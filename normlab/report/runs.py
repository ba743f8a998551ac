"""What the runs of training say: curves, learning rates, sizes inside, what became of each."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from normlab.report import charts
from normlab.report.charts import Row, Spec, thinned
from normlab.report.sources import Trained
from normlab.report.table import Entry, PageTable
from normlab.results.labels import Labels
from normlab.results.settings import RATE, decides, shown
from normlab.results.spread import best_rates, groups
from normlab.results.stream import in_order
from normlab.results.table import number

ABOVE_START = 1.25
"""A curve of the loss ends where it is so many times the largest loss that a run began with."""


def at_best_rates(runs: Sequence[Trained]) -> list[Trained]:
    """Of each method, the runs at its best learning rate."""
    best = best_rates(groups(run.validated for run in runs))
    names = {r.model.name for group in best for r in group.records["fp32"]}
    return [run for run in runs if run.name in names]


def losses(runs: Sequence[Trained], labels: Labels, column: str, y: str) -> Spec | None:
    """A loss by step, a line a run, a colour a method; nothing where none was logged."""
    found = {run.name: run.curve(column) for run in runs}
    first = [points[0][1] for points in found.values() if points]
    top = ABOVE_START * max(first, default=math.inf)
    kept = [(run, [p for p in found[run.name] if p[1] <= top]) for run in runs]
    rows = [{**_named(run, labels), **_line(points, y)} for run, points in kept if points]
    return charts.curves(rows, y, "method", labels.methods) if rows else None


def _named(run: Trained, labels: Labels) -> Row:
    """What a row of a chart says of its run."""
    name = f"{labels.run(run.identity)} ({run.name})"
    method = labels.method(run.identity)
    return {"method": method, "name": name, "diverged": run.state == "diverged"}


def _line(points: Sequence[tuple[float, float]], y: str) -> Row:
    """Points as two lists, to five digits."""
    steps, values = zip(*thinned(points), strict=True)
    return {"step": list(steps), y: [float(f"{value:.5g}") for value in values]}


def rates(runs: Sequence[Trained], labels: Labels) -> Spec | None:
    """Best validation loss by learning rate, of methods that were tried at several."""
    runs = [r for r in runs if RATE in r.config and (r.ended_well or r.state == "diverged")]
    top = max((run.best_loss for run in runs if run.best_loss is not None), default=None)
    rows = [
        {**_named(run, labels), "rate": run.config[RATE], "loss": run.best_loss or top}
        for run in runs
    ]
    tried = Counter(method for method, _ in {(row["method"], row["rate"]) for row in rows})
    rows = [row for row in rows if tried[row["method"]] > 1 and top is not None]
    return charts.rates(rows, labels.methods) if rows else None


def insides(run: Trained) -> list[tuple[str, Spec]]:
    """For a run with diagnostics: sizes of the residual stream and of norm inputs by step."""
    stream = [
        (row["step"], {f"block {i}" if i else "embedding": v for i, v in enumerate(row["stream"])})
        for row in run.diagnostics
        if "stream" in row
    ]
    sites = [
        (row["step"], {site: row["sites"][site] for site in in_order(row["sites"])})
        for row in run.diagnostics
        if "sites" in row
    ]
    found = {"residual stream after each block": stream, "what each norm was given": sites}
    measures = (("mean_square", "mean x²"), ("max_abs", "largest |x|"))
    return [
        (f"{y}, {what}", charts.curves(rows, y, "name", [row["name"] for row in rows], log=True))
        for what, seen in found.items()
        for measure, y in measures
        if (rows := _places(seen, measure, y))
    ]


def _places(seen: Sequence[tuple[float, dict[str, Any]]], measure: str, y: str) -> list[Row]:
    """A line for each place in the model at which a measure was taken."""
    found: dict[str, list[tuple[float, float]]] = {}
    for step, places in seen:
        for name, sizes in places.items():
            if size := sizes.get(measure):
                found.setdefault(name, []).append((step, size))
    return [{"name": name, **_line(found[name], y)} for name in found]


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
    if not keys:
        return None
    rows = [[run.name, *(str(shown(run.config.get(k, ""))) for k in keys)] for run in runs]
    return PageTable.of("Fields in which the configs differ.", ["run", *keys], rows)


def anchor(kind: str, name: str) -> str:
    """An id for a run or a record, letters and digits only, so that a link finds it."""
    letters = (c if (c.isascii() and c.isalnum()) or c in "-." else f"_{ord(c):x}" for c in name)
    return f"{kind}-{''.join(letters)}"
