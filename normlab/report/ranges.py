"""Ranges by site: what each norm was given, and the edges of the format that held its sums."""

import math
from collections.abc import Sequence
from typing import Any

from normlab.numerics import FloatFormat
from normlab.numerics.histogram import STEPS, median, unpacked
from normlab.report import charts
from normlab.report.charts import Spec
from normlab.results import Record
from normlab.results.fields import Ranges, TextInfo
from normlab.results.stream import in_order


def seen(records: Sequence[Record]) -> list[Record]:
    """The records that saw norms with a statistic, those with most rows out of range first."""
    last = {(r.model.name, *_text(r.text), r.precision): r for r in records}
    found = [r for r in last.values() if any(_rows(r))]
    return sorted(found, key=lambda r: -sum(_lost(r.ranges)))


def _text(text: TextInfo) -> tuple[Any, ...]:
    return text.dataset, text.split, text.protocol, text.window


def _lost(seen: Ranges) -> tuple[int, int]:
    """Rows that overflowed, and that vanished."""
    return seen.overflowed_rows or 0, seen.zero_rows or 0


def title(r: Record) -> str:
    """Which record it is, and how many of its rows left the format's range."""
    overflowed, vanished = _lost(r.ranges)
    lost = f"{overflowed:,} overflowed, {vanished:,} vanished"
    return f"{r.model.name}, {r.precision}: {lost} of {r.ranges.rows or 0:,} rows"


def chart(r: Record) -> Spec:
    """The ranges of one record."""
    to = FloatFormat.parse("fp16") if r.format.is_float32 else r.format
    return charts.ranges(_rows(r), _edges(to))


def _rows(r: Record) -> list[dict[str, Any]]:
    sites = r.ranges.sites
    return [_row(name, site) for name in in_order(sites)
            if (site := sites[name]).get("sums", {}).get("counts")]  # fmt: skip


def _row(name: str, site: dict[str, Any]) -> dict[str, Any]:
    """A site's sums: least, median and largest; the ends to a quarter octave."""
    sums = site["sums"]
    low, high = sums["first"], sums["first"] + len(sums["counts"]) / STEPS
    middle = math.log2(median(unpacked(sums)) or 2.0**low)
    lost = {word: site.get(word, 0) for word in ("overflowed", "zero")}
    told = [f"{n:,} {word}" for word, n in lost.items() if n]
    scale = f", scale {site['scale']:.4g}" if isinstance(site.get("scale"), float) else ""
    return {
        "site": short(name), "low": low, "median": middle, "high": high,
        "x": math.log2(site["max_abs"]) if 0 < site["max_abs"] < math.inf else None,
        "lost": bool(told),
        "sums": f"{2.0**low:.3g} … {2.0**high:.3g}, median {2.0**middle:.3g}{scale}",
        "elements": f"largest |x| {site['max_abs']:.4g}, largest ‖x‖ {site['max_norm']:.4g}",
        "rows": ", ".join([f"{site['rows']:,}", *told]),
    }  # fmt: skip


def _edges(to: FloatFormat) -> list[dict[str, Any]]:
    """The largest value of a format, its smallest normal and its smallest subnormal."""
    found = [
        (f"{to.name} largest {to.max:,.6g}", to.max),
        (f"smallest normal 2^{to.min_exponent}", to.smallest_normal),
        (f"smallest 2^{to.min_exponent - to.mantissa}", to.smallest_subnormal),
    ]
    return [{"edge": name, "at": math.log2(value)} for name, value in found]


def short(site: str) -> str:
    """A site's name, brief enough for an axis: "3 mlp in", "final"."""
    said = site.removeprefix("blocks.").replace("norm_", "").replace("attention", "attn")
    return said.replace(".", " ")
