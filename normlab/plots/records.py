"""All figures that a directory of records gives."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normlab.plots.checkpoints import COLUMNS as COLUMNS_OVER_TIME
from normlab.plots.checkpoints import checkpoints_figure, narrow, of_checkpoints
from normlab.plots.delta import COLUMNS, delta_figure
from normlab.plots.models import MODELS, models_figure
from normlab.plots.scales import scales_figure, site_norms
from normlab.plots.style import pages, save
from normlab.plots.sums import sums_figure
from normlab.results import Record
from normlab.results.fields import TextInfo
from normlab.results.labels import Labels
from normlab.results.record import OK
from normlab.results.table import by_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def record_figures(records: Sequence[Record], out: Path, each: bool = False) -> list[Path]:
    """The figures that the records of some models give, as SVG and PNG in `out`.

    For each text `…-models`, where there are several: their perplexities, what each column costs,
    how large their rows are. For one model, and with `each` for every one: `…-delta`, what each
    column costs; for each column with a scale rule `…-scales`; for each column but fp32 `…-sums`.
    Of every checkpoint of some runs one figure, `…-checkpoints`.
    What doesn't compare and yet has one name (two texts, two tokenizers) is told apart by a number.

    Args:
        records: any.
        out: a directory.
        each: draw every model by itself too, where there are several.

    Returns:
        The files written.
    """
    labelled = Labels.of_records(records).records(records)
    good = [r for r in labelled if r.status == OK and r.result.perplexity is not None]
    taken = Counter[str]()

    def own(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}-{taken[name]}"

    written = []
    for alike in by_text(good):
        base = _text(alike[0].text)
        if every := of_checkpoints(alike):
            for name, part in pages(f"{own(base)}-checkpoints", narrow(every), COLUMNS_OVER_TIME):
                written += save(checkpoints_figure(every, part), out / name)
        models = _by_model([r for r in alike if r not in every])
        if len(models) > 1:
            for name, part in pages(f"{own(base)}-models", list(models), MODELS):
                written += save(models_figure({m: models[m] for m in part}), out / name)
        for model, columns in models.items() if each or len(models) == 1 else ():
            for name, made in _of_model(own(f"{slug(model)}-{base}"), columns):
                written += save(made, out / name)
    return written


def _by_model(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """By model and precision; of two records for one thing the later one counts."""
    found: dict[str, dict[str, Record]] = {}
    for r in records:
        found.setdefault(r.model.name, {})[r.precision] = r
    return found


def _of_model(name: str, columns: Mapping[str, Record]) -> Iterator[tuple[str, "Figure"]]:
    """By file name the figures of one model."""
    low = [r for p, r in columns.items() if p != "fp32"]
    for file, part in pages(f"{name}-delta", low, COLUMNS):
        yield file, delta_figure(part)
    for r in low:
        path = f"{name}-{slug(r.precision)}"
        if r.ranges.sites:
            yield f"{path}-sums", sums_figure(r)
        norms = columns.get("fp32", r)
        if r.provenance.scale_rule and site_norms(norms, r):
            yield f"{path}-scales", scales_figure(norms, r)


def _text(t: TextInfo) -> str:
    """Of all that keeps numbers apart, what tells the figures of one directory apart."""
    text = f"{t.dataset}-{t.split}-{t.protocol}{t.window}"
    return slug(f"{text}-{t.max_windows}" if t.max_windows else text)


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
