"""Norms without a statistic: each element is mapped by itself."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normlab.config import check, knob
from normlab.norms.base import Norm, NormConfig, Site, norms
from normlab.numerics import Accumulator

_WIDTHS = (1024, 2048, 4096, 8192)
_ALPHA_ATTENTION = (1.0, 1.0, 0.8, 0.2)
_ALPHA_OTHER = (1.0, 0.5, 0.2, 0.05)


def dyt_alpha(width: int, site: Site) -> float:
    """DyT's initial α for a language model of this width at this site.

    The paper's table (arXiv:2503.10622, section 7) gives it for four widths, apart for attention's
    inputs and for the rest (MLP and final norm). Between two of them we take the line in
    log₂(width), which also meets the paper's value for 13B (width 5,120: 0.6 and 0.15); outside
    them the nearest.
    """
    table = _ALPHA_ATTENTION if site.branch == "attention" else _ALPHA_OTHER
    return float(np.interp(math.log2(width), np.log2(_WIDTHS), table))


@dataclass(frozen=True)
class DyTConfig(NormConfig):
    """How a DyT starts."""

    type: str = knob("dyt", "norm type, a registered name (set by norm=NAME)")
    alpha: float | None = knob(None, "initial α; null takes the paper's, by width and site")
    scale: bool = knob(True, "multiply by a learned gain γ ∈ R^d, initially 1")
    bias: bool = knob(False, "add a learned β ∈ R^d, initially 0 (the paper's LLaMA has none)")
    embed_scale: bool = knob(True, "multiply the embedding by a learned scalar, initially √d")

    def __post_init__(self) -> None:
        check(
            self.alpha is None or self.alpha > 0,
            f"norm.alpha = {self.alpha}: expected a number > 0, or null for the paper's rule",
        )


@norms.register("dyt")
class DyT(Norm):
    """Dynamic tanh (Zhu et al. 2025, arXiv:2503.10622, Eq. 2): y = γ ⊙ tanh(αx) + β.

    α is one learned scalar for each site. For language models the paper also multiplies the
    embedding's output by a learned scalar that starts at √d. Nothing is accumulated.
    """

    Config: ClassVar[type[NormConfig]] = DyTConfig
    has_statistic: ClassVar[bool] = False

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        alpha = dyt_alpha(width, site) if config.alpha is None else config.alpha
        self.alpha = nnx.Param(jnp.float32(alpha))

    def __call__(self, x: Float[Array, "*batch d"], acc: Accumulator) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; `acc` has nothing to do."""
        return self.affine(jnp.tanh(self.alpha[...] * x)).astype(x.dtype)

    @classmethod
    def embed_scale(cls, config: Any, width: int) -> float | None:
        """√d, unless the config takes it away."""
        return math.sqrt(width) if config.embed_scale else None


@dataclass(frozen=True)
class NoneConfig(NormConfig):
    """How a transformer without norms starts."""

    type: str = knob("none", "norm type, a registered name (set by norm=NAME)")
    branch_gain: float = knob(0.0, "initial value of the learned scalar on each residual branch")


@norms.register("none")
class NoNorm(Norm):
    """No norm: y = x at every site, the final one too.

    What makes it trainable is a learned scalar on each residual branch that starts at zero,
    x + g·F(x) (ReZero, Bachlechner et al. 2020, arXiv:2003.04887, Eq. 3): at the start the stream
    is the embedding, every branch is silent whatever its size, and g is the first to learn. With
    `branch_gain=1` it is a plain transformer with its norms taken out, which needs a small step.
    """

    Config: ClassVar[type[NormConfig]] = NoneConfig
    has_statistic: ClassVar[bool] = False

    def __call__(self, x: Float[Array, "*batch d"], acc: Accumulator) -> Float[Array, "*batch d"]:
        """`x` itself."""
        return x

    @classmethod
    def branch_gain(cls, config: Any) -> float | None:
        """The config's."""
        return config.branch_gain
