"""Norms whose weight depends on the row."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.base import Norm, NormConfig, Site, check_divides, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.registry import MethodCard


@dataclass(frozen=True)
class SeeDNormConfig(NormConfig):
    """How a SeeDNorm computes."""

    type: str = field("seednorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-6, "ε, added to the mean square under the root")
    alpha: float = field(
        1.0, "initial α, how much the row's own part may change the weight", initial=True
    )
    use_weight: bool = field(True, "the constant part of the weight, γ ∈ R^d, initially 1")
    heads: int | None = field(
        None, "n, equal parts of the row, each with a dot product of its own; null: the whole row"
    )

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-6")
        require(self.alpha != 0, "norm.alpha = 0: neither α nor β would ever learn; expected 1")
        require(
            self.heads is None or self.heads >= 1,
            f"norm.heads = {self.heads}: expected a number ≥ 1, such as 16, or null",
        )


@norms.register("seednorm")
class SeeDNorm(Norm):
    """SeeDNorm (Cai et al. 2025, arXiv:2510.22777): y = [tanh(x·b)·α + γ] ⊙ x / √(mean x² + ε).

    x·b is one number for each row: how far it points along a learned direction b (the paper's β).
    It starts at zero, so that the norm starts as an RMSNorm. Both α and γ ∈ R^d start at one. The
    dot product is float32, whatever the statistic's precision. The paper decays α and b; here no
    vector decays.

    The multi-head form (`heads`, 16 in the paper's vision models) cuts x and b into n parts and has
    a dot product for each. Its tanh multiplies that part's α. The variance of a dot product grows
    with its length, so n of them have smaller gradients.
    """

    Config: ClassVar[type[NormConfig]] = SeeDNormConfig
    affine_last: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="SeeDNorm",
        formula="y = [tanh(x·b)·α + γ] ⊙ x / √(mean x² + ε); with heads: x_h·b_h for each part of "
        "the row",
        source="Cai et al. 2025, arXiv:2510.22777; unconfirmed: initial values and the multi-head "
        "form (read in two summaries of the paper that agree), ε",
        property="starts as RMSNorm bit for bit; later its weight lies within |γ| + |α|",
        test="tests/norms/test_dynamic.py::test_seednorm_starts_as_rmsnorm_and_its_gain_is_bounded",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        check_divides("norm.heads", config.heads or 1, width, site)
        self.alpha = nnx.Param(jnp.full(width, config.alpha))
        self.direction = nnx.Param(jnp.zeros(width))

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        parts = (x * params["direction"]).reshape(*x.shape[:-1], config.heads or 1, -1)
        along = np.repeat(parts.sum(-1), parts.shape[-1], axis=-1)
        weight = np.tanh(along) * params["alpha"] + params.get("weight", np.zeros(1))
        return weight * ref.over_rms(x, config)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        acc = context.acc
        y = acc.normalize(x, self.config.eps)
        products = acc.widened(x) * self.direction[...]
        weight = self._along(products) * self.alpha[...]
        constant = None if self.weight is None else acc.gamma(self.weight[...], one_plus=False)
        weight = weight if constant is None else weight + constant
        return acc.affine(y, weight, None, x.dtype)

    def _along(self, products: Array) -> Array:
        """Tanh of the dot product, of the row's own or of that of each element's head."""
        heads = self.config.heads
        if heads is None:
            return jnp.tanh(jnp.sum(products, axis=-1, keepdims=True))
        parts = products.reshape(*products.shape[:-1], heads, self.width // heads)
        return jnp.repeat(jnp.tanh(jnp.sum(parts, axis=-1)), self.width // heads, axis=-1)

    def gamma(self) -> Float[Array, " d"]:
        """|γ| + |α|, which bounds the factor of every row: there is no one γ."""
        constant = super().gamma()
        return jnp.abs(self.alpha[...]) + (0.0 if constant is None else jnp.abs(constant))
