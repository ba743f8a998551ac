"""Muon for the blocks' matrices, AdamW for all else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax

from normlab.config import field
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.optimizers.base import Rate, optimizers
from normlab.training.optimizers.groups import Groups

RMS = 0.2
"""Of a matrix's update at rate 1: that of AdamW's (Liu et al. 2025, section 2.2)."""


@optimizers.register("muon")
@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon (Jordan et al. 2024) as Liu et al. 2025 (arXiv:2502.16982) scale it.

    The momentum of each matrix of a block is orthogonalized by five Newton-Schulz steps, and its
    root mean square set to 0.2, so that AdamW's learning rate and decay serve it. Embeddings, head,
    norms and biases have AdamW.
    """

    type: str = field("muon", "optimizer, a registered name (set by optimizer=NAME)")
    momentum: float = field(0.95, "decay of the momentum of the blocks' matrices")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("momentum")

    @staticmethod
    def transformation(
        n: Mapping[str, Any], rate: Rate, groups: Groups
    ) -> optax.GradientTransformation:
        """Optax's Muon on the blocks' matrices, AdamW's on the others."""
        muon = optax.contrib.muon(
            rate,
            beta=n["momentum"],
            weight_decay=n["weight_decay"],
            consistent_rms=RMS,
            muon_weight_dimension_numbers=_matrices,
        )
        rest = AdamWConfig.transformation(n, rate, groups)
        labels = jax.tree.map(lambda hidden: "muon" if hidden else "adamw", groups.hidden)
        return optax.partition({"muon": muon, "adamw": rest}, labels)


def _matrices(params: Any) -> Any:
    """The last two axes of each; what stands before them are layers of a stacked model."""
    last = optax.contrib.MuonDimensionNumbers
    return jax.tree.map(lambda p: last(p.ndim - 2, p.ndim - 1), params)
