"""Every model in every precision: a table of one text, whose numbers lead to their records."""

import math
from collections.abc import Mapping

from normlab.report.runs import anchor
from normlab.report.table import Entry, PageTable
from normlab.results import Table
from normlab.results.bits import BITS
from normlab.results.summary import summary
from normlab.results.table import Cell


def where(table: Table) -> str:
    """The text of a table, in a few words."""
    h = table.head
    if h["dataset_title"] is None:
        return "not evaluated"
    said = f"{h['dataset_title']}, {h['split']} split, protocol {h['protocol']}"
    return f"{said}, bits per byte" if table.reported == BITS else said


def said(table: Table) -> str:
    """What a table shows; of a single model also its perplexity."""
    (model, *_), cells = next(iter(table.rows.items()))
    cell = cells.get("fp32") if len(table.rows) == 1 else None
    first = f"{model} has a perplexity of {cell.parts[0]} in fp32. " if cell and cell.value else ""
    return " ".join(filter(None, [f"{first}{summary(table)}", table.stream]))


def page_table(table: Table) -> PageTable:
    """A row a model, the best first; a column a precision, and what tells the models apart."""
    words = slice(1, 4 if table.reported == BITS else 3)
    head = ["model", *table.precisions, *table.subject[words]]
    rows = [
        [subject[0], *(_entry(cells.get(p)) for p in table.precisions), *subject[words]]
        for subject, cells in sorted(table.rows.items(), key=lambda row: _worth(row[1]))
    ]
    return PageTable.of(table.title, head, rows)


def _worth(cells: Mapping[str, Cell]) -> float:
    """By what rows are sorted: the first number; what has none comes last."""
    value = next(iter(cells.values())).value
    return math.inf if value is None or math.isnan(value) else value


def _entry(cell: Cell | None) -> Entry:
    if cell is None:
        return Entry("")
    value, *more = cell.parts
    return Entry(value, anchor("record", cell.key), more)
