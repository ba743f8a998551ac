"""The charts of training: loss by step, loss by learning rate, sizes inside the model by step."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from normlab.report.axes import decades, linear
from normlab.report.charts import LOOKS, Frame, Line, figure, legend
from normlab.report.markup import Markup
from normlab.report.ranges import in_order
from normlab.report.sources import Trained
from normlab.results.settings import RATE, decides, differing, shown

ABOVE_START = 1.25
"""The axis of a loss ends at so many times the largest loss that a run began with."""


def losses(runs: Sequence[Trained]) -> list[Markup]:
    """Validation and training loss by step, a line a run, crosses where one diverged."""
    logged = [run for run in runs if run.metrics]
    if not logged:
        return []
    looks, names = told_apart(logged)
    parts = [
        _loss(logged, looks, column, label)
        for column, label in (("valid_loss", "validation loss"), ("loss", "training loss"))
    ]
    caption = "Loss in nats a token, by step. A cross: the run diverged."
    return [figure(caption, legend(names), *parts)]


def told_apart(runs: Sequence[Trained]) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """By run its look, and what each look says: a colour a norm and placement, a dash a setting.

    Seeds share one. Where all have one norm and placement, a colour by setting; else by run.
    """
    keys = [k for k in differing(run.config for run in runs) if k != "seed" and decides(k)]
    said = [", ".join(f"{k} {shown(r.config[k])}" for k in keys if k in r.config) for r in runs]
    kinds, settings = list(dict.fromkeys(r.kind for r in runs)), list(dict.fromkeys(said))
    names = [f"{r.kind}, {s}" if s else r.kind for r, s in zip(runs, said, strict=True)]
    if len(kinds) == 1:
        names = said if keys else [run.name for run in runs]
        numbers = [list(dict.fromkeys(names)).index(name) for name in names]
    elif len(settings) == 1:
        numbers = [kinds.index(run.kind) for run in runs]
    else:
        colours = [kinds.index(run.kind) % LOOKS for run in runs]
        numbers = [c + LOOKS * settings.index(s) for c, s in zip(colours, said, strict=True)]
    looks = {run.name: number for run, number in zip(runs, numbers, strict=True)}
    return looks, list(dict(zip(numbers, names, strict=True)).items())


def _loss(runs: Sequence[Trained], looks: dict[str, int], column: str, label: str) -> Markup:
    curves = {run.name: run.curve(column) for run in runs}
    first = [points[0][1] for points in curves.values() if points]
    top = ABOVE_START * max(first, default=1.0)
    y = linear([min(v, top) for points in curves.values() for _, v in points], label)
    steps = [step for points in curves.values() for step, _ in points]
    frame = Frame(linear([0, *steps], "step"), y)
    marks = []
    for run in runs:
        look, points = looks[run.name], curves[run.name]
        marks.append(frame.line(Line(run.name, points, look, dots=column == "valid_loss")))
        if run.state == "diverged" and points:
            at = int(run.record.get("steps") or points[-1][0])
            end = (points[-1][0], min(points[-1][1], y.high))  # seen, however high it was
            marks.append(frame.cross(end, look, f"{run.name}: diverged at step {at}"))
    return frame.svg(f"{label} by step", *marks)


def rates(runs: Sequence[Trained]) -> list[Markup]:
    """Best validation loss by learning rate, of runs that differ in that and in the seed alone."""
    found = sweeps(runs)
    if not found:
        return []
    held = [run for group in found for run in group]
    looks = {group[0].name: i for i, group in enumerate(found)}
    losses = [loss for run in held if (loss := best(run)) is not None]
    y = linear(losses, "best validation loss")
    frame = Frame(decades([run.config[RATE] for run in held], "peak learning rate"), y)
    marks = [_sweep(frame, group, looks[group[0].name]) for group in found]
    names = legend([(looks[group[0].name], group[0].kind) for group in found])
    caption = (
        "Best validation loss by peak learning rate, mean over seeds as a line. A cross: the run "
        "diverged; it stands at its last good loss, or at the top where it has none."
    )
    return [figure(caption, names, frame.svg("loss by learning rate", *marks))]


def _sweep(frame: Frame, group: Sequence[Trained], look: int) -> Markup:
    by_rate: dict[float, list[Trained]] = {}
    for run in sorted(group, key=lambda run: run.config[RATE]):
        by_rate.setdefault(run.config[RATE], []).append(run)
    points = []
    for rate, there in by_rate.items():
        known = [loss for run in there if run.state != "diverged" and (loss := best(run))]
        points += [(rate, sum(known) / len(known))] if known else []
    marks = [frame.line(Line(group[0].kind, points, look))]
    for run in group:
        loss = best(run)
        at = (run.config[RATE], frame.y.high if loss is None else loss)
        said = f"{run.name}: learning rate {at[0]:g}, seed {run.config.get('seed')}, {run.state}"
        said += "" if loss is None else f", best validation loss {loss:.4f}"
        diverged = run.state == "diverged"
        marks.append(frame.cross(at, look, said) if diverged else frame.dot(at, look, said))
    return Markup("".join(marks))


def sweeps(runs: Sequence[Trained]) -> list[list[Trained]]:
    """Groups of runs that differ in the learning rate (and in the seed), with several rates."""
    groups: dict[str, list[Trained]] = {}
    for run in runs:
        if RATE in run.config and (best(run) is not None or run.state == "diverged"):
            kept = (k for k in run.config if k not in ("seed", RATE) and decides(k))
            rest = {k: run.config[k] for k in kept}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return [g for g in groups.values() if len({run.config[RATE] for run in g}) > 1]


def best(run: Trained) -> float | None:
    """Its best validation loss, where it has one that is a number."""
    loss = run.record.get("best_valid_loss")
    return loss if loss is not None and math.isfinite(loss) else None


def insides(runs: Sequence[Trained]) -> list[Markup]:
    """For runs that were watched: sizes of the residual stream and of norm inputs by step."""
    made = []
    for run in runs:
        stream = _series(run, lambda row: dict(enumerate(row.get("stream", []))))
        sites = _series(run, lambda row: row.get("sites", {}))
        named = {f"block {i}" if i else "embedding": rows for i, rows in stream.items()}
        made += _by_step(f"{run.name}: residual stream after each block, by step.", named)
        in_forward = {site: sites[site] for site in in_order(sites)}
        made += _by_step(f"{run.name}: what each norm was given, by step.", in_forward)
    return made


Sizes = list[tuple[float, dict[str, float | None]]]
"""What was seen of one place: (step, measure → value)."""


def _series(run: Trained, places: Callable[[dict[str, Any]], dict[Any, Any]]) -> dict[Any, Sizes]:
    found: dict[Any, Sizes] = {}
    for row in run.diagnostics:
        for place, sizes in places(row).items():
            found.setdefault(place, []).append((row["step"], sizes))
    return found


def _by_step(caption: str, places: dict[str, Sizes]) -> list[Markup]:
    """A chart for each measure, a line for each place."""
    charts = []
    for measure, label in (("mean_square", "mean x²"), ("max_abs", "largest |x|")):
        lines = [
            Line(place, [(step, v) for step, sizes in rows if (v := sizes.get(measure))], i)
            for i, (place, rows) in enumerate(places.items())
        ]
        if heights := [v for line in lines for _, v in line.points]:
            steps = [step for line in lines for step, _ in line.points]
            frame = Frame(linear(steps, "step"), decades(heights, label))
            charts.append(frame.svg(f"{label} by step", *map(frame.line, lines)))
    return [figure(caption, legend(list(enumerate(places))), *charts)] if charts else []
