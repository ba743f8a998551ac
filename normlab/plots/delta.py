"""A figure of what each column of a table costs in perplexity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from normlab.plots.style import BLUE, GREY, figure
from normlab.results import Record
from normlab.results.table import difference, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def delta_figure(records: Sequence[Record]) -> "Figure":
    """A row for each record: its difference to fp32 with one standard error, and what it says."""
    made, axes = figure(1, 1, (6.6, 0.9 + 0.32 * len(records)))
    ax = axes[0, 0]
    delta = np.array([_delta(r)[0] for r in records])
    error = np.array([_delta(r)[1] or np.nan for r in records])
    finite = np.isfinite(delta)
    y = np.arange(len(records))[::-1]
    ax.axvline(0, color=GREY, lw=0.8)
    ax.errorbar(
        delta[finite], y[finite], xerr=np.nan_to_num(error[finite]), fmt="o", color=BLUE,
        ecolor=BLUE, ms=5, capsize=3,
    )  # fmt: skip
    threshold = _threshold(delta[finite], error[finite])
    ax.set_xscale("symlog", linthresh=threshold)
    ax.set_xticks(_ticks(ax.get_xlim(), threshold), minor=False)
    ax.set_yticks(y, [r.precision for r in records], family="monospace")
    ax.set_ylim(-0.6, len(records) - 0.4)
    for r, at in zip(records, y, strict=True):
        ax.annotate(
            _said(r), (1.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    ax.set_xlabel("Δ perplexity to fp32 ± its paired standard error (linear around 0)")
    model, t = records[0].model, records[0].text
    text = f"{t.dataset_title or t.dataset}, {t.split}, {t.windows} windows of {t.window}"
    ax.set_title(f"{model.name}: {text}", fontsize=9)
    return made


def _delta(r: Record) -> tuple[float, float | None]:
    _, delta, error = reported(r)
    return np.nan if delta is None else delta, error


def _threshold(delta: np.ndarray, error: np.ndarray) -> float:
    """Where the axis turns from linear to logarithmic: a power of ten over the smallest values."""
    sizes = np.abs(delta) + np.nan_to_num(error)
    smallest = sizes[sizes > 0].min() if (sizes > 0).any() else 1.0
    return 10.0 ** np.ceil(np.log10(smallest))


def _ticks(limits: tuple[float, float], threshold: float) -> list[float]:
    """Zero and powers of ten beyond the linear part, few enough to be read."""
    least = round(np.log10(threshold)) + 1
    top = int(np.log10(max(*np.abs(limits), 10.0**least)))
    powers = [10.0**k for k in range(least, top + 1, 1 + (top - least) // 6)]
    return [t for t in [*(-p for p in reversed(powers)), 0.0, *powers] if limits[0] <= t]


def _said(r: Record) -> str:
    """The difference in figures, and rows that overflowed or vanished."""
    delta, error = _delta(r)
    text = difference(delta, error) if np.isfinite(delta) else f"perplexity {r.result.perplexity}"
    lost = {"overflow": r.ranges.overflowed_rows or 0, "zero": r.ranges.zero_rows or 0}
    return "; ".join([text] + [f"{k} {share(n, r.ranges.rows)}" for k, n in lost.items() if n])


def share(n: int, rows: int | None) -> str:
    """A number of rows as a part of all."""
    return f"{n / rows:.2%}" if rows else f"{n:,}"
