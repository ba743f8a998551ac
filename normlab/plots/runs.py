"""Figures of training runs: loss against learning rate, and what was seen inside them.

All but the first need a run's diagnostics.jsonl.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normlab.plots.compute import compute_figure
from normlab.plots.panels import (
    KINDS,
    SIZES,
    finished,
    finite,
    inside,
    largest,
    over_depth,
    over_training,
    step_title,
)
from normlab.plots.series import Line, Series, last_loss, series
from normlab.plots.sites import site_kinds, sites_figure, sites_training_figure
from normlab.plots.style import GREY, captioned, figure, fp16_line, logarithmic, look, pages, save
from normlab.plots.vectors import vector_kinds, vectors_figure, vectors_training_figure
from normlab.results.ranking import by_size
from normlab.results.settings import flattened
from normlab.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run_figures(runs: Iterable[Run], out: Path) -> list[Path]:
    """All figures that the runs give, as SVG and PNG in `out`; the files written."""
    found = series(runs)
    seen = [s for s in found if s.diagnostics]
    written = []
    if any(len(s.runs) > 1 for s in found):
        written += save(loss_figure(found), out / "loss-lr")
    every = [run for s in found for seeds in s.runs.values() for run in seeds]
    if sizes := by_size((flattened(run.read("config.yaml")), run.record) for run in every):
        written += save(compute_figure(sizes), out / "compute")
    for name, draw in _seen_figures(seen) if seen else ():
        written += save(draw(), out / name)
    return written


def _seen_figures(seen: Sequence[Series]) -> Iterator[tuple[str, Callable[[], "Figure"]]]:
    """By file name, how to draw the diagnostics; without norms neither sites nor weights."""
    for name, draw in (
        ("depth", depth_figure), ("training", training_figure), ("gradients", gradient_figure),
    ):  # fmt: skip
        yield name, partial(draw, seen)
    sites, vectors = site_kinds(seen), vector_kinds(seen)
    for title, panels, kinds in (
        ("sites", sites_figure, inside(sites)),
        ("sites-training", sites_training_figure, sites if inside(sites) else []),
        ("weights", vectors_figure, inside(vectors)),
        ("weights-training", vectors_training_figure, vectors if inside(vectors) else []),
    ):
        for name, part in pages(title, kinds, KINDS):
            yield name, partial(panels, seen, part)


def loss_figure(found: Sequence[Series]) -> "Figure":
    """Validation loss at the end against the learning rate: each seed, and their mean.

    Where a run diverged, or failed, there is a cross on the upper edge; a dashed line is what the
    training text's frequencies alone give. Beside it, where runs were watched, the largest sum of
    squares that a row of the stream had at any look.
    """
    watched = any(run.diagnostics for s in found for runs in s.runs.values() for run in runs)
    made, axes = figure(1, 1 + watched, (4.0 * (1 + watched), 3.6))
    panels: list[tuple[str, Callable[[Run], float]]] = [("validation loss at the end", last_loss)]
    panels += [("largest ‖x‖² in the stream", _largest_square)] if watched else []
    for ax, (text, value) in zip(axes[0], panels, strict=True):
        for i, s in enumerate(found):
            _over_rates(ax, s, i, value, beside=i - len(found) / 2)
        logarithmic(ax, "x")
        ax.set_xlabel("peak learning rate")
        ax.set_ylabel(text)
    _unigram_line(axes[0, 0], found)
    if watched:
        logarithmic(axes[0, 1])
        fp16_line(axes[0, 1])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    and_size = ", and size of the residual stream" if watched else ""
    marks = _marks(found, [value for _, value in panels])
    return captioned(
        made, handles, labels, f"Validation loss by learning rate{and_size}\n{marks}".strip()
    )


def _unigram_line(ax: "Axes", found: Sequence[Series]) -> None:
    """The loss of a model that knows nothing but frequencies, where all runs have the same."""
    runs = [run for s in found for seeds in s.runs.values() for run in seeds]
    losses = {run.record.get("unigram_valid_loss") for run in runs}
    (loss,) = losses if len(losses) == 1 else (None,)
    if loss is not None:
        ax.axhline(loss, color=GREY, ls="--", lw=1, zorder=0)
        ax.annotate(
            "unigram", (0, loss), xycoords=ax.get_yaxis_transform(), xytext=(4, 2),
            textcoords="offset points", color=GREY, fontsize=8,
        )  # fmt: skip


def _marks(found: Sequence[Series], values: Sequence[Callable[[Run], float]]) -> str:
    """What the marks in the figure mean, those that are in it."""
    points = [seeds for s in found for seeds in s.runs.values()]
    lost = [value(run) == math.inf for seeds in points for run in seeds for value in values]
    said = ["bars: seeds; line: their mean"] if any(len(seeds) > 1 for seeds in points) else []
    return "; ".join(said + ["× on the edge: a seed diverged or failed"] * any(lost))


def _over_rates(
    ax: "Axes", s: Series, i: int, value: Callable[[Run], float], beside: float
) -> None:
    colour, marker = look(i)
    rates = list(s.runs)
    values = [np.array([value(r) for r in s.runs[rate]]) for rate in rates]
    means = [float(v.mean()) if np.isfinite(v).all() else math.nan for v in values]
    ax.plot(rates, means, color=colour, marker=marker, ms=5, label=s.label)
    for rate, seeds in zip(rates, values, strict=True):
        good = seeds[np.isfinite(seeds)]
        ax.plot([rate] * len(good), good, "_", color=colour, ms=8)
        if np.isinf(seeds).any():
            edge = ax.get_xaxis_transform()
            at = rate * 1.04**beside  # crosses of several series stand side by side
            ax.plot(at, 0.98, "x", color=colour, ms=8, mew=2, transform=edge, clip_on=False)


def _largest_square(run: Run) -> float:
    """Infinite where it was no number; NaN, which is not drawn, for a run that nobody watched."""
    return largest(size["max_square"] for line in run.diagnostics for size in line["stream"])


def depth_figure(seen: Sequence[Series]) -> "Figure":
    """Size of the residual stream over depth: at the start and at the end of training."""
    made, axes = figure(len(SIZES), 2, (7.2, 7.0), sharex=True, sharey="row")
    for row, (key, text) in enumerate(SIZES.items()):
        for column, which in enumerate((0, -1)):

            def sizes(line: Line, key: str = key) -> dict[int, float]:
                return {i: finite(size[key]) for i, size in enumerate(line["stream"])}

            over_depth(axes[row, column], seen, which, sizes)
        axes[row, 0].set_ylabel(text)
        if key != "mean_square":
            fp16_line(*axes[row])
    for column, which in enumerate((0, -1)):
        step_title(axes[0, column], seen, which)
        axes[-1, column].set_xlabel("residual stream after so many blocks")
    return finished(
        made, axes, seen, "Size of the residual stream over depth, before and after training"
    )


def training_figure(seen: Sequence[Series]) -> "Figure":
    """Over training: the stream after the last block, outliers, attention scores, updates."""
    panels: dict[str, Callable[[Line], float]] = {
        "mean x² after the last block": lambda n: finite(n["stream"][-1]["mean_square"]),
        "largest |x| in the stream": lambda n: largest(s["max_abs"] for s in n["stream"]),
        "largest attention score": lambda n: largest(b["attention_score"] for b in n["blocks"]),
        "update / weights, median of blocks": _update,
    }
    made, axes = figure(2, 2, (7.2, 5.4), sharex=True)
    for ax, (text, value) in zip(axes.flat, panels.items(), strict=True):
        over_training(ax, seen, value)
        ax.set_title(text, fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return finished(made, axes, seen, "Residual stream, attention scores and updates over training")


def _update(line: Line) -> float:
    found = [p.get("update_ratio") for name, p in line["parts"].items() if name[:7] == "blocks."]
    known = [finite(ratio) for ratio in found if ratio is not None]
    return float(np.median(known)) if known else math.nan


def gradient_figure(seen: Sequence[Series]) -> "Figure":
    """Gradient norm of each block: at the start and at the end of training."""
    made, axes = figure(1, 2, (7.2, 3.2), sharey=True)
    for ax, which in zip(axes[0], (0, -1), strict=True):
        over_depth(ax, seen, which, _gradients)
        step_title(ax, seen, which)
        ax.set_xlabel("block")
    axes[0, 0].set_ylabel("gradient norm")
    return finished(made, axes, seen, "Gradient norm by block, before and after training")


def _gradients(line: Line) -> dict[int, float]:
    blocks = range(len(line["blocks"]))
    return {i: finite(line["parts"][f"blocks.{i}"]["grad_norm"]) for i in blocks}
