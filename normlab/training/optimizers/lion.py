"""Lion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax

from normlab.config import field
from normlab.training.optimizers.base import OptimizerConfig, Rate, optimizers
from normlab.training.optimizers.groups import Groups


@optimizers.register("lion")
@dataclass(frozen=True)
class LionConfig(OptimizerConfig):
    """Lion (Chen et al. 2023, arXiv:2302.06675): the sign of a momentum.

    The paper takes a learning rate 3 to 10 times smaller than AdamW's, and a decay as much larger.
    """

    type: str = field("lion", "optimizer, a registered name (set by optimizer=NAME)")
    lr: float = field(2e-4, "peak learning rate")
    weight_decay: float = field(0.5, "decoupled weight decay, on matrices only")
    beta1: float = field(0.9, "share of the momentum in an update")
    beta2: float = field(0.99, "decay of the momentum")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("beta1")
        self.check_share("beta2")

    @staticmethod
    def transformation(
        n: Mapping[str, Any], rate: Rate, groups: Groups
    ) -> optax.GradientTransformation:
        """optax's, decay on the parameters that decay."""
        return optax.lion(
            rate, b1=n["beta1"], b2=n["beta2"], weight_decay=n["weight_decay"], mask=groups.decays
        )
