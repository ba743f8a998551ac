"""All figures that a directory of records gives."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from normlab.plots.delta import delta_figure
from normlab.plots.scales import scales_figure, site_norms
from normlab.plots.style import save
from normlab.plots.sums import sums_figure
from normlab.results import Record
from normlab.results.record import OK
from normlab.results.table import by_text


def record_figures(records: Iterable[Record], out: Path) -> list[Path]:
    """All figures that the records give, as SVG and PNG in `out`; the files written.

    For each model and text: `…-delta`, what each column costs; for each column with a scale rule
    `…-scales`; for each column but fp32 `…-sums`. What doesn't compare and yet has one name (two
    texts, two tokenizers) is told apart by a number.
    """
    named: dict[str, list[Record]] = {}
    for r in records:
        if r.status == OK and r.result.perplexity is not None:
            named.setdefault(_name(r), []).append(r)
    written = []
    for name, columns in _columns(named):
        low = [r for p, r in columns.items() if p != "fp32"]
        if low:
            written += save(delta_figure(low), out / f"{name}-delta")
        for r in low:
            path = f"{name}-{_slug(r.precision)}"
            written += save(sums_figure(r), out / f"{path}-sums") if r.ranges.sites else []
            norms = columns.get("fp32", r)
            if r.provenance.scale_rule and site_norms(norms, r):
                written += save(scales_figure(norms, r), out / f"{path}-scales")
    return written


def _columns(named: Mapping[str, list[Record]]) -> Iterator[tuple[str, dict[str, Record]]]:
    """By name and text a record for each precision: of two for one thing the later one counts."""
    for name, records in named.items():
        for n, alike in enumerate(by_text(records), start=1):
            yield name if n == 1 else f"{name}-{n}", {r.precision: r for r in alike}


def _name(r: Record) -> str:
    """Of all that keeps numbers apart, what tells the figures of one directory apart."""
    t = r.text
    text = f"{t.dataset}-{t.split}-{t.protocol}{t.window}"
    return _slug(f"{r.model.name}-{text}{f'-{t.max_windows}' if t.max_windows else ''}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
