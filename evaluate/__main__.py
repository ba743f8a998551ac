"""`python -m evaluate`: see `python -m evaluate --help`."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evaluate.config import EvaluateConfig
from evaluate.job import evaluate
from normlab.cli import launch
from normlab.numerics import Precision
from normlab.progress import console
from normlab.results import Record, spread, tables
from normlab.results.formats import as_csv, grid, latex, markdown, terminal


def main(config: EvaluateConfig, asked: Sequence[str] = ()) -> None:
    """Evaluate what was asked for, write the tables, print them."""
    report(config, evaluate(config))


def report(config: EvaluateConfig, records: Sequence[Record]) -> None:
    """table.md, table.csv and table.tex beside the records, and the table on the terminal."""
    out = Path(config.out)
    made = tables(records, [str(Precision.parse(text)) for text in config.precision])
    for name, form in (("table.md", markdown), ("table.csv", as_csv), ("table.tex", latex)):
        (out / name).write_text(form(made), encoding="utf-8")
    shown = console if console.is_terminal else Console(width=160)
    for table in made:
        shown.print(terminal(table))
    written = ["table.md", "table.csv", "table.tex", "records.jsonl"]
    found = spread.spreads(records, [str(Precision.parse(text)) for text in config.precision])
    if found:
        parts = [part for title, lines in found for part in (title, grid(lines))]
        page = "\n\n".join([*parts, spread.LEGEND]) + "\n"
        (out / "spread.md").write_text(page, encoding="utf-8")
        print(page)
        written.append("spread.md")
    print(f"written to {out}: {', '.join(written)}")


def without_model(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments for Hydra, and the value of `model=`.

    To Hydra `model` is the group of trained models' shapes, and only a file's name could follow.
    """
    models = [a.partition("=")[2] for a in arguments if a.startswith("model=")]
    rest = [quoted(a) for a in arguments if not a.startswith("model=")]
    return rest, models[-1] if models else None


def quoted(argument: str) -> str:
    """`precision=[fp16:lanes(8)]` with its strings quoted, for parentheses mean a call to Hydra.

    So it is with `transform=[rescale(0.25)]`.
    """
    name, _, value = argument.partition("=")
    if name not in ("precision", "transform") or {"'", '"'} & set(value):
        return argument
    strings = re.split(r",(?![^(]*\))", value.strip().removeprefix("[").removesuffix("]"))
    return f"{name}=[{','.join(repr(s.strip()) for s in strings if s.strip())}]"


if __name__ == "__main__":
    sys.argv[1:], model = without_model(sys.argv[1:])
    launch(
        "evaluate",
        EvaluateConfig,
        lambda config, asked: main(dataclasses.replace(config, model=model), asked),
    )
