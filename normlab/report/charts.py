"""The charts as Vega-Lite, which the page draws in the browser; colours are the style sheet's."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt
import vl_convert

Row = Mapping[str, Any]
Spec = dict[str, Any]

COLOURS = [f"var(--c{i})" for i in range(7)]
DASHES = [[1, 0], [6, 3], [2, 3], [9, 3, 2, 3]]
POINTS = 200
"""A curve keeps at most about so many points, evenly taken, and its last one."""

_TEXT = {
    "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
    "labelColor": "var(--soft)", "titleColor": "var(--soft)",
}  # fmt: skip
_LINES = {"gridColor": "var(--rule)", "domainColor": "var(--rule)", "tickColor": "var(--rule)"}
CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": _TEXT | _LINES | {"labelOverlap": True},
    "legend": _TEXT | {
        "orient": "top", "title": None, "symbolLimit": 24, "labelLimit": 210,
        "symbolType": "stroke", "symbolStrokeWidth": 3, "symbolSize": 200,
        "columns": {"expr": "width > 0 ? max(1, floor(containerSize()[0] / 240)) : 1"},
    },
}  # fmt: skip
"""How all charts look."""


@cache
def library() -> str:
    """The JavaScript that draws them, of the version of Vega-Lite that Altair writes."""
    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version)


def curves(rows: Sequence[Row], y: str, by: str, names: Sequence[str], log: bool = False) -> Spec:
    """Lines by step; a click in the legend shows one of them alone.

    Args:
        rows: one a line: its `name`, what tells colours apart, lists `step` and `y`; `diverged`
            where its end is marked with a cross.
        y: the column that is drawn, which also names the axis.
        by: the column that tells colours apart.
        names: what may stand in that column, also in other charts: a name has one colour in all.
        log: the axis is logarithmic.
    """
    pick = alt.selection_point(name="pick", fields=[by], bind="legend")
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        alt.X("step:Q"),
        alt.Y(f"{y}:Q", scale=scale, title=y),
        *_looks(rows, by, names),
        detail="name:N",
        tooltip=["name:N", "step:Q", alt.Tooltip(f"{y}:Q", format=".5~g", title=y)],
    )
    points = base.transform_flatten(["step", y])
    few = sum(len(row["step"]) for row in rows) <= 30 * len(rows)
    lines = points.mark_line(point={"size": 24} if few else "transparent")  # seen by the pointer
    lines = lines.encode(opacity=alt.condition(pick, alt.value(1), alt.value(0.08)))
    ends = [{**row, "step": row["step"][-1], y: row[y][-1]} for row in rows if row.get("diverged")]
    crosses = [_crosses(base.properties(data=alt.Data(values=ends)))] * bool(ends)
    return _spec(alt.layer(lines.add_params(pick), *crosses), 300)


def _crosses(base: alt.Chart) -> alt.Chart:
    return base.mark_point(shape="M-1,-1L1,1M1,-1L-1,1", size=90, strokeWidth=2, opacity=1)


def _looks(rows: Sequence[Row], by: str, names: Sequence[str]) -> tuple[alt.Color, alt.StrokeDash]:
    """A colour for each name, with other dashes once the colours are used up."""
    there = {row[by] for row in rows}
    found = {name: divmod(i, len(COLOURS)) for i, name in enumerate(names) if name in there}
    colours = [COLOURS[i] for _, i in found.values()]
    dashes = [DASHES[k % len(DASHES)] for k, _ in found.values()]
    return (
        alt.Color(f"{by}:N", scale=alt.Scale(domain=list(found), range=colours)),
        alt.StrokeDash(f"{by}:N", scale=alt.Scale(domain=list(found), range=dashes)),
    )


def rates(rows: Sequence[Row], names: Sequence[str]) -> Spec:
    """Loss by learning rate: a dot a run, a line through means, a cross where one diverged.

    Args:
        rows: each with rate, loss, method, name, and whether it `diverged`.
        names: of the methods, as in `curves`.
    """
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        alt.X("rate:Q", scale=alt.Scale(type="log"), title="peak learning rate",
              axis=alt.Axis(format="~g")),
        alt.Y("loss:Q", scale=alt.Scale(zero=False), title="best validation loss"),
        *_looks(rows, "method", names),
    )  # fmt: skip
    told = base.encode(tooltip=["name:N", "rate:Q", alt.Tooltip("loss:Q", format=".5~g")])
    return _spec(
        alt.layer(
            base.transform_filter("!datum.diverged").mark_line().encode(y="mean(loss):Q"),
            told.transform_filter("!datum.diverged").mark_point(filled=True, opacity=1),
            _crosses(told.transform_filter("datum.diverged")),
        ),
        300,
    )


def ranges(rows: Sequence[Row], edges: Sequence[Row]) -> Spec:
    """By site the range of its sums of squares, between the edges of a format.

    Args:
        rows: each with site, low, median, high and x (log₂), lost (whether rows left the range),
            and what the pointer shows: sums, elements, rows.
        edges: each with at (log₂) and edge (its name).
    """
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        alt.Y("site:N", sort=None, title=None),
        color=alt.condition("datum.lost", alt.value("var(--bad)"), alt.value(COLOURS[0])),
        tooltip=["site:N", "sums:N", "elements:N", "rows:N"],
    )
    low = alt.X("low:Q", title="log₂ of a row's sum of squares", scale=alt.Scale(zero=False))
    return _spec(
        alt.layer(
            *(_edge(edge, -8 - 14 * i) for i, edge in enumerate(edges)),
            base.mark_bar(height=6, opacity=0.55).encode(low, x2="high:Q"),
            base.mark_point(filled=True, opacity=1).encode(x="median:Q"),
            base.mark_point(size=60).encode(x="x:Q", color=alt.value(COLOURS[2])),
        ),
        18 * len(rows),
    )


def _edge(edge: Row, y: float) -> Any:
    """A dashed line with its name above the chart, at a height of its own."""
    base = alt.Chart(alt.Data(values=[edge])).encode(alt.X("at:Q"))
    right = edge["at"] > 0
    name = base.mark_text(color="var(--edge)", align="right" if right else "left")
    name = name.encode(text="edge:N", y=alt.value(y))
    return alt.layer(base.mark_rule(strokeDash=[5, 4], color="var(--edge)"), name)


def _spec(chart: Any, height: int) -> Spec:
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    made = chart.properties(width="container", height=height, autosize=fit).to_dict()
    return {k: v for k, v in made.items() if k not in ("$schema", "config")}


def thinned(points: Sequence[Any]) -> Sequence[Any]:
    """At most about `POINTS` of them, the last among them."""
    step = -(-len(points) // POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]
