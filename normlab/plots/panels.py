"""What the figures of watched runs share: lines over blocks and over steps, the legend below."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normlab.plots.series import Line, Series
from normlab.plots.style import captioned, figure, logarithmic, look, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = 8
"""So many kinds of site, or of weight, are in one figure: others are in a further file."""
SIZES = {"mean_square": "mean x²", "max_abs": "largest |x|", "max_square": "largest ‖x‖² of a row"}
"""What a line of diagnostics.jsonl knows of an activation, and how a figure says it."""


def finite(value: float | None) -> float:
    """A number of diagnostics.jsonl, where null is what isn't finite."""
    return math.nan if value is None else value


def largest(values: Iterable[float | None]) -> float:
    """The largest of a diagnostic: infinite where one isn't finite, NaN where there are none.

    Infinity is not drawn; the others' largest would be the size of what had not yet blown up.
    """
    held = [math.inf if value is None else value for value in values]
    return max(held, default=math.nan)


def by_kind(values: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """What is named by site, by kind and block: "blocks.3.mlp.norm_in" is "mlp.norm_in" of 3.

    What stands outside the blocks, such as norm_final, is a kind of its own, of block −1.
    """
    found: dict[str, dict[int, Any]] = {}
    for path, value in values.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        block, kind = (int(match[1]), match[2]) if match else (-1, path)
        found.setdefault(kind.replace("branch.", ""), {})[block] = value
    return found


def inside(kinds: Iterable[str]) -> list[str]:
    """Those kinds that stand in blocks."""
    return [kind for kind in kinds if not kind.startswith("norm_")]


def grid(count: int) -> tuple["Figure", Any]:
    """An empty figure of so many panels, at most four in a row; its axes, [rows, columns]."""
    columns = min(count, 4)
    rows = -(-count // columns)
    made, axes = figure(rows, columns, (1.0 + 2.4 * columns, 1.0 + 2.0 * rows))
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return made, axes


def over_depth(
    ax: "Axes", seen: Sequence[Series], which: int, values: Callable[[Line], Mapping[int, float]]
) -> None:
    """A line for each series through the values, by block, of its first or last look."""
    for i, s in enumerate(seen):
        colour, marker = look(i)
        found = values(s.diagnostics[which])
        at, of = list(found), list(found.values())
        ax.plot(at, of, color=colour, marker=marker, ms=4, label=s.label)
    logarithmic(ax)
    whole(ax)


def over_training(ax: "Axes", seen: Sequence[Series], value: Callable[[Line], float]) -> None:
    """A line for each series through a value of each of its looks."""
    for i, s in enumerate(seen):
        colour, marker = look(i)
        at, of = [n["step"] for n in s.diagnostics], [value(n) for n in s.diagnostics]
        ax.plot(at, of, color=colour, marker=marker, ms=4, label=s.label)
    logarithmic(ax)
    whole(ax)


def step_title(ax: "Axes", seen: Sequence[Series], which: int) -> None:
    """Say of which step the first or the last looks are."""
    steps = sorted({s.diagnostics[which]["step"] for s in seen})
    ax.set_title(f"step {', '.join(map(str, steps))}", fontsize=9)


def finished(made: "Figure", axes: Any, seen: Sequence[Series], title: str) -> "Figure":
    """The figure with its title, and below it a legend that has each series' learning rate."""
    handles, labels = axes.flat[0].get_legend_handles_labels()
    shown = {s.label: f"{s.label} (lr {s.best:g})" for s in seen}
    texts = [shown[label] for label in labels]
    chosen = any(len(s.runs) > 1 for s in seen)
    return captioned(made, handles, texts, title + "\neach at its best learning rate" * chosen)
