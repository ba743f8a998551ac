"""A figure of scales against the norms they stand for, by site."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from normlab.numerics import FloatFormat
from normlab.plots.style import BLUE, GREY, ORANGE, captioned, figure, largest, power
from normlab.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SERVED, SUBNORMAL = "#8FD1BC", "#DDF1EB"
"""Greens that differ in print too. Opaque, so that a band has the colour that the legend shows."""


class SiteNorms(NamedTuple):
    """One site of a scale figure."""

    name: str
    least: float  # lower edge of the first bin that holds a row
    median: float
    most: float
    scales: Float[np.ndarray, " heads"]


def site_norms(norms: Record, scales: Record) -> list[SiteNorms]:
    """Norms that one record observed and scales of another, where both have them.

    A dynamic rule leaves no scales, rows that are all NaN no norms.
    """
    found = []
    for name, site in norms.ranges.sites.items():
        scale = scales.ranges.sites.get(name, {}).get("scale")
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
        scales: a record with static scales, where `site_norms` finds any.
    """
    found, to = panels(site_norms(norms, scales)), scales.format
    columns = min(len(found), 4)
    rows = -(-len(found) // columns)
    widths = [max(len(sites), 5) for sites in found.values()] if rows == 1 else [1] * columns
    size = (2.9 * columns, 0.8 + 2.1 * rows)
    made, axes = figure(rows, columns, size, sharey=True, width_ratios=widths)
    for ax, (kind, sites) in zip(axes.flat, found.items(), strict=False):
        _scales_panel(ax, sites, to)
        ax.set_title(kind, fontsize=9)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("‖x‖")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    title = f"{scales.model.name}, {scales.precision}: scale s and norms by site"
    return captioned(made, handles, labels, title, fontsize=8)


def _scales_panel(ax: "Axes", sites: Sequence[tuple[str, SiteNorms]], to: FloatFormat) -> None:
    x = np.arange(len(sites))
    low, high = (np.array([f(site.scales) for _, site in sites]) for f in (np.min, np.max))
    # Of several heads' ranges, what all of them serve.
    top = low * np.sqrt(to.max)
    for floor, colour in ((to.smallest_subnormal, SUBNORMAL), (to.smallest_normal, SERVED)):
        label = f"‖x‖²/s² in [{power(floor)}, {largest(to)}]"
        _band(ax, x, high * np.sqrt(floor), top, colour, label)
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


def _band(
    ax: "Axes", x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, label: str
) -> None:
    """Shaded from low to high, half a site wide on each side of each site."""
    at = np.repeat(x, 2) + np.tile([-0.5, 0.5], len(x))
    ax.fill_between(at, np.repeat(low, 2), np.repeat(high, 2), color=colour, lw=0, label=label)
