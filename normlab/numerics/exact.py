"""Float32 arithmetic that is what is written: nothing lost by an add, nothing contracted."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def no_contract(x: Array) -> Array:
    """`x`, a step of its own: XLA cannot contract it with the add, or the product, that follows.

    A choice between x and NaN changes no value. XLA's CPU backend drops an optimization barrier.
    """
    return jnp.where(jnp.isnan(x), jnp.nan, x)


def divided(a: Array, b: Array | float) -> Array:
    """A / b. XLA makes of a division by a constant, or by one number a row, a product with 1/b."""
    return a / jnp.where(jnp.isnan(a), a, b)


def order_after(known: Array, x: Array) -> Array:
    """`x`, but not before `known`: what is made of it then is made anew, not stored till then.

    The choice is never taken. `known` holds a number for each row, or for each element.
    """
    return jnp.where(known < -jnp.inf, jnp.nan, x)


def once(x: Array) -> Array:
    """`x`, made once and read by what follows: a row's sum, by every element of the row.

    XLA makes cheap steps anew wherever they are used, and would repeat the last adds of a sum for
    each element. A division is expensive for it; this one is by a 1 that it cannot know.
    """
    one = jnp.where(x < -jnp.inf, jnp.uint32(2), jnp.uint32(1))
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint32) // one, jnp.float32)


@jax.custom_jvp
def sloped(value: Array, like: Array) -> Array:
    """`value`, whose derivative is that of `like` (straight-through)."""
    return value


@sloped.defjvp
def _slope(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The float32 sum of a and b, and what it lost (Knuth, TAOCP 2, 4.2.2, theorem B)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def fma(a: Array, b: Array | np.float32, c: Array) -> Array:
    """a·b + c in float32 with one rounding, as a fused multiply-add has it.

    The product is exact in float64; what its sum loses there is kept in the last bit (rounded to
    odd), so that the rounding to float32 is the only one. Its derivative is that of float32.
    """
    given = (lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (a, b, c))
    with jax.enable_x64(True):
        wide_a, wide_b, wide_c = (x.astype(jnp.float64) for x in given)
        near, lost = two_sum(wide_a * wide_b, wide_c)
        bits, sign = (lax.bitcast_convert_type(x, jnp.uint64) for x in (near, lost))
        inward = (bits ^ sign) >> 63  # the signs differ; in integers, as half the time goes here
        odd = lax.bitcast_convert_type((bits - inward) | 1, jnp.float64)
        keep = jnp.abs(lost) > 0  # not where it is NaN, as of an infinite sum
        found = jnp.where(keep, odd, near).astype(jnp.float32)
    return sloped(found, a * b + c)


def round_to_odd(total: Array, rest: Array) -> Array:
    """Total + rest cut to float32, the last bit set where something was cut off.

    Rounding that to nearest is the same as rounding the sum itself, for formats of up to 21
    mantissa bits (Boldo & Melquiond 2008). An infinite or NaN total is itself.
    """
    # With an infinite total, what two_sum says was lost is NaN, and not to be added again.
    return jnp.where(jnp.isfinite(total), sticky(*two_sum(total, rest)), total)


def sticky(near: Array, lost: Array) -> Array:
    """`round_to_odd` of what `two_sum` gives, where an infinite or NaN sum is itself."""
    bits = lax.bitcast_convert_type(near, jnp.int32)
    inward = (lost > 0) != (near > 0)
    cut = lax.bitcast_convert_type((bits - inward) | 1, jnp.float32)
    return jnp.where(jnp.isfinite(near) & (lost != 0), cut, near)
