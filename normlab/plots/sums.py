"""A figure of the sums of squares that rows have, before and after scaling."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from normlab.numerics import FloatFormat
from normlab.numerics.histogram import STEPS, edges, unpacked
from normlab.plots.style import BLUE, ORANGE, captioned, figure, largest, power
from normlab.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def counts(record: Record, name: str) -> Int[np.ndarray, " bins"]:
    """A histogram of all sites together: "squares" (before scaling) or "sums" (after)."""
    return np.sum([unpacked(site[name]) for site in record.ranges.sites.values()], axis=0)


def sums_figure(record: Record) -> "Figure":
    """Histograms of a row's sum of squares, as it is and as the scale makes it, and the edges.

    As in Figure 3 of SLaNC (arXiv:2410.10553). Rows of all sites; sums in float32, so that they can
    be seen beyond the edges too. One panel where what is summed is the row as it is.
    """
    to = record.format
    scaled = record.provenance.scale_rule is not None
    before, after = counts(record, "squares"), counts(record, "sums")
    panels = [("before scaling: ‖x‖²" if scaled else "‖x‖²", before)]
    if scaled or (before != after).any():
        panels += [("after scaling: ‖x‖²/s²" if scaled else "as summed", after)]
    made, axes = figure(len(panels), 1, (6.4, 0.8 + 1.8 * len(panels)), sharex=True, sharey=True)
    for ax, (title, held) in zip(axes[:, 0], panels, strict=True):
        _sums_panel(ax, held, to)
        ax.set_title(f"{title}   {_outside(held, record.ranges.rows, to)}", loc="left", fontsize=9)
        ax.set_ylabel("share of rows")
    low, high = _limits(before + after, to)
    axes[0, 0].set_xlim(low, high)
    step = 6 * round(max(1.0, (high - low) / 66))
    ticks = [t for t in range(-600, 601, step) if low <= t <= high]
    axes[-1, 0].set_xticks(ticks, [power(2.0**t) for t in ticks])
    axes[-1, 0].set_xlabel("sum of squares of a row")
    title = f"{record.model.name}, {record.precision}: sums of squares of all norms"
    return captioned(made, [], [], title)


def _limits(held: Int[np.ndarray, " bins"], to: FloatFormat) -> tuple[float, float]:
    """Ends of the axis in log₂: all bars and edges, and room for what is written at the edges."""
    (used,) = np.nonzero(held)
    first, last = np.log2(to.smallest_subnormal), np.log2(to.max)
    if not len(used):  # of rows that are all NaN or zero the edges alone
        return first - 0.16 * (last - first), last + 0.16 * (last - first)
    low = min(edges()[used[0]], first) - 1
    high = max(edges()[used[-1]] + 1 / STEPS, last) + 1
    room = 0.16 * (high - low)
    return min(low, first - room), max(high, last + room)


def _sums_panel(ax: "Axes", held: Int[np.ndarray, " bins"], to: FloatFormat) -> None:
    left = edges()
    share = held / max(held.sum(), 1)
    ax.stairs(share, np.append(left, left[-1] + 1 / STEPS), fill=True, color=BLUE, alpha=0.5)
    ax.set_ylim(max(0.5 / max(held.sum(), 1), 1e-8), 1)
    ax.set_yscale("log")
    for value, text, side in (
        (to.smallest_subnormal, power(to.smallest_subnormal), "right"),
        (to.smallest_normal, power(to.smallest_normal), "left"),
        (to.max, largest(to), "left"),
    ):
        ax.axvline(np.log2(value), color=ORANGE, lw=1.2, ls="--")
        ax.annotate(
            text, (np.log2(value), 0.97), xycoords=("data", "axes fraction"),
            xytext=(3 if side == "left" else -3, 0), textcoords="offset points", va="top",
            ha=side, color=ORANGE,
        )  # fmt: skip


def _outside(held: Int[np.ndarray, " bins"], rows: int | None, to: FloatFormat) -> str:
    """Shares of the rows shown that lie beyond the edges, and what isn't shown of all rows."""
    if not held.any():
        return "(all rows NaN or zero)"
    low = 1 - above(held, to.smallest_normal)
    said = f"{above(held, to.max):.2%} above, {low:.2%} below"
    left_out = 1 - held.sum() / rows if rows else 0.0
    return f"({said}{f'; {left_out:.2%} of all rows NaN or zero' if left_out > 0 else ''})"


def above(held: Int[np.ndarray, " bins"], edge: float) -> float:
    """The share of rows above an edge; in the bin that it cuts rows lie evenly in the logarithm."""
    part = np.clip((edges() + 1 / STEPS - np.log2(edge)) * STEPS, 0, 1)
    return float((held * part).sum() / max(held.sum(), 1))
