"""Removal: a trained model's norms taken away, one statistic at a time.

After each removal a few steps of fine-tuning; the table says what each one costs (Heimersheim 2024,
arXiv:2409.13710).
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from flax import nnx

from normlab.config import build, field, require, to_dict
from normlab.data import Batches, DataConfig, Tokenized, load_corpus
from normlab.model import Transformer
from normlab.model.language_model import LanguageModel
from normlab.parallel.mesh import MeshConfig
from normlab.parallel.sharding import shard_batch, shard_params
from normlab.progress import Progress, announced, console
from normlab.runs import sources
from normlab.runs.run import Run, load
from normlab.training.config import TrainConfig
from normlab.training.optimizers import make_optimizer
from normlab.training.parts import parts_of
from normlab.training.start import resolved
from normlab.training.step import learned, make_step, make_validate, validation_loss
from normlab.training.trainer import validation_windows
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.remove import average_factors, freeze, removable


@dataclass(frozen=True)
class RemoveConfig:
    """Which model, and how it is tuned while it loses its norms."""

    run: str | None = field(None, "a run directory that `python -m train` wrote")
    pretrained: str | None = field(None, "or a pretrained model: a name, hf:DIR or gguf:FILE")
    data: DataConfig = field(DataConfig, "the text that a pretrained model is tuned on")
    window: int = field(256, "tokens of a sequence of that text")
    steps: int = field(20, "steps of fine-tuning after each removal")
    lr: float = field(3e-4, "learning rate of these steps, constant")
    batch: int | None = field(None, "sequences in a step; null: the run's")
    eval_windows: int = field(32, "validation windows that a perplexity is taken over")
    mesh: MeshConfig = field(MeshConfig, "devices, and what is divided over them")
    control: bool = field(False, "remove nothing: what the same fine-tuning does by itself")
    imports: tuple[str, ...] = field(
        (), "your own files, [my_norms.py]: what they register (norms, placements, rules) is known"
    )
    allow_changed_source: bool = field(
        False, "go on where the norm's source or an imported file is another than it was"
    )
    out: str | None = field(
        None, "directory for removal.csv, .md and .json; null: results/remove/RUN, or RUN-control"
    )

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"steps = {self.steps}: expected a whole number ≥ 0")
        require(
            0 < self.lr < math.inf, f"lr = {self.lr}: expected a finite number > 0, such as 3e-4"
        )
        for name in ("batch", "eval_windows"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} = {value}: expected a whole number ≥ 1")


@dataclass(frozen=True)
class Removed:
    """A line of the table: validation perplexity after one more site has lost its statistic."""

    site: str
    factor: float | None
    frozen: float
    tuned: float


def remove(config: RemoveConfig) -> Iterator[Removed]:
    """Freeze site after site of a trained model, tuning after each; the table's lines as they come.

    They stand between the line "start" and the line "folded". That one is the model without the
    norms that could be folded away, and must say what the line before it says. Where none can be,
    it is left out.

    Raises:
        ValueError: neither a run nor a pretrained model was named, or both; a run's text is another
            one here than where it was trained; the mesh doesn't divide the model or the batch.
        DoesNotApply: the model has no LayerNorm or RMSNorm.
    """
    require(
        (config.run is None) != (config.pretrained is None),
        "nothing to remove from, or two models: expected run=DIR, or pretrained=NAME",
    )
    with config.mesh.use():
        if config.pretrained is not None:
            lm = _pretrained(config, config.pretrained)
        else:
            lm = load(str(config.run))
            sources.check(Run(str(config.run)), config.allow_changed_source)
        yield from _removed(config, lm)


def _pretrained(config: RemoveConfig, spec: str) -> LanguageModel:
    """A pretrained model, with the config that a run from it would have."""
    from normlab.pretrained import describe  # reads formats that runs don't need

    asked = {"init": spec, "data": to_dict(config.data), "window": config.window}
    run = resolved(build(TrainConfig, asked), ())
    lm = describe(spec).load()
    return dataclasses.replace(lm, facts=lm.facts | {"config": to_dict(run)})


def _removed(config: RemoveConfig, lm: LanguageModel) -> Iterator[Removed]:
    sites = removable(lm.model)
    if not sites:
        raise DoesNotApply(
            f"remove: {lm.name} has norm {lm.model.norm.type!r}: expected LayerNorm or RMSNorm"
        )
    tuner = Tuner(config, lm, len(sites))
    first = tuner.perplexity()
    yield Removed("start", None, first, first)
    with Progress(f"remove {lm.name}", len(sites)) as progress:
        for i, site in enumerate(sites):
            factor = None if config.control else tuner.freeze(site)
            line = Removed(site, factor, tuner.perplexity(), tuner.tune(i))
            progress.update(i + 1, f"{site}: {line.tuned:.2f}")
            yield line
    if not config.control:
        yield from _folded(tuner, lm.name)


def _folded(tuner: "Tuner", name: str) -> Iterator[Removed]:
    """The last line; none, and a word about it, where no norm can be folded away."""
    try:
        tuner.become(apply(tuner.model, "fold"))
    except DoesNotApply as error:
        console.print(f"{name}: no line for the folded model. {error}")
        return
    last = tuner.perplexity()
    yield Removed("folded", None, last, last)


def trained_text(lm: LanguageModel, data: DataConfig) -> Tokenized:
    """What a run was trained on, in the tokens that it knows; of a pretrained model any text.

    Raises:
        ValueError: it is another text here (`auto`, or the embedded text of another Python).
    """
    corpus = load_corpus(data)
    then = lm.facts.get("training_provenance", {}).get("text")
    if then is not None and (now := corpus.sha256("train")) != then:
        raise ValueError(
            f"{lm.name} was trained on data={data.corpus}, which is {corpus.title} here and was "
            f"another text there (SHA-256 {then[:12]}… then, {now[:12]}… now); expected the same"
        )
    return Tokenized(corpus, lm.tokenizer, data.cache_folder())


class Tuner:
    """A model that is changed between two stretches of training."""

    def __init__(self, config: RemoveConfig, lm: LanguageModel, stretches: int):
        asked: TrainConfig = build(TrainConfig, lm.facts["config"])
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
            compute=dataclasses.replace(asked.compute, scan_layers=False),
        )
        tokens, c = trained_text(lm, asked.data), self.run
        self.batches = Batches(tokens.split("train"), c.batch, c.window, c.seed)
        self.valid = validation_windows(tokens.split("valid"), c)
        self.become(lm.model)
        self.optimizer = make_optimizer(optimizer, self.steps, learned(self.params))
        self.state = shard_params(self.optimizer.init(learned(self.params)))

    def become(self, model: Transformer) -> None:
        """Go on with this model, a rewrite of the one before."""
        self.graphdef, params = nnx.split(model)
        self.params = shard_params(params)
        self._validate = announced(make_validate(self.graphdef, self.run.compute.precision))

    @property
    def model(self) -> Transformer:
        """The model as it stands."""
        return nnx.merge(self.graphdef, self.params)

    def freeze(self, site: str) -> float:
        """Freeze one site at the average of a batch of training text; the factor it has now."""
        inputs, _ = shard_batch(*self.batches.at(0))
        factor = average_factors(self.model, inputs)[site]
        self.become(freeze(self.model, {site: factor}))
        return factor

    def tune(self, stretch: int) -> float:
        """One stretch of training, the `stretch`-th; the validation perplexity after it."""
        run = self.run
        parts = parts_of(self.model, run.batch, run.window)
        fixed = self.graphdef, self.optimizer, run.seed, self.steps, run.compute
        step = announced(make_step(*fixed, parts=parts))
        for i in range(stretch * self.config.steps, (stretch + 1) * self.config.steps):
            inputs, targets = shard_batch(*self.batches.at(i))
            self.params, self.state, _ = step(self.params, self.state, np.int32(i), inputs, targets)
        return self.perplexity()

    def perplexity(self) -> float:
        """Of the validation windows."""
        mean = validation_loss(self._validate, self.params, self.valid, self.run.batch)
        return math.inf if mean > 700 else math.exp(mean)
