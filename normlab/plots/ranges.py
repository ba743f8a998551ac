"""A figure of the size of what a model stores, over depth, beside a format's largest value."""

import math
import re
from typing import TYPE_CHECKING

from normlab.numerics import FloatFormat
from normlab.plots.style import GREY, captioned, figure, largest, logarithmic, look, whole
from normlab.results.range_report import RangeReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "stream": r"stream|embed",
    "branch output": r"out",
    "norm's output": r"(.*\.)?(norm_\w+|post_norm|sub_norm)",
    "q, k, v, heads": r"(query|key)(_rotated)?|value|heads",
    "products, scores": r"products|scores",
    "hidden units": r"gate|activated|up|hidden",
    "norm's Σx²": r".*\.sum",
    "logits": r"logits|capped",
    "norm's input": r".*\.in",
    "module's output": r".*",
}
"""What a line is of, by the end of a tensor's name; the last two of a model by PyTorch only."""


def ranges_figure(found: RangeReport) -> "Figure":
    """A line for each kind of tensor: in each block the largest |x|, before any cure.

    What stands before the blocks is at −1, what stands behind them at their number.
    """
    made, axes = figure(1, 1, (6.4, 3.8))
    ax, to = axes[0, 0], FloatFormat.parse(found.format)
    for i, (kind, sizes) in enumerate(_by_kind(found).items()):
        colour, marker = look(i)
        ax.plot(*zip(*sorted(sizes.items()), strict=True), color=colour, marker=marker, ms=4,
                label=kind)  # fmt: skip
    ax.axhline(to.max, color=GREY, ls="--", lw=1, label=f"{found.format}'s largest, {largest(to)}")
    logarithmic(ax)
    whole(ax)
    ax.set_xlabel("block")
    ax.set_ylabel("largest |x|; of a norm Σx²")
    title = f"{found.model}: size of what a runtime stores, {found.tokens:,} tokens in fp32"
    handles, labels = ax.get_legend_handles_labels()
    return captioned(made, handles, labels, title)


def _by_kind(found: RangeReport) -> dict[str, dict[int, float]]:
    """By kind and block the largest size; those that are no numbers are not drawn."""
    sizes: dict[str, dict[int, float]] = {}
    behind = 1 + max((_block(t.name) or 0 for t in found.tensors), default=0)
    for t in found.tensors:
        block = _block(t.name)
        at = block if block is not None else -1 if "embed" in t.name else behind
        kind = next(k for k, ends in KINDS.items() if re.fullmatch(ends, _end(t.name)))
        size = t.largest if math.isfinite(t.largest) else math.nan
        of = sizes.setdefault(kind, {})
        of[at] = max(of.get(at, size), size)
    return {kind: sizes[kind] for kind in KINDS if kind in sizes}


def _block(name: str) -> int | None:
    match = re.search(r"\.(\d+)(\.|$)", name)
    return int(match[1]) if match else None


def _end(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.(attention|mlp)\.", "", name)
