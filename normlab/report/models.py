"""Every model in every precision: a table for each text, whose numbers lead to their records."""

import math
from collections.abc import Mapping, Sequence

from normlab.report.runs import anchor
from normlab.report.table import Entry, PageTable
from normlab.results import Record, Table, tables
from normlab.results.summary import summary
from normlab.results.table import Cell


def models(records: Sequence[Record]) -> list[tuple[str, str, PageTable]]:
    """For each text its name, what is seen in a sentence, and the table of its own models."""
    found = sorted(tables(records), key=lambda table: -len(table.rows))
    return [(_where(table), summary(table), _table(table)) for table in found]


def _where(table: Table) -> str:
    h = table.head
    if h["dataset_title"] is None:
        return "not evaluated"
    return f"{h['dataset_title']}, {h['split']} split, protocol {h['protocol']}"


def _table(table: Table) -> PageTable:
    head = ["model", *table.subject[1:3], *table.precisions]
    rows = [
        [*subject[:3], *(_entry(cells.get(p)) for p in table.precisions)]
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
