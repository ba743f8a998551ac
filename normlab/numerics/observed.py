"""What a norm saw: rows out of the format's range, and the largest values."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """Counts and maxima over the rows that one norm (or several) normalized; `a + b` merges two.

    A pytree of six small arrays: it may leave a `scan`, be stacked, and be added up.
    """

    rows: Int[Array, ""]  # rows seen; a head or a group is a row of its own
    overflowed: Int[Array, ""]  # rows with a sum that is not finite
    subnormal: Int[Array, ""]  # rows whose sum of squares is below the smallest normal, not zero
    zero: Int[Array, ""]  # rows whose sum of squares is zero (or less), though the row is not
    max_abs: Float[Array, ""]  # the largest |x|, before any scale
    max_square: Float[Array, ""]  # the largest ‖x‖² of a row, in float32, before any scale

    @classmethod
    def nothing(cls) -> "Observed":
        """Before the first row; the neutral element of `+`."""
        count, value = jnp.int32(0), jnp.float32(0)
        return cls(count, count, count, count, value, value)

    def __add__(self, other: "Observed") -> "Observed":
        """Both together: counts added, maxima taken."""
        return Observed(
            self.rows + other.rows,
            self.overflowed + other.overflowed,
            self.subnormal + other.subnormal,
            self.zero + other.zero,
            jnp.maximum(self.max_abs, other.max_abs),
            jnp.maximum(self.max_square, other.max_square),
        )
