"""A figure of the sums of squares that rows have, before and after scaling."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from normlab.numerics import FloatFormat, Precision
from normlab.numerics.histogram import STEPS, edges, unpacked
from normlab.plots.style import BLUE, ORANGE, figure, power
from normlab.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def counts(record: Record, name: str) -> Int[np.ndarray, " bins"]:
    """A histogram of all sites together: "squares" (before scaling) or "sums" (after)."""
    return np.sum([unpacked(site[name]) for site in record.sites.values()], axis=0)


def sums_figure(record: Record) -> "Figure":
    """Histograms of a row's sum of squares, as it is and as the scale makes it, and the edges.

    As in Figure 3 of SLaNC (arXiv:2410.10553). Rows of all sites; sums in float32, so that they can
    be seen beyond the edges too.
    """
    to = Precision.parse(record.precision).format
    before, after = counts(record, "squares"), counts(record, "sums")
    made, axes = figure(2, 1, (6.4, 4.4), sharex=True, sharey=True)
    for ax, held, title in (
        (axes[0, 0], before, "before scaling: ‖x‖²"),
        (axes[1, 0], after, "after scaling: ‖x‖²/s²" if record.scale_rule else "no scale: ‖x‖²"),
    ):
        _sums_panel(ax, held, to)
        ax.set_title(f"{title}   {_outside(held, record.rows, to)}", loc="left", fontsize=9)
        ax.set_ylabel("share of rows")
    (used,) = np.nonzero(before + after)
    at = [edges()[used[0]], edges()[used[-1]] + 1 / STEPS, np.log2(to.smallest_subnormal)]
    axes[0, 0].set_xlim(min(at) - 4, max(*at, np.log2(to.max)) + 1)
    ticks = [t for t in range(-60, 61, 6) if min(at) - 4 <= t <= max(*at, np.log2(to.max)) + 1]
    axes[1, 0].set_xticks(ticks, [power(2.0**t) for t in ticks])
    axes[1, 0].set_xlabel("sum of squares of a row")
    made.suptitle(f"{record.model}, {record.precision}", fontsize=10)
    return made


def _sums_panel(ax: "Axes", held: Int[np.ndarray, " bins"], to: FloatFormat) -> None:
    left = edges()
    share = held / max(held.sum(), 1)
    ax.stairs(share, np.append(left, left[-1] + 1 / STEPS), fill=True, color=BLUE, alpha=0.85)
    ax.set_yscale("log")
    ax.set_ylim(max(0.5 / max(held.sum(), 1), 1e-8), 1)
    for value, text, side in (
        (to.smallest_subnormal, power(to.smallest_subnormal), "right"),
        (to.smallest_normal, power(to.smallest_normal), "left"),
        (to.max, f"{to.max:,.0f}", "left"),
    ):
        ax.axvline(np.log2(value), color=ORANGE, lw=1.2, ls="--")
        ax.annotate(
            text, (np.log2(value), 0.97), xycoords=("data", "axes fraction"),
            xytext=(3 if side == "left" else -3, 0), textcoords="offset points", va="top",
            ha=side, color=ORANGE,
        )  # fmt: skip


def _outside(held: Int[np.ndarray, " bins"], rows: int | None, to: FloatFormat) -> str:
    """Shares of the rows shown that lie beyond the edges, and what isn't shown of all rows."""
    low = 1 - above(held, to.smallest_normal)
    said = f"{above(held, to.max):.2%} above, {low:.2%} below"
    left_out = 1 - held.sum() / rows if rows else 0.0
    return f"({said}{f'; {left_out:.2%} of all rows NaN or zero' if left_out > 0 else ''})"


def above(held: Int[np.ndarray, " bins"], edge: float) -> float:
    """The share of rows above an edge; in the bin that it cuts rows lie evenly in the logarithm."""
    part = np.clip((edges() + 1 / STEPS - np.log2(edge)) * STEPS, 0, 1)
    return float((held * part).sum() / max(held.sum(), 1))
