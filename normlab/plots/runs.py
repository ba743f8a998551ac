"""Figures of training runs: loss against learning rate, and what was seen inside them.

All but the first need a run's watch.jsonl.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.plots.series import Line, Series, last_loss, series
from normlab.plots.style import figure, fp16_line, logarithmic, look, save, whole
from normlab.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run_figures(runs: Iterable[Run], out: Path) -> list[Path]:
    """All figures that the runs give, as SVG and PNG in `out`; the files written."""
    found = series(runs)
    seen = [s for s in found if s.watched]
    written = []
    if any(len(s.runs) > 1 for s in found):
        written += save(loss_figure(found), out / "loss-lr")
    if seen:
        made = {"depth": depth_figure, "training": training_figure, "gradients": gradient_figure}
        for name, draw in made.items():
            written += save(draw(seen), out / name)
        written += save(vectors_figure(seen), out / "gains") if kinds(seen) else []
    return written


def loss_figure(found: Sequence[Series]) -> "Figure":
    """Validation loss at the end against the learning rate: each seed, and their mean.

    Where a run diverged, or failed, there is a cross on the upper edge. Beside it, where runs were
    watched, the largest sum of squares that a row of the stream had at any look.
    """
    watched = any(run.watched for s in found for runs in s.runs.values() for run in runs)
    made, axes = figure(1, 1 + watched, (4.0 * (1 + watched), 3.6))
    panels: list[tuple[str, Callable[[Run], float]]] = [("validation loss at the end", last_loss)]
    panels += [("largest ‖x‖² in the stream", _largest_square)] if watched else []
    for ax, (text, value) in zip(axes[0], panels, strict=True):
        for i, s in enumerate(found):
            _over_rates(ax, s, i, value, beside=i - len(found) / 2)
        logarithmic(ax, "x")
        ax.set_xlabel("peak learning rate")
        ax.set_ylabel(text)
    if watched:
        logarithmic(axes[0, 1])
        fp16_line(axes[0, 1])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    made.suptitle(_marks(found, [value for _, value in panels]), fontsize=9)
    return made


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
    if not run.watched:
        return math.nan
    squares = [size["max_square"] for line in run.watched for size in line["stream"]]
    return math.inf if None in squares else max(squares)


SIZES = {"mean_square": "mean x²", "max_abs": "largest |x|", "max_square": "largest ‖x‖² of a row"}


def depth_figure(seen: Sequence[Series]) -> "Figure":
    """Size of the residual stream over depth: at the start and at the end of training."""
    made, axes = figure(len(SIZES), 2, (7.2, 7.0), sharex=True, sharey="row")
    for row, (key, text) in enumerate(SIZES.items()):
        for column, which in enumerate((0, -1)):

            def sizes(line: Line, key: str = key) -> list[float]:
                return [_float(size[key]) for size in line["stream"]]

            _over_depth(axes[row, column], seen, which, sizes, titled=row == 0)
        axes[row, 0].set_ylabel(text)
        if key != "mean_square":
            fp16_line(*axes[row])
    for ax in axes[-1]:
        ax.set_xlabel("residual stream after so many blocks")
    return _finished(made, axes, seen, "Residual stream over depth")


def training_figure(seen: Sequence[Series]) -> "Figure":
    """Over training: the stream after the last block, outliers, attention scores, updates."""
    panels: dict[str, Callable[[Line], float]] = {
        "mean x² after the last block": lambda n: _float(n["stream"][-1]["mean_square"]),
        "largest |x| in the stream": lambda n: max(_float(s["max_abs"]) for s in n["stream"]),
        "largest attention score": lambda n: max(_float(b["attention_score"]) for b in n["blocks"]),
        "update / weights, median of blocks": _update,
    }
    made, axes = figure(2, 2, (7.2, 5.4), sharex=True)
    for ax, (text, value) in zip(axes.flat, panels.items(), strict=True):
        for i, s in enumerate(seen):
            colour, marker = look(i)
            steps = [line["step"] for line in s.watched]
            shown = [value(line) for line in s.watched]
            ax.plot(steps, shown, color=colour, marker=marker, ms=4, label=s.label)
        logarithmic(ax)
        ax.set_title(text, fontsize=9)
    for ax in axes[-1]:
        whole(ax)
        ax.set_xlabel("step")
    return _finished(made, axes, seen, "Over training")


def _update(line: Line) -> float:
    found = [p.get("update_ratio") for name, p in line["parts"].items() if name[:7] == "blocks."]
    known = [_float(ratio) for ratio in found if ratio is not None]
    return float(np.median(known)) if known else math.nan


def gradient_figure(seen: Sequence[Series]) -> "Figure":
    """Gradient norm of each block: at the start and at the end of training."""
    made, axes = figure(1, 2, (7.2, 3.2), sharey=True)
    for ax, which in zip(axes[0], (0, -1), strict=True):
        _over_depth(ax, seen, which, _gradients)
        ax.set_xlabel("block")
    axes[0, 0].set_ylabel("gradient norm")
    return _finished(made, axes, seen, "Gradient norm by block")


def _gradients(line: Line) -> list[float]:
    blocks = range(len(line["blocks"]))
    return [_float(line["parts"][f"blocks.{i}"]["grad_norm"]) for i in blocks]


def vectors_figure(seen: Sequence[Series]) -> "Figure":
    """Gains and α of the norms in the blocks at the end: mean, and bars from least to largest."""
    found = kinds(seen)
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    made, axes = figure(rows, columns, (1.0 + 2.6 * columns, 1.0 + 2.2 * rows))
    for ax, kind in zip(axes.flat, found, strict=False):
        for i, s in enumerate(seen):
            values = _vectors(s.watched[-1]).get(kind, {})
            of = {
                n: np.array([_float(v[n]) for v in values.values()]) for n in ("mean", "min", "max")
            }
            bars = [of["mean"] - of["min"], of["max"] - of["mean"]]
            at = np.array(list(values), float) + 0.08 * (i - len(seen) / 2)
            colour, marker = look(i)
            ax.errorbar(at, of["mean"], bars, color=colour, fmt=marker, ms=4, lw=1, label=s.label)
        ax.set_title(kind, fontsize=9)
        ax.set_xlabel("block")
        whole(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("mean; bars: least to largest")
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    return _finished(made, axes, seen, "Gains and α after training, as stored")


def kinds(seen: Sequence[Series]) -> list[str]:
    """Kinds of gain and α that the blocks have: "attention.norm_in.gain"."""
    return sorted({kind for s in seen for kind in _vectors(s.watched[-1])})


def _vectors(line: Line) -> dict[str, dict[int, Any]]:
    """By kind and block."""
    found: dict[str, dict[int, Any]] = {}
    for path, values in line["vectors"].items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.*norm_\w+\.(?:gain|alpha))", path)
        if match:
            kind = match[2].replace("branch.", "")
            found.setdefault(kind, {})[int(match[1])] = values
    return found


def _float(value: float | None) -> float:
    """A number of watch.jsonl, where null is what isn't finite."""
    return math.nan if value is None else value


def _over_depth(
    ax: "Axes",
    seen: Sequence[Series],
    which: int,
    values: Callable[[Line], list[float]],
    titled: bool = True,
) -> None:
    """A line for each series through the values of its first or last look."""
    for i, s in enumerate(seen):
        colour, marker = look(i)
        ax.plot(values(s.watched[which]), color=colour, marker=marker, ms=4, label=s.label)
    logarithmic(ax)
    whole(ax)
    if titled:
        steps = sorted({s.watched[which]["step"] for s in seen})
        ax.set_title(f"step {', '.join(map(str, steps))}", fontsize=9)


def _finished(made: "Figure", axes: Any, seen: Sequence[Series], title: str) -> "Figure":
    handles, labels = axes.flat[0].get_legend_handles_labels()
    shown = {s.label: f"{s.label} (lr {s.best:g})" for s in seen}
    texts = [shown[label] for label in labels]
    made.legend(handles, texts, loc="outside lower center", ncols=4, frameon=False)
    chosen = any(len(s.runs) > 1 for s in seen)
    made.suptitle(title + "\neach at its best learning rate" * chosen, fontsize=10)
    return made
