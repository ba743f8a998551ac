"""The page: the answer, then what it rests on; style, data and the drawing library inside."""

from pathlib import Path

import jinja2

from normlab.report import charts, models, provenance, ranges, runs
from normlab.report.answer import answers
from normlab.report.sources import Sources
from normlab.results import tables
from normlab.results.bits import bit_tables

HERE = Path(__file__).parent


def page(sources: Sources, title: str) -> str:
    """The whole file: it asks no network for anything.

    Args:
        sources: runs and records; whatever they hold is escaped.
        title: of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    labels = sources.labels
    labelled = labels.records(sources.records)
    return environment.get_template("page.html").render(
        title=title,
        sources=sources,
        labels=labels,
        answers=answers(sources, labels),
        labelled=labelled,
        tables=[
            *bit_tables(sources.records),
            *sorted(tables(labelled), key=lambda table: -len(table.rows)),
        ],
        models=models,
        best=runs.at_best_rates(sources.runs),
        runs=runs,
        ranges=ranges,
        provenance=provenance,
        config=charts.CONFIG,
        library=charts.library(),
        style=(HERE / "style.css").read_text(encoding="utf-8"),
    )
