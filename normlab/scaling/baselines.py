"""Scales that know nothing of the weights."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from normlab.model import TokenModel
from normlab.scaling import weights
from normlab.scaling.rules import scale_rules


@scale_rules.register("sqrt_d")
def sqrt_d(model: TokenModel) -> dict[str, float]:
    """√d: the sum of squares becomes the mean of squares."""
    return {site: float(np.sqrt(norm.width)) for site, norm in weights.norms_by_site(model).items()}


def largest(x: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
    """max|x| of each row, 1 for a row of zeros: 1 ≤ Σ ≤ d (if centred, 0 ≤ Σ ≤ d)."""
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return jnp.where(top > 0, top, 1.0)


@scale_rules.register("row_max")
def row_max(model: TokenModel) -> dict[str, Callable[[Array], Any]]:
    """The largest element of each row (LAPACK's scaling): dynamic, exact, a pass more."""
    return dict.fromkeys(weights.norms_by_site(model), largest)
