"""Adafactor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax

from normlab.config import field
from normlab.training.optimizers.base import OptimizerConfig, Rate, optimizers
from normlab.training.optimizers.groups import Groups

LARGEST_RMS = 1.0
"""Of a tensor's update before the learning rate (section 6)."""


@optimizers.register("adafactor")
@dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with a learning rate of its own.

    Of a matrix whose sides are 128 or more only row and column means of the second moment are kept.
    Updates are clipped by their root mean square (d = 1) and are not relative to the size of the
    parameter; there is no momentum.
    """

    type: str = field("adafactor", "optimizer, a registered name (set by optimizer=NAME)")
    decay: float = field(0.8, "c: the second moment's decay at step t is 1 − t^−c (section 7.2)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("decay")

    @staticmethod
    def transformation(
        n: Mapping[str, Any], rate: Rate, groups: Groups
    ) -> optax.GradientTransformation:
        """Optax's factored second moment and clipping, then decay, times the learning rate."""
        return optax.chain(
            optax.scale_by_factored_rms(decay_rate=n["decay"]),
            optax.clip_by_block_rms(LARGEST_RMS),
            optax.add_decayed_weights(n["weight_decay"], groups.decays),
            optax.scale_by_learning_rate(rate),
        )
