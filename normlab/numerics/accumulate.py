"""Sums over the last axis, accumulated in a precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from normlab.config import require
from normlab.numerics.exact import no_contract, once
from normlab.numerics.formats import FloatFormat, rounded
from normlab.numerics.precision import Precision


def accumulate(
    x: Float[Array, "*batch d"], precision: str | Precision, held: bool = False
) -> Float[Array, "*batch"]:
    """Σ x over the last axis as `precision` says: each x rounded, each add rounded; float32.

    Where each x is `held` in the format already, none is rounded again.

    With the option `mean` it is the mean: each rounded x times 1/d and rounded before the adds.
    Its derivative is that of the float32 sum (straight-through).
    """
    return _total(x, Precision.parse(precision), square=False, held=held)


def sum_of_squares(
    x: Float[Array, "*batch d"], precision: str | Precision
) -> Float[Array, "*batch"]:
    """Σ x² over the last axis as `precision` says: q = round(x²), then as `accumulate`; float32.

    x² itself is the float32 product. With the option `mean` it is the mean square.
    """
    return _total(x, Precision.parse(precision), square=True, held=False)


def widened(x: Array, precision: Precision) -> Array:
    """`x` in float32; in float64 where it is and the precision is plain fp32."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32) if precision.plain else jnp.float32)


def _total(x: Array, precision: Precision, square: bool, held: bool) -> Array:
    x = widened(x, precision)
    require(x.ndim > 0 and x.shape[-1] > 0, f"shape {x.shape}: expected rows [*batch, d], d ≥ 1")
    if precision.plain:
        return _float32_sum(x * x if square else x, precision.mean)
    return _accumulate(x, precision, square, held)


def _float32_sum(terms: Array, mean: bool) -> Array:
    return jnp.sum(terms / terms.shape[-1] if mean else terms, axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _accumulate(x: Array, precision: Precision, square: bool, held: bool) -> Array:
    to = _adder(precision.format)
    terms = _parted(x * x if square else x, to)
    place = np.arange(x.shape[-1], dtype=np.uint32)
    if not held or to != precision.format:
        terms = rounded(terms, to, place + np.uint32(1 << 30))
    if precision.mean:
        terms = _parted(terms * (1.0 / x.shape[-1]), to)
        terms = rounded(terms, to, place + np.uint32(1 << 31))
    return once(precision.summation.sum(terms, to))


@_accumulate.defjvp
def _straight_through(precision, square, held, primals, tangents):
    (x,), (t,) = primals, tangents
    moved = 2.0 * x * t if square else t
    return _accumulate(x, precision, square, held), _float32_sum(moved, precision.mean)


def _adder(given: FloatFormat) -> FloatFormat:
    """The format of the terms and the carry: one with float32's exponent flushes its subnormals.

    They are float32's own, which XLA flushes on CPUs and keeps on GPUs; so they go everywhere.
    """
    flushed = given.exponent == 8 and not given.is_float32 and given.subnormals == "ieee"
    return given.with_option("flush") if flushed else given


def _parted(terms: Array, to: FloatFormat) -> Array:
    """Keep a product from being contracted with the add that follows, where no rounding does."""
    return no_contract(terms) if to.mantissa == 23 else terms
