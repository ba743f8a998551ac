"""Tables as Markdown, CSV, LaTeX, and on a terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.table import Table as RichTable

from normlab.results.table import LEGEND, SUBJECT, Cell, Table

_NUMBERS = ("value", "delta", "stderr", "overflowed", "zero", "status")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip


def markdown(tables: Sequence[Table]) -> str:
    """Each table under its title, the legend at the end."""
    parts = []
    for table in tables:
        parts += [table.title, grid([table.columns, *table.lines()])]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in ruled
    )


def as_csv(tables: Sequence[Table]) -> str:
    """One line a model, all tables in one: the head's fields, then six columns a precision.

    Those are PRECISION (the value), `PRECISION delta`, `stderr`, `overflowed`, `zero`, `status`.
    What there isn't is empty.
    """
    precisions = list(dict.fromkeys(p for table in tables for p in table.precisions))
    head = list(tables[0].head) if tables else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [p if n == "value" else f"{p} {n}" for p in precisions for n in _NUMBERS]
    writer.writerow([*SUBJECT, *head, "reported", *names])
    for table in tables:
        for subject, cells in table.rows.items():
            numbers = [x for p in precisions for x in _numbers(cells.get(p))]
            writer.writerow([*subject, *table.head.values(), table.reported, *numbers])
    return out.getvalue()


def _numbers(cell: Cell | None) -> list[Any]:
    return [None if cell is None else getattr(cell, name) for name in _NUMBERS]


def latex(tables: Sequence[Table]) -> str:
    """A `table` environment each, which needs no package."""
    return "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    lines = [" & ".join(map(escaped, line)) + r" \\" for line in [table.columns, *table.lines()]]
    layout = "l" * len(SUBJECT) + "r" * len(table.precisions)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(table.title)} {escaped(LEGEND)}}}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """`text` with what LaTeX reads as its own made into itself."""
    return "".join(_LATEX.get(c, c) for c in text)


def terminal(table: Table) -> RichTable:
    """For a `rich` console: a cell's parts below each other."""
    made = RichTable(
        title=table.title, title_justify="left", caption=LEGEND, caption_justify="left"
    )
    for i, column in enumerate([*SUBJECT, *table.precisions]):
        made.add_column(column, justify="left" if i < len(SUBJECT) else "right", overflow="fold")
    for subject, cells in table.rows.items():
        shown = (cells.get(p) for p in table.precisions)
        made.add_row(*subject, *("\n".join(c.parts) if c else "" for c in shown))
    return made
