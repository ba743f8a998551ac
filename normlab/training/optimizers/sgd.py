"""SGD with momentum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax

from normlab.config import field
from normlab.training.optimizers.base import OptimizerConfig, Rate, optimizers
from normlab.training.optimizers.groups import Groups


@optimizers.register("sgd")
@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """SGD with heavy-ball momentum (Polyak 1964) and decoupled decay (arXiv:1711.05101)."""

    type: str = field("sgd", "optimizer, a registered name (set by optimizer=NAME)")
    lr: float = field(0.1, "peak learning rate")
    weight_decay: float = field(1e-3, "decoupled weight decay, on matrices only")
    momentum: float = field(0.9, "decay of the sum of gradients")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("momentum")

    @staticmethod
    def transformation(
        n: Mapping[str, Any], rate: Rate, groups: Groups
    ) -> optax.GradientTransformation:
        """Optax's momentum, then decay, both times the learning rate."""
        return optax.chain(
            optax.trace(n["momentum"]),
            optax.add_decayed_weights(n["weight_decay"], groups.decays),
            optax.scale_by_learning_rate(rate),
        )
