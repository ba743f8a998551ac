"""Norms that divide a row by a statistic of it."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from normlab.config import check, knob
from normlab.norms.base import Norm, NormConfig, norms
from normlab.numerics import Accumulator


@dataclass(frozen=True)
class LayerNormConfig(NormConfig):
    """How a LayerNorm computes; `center`, `scale` and `bias` are independent of each other."""

    type: str = knob("layernorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = knob(1e-5, "ε, added to the variance under the root")
    center: bool = knob(True, "subtract the row's mean before anything else")
    scale: bool = knob(True, "multiply by a learned gain γ ∈ R^d, initially 1")
    bias: bool = knob(True, "add a learned bias β ∈ R^d, initially 0")

    def __post_init__(self) -> None:
        check(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-5")


@dataclass(frozen=True)
class RMSNormConfig(LayerNormConfig):
    """How an RMSNorm computes: a LayerNorm that neither centres nor shifts."""

    type: str = knob("rmsnorm", "norm type, a registered name (set by norm=NAME)")
    center: bool = knob(False, "subtract the row's mean before anything else")
    bias: bool = knob(False, "add a learned bias β ∈ R^d, initially 0")


@norms.register("layernorm")
class LayerNorm(Norm):
    """LayerNorm (Ba, Kiros, Hinton 2016, arXiv:1607.06450, Eqs. 3-4).

    y = (x − μ) / √(σ² + ε) ⊙ γ + β, with μ and σ² the mean and the biased variance of the row.
    With `center=False`, μ is 0 throughout: RMSNorm's formula.

    In a low precision with a static scale s the statistic is that of z = x/s, and ε becomes ε/s²,
    so that in exact arithmetic s changes nothing (SLaNC, arXiv:2410.10553).
    """

    Config: ClassVar[type[NormConfig]] = LayerNormConfig

    def __call__(self, x: Float[Array, "*batch d"], acc: Accumulator) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; the arithmetic is float32 around the statistic."""
        y = acc.normalize(x, self.config.eps, center=self.config.center)
        return self.affine(y).astype(x.dtype)


@norms.register("rmsnorm")
class RMSNorm(LayerNorm):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4): y = x / √(mean x² + ε) ⊙ γ.

    ε stands under the root, as in the LLaMA family; the paper's own code adds it to the root.
    """

    Config: ClassVar[type[NormConfig]] = RMSNormConfig
