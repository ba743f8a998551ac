"""Tables of a page: sorted by the values that ride along, in a box of their own that scrolls."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from normlab.report.markup import Markup, element


class Entry(NamedTuple):
    """What stands in a cell, and by what it is sorted.

    Args:
        content: text or markup.
        order: a number or a text; None sorts last, either way.
    """

    content: Any
    order: float | str | None = None


def entry(value: Any) -> Entry:
    """A cell that shows a plain value and is sorted by it."""
    if isinstance(value, Entry):
        return value
    if value is None or value == "":
        return Entry("")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Entry(value, str(value))
    return Entry(f"{value:,}" if isinstance(value, int) else f"{value:.6g}", value)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """A table whose columns are sorted by a click on their heads; the first one names the rows."""
    cells = [[entry(value) for value in row] for row in rows]
    looks = [_look(column) for column in zip(*cells, strict=True)]
    names = [
        element("th", element("button", name, type="button"), scope="col", class_=look)
        for name, look in zip(head, looks, strict=True)
    ]
    lines = [element("tr", _cells(row, looks)) for row in cells]
    made = element(
        "table", element("caption", title), element("thead", element("tr", names)),
        element("tbody", lines), class_="sortable",
    )  # fmt: skip
    return element("div", made, class_="scroll", tabindex="0", role="region", aria_label=title)


def _look(column: Sequence[Entry]) -> str | None:
    """Columns of numbers stand at the right, with what else is in them."""
    return "number" if any(isinstance(e.order, (int, float)) for e in column) else None


def _cells(row: Sequence[Entry], looks: Sequence[str | None]) -> list[Markup]:
    made = []
    for i, ((content, order), look) in enumerate(zip(row, looks, strict=True)):
        if isinstance(order, float) and not math.isfinite(order):
            order = "Infinity"  # no perplexity is worse
        tag, scope = ("td", None) if i else ("th", "row")
        made.append(element(tag, content, scope=scope, class_=look, data_order=order))
    return made
