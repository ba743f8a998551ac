"""How figures look, drawn and saved: readable by the colour-blind, in print and on a dark page.

Colours are Okabe and Ito's; wherever a colour tells things apart, a marker or a place does so too,
so that a print in grey loses nothing. Pictures have a ground of their own, white, so that a dark
page shows them as a white one does. matplotlib (`pip install normlab[plots]`) is needed here only.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from normlab.numerics import FloatFormat, Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
BLUE, ORANGE, GREEN, GREY, GROUND = "#0072B2", "#D55E00", "#009E73", "#666666", "white"
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
"""As many as colours: of the first seven series either one tells them apart."""
FP16_MAX = Precision.parse("fp16").format.max

STYLE: dict[Any, Any] = {
    "figure.facecolor": GROUND,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "normlab",  # the same figure is the same file
}


def figure(rows: int, columns: int, size: tuple[float, float], **more: Any) -> tuple["Figure", Any]:
    """An empty figure of `size` inches in normlab's style, and its axes, [rows, columns].

    Raises:
        ImportError: no matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'normlab[plots]'") from error
    with rc_context(STYLE):
        made = Figure(figsize=size, layout="constrained")
        return made, made.subplots(rows, columns, squeeze=False, **more)


def save(made: "Figure", path: Path) -> list[Path]:
    """`path`.svg and `path`.png."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")]
    with rc_context(STYLE):
        for file in written:
            made.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written


def captioned(
    made: "Figure", handles: Sequence[Any], labels: Sequence[str], title: str, **look: Any
) -> "Figure":
    """The figure with its title above and its legend below, widened where they would be cut off.

    The legend has as many columns, up to four, as the figure is wide.
    """
    widths = [made.suptitle(title, fontsize=10).get_window_extent().width]
    for columns in range(min(4, len(labels)), 0, -1):
        legend = made.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, **look
        )
        made.draw_without_rendering()
        width = legend.get_window_extent().width
        if width <= made.bbox.width or columns == 1:
            widths.append(width)
            made.set_figheight(made.get_figheight() + 0.18 * (-(-len(labels) // columns) - 1))
            break
        legend.remove()
    made.set_figwidth(max(made.get_figwidth(), max(widths) / made.dpi + 0.2))
    return made


def look(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th series; of 49 no two have both alike."""
    return _COLOURS[i % 7], _MARKERS[(i + i // 7) % 7]


def pages(name: str, parts: Sequence[T], most: int) -> Iterator[tuple[str, Sequence[T]]]:
    """The parts of a figure, at most so many to a file, and the files' names: "a", "a-2"."""
    for n, start in enumerate(range(0, len(parts), most), start=1):
        yield name if n == 1 else f"{name}-{n}", parts[start : start + most]


def power(value: float) -> str:
    """A power of two as such: 2⁻¹⁴."""
    exponent = round(np.log2(value))
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def largest(to: FloatFormat) -> str:
    """A format's largest number, in figures or, where it is long, as a power of ten."""
    return f"{to.max:,.0f}" if to.max < 1e6 else f"{to.max:.1e}"


def logarithmic(ax: "Axes", which: str = "y") -> None:
    """Make an axis logarithmic, "x" or "y", with plain numbers at its ticks where it is short."""
    from normlab.plots.ticks import Plain

    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain())


def whole(ax: "Axes") -> None:
    """Ticks of the x axis at whole numbers alone: there is no block 0.5."""
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)


def fp16_line(*axes: "Axes") -> None:
    """A line at half precision's largest number, where the values come within 2⁵ of it.

    The axes are logarithmic; there is room for the line's name above it.
    """
    bottom, top = min(a.get_ylim()[0] for a in axes), max(a.get_ylim()[1] for a in axes)
    for ax in axes if top > FP16_MAX / 32 else ():
        ax.axhline(FP16_MAX, color=GREY, ls="--", lw=1)
        ax.set_ylim(top=max(top, FP16_MAX * (FP16_MAX / bottom) ** 0.12))
        ax.annotate(
            "FP16's largest", (0, FP16_MAX), xycoords=ax.get_yaxis_transform(),
            xytext=(4, 1), textcoords="offset points", va="bottom", color=GREY, fontsize=8,
        )  # fmt: skip
