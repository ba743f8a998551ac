"""Sums over the last axis, accumulated in a precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from normlab.config import require
from normlab.numerics.exact import divided, no_contract, once
from normlab.numerics.formats import FloatFormat, as_format, rounded
from normlab.numerics.orders import Order
from normlab.numerics.precision import Precision

FP64 = FloatFormat.parse("fp64")


def accumulate(
    x: Float[Array, "*batch d"],
    precision: str | Precision,
    held: bool = False,
    tree: str | None = None,
    copies: int = 1,
) -> Float[Array, "*batch"]:
    """Σ x over the last axis as `precision` says: each x rounded, each add rounded; float32.

    Where each x is `held` in the format already, none is rounded again. The tree over the sums of
    `lanesK` may be in another format.

    With the option `mean` it is the mean: each rounded x times 1/d and rounded before the adds.
    Its derivative is that of the float32 sum (straight-through).
    """
    return _total(x, Precision.parse(precision), False, held, tree, copies)


def sum_of_squares(
    x: Float[Array, "*batch d"],
    precision: str | Precision,
    tree: str | None = None,
    copies: int = 1,
) -> Float[Array, "*batch"]:
    """Σ x² over the last axis as `precision` says: q = round(x²), then as `accumulate`; float32.

    x² itself is the float32 product. With the option `mean` it is the mean square. The row may be
    given once and summed as so many `copies` of it, one after another.
    """
    return _total(x, Precision.parse(precision), True, False, tree, copies)


def widened(x: Array, plain: bool) -> Array:
    """`x` in float32; in float64 where it is and the arithmetic is plain fp32."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32) if plain else jnp.float32)


def _total(
    x: Array, precision: Precision, square: bool, held: bool, tree: str | None, copies: int
) -> Array:
    x = widened(x, precision.plain)
    require(x.ndim > 0 and x.shape[-1] > 0, f"shape {x.shape}: expected rows [*batch, d], d ≥ 1")
    if precision.plain:
        return _float32_sum(repeated(x * x if square else x, copies), precision.mean)
    return _accumulate(x, precision, square, held, tree, copies)


def repeated(terms: Float[Array, "*batch d"], copies: int) -> Float[Array, "*batch e"]:
    """Rows, so many times one after another."""
    return terms if copies == 1 else jnp.concatenate([terms] * copies, axis=-1)


def _float32_sum(terms: Array, mean: bool) -> Array:
    return jnp.sum(terms / terms.shape[-1] if mean else terms, axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4, 5))
def _accumulate(
    x: Array, precision: Precision, square: bool, held: bool, tree: str | None, copies: int
) -> Array:
    if precision.format.is_float64:
        return _wide(repeated(x * x if square else x, copies), precision.summation, 1)[0]
    to = _adder(precision.format)
    terms = _parted(x * x if square else x, to)
    place = np.arange(x.shape[-1], dtype=np.uint32)
    if not held or to != precision.format:
        terms = rounded(terms, to, place + np.uint32(1 << 30))
    if precision.mean:
        terms = _parted(terms * (1.0 / (copies * x.shape[-1])), to)
        terms = rounded(terms, to, place + np.uint32(1 << 31))
    wide = to if tree is None else _adder(as_format(tree))
    if wide.is_float64:
        with jax.enable_x64(True):
            total = precision.summation.sum(terms, to, wide, copies).astype(jnp.float32)
        return once(total)
    return once(precision.summation.sum(terms, to, wide, copies))


@_accumulate.defjvp
def _straight_through(precision, square, held, tree, copies, primals, tangents):
    (x,), (t,) = primals, tangents
    moved = (2.0 if square else 1.0) * (1 if precision.mean else copies) * (x * t if square else t)
    found = _accumulate(x, precision, square, held, tree, copies)
    return found, _float32_sum(moved, precision.mean)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def wide_mean(
    terms: Float[Array, "*batch d"], order: Order, share: float
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Σ in float64, and Σ over `share` (times it, where it is below 1), each rounded to float32.

    Only this sum is float64, whatever JAX's own setting is. Derivatives are those of float32.
    """
    return _wide(terms, order, share)


@wide_mean.defjvp
def _wide_straight_through(order, share, primals, tangents):
    total = _float32_sum(tangents[0], False)
    return wide_mean(*primals, order, share), (total, total * share if share < 1 else total / share)


def _wide(terms: Array, order: Order, share: float) -> tuple[Array, Array]:
    with jax.enable_x64(True):
        total = order.sum(terms.astype(jnp.float64), FP64)
        mean = total * share if share < 1 else divided(total, jnp.float64(share))
        rounded_once = total.astype(jnp.float32), mean.astype(jnp.float32)
    return once(rounded_once[0]), once(rounded_once[1])


def _adder(given: FloatFormat) -> FloatFormat:
    """The format of the terms and the carry: one with float32's exponent flushes its subnormals.

    They are float32's own, which XLA flushes on CPUs and keeps on GPUs; so they go everywhere.
    """
    flushed = given.exponent == 8 and not given.is_float32 and given.subnormals == "ieee"
    return given.with_option("flush") if flushed else given


def _parted(terms: Array, to: FloatFormat) -> Array:
    """Keep a product from being contracted with the add that follows, where no rounding does."""
    return no_contract(terms) if to.mantissa == 23 else terms
