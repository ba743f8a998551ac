"""What one stage of a datapath held: its largest value, what left its format, and where first."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from normlab.numerics.datapath import Datapath
from normlab.numerics.formats import FloatFormat, as_format
from normlab.numerics.output import Output

NEVER = 2**31 - 1
"""The first row of none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StageCounts:
    """Of the rows that passed a stage; `a + b` merges. Rows of zeros, as padding is, leave none."""

    max_abs: Float[Array, ""]  # the largest |value| that is finite
    overflowed: Int[Array, ""]  # rows with a value that is infinite or NaN
    subnormal: Int[Array, ""]  # values below the format's smallest normal, but not zero
    first: Int[Array, ""]  # the first row that is not finite, of [b, l, *heads] its b·l; or NEVER

    @classmethod
    def nothing(cls) -> "StageCounts":
        """Before the first row; the neutral element of `+`."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0), jnp.int32(NEVER))

    @classmethod
    def of(
        cls, x: Float[Array, "*batch d"], filled: Array, to: FloatFormat, of: tuple[int, ...]
    ) -> "StageCounts":
        """Those of some values.

        Args:
            x: the values, or one for each row [*batch 1].
            filled: where a row is not of zeros [*batch 1].
            to: the stage's format.
            of: the shape of the rows that the norm was given, [b, l, *heads, d].
        """
        size = jnp.where(filled, jnp.abs(x), 0.0)
        most = jnp.max(size, axis=-1, initial=0.0)
        lost = ~jnp.isfinite(most)
        places = jnp.arange(most.size, dtype=jnp.int32).reshape(most.shape)
        places = places // max(1, most.size // max(1, math.prod(of[:2] if len(of) > 2 else of[:1])))
        return cls(
            jnp.max(jnp.where(jnp.isfinite(size), size, 0.0), initial=0.0),
            jnp.sum(lost, dtype=jnp.int32),
            jnp.sum((size < to.smallest_normal) & (size > 0), dtype=jnp.int32),
            jnp.min(jnp.where(lost, places, NEVER), initial=NEVER),
        )

    def __add__(self, other: "StageCounts") -> "StageCounts":
        """Both together."""
        return StageCounts(
            jnp.maximum(self.max_abs, other.max_abs),
            self.overflowed + other.overflowed,
            self.subnormal + other.subnormal,
            jnp.minimum(self.first, other.first),
        )

    def moved(self, window: int, length: int, stride: int) -> "StageCounts":
        """See `RangeCounts.moved`."""
        never = self.first == NEVER
        row = jnp.where(never, 0, self.first)
        place = (window + row // length) * stride + row % length
        return dataclasses.replace(self, first=jnp.where(never, NEVER, place))


def stage_format(path: Datapath, stage: str) -> FloatFormat:
    """The format that a stage's values are held in, as far as float32 can tell."""
    name: str | None
    match stage:
        case "square":
            name = path.square or str(path.format)
        case "sum":
            name = path.tree or str(path.format)
        case "mean":
            name = path.mean.format
        case "root":
            name = path.root.format
        case "output":
            name = Output(path.output or "fp32").format
        case _:
            name = getattr(path, stage)
    to = as_format(name or "fp32")
    return as_format("fp32") if to.is_float64 else to
