"""What a forward pass is told beside its tokens, and what it writes down."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from normlab.norms import Norm
from normlab.numerics import Accumulator, Observed, Precision


class Context:
    """One forward pass's instructions to its norms and dropouts, and its records.

    Made inside the traced function and thrown away with it: it is mutable, and what it holds after
    the pass are tracers. The model's weights know nothing of it, so a model runs in another
    precision without being rebuilt.

    Args:
        precision: in which every norm accumulates its statistic.
        scales: scale by site name (see `normlab.scaling`); a site that is missing has scale 1.
        observe: count rows out of range and keep the largest values, by site, in `observed`.
        capture: keep every norm's input, by site, in `inputs`.
        dropout_key: without one, nothing is dropped.
        progress: the share of the training that is done, a float32 scalar; None outside training.
            With one, norms run their `during_training` and may update their state.
    """

    def __init__(
        self,
        precision: Precision | None = None,
        scales: Mapping[str, Any] | None = None,
        *,
        observe: bool = False,
        capture: bool = False,
        dropout_key: jax.Array | None = None,
        progress: Float[Array, ""] | None = None,
    ):
        self.precision = precision or Precision.parse("fp32")
        self.scales = scales or {}
        self.observe = observe
        self.capture = capture
        self.progress = progress
        self.observed: dict[str, Observed] = {}
        self.inputs: dict[str, Array] = {}
        self._dropout_key = dropout_key
        self._drops = 0

    def norm(self, norm: Norm | None, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """`norm(x)` as this pass wants it; `x` where the placement has no norm at the site."""
        if norm is None:
            return x
        name = norm.site.name
        if self.capture:
            self.inputs[name] = x
        scale: Any = self.scales.get(name, 1.0)
        if callable(scale):  # a dynamic rule: rows [*batch d] to their scales [*batch 1]
            scale = scale(x)
        acc = Accumulator(self.precision, scale, observe=self.observe and norm.has_statistic)
        y = norm(x, acc) if self.progress is None else norm.during_training(x, acc, self.progress)
        if acc.observed is not None:
            self.observed[name] = acc.observed
        return y

    def dropout(self, x: Array, rate: float) -> Array:
        """Drop elements with probability `rate` and scale the others by 1 / (1 − rate)."""
        if self._dropout_key is None or rate == 0.0:
            return x
        key = jax.random.fold_in(self._dropout_key, self._drops)
        self._drops += 1
        return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)
