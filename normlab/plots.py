"""Figures from records: scales against norms, sums before and after scaling, what a rule costs.

They need matplotlib (`pip install normlab[plots]`), which nothing else here does.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from normlab.numerics import FloatFormat, Precision
from normlab.numerics.histogram import STEPS, edges, unpacked
from normlab.results import Record
from normlab.results.record import OK
from normlab.results.table import difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
"""Of the palette of Okabe and Ito, which the colour-blind can tell apart."""

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",  # so that a picture is readable on a dark page as well
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
    """An empty figure of `size` inches in the house's style, and its axes, [rows, columns].

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


def figures(records: Iterable[Record], out: Path) -> list[Path]:
    """All figures that the records give, as SVG and PNG in `out`; the files written.

    For each model and text: `…-delta`, what each column costs; for each column with a scale rule
    `…-scales`; for each column but fp32 `…-sums`.
    """
    groups: dict[str, dict[str, Record]] = {}
    for r in records:  # of two records for one thing the later one counts
        if r.status == OK and r.perplexity is not None:
            groups.setdefault(_name(r), {})[r.precision] = r
    written = []
    for name, columns in groups.items():
        low = [r for p, r in columns.items() if p != "fp32"]
        if low:
            written += save(delta_figure(low), out / f"{name}-delta")
        for r in low:
            path = f"{name}-{_slug(r.precision)}"
            written += save(sums_figure(r), out / f"{path}-sums") if r.sites else []
            if r.scale_rule and has_scales(r):
                shown = scales_figure(columns.get("fp32", r), r)
                written += save(shown, out / f"{path}-scales")
    return written


def _name(r: Record) -> str:
    """Of all that keeps numbers apart, what tells the figures of one directory apart."""
    text = f"{r.dataset}-{r.split}-{r.protocol}{r.window}"
    return _slug(f"{r.model}-{text}{f'-{r.max_windows}' if r.max_windows else ''}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


# --- scales against norms


class SiteNorms(NamedTuple):
    """One site of a scale figure."""

    name: str
    least: float  # lower edge of the first bin that holds a row
    median: float
    most: float
    scales: Float[np.ndarray, " heads"]


def has_scales(record: Record) -> bool:
    """Whether the record has static scales (a dynamic rule leaves none)."""
    return any("scale" in site for site in record.sites.values())


def site_norms(norms: Record, scales: Record) -> list[SiteNorms]:
    """Norms that one record observed and scales of another, where both have them."""
    found = []
    for name, site in norms.sites.items():
        scale = scales.sites.get(name, {}).get("scale")
        if scale is not None and site.get("median_norm"):
            least = 2.0 ** (site["squares"]["first"] / 2)
            given = np.ravel(np.asarray(scale, float))
            found.append(SiteNorms(name, least, site["median_norm"], site["max_norm"], given))
    return found


def panels(sites: Sequence[SiteNorms]) -> dict[str, list[tuple[str, SiteNorms]]]:
    """Sites by kind, in order of depth, each with its label: the block's number or its name."""
    found: dict[str, list[tuple[str, SiteNorms]]] = {}
    for site in sites:  # in the order of a sorted dictionary: 0, 1, 10, 11, 2
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", site.name)
        kind, label = (match[2], match[1]) if match else ("others", site.name)
        found.setdefault(kind, []).append((label, site))
    for kind, held in found.items():
        found[kind] = sorted(held, key=lambda pair: int(pair[0]) if pair[0].isdigit() else 0)
    return found


def scales_figure(norms: Record, scales: Record) -> "Figure":
    """By site: the scale, the norms, and the range of norms that the format can serve with it.

    Args:
        norms: where norms were observed undisturbed: the fp32 record.
        scales: a record with static scales.
    """
    found, to = panels(site_norms(norms, scales)), Precision.parse(scales.precision).format
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    widths = [max(len(sites), 5) for sites in found.values()] if rows == 1 else [1] * columns
    size = (3.4 * columns, 0.8 + 2.3 * rows)
    made, axes = figure(rows, columns, size, sharey=True, width_ratios=widths)
    for ax, (kind, sites) in zip(axes.flat, found.items(), strict=False):
        _scales_panel(ax, sites, to)
        ax.set_title(kind, fontsize=9)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("‖x‖")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    look = {"ncols": 3, "fontsize": 8, "frameon": False}
    made.legend(handles, labels, loc="outside lower center", **look)
    made.suptitle(f"{scales.model}, {scales.precision}: scale s and norms by site", fontsize=10)
    return made


def _scales_panel(ax: "Axes", sites: Sequence[tuple[str, SiteNorms]], to: FloatFormat) -> None:
    x = np.arange(len(sites))
    low, high = (np.array([f(site.scales) for _, site in sites]) for f in (np.min, np.max))
    # Of several heads' ranges, what all of them serve.
    top = low * np.sqrt(to.max)
    for floor, alpha in ((to.smallest_subnormal, 0.18), (to.smallest_normal, 0.25)):
        label = f"‖x‖²/s² in [{power(floor)}, {to.max:,.0f}]"
        _band(ax, x, high * np.sqrt(floor), top, alpha, label)
    of = {name: np.array([getattr(s, name) for _, s in sites]) for name in SiteNorms._fields[1:4]}
    ax.vlines(x, of["least"], of["most"], color=GREY, lw=0.9)
    ax.plot(x, of["most"], "^", color=ORANGE, ms=4, label="largest ‖x‖")
    ax.plot(x, of["median"], "o", color="black", ms=3, label="median ‖x‖ (bar from the least)")
    ax.plot(x, np.sqrt(low * high), "_", color=BLUE, ms=7, mew=2, label="scale s")
    ax.set_yscale("log")
    labels = [label for label, _ in sites]
    if all(label.isdigit() for label in labels):
        step = max(1, len(labels) // 6)
        ax.set_xticks(x[::step], labels[::step])
        ax.set_xlabel("block")
    else:
        ax.set_xticks(x, labels)
        ax.set_xlim(-1, len(labels))


def _band(ax: "Axes", x: np.ndarray, low: Any, high: Any, alpha: float, label: str) -> None:
    """Shaded from low to high, half a site wide on each side of each site."""
    at = np.repeat(x, 2) + np.tile([-0.5, 0.5], len(x))
    ax.fill_between(
        at, np.repeat(low, 2), np.repeat(high, 2), color=GREEN, alpha=alpha, lw=0, label=label
    )


def power(value: float) -> str:
    """A power of two as such: 2⁻¹⁴."""
    exponent = round(np.log2(value))
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


# --- sums of squares


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


# --- what a column costs


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
    r = records[0]
    text = f"{r.dataset_title or r.dataset}, {r.split}, {r.windows} windows of {r.window}"
    ax.set_title(f"{r.model}: {text}", fontsize=9)
    return made


def _delta(r: Record) -> tuple[float, float | None]:
    word = r.reported == "word_perplexity"
    delta, error = (r.word_delta, r.word_delta_stderr) if word else (r.delta, r.delta_stderr)
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
    text = difference(delta, error) if np.isfinite(delta) else f"perplexity {r.perplexity}"
    lost = {"overflow": r.overflowed_rows or 0, "zero": r.zero_rows or 0}
    return "; ".join([text] + [f"{k} {share(n, r)}" for k, n in lost.items() if n])


def share(n: int, r: Record) -> str:
    """A number of rows as a part of all."""
    return f"{n / r.rows:.2%}" if r.rows else f"{n:,}"
