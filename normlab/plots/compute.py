"""Loss against compute, a line a method: several sizes of one model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from normlab.plots.style import captioned, figure, logarithmic, look
from normlab.results.ranking import Point, flips

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compute_figure(methods: Mapping[str, Sequence[Point]]) -> "Figure":
    """Best validation loss against training FLOPs: each seed, and their mean; where ranks flip."""
    made, axes = figure(1, 1, (5.4, 3.8))
    ax = axes[0, 0]
    for i, (name, points) in enumerate(methods.items()):
        colour, marker = look(i)
        at = [point.flops for point in points]
        means = [point.mean if np.isfinite(point.mean) else np.nan for point in points]
        ax.plot(at, means, color=colour, marker=marker, ms=5, label=name)
        for point in points:
            good = [loss for loss in point.losses if np.isfinite(loss)]
            ax.plot([point.flops] * len(good), good, "_", color=colour, ms=8)
    logarithmic(ax, "x")
    ax.set_xlabel("training FLOPs, 6 · parameters · tokens")
    ax.set_ylabel("best validation loss")
    handles, labels = ax.get_legend_handles_labels()
    said = "\n".join(flips(methods))
    return captioned(made, handles, labels, f"Loss against compute\n{said}".strip())
