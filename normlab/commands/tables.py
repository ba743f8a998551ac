"""The tables of an evaluation, written beside its records and printed; and printed again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from normlab.evaluation.config import EvaluateConfig
from normlab.progress import console
from normlab.results import Record, RecordFile, methods, spread, tables
from normlab.results.bits import bit_tables
from normlab.results.formats import as_csv, grid, latex, markdown, ruled, terminal

OVER_SEEDS = ("spread.md", "methods.md", "methods.csv", "methods.tex")
"""Written where a method has several seeds."""


def write(config: EvaluateConfig, records: Sequence[Record]) -> None:
    """Tables in files beside the records; on a terminal ruled, in a pipe as they are in a file."""
    out, asked = Path(config.out), [str(column) for column in config.columns]
    made = bit_tables(records, asked) + tables(records, asked)
    for name, form in (("table.md", markdown), ("table.csv", as_csv), ("table.tex", latex)):
        (out / name).write_text(form(made), encoding="utf-8")
    written = ["table.md", "table.csv", "table.tex", "records.jsonl"]
    _tell(terminal(made), markdown(made))
    found = spread.spreads(records, asked)
    for name in OVER_SEEDS:
        (out / name).unlink(missing_ok=True)  # an earlier call's
    if found:
        shown, page = _spread(found)
        compared = methods.methods(records, config.compare_to)
        pages = page, methods.page(compared), methods.as_csv(compared), methods.booktabs(compared)
        for name, text in zip(OVER_SEEDS, pages, strict=True):
            (out / name).write_text(text, encoding="utf-8")
        _tell(shown, page)
        if config.compare_to:
            _tell(_compared(compared), pages[1])
        written += OVER_SEEDS
    print(f"written to {out}: {', '.join(written)}")


def _compared(found: Sequence[methods.Methods]) -> RenderableType:
    """Methods beside the baseline, for a terminal."""
    parts = [ruled(f"{m.text}\n\n{methods.sentences(m)}", methods.lines(m), 2) for m in found]
    return Group(*parts, Text(methods.LEGEND, "dim"))


def _spread(found: Sequence[tuple[str, Any]]) -> tuple[RenderableType, str]:
    """The tables of means over seeds, for a terminal and in Markdown."""
    parts = [part for title, lines in found for part in (title, grid(lines))]
    shown = [ruled(title, lines, 2) for title, lines in found]
    page = "\n\n".join([*parts, spread.LEGEND]) + "\n"
    return Group(*shown, Text(spread.LEGEND, "dim")), page


def show(folders: Sequence[str]) -> None:
    """Print again what earlier calls left in their `out`: all tables, the legend once.

    Raises:
        FileNotFoundError: a folder without records.
    """
    made, found = [], []
    for folder in folders:
        records = RecordFile(Path(folder) / "records.jsonl").read()
        if not records:
            raise FileNotFoundError(f"{folder} holds no records: expected an evaluation's out=DIR")
        made += bit_tables(records) + tables(records)
        found += spread.spreads(records, list(dict.fromkeys(r.precision for r in records)))
    _tell(terminal(made), markdown(made))
    if found:
        _tell(*_spread(found))


def _tell(shown: RenderableType, plain: str) -> None:
    """Print the one on a terminal, the other in a pipe."""
    if console.is_terminal:
        console.print(shown, soft_wrap=False)
    else:
        print(plain)
