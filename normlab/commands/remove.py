"""`python -m train remove`: a trained model's norms taken away, and what each one costs."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from normlab.commands.launch import launch
from normlab.config import to_dict
from normlab.progress import console
from normlab.runs.run import make_directory
from normlab.training.removal import RemoveConfig, Removed, remove

EXAMPLES = """
python -m train remove run=runs/layernorm-pre-HASH                 a few steps after each removal
python -m train remove run=runs/layernorm-pre-HASH control=true    the same steps, nothing removed
python -m train remove pretrained=smollm2-135m batch=1 steps=5     a pretrained model's
"""
COLUMNS = ("site", "factor", "after freezing", "after tuning")


def write(lines: Sequence[Removed], out: Path) -> str:
    """removal.csv and removal.md; the latter's text."""
    with (out / "removal.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(dataclasses.astuple(line) for line in lines)
    rows = [
        (n.site, "" if n.factor is None else f"{n.factor:.4g}", f"{n.frozen:.3f}", f"{n.tuned:.3f}")
        for n in lines
    ]
    shown = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "".join(f"| {' | '.join(row)} |\n" for row in shown)
    (out / "removal.md").write_text(text, encoding="utf-8")
    return text


def one_removal(config: RemoveConfig, asked: Sequence[str]) -> None:
    """Remove, print; what there is is written after each line, and beside it what was asked."""
    model = str(config.run or config.pretrained).removeprefix("hf:").removeprefix("gguf:")
    name = Path(model).name + "-control" * config.control
    out = Path(config.out or Path("results/remove") / name)
    make_directory("out", out)
    lines: list[Removed] = []
    for line in remove(config):
        lines.append(line)
        text = write(lines, out)
        (out / "removal.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
    console.print(text, soft_wrap=True)
    console.print(f"written to {out}: removal.csv, removal.md, removal.json")


def main() -> None:
    """What `python -m train remove` does."""
    launch("remove", RemoveConfig, one_removal, EXAMPLES)
