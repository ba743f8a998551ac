"""Ranges by site: what each norm was given, and the edges of the format that held its sums."""

import re
from collections.abc import Sequence
from typing import Any

from normlab.numerics import FloatFormat
from normlab.numerics.histogram import STEPS, median, unpacked
from normlab.report.axes import names, octaves, power
from normlab.report.charts import Frame
from normlab.report.markup import Markup, element
from normlab.results import Record
from normlab.results.column import Column

Range = tuple[float, float, float]
"""Least, median and largest sum of squares of a site's rows; the ends to a quarter octave."""

ROOM = 16
"""Width of a site."""


def ranges(records: Sequence[Record]) -> list[Markup]:
    """A chart for each record that saw norms with a statistic; the first one stands open."""
    last = {(r.model, r.dataset, r.split, r.protocol, r.window, r.precision): r for r in records}
    found = [r for r in last.values() if any(spans(r).values())]
    made = [_details(r, i == 0) for i, r in enumerate(found)]
    return [element("p", CAPTION, class_="note"), *made] if made else []


CAPTION = (
    "By norm, in the order of the forward pass: the sum of squares of its rows after scaling, in "
    "float32, as the format would have to hold it (bar: least to largest, dot: median), and the "
    "largest element |x| before scaling (ring). Dashed: the format's largest value, its smallest "
    "normal and its smallest subnormal; for fp32 those of fp16."
)


def _details(r: Record, shown: bool) -> Markup:
    said = f"{r.overflowed_rows or 0:,} overflowed, {r.zero_rows or 0:,} vanished"
    bad = "bad" if r.overflowed_rows or r.zero_rows else None
    rows = element("small", f"{said} of {r.rows or 0:,} rows", class_=bad)
    summary = element("summary", f"{r.model}, {r.precision} ", rows)
    return element("details", summary, chart(r), open=shown)


def chart(r: Record) -> Markup:
    """The chart of one record."""
    held = {site: span for site, span in spans(r).items() if span}
    sites = in_order(held)
    to = Column.parse(r.precision).precision.format
    edges = _edges(FloatFormat.parse("fp16") if to.is_float32 else to)
    seen = [v for site in sites for v in (*held[site], r.sites[site]["max_abs"])]
    y = octaves([*seen, *(value for value, _ in edges)], "sum of squares")
    labels = [short(site) for site in sites]
    room = 24 + 5 * max(map(len, labels))  # below the axis, for names that stand aslant
    width = max(720, ROOM * len(sites))
    frame = Frame(names(labels, ""), y, width, 270 + room, room)
    marks = [frame.level(value, said) for value, said in edges]
    marks += [_site(frame, i, s, held[s], r.sites[s]) for i, s in enumerate(sites)]
    return frame.svg(f"ranges by site of {r.model}, {r.precision}", *marks, slanted=True)


def _edges(to: FloatFormat) -> list[tuple[float, str]]:
    small = to.min_exponent
    return [
        (to.max, f"{to.name} largest {to.max:,.6g}" if to.max < 1e6 else f"{to.name} largest"),
        (to.smallest_normal, f"smallest normal {power(small)}"),
        (to.smallest_subnormal, f"smallest {power(small - to.mantissa)}"),
    ]


def _site(frame: Frame, at: int, name: str, span: Range, site: dict[str, Any]) -> Markup:
    low, middle, high = span
    lost = {
        word: site.get(key, 0) for word, key in (("overflowed", "overflowed"), ("zero", "zero"))
    }
    said = [
        f"{name}: Σ {low:.3g} … {high:.3g}, median {middle:.3g}",
        f"largest |x| {site['max_abs']:.4g}, largest ‖x‖ {site['max_norm']:.4g}",
    ]
    said += [f"scale {site['scale']:.4g}"] if isinstance(site.get("scale"), float) else []
    said += [f"{n:,} of {site['rows']:,} rows {word}" for word, n in lost.items() if n]
    x, y = frame.place(at, site["max_abs"])
    top, floor = frame.place(at, high)[1] - 6, frame.place(at, low)[1] + 6
    area = element(
        "rect", x=f"{x - 8:.1f}", width=16, y=f"{min(top, y - 6):.1f}",
        height=f"{max(floor, y + 6) - min(top, y - 6):.1f}", class_="area",
    )  # fmt: skip
    kind = "range lost" if any(lost.values()) else "range"
    ring = element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="ring")
    title = element("title", "\n".join(said))
    bar, dot = frame.bar(at, low, high, kind), frame.dot((at, middle), 0)
    return element("g", title, area, bar, dot, ring, tabindex="0", class_="mark")


def spans(r: Record) -> dict[str, Range | None]:
    """By site the range of its rows' sums; None where there were none."""
    return {name: _span(site["sums"]) for name, site in r.sites.items() if "sums" in site}


def _span(sums: dict[str, Any]) -> Range | None:
    if not sums["counts"]:
        return None
    first, last = sums["first"], sums["first"] + len(sums["counts"]) / STEPS
    return 2.0**first, median(unpacked(sums)) or 2.0**first, 2.0**last


def in_order(sites: Any) -> list[str]:
    """Sites as the forward pass meets them: the embedding's, block by block, the final one."""

    def place(name: str) -> tuple[int, int, str]:
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return 1, int(block[1]), name
        return (0 if "embed" in name else 2), 0, name

    return sorted(sites, key=place)


def short(site: str) -> str:
    """A site's name, brief enough for an axis: "3 mlp in", "final"."""
    said = site.removeprefix("blocks.").replace("norm_", "").replace("attention", "attn")
    return said.replace(".", " ")
