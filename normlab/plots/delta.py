"""A figure of what each column of a table costs in perplexity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from normlab.plots.style import BLUE, GREY, captioned, figure
from normlab.results import Record
from normlab.results.table import difference, reported

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLUMNS = 24
"""So many rows are in one figure: others are in a further file."""


def delta_figure(records: Sequence[Record]) -> "Figure":
    """A row for each record: its difference to fp32 with one standard error, and what it says.

    Args:
        records: of one model on one text, without fp32.
    """
    made, axes = figure(1, 1, (6.6, 1.1 + 0.32 * len(records)))
    ax = axes[0, 0]
    delta, error = (np.array([delta_of(r)[k] for r in records], float) for k in (0, 1))
    y = np.arange(len(records))[::-1]
    ax.errorbar(
        delta, y, xerr=np.nan_to_num(error), fmt="o", color=BLUE, ecolor=BLUE, ms=5, capsize=3
    )
    delta_axis(ax, records, 7)
    ax.set_xlabel("Δ perplexity to fp32 ± its paired standard error (linear around 0)")
    ax.set_yticks(y, [r.precision for r in records], family="monospace")
    ax.set_ylim(-0.6, len(records) - 0.4)
    for r, at in zip(records, y, strict=True):
        ax.annotate(
            _said(r), (1.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    title = f"{records[0].model.name}: what each column costs\n{of_text(records[0])}"
    return captioned(made, [], [], title)


def of_text(r: Record) -> str:
    """What was read, for a title."""
    t = r.text
    return f"{t.dataset_title or t.dataset}, {t.split}, {t.windows} windows of {t.window}"


def delta_of(r: Record) -> tuple[float, float]:
    """Δ to fp32 and its paired standard error; NaN where there is none."""
    _, delta, error = reported(r)
    return np.nan if delta is None else delta, error or np.nan


def delta_axis(ax: "Axes", records: Sequence[Record], powers: int) -> None:
    """Make the x axis one of differences: linear around 0, logarithmic beyond what is smallest.

    Args:
        ax: with all that it shows.
        records: what is shown.
        powers: so many powers of ten are named on each side of 0, at most.
    """
    found = np.array([delta_of(r) for r in records], float).reshape(-1, 2)
    found = found[np.isfinite(found[:, 0])]
    threshold = _threshold(found[:, 0], found[:, 1])
    ax.set_xscale("symlog", linthresh=threshold)
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set_xticks(_ticks(ax.get_xlim(), threshold, powers), minor=False)


def _threshold(delta: np.ndarray, error: np.ndarray) -> float:
    """Where the axis turns from linear to logarithmic: a power of ten over the smallest values."""
    sizes = np.abs(delta) + np.nan_to_num(error)
    smallest = sizes[sizes > 0].min() if (sizes > 0).any() else 1.0
    return 10.0 ** np.ceil(np.log10(smallest))


def _ticks(limits: tuple[float, float], threshold: float, most: int) -> list[float]:
    """Zero and powers of ten beyond the linear part, at most so many on each side."""
    edge = round(np.log10(threshold))
    top = int(np.log10(max(*np.abs(limits), 10.0 ** (edge + 1))))
    least = edge + (top > edge + 1)  # the end of the linear part too, where little is beyond it
    powers = [10.0**k for k in range(least, top + 1, 1 + (top - least) // (most - 1))]
    return [t for t in [*(-p for p in reversed(powers)), 0.0, *powers] if limits[0] <= t]


def _said(r: Record) -> str:
    """The difference in figures, and rows that overflowed or vanished."""
    delta, error = delta_of(r)
    text = difference(delta, error) if np.isfinite(delta) else f"perplexity {r.result.perplexity}"
    lost = {"overflow": r.ranges.overflowed_rows or 0, "zero": r.ranges.zero_rows or 0}
    return "; ".join([text] + [f"{k} {share(n, r.ranges.rows)}" for k, n in lost.items() if n])


def share(n: int, rows: int | None) -> str:
    """A number of rows as a part of all."""
    return f"{n / rows:.2%}" if rows else f"{n:,}"
