"""Figures of the weights and α of norms: by block at the end, and over training."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from normlab.plots.panels import by_kind, finished, finite, grid, inside
from normlab.plots.series import Line, Series
from normlab.plots.style import look, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEARNED = (".weight", ".alpha")


def vector_kinds(seen: Sequence[Series]) -> list[str]:
    """Kinds of γ and α that models have: "attention.norm_in.weight", "norm_final.weight"."""
    return sorted({kind for s in seen for kind in _vectors(s.diagnostics[-1])})


def _vectors(line: Line) -> dict[str, dict[int, Any]]:
    found = {k: v for k, v in line["vectors"].items() if "norm" in k and k.endswith(LEARNED)}
    return by_kind(found)


def _panels(axes: Any, kinds: Sequence[str], over: str) -> Iterator[tuple["Axes", str]]:
    """Each kind's panel, titled and labelled."""
    for ax, kind in zip(axes.flat, kinds, strict=False):
        yield ax, kind
        ax.set_title(kind, fontsize=9)
        ax.set_xlabel(over)
        whole(ax)


def vectors_figure(seen: Sequence[Series], kinds: Sequence[str] | None = None) -> "Figure":
    """γ and α of the norms in the blocks at the end: mean, and bars from least to largest.

    Args:
        seen: watched runs.
        kinds: of weight; None: all in blocks.
    """
    found = inside(vector_kinds(seen)) if kinds is None else kinds
    made, axes = grid(len(found))
    for ax, kind in _panels(axes, found, "block"):
        for i, s in enumerate(seen):
            values = _vectors(s.diagnostics[-1]).get(kind, {})
            of = {n: np.array([finite(v[n]) for v in values.values()]) for n in _ENDS}
            bars = [of["mean"] - of["min"], of["max"] - of["mean"]]
            at = np.array(list(values), float) + 0.08 * (i - len(seen) / 2)
            colour, marker = look(i)
            ax.errorbar(at, of["mean"], bars, color=colour, fmt=marker, ms=4, lw=1, label=s.label)
    for ax in axes[:, 0]:
        ax.set_ylabel("mean; bars: least to largest")
    return finished(made, axes, seen, "Weights γ and α of norms after training, by block")


_ENDS = ("mean", "min", "max")


def vectors_training_figure(seen: Sequence[Series], kinds: Sequence[str] | None = None) -> "Figure":
    """γ and α over training, all blocks together: mean, and a band from least to largest.

    Args:
        seen: watched runs.
        kinds: of weight; None: all.
    """
    found = vector_kinds(seen) if kinds is None else kinds
    made, axes = grid(len(found))
    for ax, kind in _panels(axes, found, "step"):
        for i, s in enumerate(seen):
            ends = [(n["step"], *_ends(_vectors(n).get(kind, {}))) for n in s.diagnostics]
            steps, mean, low, high = zip(*ends, strict=True)
            colour, marker = look(i)
            ax.plot(steps, mean, color=colour, marker=marker, ms=4, label=s.label)
            ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    for ax in axes[:, 0]:
        ax.set_ylabel("mean; band: least to largest")
    return finished(made, axes, seen, "Weights γ and α of norms over training")


def _ends(values: dict[int, Any]) -> tuple[float, float, float]:
    """Mean of the blocks' means, the least and the largest value in any."""
    if not values:
        return (float("nan"),) * 3
    of = {n: [finite(v[n]) for v in values.values()] for n in _ENDS}
    return float(np.mean(of["mean"])), float(np.min(of["min"])), float(np.max(of["max"]))
