"""What a norm unit does to the elements of a row: its formats, product, weight, bias, output."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import DTypeLike, Float

from normlab.numerics.datapath import Datapath
from normlab.numerics.exact import fma, no_contract
from normlab.numerics.formats import round_to
from normlab.numerics.output import Output


class RowStages:
    """The stages of a datapath but for its statistic; the base of `Accumulator`."""

    datapath: Datapath

    def noted(self, stage: str, x: Array) -> Array:
        """`x`, a stage's result; a recorder keeps what it needs of it."""
        return x

    def apart(self, x: Array) -> Array:
        """Keep a step from being contracted with the next; plain fp32 is as XLA has it."""
        return x if self.datapath.plain else no_contract(x)

    def _held(self, x: Array, to: str | None) -> Array:
        """A stage's result, in its format; in float32 a step of its own."""
        return self.apart(x) if to is None else round_to(x, to)

    def product(self, y: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Z · 1/rms, as the unit holds it."""
        return self.noted("product", self._held(y, self.datapath.product))

    def gamma(self, stored: Float[Array, "..."], one_plus: bool) -> Float[Array, "..."]:
        """γ of a weight as it is stored: itself, or one more."""
        path, held = self.datapath, self._stored(stored)
        if not one_plus:
            return held
        if path.one_plus is None:
            return 1.0 + held
        return round_to(1.0 + round_to(held, path.one_plus), path.one_plus)

    def affine(
        self,
        y: Float[Array, "*batch d"],
        weight: Float[Array, "..."] | None,
        bias: Float[Array, "..."] | None,
        dtype: DTypeLike,
    ) -> Float[Array, "*batch d"]:
        """γ ⊙ y + β, each where there is one, in `dtype`; float32 where that holds integers."""
        path = self.datapath
        if path.fused and weight is not None and bias is not None:
            y = fma(y, self._stored(weight), self._stored(bias))
        elif bias is None:
            y = self.weighted(y, weight)
        else:
            y, bias = self.weighted(y, weight), self._stored(bias)
            y = self.noted("bias", self._held(y + self._held(bias, path.bias), path.bias))
        y = self.noted("output", self._leaves(y))
        return y.astype(dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)

    def weighted(
        self, y: Float[Array, "*batch d"], weight: Float[Array, "..."] | None
    ) -> Float[Array, "*batch d"]:
        """γ ⊙ y, where there is a γ, before it is cast to what leaves."""
        path = self.datapath
        if weight is None:
            return y
        y = self._leaves(y) if path.cast_first else y
        return self.noted("weight", self._held(y * self._held(weight, path.weight), path.weight))

    def _stored(self, weight: Array) -> Array:
        return weight if self.datapath.stored is None else round_to(weight, self.datapath.stored)

    def _leaves(self, y: Array) -> Array:
        path = self.datapath
        return Output(path.output)(y) if path.output else self.apart(y)
