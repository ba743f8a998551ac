"""What every optimizer's config has in common, and the registry of optimizers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from normlab.config import field, require
from normlab.registry import Registry, choice
from normlab.training.optimizers.groups import Groups
from normlab.training.optimizers.schedule import SCHEDULES

Rate = Callable[[Any], Any]
"""A step to its learning rate."""


@dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer is told; each type's own config extends it.

    A type registers itself (`@optimizers.register("name")`). It has `type: str = field("name", …)`,
    its own default `lr`, and `transformation`. Its numbers are data of the compiled step: runs that
    differ in them alone share a program.
    """

    type: str = field("adamw", "optimizer, a registered name (set by optimizer=NAME)")
    lr: float = field(1e-3, "peak learning rate")
    lr_width: int | None = field(
        None,
        "a width at which lr was found: the rate of the blocks' matrices is lr · lr_width / "
        "model.width (µP, arXiv:2203.03466, Table 3); null: lr at every width",
    )
    schedule: str = field("cosine", f"after the warm-up: {', '.join(SCHEDULES)}")
    final_lr: float = field(
        0.1, "learning rate after the last step, as a share of the peak; not of schedule=constant"
    )
    cooldown: float = field(0.2, "share of all steps over which schedule=wsd falls, at the end")
    warmup: int | None = field(None, "steps of linear warm-up from 0; null: a tenth of all")
    weight_decay: float = field(0.1, "decoupled weight decay, on matrices only")
    decay_norms: bool = field(False, "decay the weights of norms as well")
    z_loss: float = field(
        0.0, "weight of (log Σ exp logits)², added to the training loss; 1e-4 in arXiv:2204.02311"
    )
    clip: float = field(1.0, "largest global norm of the gradient; larger ones are scaled down")

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> Any:
        """The config class of the type that `values` names (see `normlab.config.build`)."""
        return optimizers[values.get("type", cls.type)]

    def __post_init__(self) -> None:
        finite = 0 < self.lr < math.inf
        require(finite, f"optimizer.lr = {self.lr}: expected a finite number > 0, such as 1e-3")
        require(
            self.lr_width is None or self.lr_width >= 1,
            f"optimizer.lr_width = {self.lr_width}: expected a width ≥ 1, such as 128, or null",
        )
        choice("optimizer.schedule", self.schedule, SCHEDULES)
        require(0 <= self.final_lr <= 1, f"optimizer.final_lr = {self.final_lr}: expected 0 … 1")
        require(
            0 < self.cooldown <= 1, f"optimizer.cooldown = {self.cooldown}: expected a share, 0 … 1"
        )
        require(
            self.warmup is None or self.warmup >= 0,
            f"optimizer.warmup = {self.warmup}: expected a number ≥ 0 of steps, or null",
        )
        require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay = {self.weight_decay}: expected a number ≥ 0, such as 0.1",
        )
        require(self.z_loss >= 0, f"optimizer.z_loss = {self.z_loss}: expected a number ≥ 0")
        require(self.clip > 0, f"optimizer.clip = {self.clip}: expected a number > 0, such as 1.0")

    def check_share(self, name: str) -> None:
        """Refuse a decay of a moment that is none."""
        value = getattr(self, name)
        require(0 <= value < 1, f"optimizer.{name} = {value}: expected 0 ≤ β < 1, such as 0.9")

    def warmup_of(self, steps: int) -> int:
        """Steps of warm-up in a run of so many.

        Raises:
            ValueError: it leaves none.
        """
        warmup = steps // 10 if self.warmup is None else self.warmup
        require(
            warmup < steps,
            f"optimizer.warmup = {warmup} steps leaves none of steps = {steps}: expected less, "
            f"such as {steps // 10}",
        )
        return warmup

    @staticmethod
    def transformation(
        n: Mapping[str, Any], rate: Rate, groups: Groups
    ) -> optax.GradientTransformation:
        """What turns clipped gradients into updates.

        Args:
            n: the config's numbers, which may be traced.
            rate: a step to its learning rate.
            groups: which parameters decay, and which are matrices of the blocks.
        """
        raise NotImplementedError


optimizers: Registry[type[OptimizerConfig]] = Registry(
    "optimizer", package="normlab.training.optimizers"
)
"""Every optimizer's config by name. A file put into this package registers its own by itself."""
