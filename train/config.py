"""Everything that a training run is told."""

from dataclasses import dataclass

from normlab.config import check, knob
from normlab.data import DataConfig
from normlab.model import ModelConfig, PlacementConfig
from normlab.norms import NormConfig, norms
from train.optimizer import OptimizerConfig


def _default_norm() -> NormConfig:
    return norms["rmsnorm"].Config()


@dataclass(frozen=True)
class TrainConfig:
    """A model, a text, and how long the one learns from the other."""

    model: ModelConfig = knob(ModelConfig, "size and shape of the transformer")
    norm: NormConfig = knob(_default_norm, "type and settings of its norms")
    placement: PlacementConfig = knob(PlacementConfig, "where its norms sit")
    data: DataConfig = knob(DataConfig, "text and tokenizer")
    optimizer: OptimizerConfig = knob(OptimizerConfig, "AdamW")
    steps: int = knob(1000, "optimizer steps")
    batch: int = knob(8, "sequences in a step")
    window: int = knob(256, "tokens in a sequence")
    seed: int = knob(0, "of initial weights, order of the text, and dropout")
    eval_every: int = knob(100, "steps between validations; each one saves a checkpoint")
    eval_windows: int | None = knob(
        64, "validation windows; null: as many whole batches as there are"
    )
    patience: int | None = knob(None, "stop after so many validations without a better one")
    log_every: int = knob(10, "steps between two lines of metrics.jsonl")
    runs: str = knob("runs", "directory of run directories")
    run: str | None = knob(None, "this run's directory; null: one in `runs`, named by its config")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "window", "eval_every", "log_every"):
            value = getattr(self, name)
            check(value >= 1, f"{name} = {value}: expected a whole number ≥ 1")
        for name in ("eval_windows", "patience"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} = {value}: expected null or a number ≥ 1")
        self.placement.check_norm(self.norm.type, self.model.layers)
        check(self.seed >= 0, f"seed = {self.seed}: expected a whole number ≥ 0")
        check(
            self.window <= self.model.max_length,
            f"window = {self.window} tokens is longer than model.max_length = "
            f"{self.model.max_length}; the longest window that fits is {self.model.max_length}",
        )
        check(
            self.optimizer.warmup < self.steps,
            f"optimizer.warmup = {self.optimizer.warmup} steps leaves none of steps = {self.steps};"
            f" expected less, such as {self.steps // 10}",
        )
