"""A table of the page: texts in columns, numbers at the right, links and notes in cells."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Entry(NamedTuple):
    """What stands in a cell.

    Args:
        text: it begins with this.
        to: the id of the place on the page that it leads to; "" for none.
        notes: lines under it.
    """

    text: str
    to: str = ""
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, value: object) -> "Entry":
        """A plain value as a cell: numbers brief, nothing for None."""
        if isinstance(value, Entry):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(f"{value:,}")
        return cls("" if value is None else str(value))

    @property
    def numeric(self) -> bool:
        """Whether it begins with a number."""
        return re.match(r"[+-]?\d", self.text) is not None


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Args:
        title: what it shows.
        head: names of the columns.
        rows: an entry for each column; the first names the row.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]

    @classmethod
    def of(cls, title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> "PageTable":
        """The table of these rows without the columns in which there is nothing."""
        columns = [[Entry.of(value) for value in column] for column in zip(*rows, strict=True)]
        kept = [i for i, column in enumerate(columns) if any(entry.text for entry in column)]
        made = zip(*(columns[i] for i in kept), strict=True)
        return cls(title, [head[i] for i in kept], list(made))

    @property
    def numeric(self) -> list[bool]:
        """By column, whether it holds numbers, which stand at the right."""
        columns = zip(*self.rows, strict=True)
        return [i > 0 and any(e.numeric for e in column) for i, column in enumerate(columns)]
