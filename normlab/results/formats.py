"""Tables as Markdown, CSV, LaTeX, and on a terminal."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from normlab.results.summary import summary
from normlab.results.table import LEGEND, SUBJECT, Cell, Table

_NUMBERS = ("value", "delta", "stderr", "overflowed", "zero", "status")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip


_MINUS = re.compile(r"(?<!\w)-(?=\d)")


def markdown(tables: Sequence[Table]) -> str:
    """Each table under its title, below it what it shows, the legend at the end."""
    parts = []
    for table in tables:
        parts += [table.title, grid([table.columns, *table.lines()])]
        parts += [said for said in (summary(table), table.stream) if said]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in ruled
    )


def as_csv(tables: Sequence[Table]) -> str:
    """One line a model, all tables in one: settings, the head's fields, six columns a precision.

    Those are PRECISION (the value), `PRECISION delta`, `stderr`, `overflowed`, `zero`, `status`.
    What there isn't is empty.
    """
    precisions = list(dict.fromkeys(p for table in tables for p in table.precisions))
    head = list(tables[0].head) if tables else []
    settings = list(dict.fromkeys(key for table in tables for key in table.settings))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [p if n == "value" else f"{p} {n}" for p in precisions for n in _NUMBERS]
    writer.writerow([*SUBJECT, *settings, "note", *head, "reported", *names])
    for table in tables:
        for subject, cells in table.rows.items():
            told = dict(zip(table.subject, subject, strict=True))
            words = [told.get(name) for name in (*SUBJECT, *settings)]
            numbers = [x for p in precisions for x in _numbers(cells.get(p))]
            text = [table.notes.get(subject[0]), *table.head.values(), table.reported]
            writer.writerow([*words, *text, *numbers])
    return out.getvalue()


def _numbers(cell: Cell | None) -> list[Any]:
    return [None if cell is None else getattr(cell, name) for name in _NUMBERS]


def latex(tables: Sequence[Table]) -> str:
    """A `table` environment each, which needs no package."""
    return "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    lines = [" & ".join(map(escaped, line)) + r" \\" for line in [table.columns, *table.lines()]]
    layout = "l" * len(table.subject) + "r" * len(table.precisions)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(' '.join(filter(None, [table.title, table.stream, LEGEND])))}}}",
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
    """`text` with what LaTeX reads as its own made into itself, and a number's minus as one."""
    return _MINUS.sub("$-$", "".join(_LATEX.get(c, c) for c in text))


def terminal(tables: Sequence[Table]) -> Group:
    """For a `rich` console: what `markdown` says, a cell's parts below each other."""
    made: list[RenderableType] = []
    for table in tables:
        words = table.subject
        rows = [
            [
                *map(str, subject),
                *("\n".join(c.parts) if c else "" for c in table.shown(cells)),
            ]
            for subject, cells in table.rows.items()
        ]
        made.append(ruled(table.title, [[*words, *table.precisions], *rows], len(words)))
        made += [Text(f"{said}\n") for said in (summary(table), table.stream) if said]
    return Group(*made, Text(LEGEND, "dim"))


def ruled(title: str, lines: Sequence[Sequence[str]], words: int) -> Group:
    """A title and a table for a `rich` console, few lines in it, so that much else fits.

    Args:
        title: stands above it.
        lines: the first one is the head.
        words: so many columns at the left are of words, the others of numbers.
    """
    made = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in enumerate(lines[0]):
        made.add_column(name, justify="left" if i < words else "right", overflow="fold")
    for line in lines[1:]:
        made.add_row(*map(Text, line))
    return Group(Text(title, "italic"), Text(), made, Text())
