"""What a narrow column costs over training: every checkpoint of some runs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from normlab.plots.style import captioned, figure, look, whole
from normlab.results import Record
from normlab.results.labels import Labels
from normlab.results.settings import of_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
"""So many precisions are in one figure: others are in a further file."""
SMALL = 0.01
"""Percent below which the axis of differences is linear."""


def of_checkpoints(records: Sequence[Record]) -> list[Record]:
    """Those that were made of every checkpoint of a run."""
    return [r for r in records if r.model.facts.get("checkpoints")]


def narrow(records: Sequence[Record]) -> list[str]:
    """Their columns but fp32."""
    return [p for p in dict.fromkeys(r.precision for r in records) if p != "fp32"]


def checkpoints_figure(records: Sequence[Record], columns: Sequence[str]) -> "Figure":
    """By step the difference to fp32, and the share of rows that overflow, a panel a column.

    A line is a run. Where a perplexity is not finite the line ends.
    """
    made, axes = figure(2, len(columns), (1.5 + 2.9 * len(columns), 5.0), sharex=True, sharey="row")
    labels = Labels.of_records(records)
    runs: dict[str, list[Record]] = {}
    for r in records:
        runs.setdefault(labels.run(of_run(r) | {"transform": r.model.transform}), []).append(r)
    for column, (upper, lower) in zip(columns, axes.T, strict=True):
        for i, (label, rows) in enumerate(runs.items()):
            colour, marker = look(i)
            of = sorted((r for r in rows if r.precision == column), key=_step)
            style = {"color": colour, "marker": marker, "ms": 4, "label": label}
            upper.plot([_step(r) for r in of], [_share(r) for r in of], **style)
            lower.plot([_step(r) for r in of], [_overflowed(r) for r in of], **style)
        upper.set_yscale("symlog", linthresh=SMALL)
        low, high = upper.get_ylim()
        upper.set_ylim(min(low, -SMALL), max(high, SMALL))
        lower.set_ylim(0, max(1, lower.get_ylim()[1]))
        upper.set_title(column, fontsize=9)
        lower.set_xlabel("step")
        whole(lower)
    axes[0, 0].set_ylabel("perplexity less fp32's, % of it")
    axes[1, 0].set_ylabel("rows that overflow, %")
    handles, texts = axes[0, 0].get_legend_handles_labels()
    return captioned(made, handles, texts, "What a narrow column costs over training")


def _step(r: Record) -> int:
    return int(r.model.facts["step"])


def _share(r: Record) -> float:
    """Percent; NaN, which is not drawn, where there is no number."""
    value, delta = r.result.perplexity, r.comparison.delta
    if value is None or delta is None or not math.isfinite(value):
        return math.nan
    return 100 * delta / (value - delta)


def _overflowed(r: Record) -> float:
    return 100 * (r.ranges.overflowed_rows or 0) / max(1, r.ranges.rows or 0)
