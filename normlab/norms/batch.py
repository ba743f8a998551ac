"""BatchNorm: statistics of a channel over the batch, in a form that a causal model may use."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.base import Norm, NormConfig, NormState, Site, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.registry import MethodCard


@dataclass(frozen=True)
class BatchNormConfig(NormConfig):
    """How a BatchNorm computes."""

    type: str = field("batchnorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-5, "ε, added to the variance under the root")
    momentum: float = field(0.1, "share of a step's statistics in the running ones (PyTorch's way)")
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    bias: bool = field(True, "add a learned bias β ∈ R^d, initially 0")

    def __post_init__(self) -> None:
        require(self.eps > 0, f"norm.eps = {self.eps}: expected a number > 0, such as 1e-5")
        require(
            0 < self.momentum <= 1,
            f"norm.momentum = {self.momentum}: expected 0 < m ≤ 1, such as 0.1 (the share of the "
            "new statistics; Flax's 0.9 would be 0.1 here)",
        )


@norms.register("batchnorm")
class BatchNorm(Norm):
    """BatchNorm (Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2), made causal.

    y = (x − μ) / √(σ² + ε) ⊙ γ + β, channel by channel. In training, μ_t and σ_t² at position t are
    those of the whole batch over positions ≤ t. Over all positions, as in images, they would tell
    each token what follows. The last position's, which are those of all, move the running ones by
    r ← (1 − m)·r + m·(μ, σ²), with the biased variance in both.

    Outside training μ and σ² are the running ones, and the norm is a fixed map x ↦ a ⊙ x + b (see
    `fold`). It sums over no row, so no precision applies.
    """

    Config: ClassVar[type[NormConfig]] = BatchNormConfig
    has_statistic: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="BatchNorm",
        formula="y = (x − μ) / √(σ² + ε) ⊙ γ + β, μ and σ² of a channel over the batch",
        source="Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2; causal statistics "
        "are ours",
        property="in training it ignores each channel's shift and scale and sees no later "
        "position; outside it is the linear map that it folds to",
        test="tests/norms/test_batch.py::test_no_position_sees_a_later_one",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        self.mean = NormState(jnp.zeros(width))
        self.variance = NormState(jnp.ones(width))

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        y = (x - params["mean"]) / np.sqrt(params["variance"] + config.eps)
        return ref.affine(y, config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`: by the running statistics, or in training by the batch's."""
        wide = context.acc.widened(x)
        if context.progress is None:
            y = _standardized(wide, self.mean[...], self.variance[...], self.eps)
        else:
            y = self._by_batch(wide)
        return self.affine(y, x, context)

    def _by_batch(self, wide: Float[Array, "b l *heads d"]) -> Float[Array, "b l *heads d"]:
        """By the batch's statistics up to each position, which the running ones follow."""
        # About the first position's mean, which every other one may know: E[x²] − E[x]² would
        # cancel where a channel has a large mean.
        shift = lax.stop_gradient(_so_far(wide[:, :1]))
        first, second = (_so_far((wide - shift) ** power) for power in (1, 2))
        mean, variance = shift + first, jnp.maximum(second - first**2, 0.0)
        y = _standardized(wide, mean, variance, self.eps)
        m = self.config.momentum
        for state, now in ((self.mean, mean), (self.variance, variance)):
            last = lax.stop_gradient(now[:, -1].reshape(self.width))
            state[...] = (1 - m) * state[...] + m * last
        return y

    @property
    def eps(self) -> float:
        """ε."""
        return self.config.eps

    def fold(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Of the running statistics: a = γ/√(σ² + ε) and b = β − a·μ."""
        one, zero = jnp.ones(self.width), jnp.zeros(self.width)
        gamma, beta = self.gamma(), self.beta()
        a = (one if gamma is None else gamma) / jnp.sqrt(self.variance[...] + self.eps)
        return a, (zero if beta is None else beta) - a * self.mean[...]


def _standardized(x: Array, mean: Array, variance: Array, eps: float) -> Array:
    return (x - mean) * lax.rsqrt(variance + eps)


def _so_far(x: Float[Array, "b l *heads d"]) -> Float[Array, "1 l *ones d"]:
    """The mean over the batch, the heads and the positions up to each one."""
    others = (0, *range(2, x.ndim - 1))
    each = jnp.mean(x, axis=others, keepdims=True)
    counts = jnp.arange(1, x.shape[1] + 1, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    return jnp.cumsum(each, axis=1) / counts
