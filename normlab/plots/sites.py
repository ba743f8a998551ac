"""Figures of what each norm reads: by block, and over training."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from normlab.plots.panels import (
    SIZES,
    by_kind,
    finished,
    finite,
    inside,
    largest,
    over_depth,
    over_training,
)
from normlab.plots.series import Line, Series
from normlab.plots.style import figure, fp16_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("mean_square", "max_abs")


def site_kinds(seen: Sequence[Series]) -> list[str]:
    """Kinds of site that the models have: "attention.norm_in", "norm_final"."""
    return sorted({kind for s in seen for kind in by_kind(s.diagnostics[-1]["sites"])})


def _sizes(line: Line, kind: str, key: str) -> dict[int, float]:
    """Of one kind of site, by block."""
    found = by_kind(line["sites"]).get(kind, {})
    return {block: finite(size[key]) for block, size in found.items()}


def _by_block(kind: str, key: str) -> Callable[[Line], dict[int, float]]:
    return lambda line: _sizes(line, kind, key)


def _largest(kind: str, key: str) -> Callable[[Line], float]:
    def value(line: Line) -> float:
        return largest(size[key] for size in by_kind(line["sites"]).get(kind, {}).values())

    return value


def sites_figure(seen: Sequence[Series]) -> "Figure":
    """What the norms in the blocks read at the end, by kind of site and block.

    Mean x² and the largest |x|: growth over depth, and massive activations.
    """
    kinds = inside(site_kinds(seen))
    made, axes = _empty(len(kinds))
    for row, kind in zip(axes, kinds, strict=True):
        for ax, key in zip(row, SHOWN, strict=True):
            over_depth(ax, seen, -1, _by_block(kind, key))
            ax.set_title(f"{kind}: {SIZES[key]}", fontsize=9)
        fp16_line(row[1])
    for ax in axes[-1]:
        ax.set_xlabel("block")
    return finished(made, axes, seen, "What the norms read, after training")


def sites_training_figure(seen: Sequence[Series]) -> "Figure":
    """What the norms read over training, by kind of site: of all blocks the largest value."""
    kinds = site_kinds(seen)
    made, axes = _empty(len(kinds))
    for row, kind in zip(axes, kinds, strict=True):
        for ax, key in zip(row, SHOWN, strict=True):
            over_training(ax, seen, _largest(kind, key))
            ax.set_title(f"{kind}: {SIZES[key]}", fontsize=9)
        fp16_line(row[1])
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return finished(made, axes, seen, "What the norms read, the largest of all blocks")


def _empty(kinds: int) -> tuple["Figure", Any]:
    return figure(kinds, len(SHOWN), (7.2, 1.2 + 1.9 * kinds), sharex=True)
