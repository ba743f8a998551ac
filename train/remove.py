"""`python -m train.remove`: take a trained model's norms away, one statistic at a time.

After each removal a few steps of fine-tuning; the table says what each one costs (Heimersheim 2024,
arXiv:2409.13710).
"""

import csv
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from normlab.cli import launch
from normlab.config import build, check, knob
from normlab.data import Batches, load_tokens
from normlab.language_model import LanguageModel
from normlab.mesh import MeshConfig
from normlab.model import Transformer
from normlab.progress import Progress, console
from normlab.run import load
from normlab.sharding import divided, placed
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.remove import average_factors, freeze, removable
from train.config import TrainConfig
from train.loop import validation_windows
from train.optimizer import make_optimizer
from train.step import learned, make_step, make_validate


@dataclass(frozen=True)
class RemoveConfig:
    """Which model, and how it is tuned while it loses its norms."""

    checkpoint: str | None = knob(None, "a run directory that `python -m train` wrote")
    steps: int = knob(20, "steps of fine-tuning after each removal")
    lr: float = knob(3e-4, "learning rate of these steps, constant")
    batch: int | None = knob(None, "sequences in a step; null: the run's")
    eval_windows: int = knob(32, "validation windows that a perplexity is taken over")
    mesh: MeshConfig = knob(MeshConfig, "devices, and what is divided over them")
    control: bool = knob(False, "remove nothing: what the same fine-tuning does by itself")
    out: str = knob("results/remove", "directory for removal.csv and removal.md")

    def __post_init__(self) -> None:
        check(self.steps >= 0, f"steps = {self.steps}: expected a whole number ≥ 0")
        check(self.lr > 0, f"lr = {self.lr}: expected a number > 0, such as 3e-4")
        for name in ("batch", "eval_windows"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} = {value}: expected a whole number ≥ 1")


@dataclass(frozen=True)
class Removed:
    """A line of the table: validation perplexity after one more site has lost its statistic."""

    site: str
    factor: float | None
    frozen: float
    tuned: float


def remove(config: RemoveConfig) -> list[Removed]:
    """Freeze site after site of a trained model, tuning after each; the table's lines in order.

    Between the line "start" and the line "folded", which is the model without the norms that could
    be folded away: what it says must be what the line before it says.

    Raises:
        ValueError: no checkpoint was named, or the mesh doesn't divide the model or the batch.
        DoesNotApply: the model has no LayerNorm or RMSNorm.
    """
    check(config.checkpoint is not None, "nothing to remove from: expected checkpoint=DIR, a run")
    with config.mesh.use():
        return _removed(config, load(str(config.checkpoint)))


def _removed(config: RemoveConfig, lm: LanguageModel) -> list[Removed]:
    sites = removable(lm.model)
    if not sites:
        raise DoesNotApply(
            f"remove: {lm.name} has norm {lm.model.norm.type!r}: expected LayerNorm or RMSNorm"
        )
    tuner = Tuner(config, lm.model, lm.facts["config"], len(sites))
    first = tuner.perplexity()
    lines = [Removed("start", None, first, first)]
    with Progress(f"remove {lm.name}", len(sites)) as progress:
        for i, site in enumerate(sites):
            factor = None if config.control else tuner.freeze(site)
            lines.append(Removed(site, factor, tuner.perplexity(), tuner.tune(i)))
            progress.update(i + 1, f"{site}: {lines[-1].tuned:.2f}")
    if not config.control:
        tuner.become(apply(tuner.model, "fold"))
        last = tuner.perplexity()
        lines.append(Removed("folded", None, last, last))
    return lines


class Tuner:
    """A model that is changed between two stretches of training."""

    def __init__(self, config: RemoveConfig, model: Transformer, resolved: Any, stretches: int):
        asked: TrainConfig = build(TrainConfig, resolved)
        optimizer = dataclasses.replace(asked.optimizer, lr=config.lr, warmup=0, final_lr=1.0)
        self.config, self.steps = config, max(1, stretches * config.steps)
        self.run = dataclasses.replace(
            asked,
            batch=config.batch or asked.batch,
            eval_windows=config.eval_windows,
            optimizer=optimizer,
            steps=self.steps,
            mesh=config.mesh,
            accumulate=1,
        )
        tokens, c = load_tokens(asked.data), self.run
        self.batches = Batches(tokens.split("train"), c.batch, c.window, c.seed)
        self.valid = validation_windows(tokens.split("valid"), c)
        self.become(model)
        self.optimizer = make_optimizer(optimizer, self.steps, learned(self.params))
        self.state = placed(self.optimizer.init(learned(self.params)))

    def become(self, model: Transformer) -> None:
        """Go on with this model, a rewrite of the one before."""
        self.graphdef, params = nnx.split(model)
        self.params = placed(params)
        self._validate = make_validate(self.graphdef)

    @property
    def model(self) -> Transformer:
        """The model as it stands."""
        return nnx.merge(self.graphdef, self.params)

    def freeze(self, site: str) -> float:
        """Freeze one site at the average of a batch of training text; the factor it has now."""
        inputs, _ = divided(*self.batches.at(0))
        factor = average_factors(self.model, inputs)[site]
        self.become(freeze(self.model, {site: factor}))
        return factor

    def tune(self, stretch: int) -> float:
        """One stretch of training, the `stretch`-th; the validation perplexity after it."""
        step = make_step(self.graphdef, self.optimizer, self.run.seed, self.steps)
        for i in range(stretch * self.config.steps, (stretch + 1) * self.config.steps):
            inputs, targets = divided(*self.batches.at(i))
            self.params, self.state, _ = step(self.params, self.state, np.int32(i), inputs, targets)
        return self.perplexity()

    def perplexity(self) -> float:
        """Of the validation windows."""
        inputs, targets = self.valid
        total, size = 0.0, self.run.batch
        for i in range(0, len(inputs), size):
            texts = divided(inputs[i : i + size], targets[i : i + size])
            total += float(self._validate(self.params, *texts))
        mean = total / targets.size
        return math.exp(mean) if mean < 700 else math.inf


COLUMNS = ("site", "factor", "after freezing", "after tuning")


def write(lines: Sequence[Removed], out: Path) -> str:
    """removal.csv and removal.md; the latter's text."""
    out.mkdir(parents=True, exist_ok=True)
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


def main(config: RemoveConfig, asked: Sequence[str]) -> None:
    """Remove, write, print."""
    text = write(remove(config), Path(config.out))
    console.print(text, markup=False, soft_wrap=True)
    console.print(f"written to {config.out}: removal.csv, removal.md")


if __name__ == "__main__":
    launch("train.remove", RemoveConfig, main)
