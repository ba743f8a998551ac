"""The tables of a report: perplexities, spreads over seeds, runs, and what tells runs apart."""

import json
import re
from collections.abc import Container, Sequence
from typing import Any

from normlab.report.markup import Markup, anchor, element
from normlab.report.sources import Sources, Trained
from normlab.report.tables import Entry, table
from normlab.results import Record, tables
from normlab.results.record import GOOD
from normlab.results.settings import decides, shown
from normlab.results.spread import LEGEND as SPREAD_LEGEND
from normlab.results.spread import spreads
from normlab.results.table import LEGEND, Cell, Table, number


def perplexities(sources: Sources) -> list[Markup]:
    """A table for each text and way of reading it; every number leads to its record."""
    names = {run.name for run in sources.runs}
    made = [_perplexity(found, names) for found in tables(sources.records)]
    return [*made, note(LEGEND)] if made else []


def _perplexity(found: Table, runs: Container[str]) -> Markup:
    rows = []
    for (model, *kind), cells in found.rows.items():
        name = _link(model) if model in runs else model
        rows.append([name, *kind, *(_cell(cells.get(p)) for p in found.precisions)])
    return table(found.title, [*found.subject, *found.precisions], rows)


def _cell(cell: Cell | None) -> Entry:
    if cell is None:
        return Entry("")
    value, *more = cell.parts
    lost = ("overflow", "zero")
    notes = [element("small", m, class_="bad" if m.startswith(lost) else None) for m in more]
    shown = element("a", value, href=f"#{anchor('record', cell.key)}")
    return Entry([shown, *notes], cell.value)


def seeds(records: Sequence[Record]) -> list[Markup]:
    """Mean and spread over seeds, where a config has several."""
    precisions = list(dict.fromkeys(r.precision for r in records))
    made = [
        table(title, head, [[_begins(text) for text in row] for row in rows])
        for title, (head, *rows) in spreads(records, precisions)
    ]
    return [*made, note(SPREAD_LEGEND)] if made else []


def _begins(text: str) -> Entry:
    """A cell of text, sorted by the number that it begins with, if it does: "518 ± 22"."""
    number = re.match(r"[+-]?\d+(\.\d+)?(e[+-]\d+)?(?= |;|$)", text)
    return Entry(text, float(number[0]) if number else None if text == "*" else text)


def runs(sources: Sources) -> list[Markup]:
    """A row for each training run, those that failed among them."""
    head = [
        "run", "norm", "placement", "state", "learning rate", "seed",
        "validation perplexity", "at step", "of steps", "tokens seen", "parameters",
        "seconds",
    ]  # fmt: skip
    rows = [_run(run) for run in sources.runs]
    title = "Training runs, as they ended; the best perplexity in validation, and its step."
    return [table(title, head, rows)] if rows else []


def _run(run: Trained) -> list[Any]:
    c, r = run.config, run.record
    good = run.state in GOOD
    state = Entry(element("span", run.state, class_=None if good else "bad"), run.state)
    return [
        _link(run.name), c.get("norm.type"), c.get("placement.type"), state, c.get("optimizer.lr"),
        c.get("seed"), _perplex(r.get("best_valid_perplexity")), r.get("best_step"), r.get("steps"),
        r.get("tokens_seen"), r.get("parameters"), _whole(r.get("seconds")),
    ]  # fmt: skip


def _perplex(value: float | None) -> Entry:
    return Entry("") if value is None else Entry(number(value), value)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _link(run: str) -> Entry:
    return Entry(element("a", run, href=f"#{anchor('run', run)}"), run)


def differences(sources: Sources) -> list[Markup]:
    """Of the configs of all runs, the fields in which they differ."""
    keys = differing([run.config for run in sources.runs])
    if not keys:
        return []
    rows = [
        [run.name, *(shown(run.config[k]) if k in run.config else "" for k in keys)]
        for run in sources.runs
    ]
    return [table("Fields in which the runs' configs differ.", ["run", *keys], rows)]


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Fields that have several values among the configs that have them and that decide.

    All of them: beside a table's rows (`normlab.results.settings.differing`) types and what they
    bring by default would say nothing, here they are what is asked for.
    """
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(json.dumps(value))
    return [key for key, seen in values.items() if len(seen) > 1 and decides(key)]


def note(said: str) -> Markup:
    """A line under a table."""
    return element("p", said, class_="note")
