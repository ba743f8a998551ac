"""Figures of what each norm reads: by block, and over training."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from normlab.plots.panels import (
    SIZES,
    by_kind,
    finished,
    finite,
    grid,
    inside,
    largest,
    over_depth,
    over_training,
)
from normlab.plots.series import Line, Series
from normlab.plots.style import fp16_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panel = tuple[Axes, str, str]
    """With its kind of site, and which size of what that reads."""

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


def sites_figure(seen: Sequence[Series], kinds: Sequence[str] | None = None) -> "Figure":
    """What the norms in the blocks read at the end, by kind of site and block.

    Mean x² and the largest |x|: growth over depth, and massive activations.

    Args:
        seen: watched runs.
        kinds: of site; None: all in blocks.
    """
    made, axes, panels = _panels(inside(site_kinds(seen)) if kinds is None else kinds, "block")
    for ax, kind, key in panels:
        over_depth(ax, seen, -1, _by_block(kind, key))
    _edges(panels)
    return finished(made, axes, seen, "Size of what each norm reads after training, by block")


def sites_training_figure(seen: Sequence[Series], kinds: Sequence[str] | None = None) -> "Figure":
    """What the norms read over training, by kind of site: of all blocks the largest value.

    Args:
        seen: watched runs.
        kinds: of site; None: all.
    """
    made, axes, panels = _panels(site_kinds(seen) if kinds is None else kinds, "step")
    for ax, kind, key in panels:
        over_training(ax, seen, _largest(kind, key))
    _edges(panels)
    return finished(made, axes, seen, "Size of what each norm reads over training, largest block")


def _panels(kinds: Sequence[str], over: str) -> tuple["Figure", Any, list["Panel"]]:
    """Two panels for each kind of site, side by side, titled and labelled."""
    shown = [(kind, key) for kind in kinds for key in SHOWN]
    made, axes = grid(len(shown))
    panels = [(ax, *of) for ax, of in zip(axes.flat, shown, strict=False)]
    for ax, kind, key in panels:
        ax.set_title(f"{kind}: {SIZES[key]}", fontsize=9)
        ax.set_xlabel(over)
    return made, axes, panels


def _edges(panels: Sequence["Panel"]) -> None:
    """FP16's largest number, where single elements come near it."""
    for ax, _, key in panels:
        if key == "max_abs":
            fp16_line(ax)
