"""Everything that a training run is told."""

import math
from dataclasses import dataclass

from normlab.config import field, require
from normlab.data import DataConfig
from normlab.model import ComputeConfig, ModelConfig, PlacementConfig
from normlab.norms import NormConfig, norms
from normlab.norms.sites import NormAt
from normlab.parallel.distributed import HostsConfig
from normlab.parallel.mesh import MeshConfig
from normlab.registry import choice
from normlab.training.optimizers import OptimizerConfig, optimizers
from normlab.training.stacked import check_alike
from normlab.training.tracking import trackers


def _default_norm() -> NormConfig:
    return norms["rmsnorm"].Config()


def _default_optimizer() -> OptimizerConfig:
    return optimizers["adamw"]()


@dataclass(frozen=True)
class TrainConfig:
    """A model, a text, and how long the one learns from the other."""

    model: ModelConfig = field(ModelConfig, "size and shape of the transformer")
    norm: NormConfig = field(_default_norm, "type and settings of its norms")
    placement: PlacementConfig = field(PlacementConfig, "where its norms sit")
    norm_at: tuple[NormAt, ...] = field(
        (),
        "norms of single sites in place of `norm`: [{sites: 'blocks.0-5.*', norm: dyt}], or norm: "
        "{type: dyt, alpha: 2.0}; of several patterns that match a site the last one counts",
    )
    init: str | None = field(
        None,
        "start from a pretrained model (a name, hf:DIR, gguf:FILE): its shape, placement, weights "
        "and tokenizer; norm= and norm_at= replace its norms",
    )
    data: DataConfig = field(DataConfig, "text and tokenizer")
    optimizer: OptimizerConfig = field(_default_optimizer, "type, learning rate and schedule")
    compute: ComputeConfig = field(ComputeConfig, "precision and memory of a step")
    mesh: MeshConfig = field(MeshConfig, "devices, and what is divided over them")
    hosts: HostsConfig = field(HostsConfig, "processes that train together")
    steps: int = field(1000, "optimizer steps")
    batch: int = field(8, "sequences in a step")
    accumulate: int = field(
        1, "parts of the batch, differentiated one after another (memory); see parts"
    )
    parts: int | None = field(
        None, "the same for speed alone; null: chosen as the run begins, and kept in its config"
    )
    window: int = field(256, "tokens in a sequence")
    seed: int = field(0, "of initial weights, order of the text, and dropout")
    eval_every: int = field(100, "steps between validations; each one saves a checkpoint")
    keep_every: int | None = field(
        None, "keep the checkpoint of each so many steps too; null: the two newest and the best"
    )
    eval_windows: int | None = field(
        64, "validation windows, cut to whole batches; null: all there are, cut so too"
    )
    patience: int | None = field(None, "stop after so many validations without a better one")
    log_every: int = field(10, "steps between two lines of metrics.jsonl")
    diagnostics_every: int | None = field(
        None, "steps between two looks inside the model, in diagnostics.jsonl; null: none"
    )
    tracking: tuple[str, ...] = field(
        (), "where metrics go beside metrics.jsonl: tensorboard, wandb; a list"
    )
    imports: tuple[str, ...] = field(
        (), "your own files, [my_norms.py]: what they register (norms, placements, rules) is known"
    )
    allow_changed_source: bool = field(
        False, "go on where the norm's source or an imported file is another than it was"
    )
    runs: str = field("runs", "directory of run directories")
    run: str | None = field(None, "this run's directory; null: one in `runs`, named by its config")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "window", "eval_every", "log_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} = {value}: expected a whole number ≥ 1")
        for name in ("parts", "keep_every", "eval_windows", "patience", "diagnostics_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} = {value}: expected null or a number ≥ 1")
        every = self.keep_every or self.eval_every
        require(
            every % self.eval_every == 0,
            f"keep_every = {every}: expected a multiple of eval_every = {self.eval_every}, for "
            "validations save checkpoints",
        )
        for name in self.tracking:
            choice("tracker", name, trackers)
        self._check_model()
        self.mesh.check_batch(self.batch, self.accumulate)
        if self.compute.scan_layers:
            check_alike(self.model, self.placement)
            require(
                not self.norm_at,
                "compute.scan_layers = True compiles one block for all layers: expected no norm_at",
            )
        require(
            self.batch % self.accumulate == 0,
            f"accumulate = {self.accumulate} parts of batch = {self.batch} sequences are not equal:"
            f" expected a divisor of the batch, such as {math.gcd(self.accumulate, self.batch)}",
        )
        require(
            self.parts is None or (self.accumulate == 1 and self.batch % self.parts == 0),
            f"parts = {self.parts} of batch = {self.batch} sequences, accumulate = "
            f"{self.accumulate}: expected a divisor of the batch, and accumulate=1",
        )
        require(
            0 <= self.seed < 2**32,
            f"seed = {self.seed}: expected a whole number ≥ 0 and below 2³², from where on seeds "
            f"repeat: this one has the weights of {self.seed % 2**32}",
        )
        require(
            self.window <= self.model.max_length,
            f"window = {self.window} tokens is longer than model.max_length = "
            f"{self.model.max_length}; the longest window that fits is {self.model.max_length}",
        )
        self.optimizer.warmup_of(self.steps)

    def _check_model(self) -> None:
        m = self.model
        for norm in (self.norm, *(at.norm for at in self.norm_at)):
            require(
                norms[norm.type].differentiable,
                f"norm={norm.type} rounds, and no gradient comes through it: expected another one; "
                f"python -m evaluate transform=[{norm.type}] puts it into a trained model",
            )
            self.placement.check_norm(norm, m.layers)
            norms[norm.type].check_steps(norm, self.steps)
        require(
            m.causal,
            "model.causal = False shows each position the token that it is to predict, so that its "
            "loss says nothing: expected true",
        )
        require(
            self.compute.attention != "cudnn" or m.attention_softcap is None,
            f"compute.attention=cudnn has no model.attention_softcap = {m.attention_softcap}: "
            "expected compute.attention=auto, or no cap",
        )
        m.check_norm(self.norm)
        self.mesh.check_sizes(m.divided_sizes)
