"""AdamW."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax

from normlab.config import field, require
from normlab.training.optimizers.base import OptimizerConfig, Rate, optimizers
from normlab.training.optimizers.groups import Groups


@optimizers.register("adamw")
@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    type: str = field("adamw", "optimizer, a registered name (set by optimizer=NAME)")
    beta1: float = field(0.9, "decay of the first moment")
    beta2: float = field(0.95, "decay of the second moment")
    eps: float = field(1e-8, "added to the root of the second moment")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("beta1")
        self.check_share("beta2")
        require(self.eps > 0, f"optimizer.eps = {self.eps}: expected a number > 0, such as 1e-8")

    @staticmethod
    def transformation(
        n: Mapping[str, Any], rate: Rate, groups: Groups
    ) -> optax.GradientTransformation:
        """optax's, decay on the parameters that decay."""
        return optax.adamw(
            rate,
            b1=n["beta1"],
            b2=n["beta2"],
            eps=n["eps"],
            weight_decay=n["weight_decay"],
            mask=groups.decays,
        )
