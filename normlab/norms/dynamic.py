"""Norms whose gain depends on the row."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from normlab.about import About
from normlab.config import check, knob
from normlab.norms.base import Norm, NormConfig, Site, norms
from normlab.numerics import Accumulator
from normlab.numerics.accumulate import widened


@dataclass(frozen=True)
class SeeDNormConfig(NormConfig):
    """How a SeeDNorm computes."""

    type: str = knob("seednorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = knob(1e-6, "ε, added to the mean square under the root")
    alpha: float = knob(1.0, "initial α, how much the row's own part may change the gain")
    scale: bool = knob(True, "the constant part of the gain, γ ∈ R^d, initially 1")

    def __post_init__(self) -> None:
        check(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-6")
        check(self.alpha != 0, "norm.alpha = 0: neither α nor β would ever learn; expected 1")


@norms.register("seednorm")
class SeeDNorm(Norm):
    """SeeDNorm (Cai et al. 2025, arXiv:2510.22777): y = [tanh(x·b)·α + γ] ⊙ x / √(mean x² + ε).

    x·b is one number for each row: how far it points along a learned direction b (the paper's β),
    which starts at zero, so that the norm starts as an RMSNorm. α and γ ∈ R^d start at one. The
    dot product is float32, whatever the statistic's precision. The paper decays α and b; here no
    vector decays.
    """

    Config: ClassVar[type[NormConfig]] = SeeDNormConfig
    affine_last: ClassVar[bool] = False
    about: ClassVar[About] = About(
        title="SeeDNorm",
        formula="y = [tanh(x·b)·α + γ] ⊙ x / √(mean x² + ε)",
        source="Cai et al. 2025, arXiv:2510.22777; unconfirmed: initial values and ε, read in "
        "summaries of the paper only",
        property="starts as RMSNorm bit for bit; later its gain lies within |γ| + |α|",
        test="tests/test_norms_dynamic.py::test_seednorm_starts_as_rmsnorm_and_its_gain_is_bounded",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        self.alpha = nnx.Param(jnp.full(width, config.alpha))
        self.direction = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*batch d"], acc: Accumulator) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        y = acc.normalize(x, self.config.eps)
        along = jnp.sum(widened(x, acc.precision) * self.direction[...], axis=-1, keepdims=True)
        gain = jnp.tanh(along) * self.alpha[...]
        constant = super().gamma()
        return (y * (gain if constant is None else gain + constant)).astype(x.dtype)

    def gamma(self) -> Float[Array, " d"]:
        """|γ| + |α|, which bounds the gain of every row: there is no one γ."""
        constant = super().gamma()
        return jnp.abs(self.alpha[...]) + (0.0 if constant is None else jnp.abs(constant))
