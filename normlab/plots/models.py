"""A figure of several models: their perplexities, what each column costs, how large rows are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from normlab.numerics import FloatFormat
from normlab.numerics.histogram import STEPS, edges
from normlab.plots.delta import delta_axis, delta_of, of_text
from normlab.plots.style import BLUE, ORANGE, captioned, figure, logarithmic, look, power
from normlab.plots.sums import counts
from normlab.results import Record
from normlab.results.table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODELS = 24
"""So many are in one figure: others are in a further file."""
Columns = Mapping[str, Record]
"""By precision the records of one model."""


def models_figure(models: Mapping[str, Columns]) -> "Figure":
    """A row for each model: perplexity in fp32, Δ of each other column, sums of squares of rows.

    The last panel has bars from the least to the largest ‖x‖² that any norm of the model reads,
    and the edges of the columns' first format.

    Args:
        models: by name; of one text.
    """
    size = (8.5 + 0.075 * max(map(len, models)), 1.5 + 0.28 * len(models))
    made, axes = figure(1, 3, size, sharey=True)
    values, deltas, rows = axes[0]
    columns = list(dict.fromkeys(p for held in models.values() for p in held if p != "fp32"))
    for at, held in enumerate(models.values()):
        if "fp32" in held:
            values.plot(Cell.of(held["fp32"]).value, at, "o", color="black", ms=5)
        _rows(rows, at, held.get("fp32", next(iter(held.values()))))
    for i, precision in enumerate(columns):
        _deltas(deltas, i, (i + 0.5) / len(columns) - 0.5, precision, models)
    records = [r for held in models.values() for r in held.values()]
    narrow = [r for r in records if r.precision != "fp32"]
    delta_axis(deltas, narrow, 3)
    deltas.set_xlabel("Δ perplexity to fp32 ± standard error")
    values.set_yticks(range(len(models)), models)
    values.set_ylim(len(models) - 0.4, -0.6)
    values.grid(axis="y", alpha=0.3)
    values.set_xlabel("perplexity in fp32")
    rows.set_xlabel("‖x‖² of rows: least, median, largest")
    _edges(rows, narrow[0].format if narrow else None)
    handles, labels = deltas.get_legend_handles_labels()
    title = f"{len(models)} models: perplexity, what each column costs, how large rows are"
    return captioned(made, handles, labels, f"{title}\n{of_text(records[0])}")


def _deltas(
    ax: "Axes", i: int, beside: float, precision: str, models: Mapping[str, Columns]
) -> None:
    """One column's Δ of every model; what is no number is a cross on the right edge."""
    colour, marker = look(i)
    at = [n + 0.6 * beside for n, held in enumerate(models.values()) if precision in held]
    found = [delta_of(held[precision]) for held in models.values() if precision in held]
    delta, error = (np.array([x[k] for x in found], float) for k in (0, 1))
    ax.errorbar(
        delta, at, xerr=np.nan_to_num(error), fmt=marker, color=colour, ms=4, label=precision
    )
    lost = [y for y, value in zip(at, delta, strict=True) if not np.isfinite(value)]
    edge = ax.get_yaxis_transform()
    if lost:
        ax.set_title("×: no finite number", fontsize=8)
    ax.plot([0.99] * len(lost), lost, "x", color=colour, ms=6, mew=2, transform=edge)


def _rows(ax: "Axes", at: int, r: Record) -> None:
    """The ‖x‖² of all rows of a model."""
    if not r.ranges.sites or not (held := counts(r, "squares")).any():
        return
    (used,) = np.nonzero(held)
    ends = 2.0 ** np.array([edges()[used[0]], edges()[used[-1]] + 1 / STEPS])
    middle = 2.0 ** edges()[np.searchsorted(held.cumsum(), held.sum() / 2)]
    ax.hlines(at, *ends, color=BLUE, lw=3, alpha=0.5)
    ax.plot(middle, at, "o", color="black", ms=4)


def _edges(ax: "Axes", to: FloatFormat | None) -> None:
    """Smallest normal and largest number of a format."""
    logarithmic(ax, "x")
    for value in (to.smallest_normal, to.max) if to else ():
        ax.axvline(value, color=ORANGE, lw=1.2, ls="--")
    if to:
        ax.set_title(f"dashed: {power(to.smallest_normal)} and {to.max:,.0f}", fontsize=8)
