"""All figures that a directory of records gives."""

import re
from collections.abc import Iterable
from pathlib import Path

from normlab.plots.delta import delta_figure
from normlab.plots.scales import scales_figure, site_norms
from normlab.plots.style import save
from normlab.plots.sums import sums_figure
from normlab.results import Record
from normlab.results.record import OK
from normlab.results.table import HEAD


def record_figures(records: Iterable[Record], out: Path) -> list[Path]:
    """All figures that the records give, as SVG and PNG in `out`; the files written.

    For each model and text: `…-delta`, what each column costs; for each column with a scale rule
    `…-scales`; for each column but fp32 `…-sums`. What doesn't compare and yet has one name (two
    texts, two tokenizers) is told apart by a number.
    """
    groups: dict[str, dict[tuple, dict[str, Record]]] = {}
    for r in records:  # of two records for one thing the later one counts
        if r.status == OK and r.perplexity is not None:
            text = tuple(getattr(r, name) for name in HEAD)
            groups.setdefault(_name(r), {}).setdefault(text, {})[r.precision] = r
    named = [
        (name if n == 1 else f"{name}-{n}", columns)
        for name, alike in groups.items()
        for n, columns in enumerate(alike.values(), start=1)
    ]
    written = []
    for name, columns in named:
        low = [r for p, r in columns.items() if p != "fp32"]
        if low:
            written += save(delta_figure(low), out / f"{name}-delta")
        for r in low:
            path = f"{name}-{_slug(r.precision)}"
            written += save(sums_figure(r), out / f"{path}-sums") if r.sites else []
            norms = columns.get("fp32", r)
            if r.scale_rule and site_norms(norms, r):
                written += save(scales_figure(norms, r), out / f"{path}-scales")
    return written


def _name(r: Record) -> str:
    """Of all that keeps numbers apart, what tells the figures of one directory apart."""
    text = f"{r.dataset}-{r.split}-{r.protocol}{r.window}"
    return _slug(f"{r.model}-{text}{f'-{r.max_windows}' if r.max_windows else ''}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
