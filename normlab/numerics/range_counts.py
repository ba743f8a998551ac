"""What a norm saw: rows out of the format's range, how they are spread, and the largest values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from normlab.numerics.eps import EpsForm
from normlab.numerics.formats import FloatFormat
from normlab.numerics.histogram import BINS, histogram
from normlab.numerics.stage_counts import StageCounts

_LARGEST = ("max_abs", "max_square")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RangeCounts:
    """Counts, sums and maxima over the rows that one norm (or several) normalized; `a + b` merges.

    A pytree of small arrays: it may leave a `scan`, be stacked, and be added up.

    A row's sum is known twice: Σ̂, as the precision accumulated it, and Σ, that of the scaled row in
    float32 (centred where the norm centres). Edges are those of the precision's format. A row of
    zeros is never out of range. Of a norm that sums a part of the row (pRMSNorm) x is that part.
    """

    rows: Int[Array, ""]  # rows seen; a head or a group is a row of its own
    # Σ̂, what came out
    overflowed: Int[Array, ""]  # rows with a sum that is not finite
    subnormal: Int[Array, ""]  # rows whose sum of squares is below the smallest normal, not zero
    zero: Int[Array, ""]  # rows whose sum of squares is zero (or less), though the row is not
    error: Float[Array, ""]  # sum of Σ̂/Σ − 1 over the rows that did not overflow
    # Σ, what the scale made of the row
    above: Int[Array, ""]  # rows with Σ above the largest finite value
    below_normal: Int[Array, ""]  # rows with Σ below the smallest normal
    below_subnormal: Int[Array, ""]  # those of them below the smallest value that is not zero
    precision_loss: Int[Array, ""]  # rows on which underflow may cost more than one rounding
    outside: Int[Array, ""]  # elements of the norm's input beyond its format's largest value
    underflow_errors: Int[Array, ""]  # those of them with Σ below the smallest normal
    max_abs: Float[Array, ""]  # the largest |x|, before any scale
    max_square: Float[Array, ""]  # largest ‖x‖² (‖x − μ‖² if centred), whatever is summed of x
    squares: Int[Array, " bins"]  # histogram of ‖x‖² (‖x − μ‖²)
    sums: Int[Array, " bins"]  # histogram of Σ
    stages: dict[str, StageCounts] = dataclasses.field(default_factory=dict)
    """Of a datapath's stages by name; empty of a precision."""

    @classmethod
    def nothing(cls) -> "RangeCounts":
        """Before the first row; the neutral element of `+`."""
        made: dict[str, Any] = {
            f.name: jnp.float32(0) if f.name in ("error", *_LARGEST) else jnp.int32(0)
            for f in dataclasses.fields(cls)
            if f.name != "stages"
        }
        none = jnp.zeros(BINS, jnp.int32)
        return cls(**(made | {"squares": none, "sums": none}))

    def __add__(self, other: "RangeCounts") -> "RangeCounts":
        """Both together: counts and sums added, maxima taken."""
        made = {}
        for f in (f for f in dataclasses.fields(self) if f.name != "stages"):
            merge = jnp.maximum if f.name in _LARGEST else jnp.add
            made[f.name] = merge(getattr(self, f.name), getattr(other, f.name))
        return RangeCounts(**made, stages=_merged(self.stages, other.stages))

    @classmethod
    def of_rows(
        cls,
        x: Float[Array, "*batch d"],
        square: Float[Array, "*batch 1"],
        exact: Float[Array, "*batch 1"],
        total: Float[Array, "*batch 1"],
        lost: Array,
        filled: Array,
        to: FloatFormat,
    ) -> "RangeCounts":
        """Those of some rows, before ε is known.

        Args:
            x: the rows.
            square: ‖x‖² (‖x − μ‖² if centred).
            exact: Σ.
            total: Σ̂.
            lost: where a sum overflowed, [*batch].
            filled: where a row is not of zeros, [*batch 1].
            to: the format.
        """
        tiny, some = total < to.smallest_normal, exact > 0
        error = jnp.where(some & ~lost[..., None], total / exact - 1.0, 0.0)
        return dataclasses.replace(
            cls.nothing(),
            rows=jnp.int32(total.size),
            overflowed=count(lost),
            subnormal=count(tiny & (total > 0)),
            zero=count((total <= 0) & filled),
            error=jnp.sum(error),
            above=count(exact > to.max),
            below_normal=count(some & (exact < to.smallest_normal)),
            below_subnormal=count(some & (exact < smallest(to))),
            max_abs=jnp.maximum(jnp.max(x, initial=0.0), -jnp.min(x, initial=0.0)),
            max_square=jnp.max(square, initial=0.0),
            squares=histogram(square),
            sums=histogram(exact),
        )

    def with_eps(
        self,
        exact: Float[Array, "*batch 1"],
        eps: Float[Array, "..."],
        d: int,
        to: FloatFormat,
        form: EpsForm = EpsForm.UNDER,
    ) -> "RangeCounts":
        """The same rows, now that ε is known: on which of them underflow may do harm.

        The d squares lose at most min(Σ, d·q) together, with q half the smallest value that is not
        zero (or that value itself, where subnormals are flushed). It matters beside Σ + dε/s², of
        which the norm takes the root. See docs/scales.md.

        Args:
            exact: Σ.
            eps: ε as it is added to Σ: dε/s²; of the forms at the root dε²/s².
            d: terms of the sum.
            to: the format.
            form: where ε stands.
        """
        step = smallest(to) if to.subnormals == "flush" else smallest(to) / 2
        unit = 2.0 ** -(to.mantissa + 1)
        lost = jnp.minimum(exact, d * step)
        precision_loss = form.loses(exact, lost, eps, unit)
        underflow_errors = precision_loss & (exact < to.smallest_normal)
        return dataclasses.replace(
            self,
            precision_loss=self.precision_loss + count(precision_loss),
            underflow_errors=self.underflow_errors + count(underflow_errors),
        )

    def with_input(self, x: Float[Array, "*batch d"], to: FloatFormat) -> "RangeCounts":
        """The same, of a norm that was given x, which `to` has to hold; NaN is outside."""
        return dataclasses.replace(self, outside=count(~(jnp.abs(x) <= to.max)))

    def moved(self, window: int, length: int, stride: int) -> "RangeCounts":
        """The same, of windows from that one on: a stage's first row by windows of `stride`.

        Args:
            window: the place of the first.
            length: positions of each.
            stride: positions of each where they are counted; at least `length`.
        """
        stages = {name: s.moved(window, length, stride) for name, s in self.stages.items()}
        return dataclasses.replace(self, stages=stages)


def _merged(a: dict[str, StageCounts], b: dict[str, StageCounts]) -> dict[str, StageCounts]:
    both = {name: a[name] + b[name] for name in a if name in b}
    return a | b | both


def smallest(to: FloatFormat) -> float:
    """The smallest positive value that a result can have."""
    return to.smallest_normal if to.subnormals == "flush" else to.smallest_subnormal


def count(rows: Array) -> Int[Array, ""]:
    """How many are true."""
    return jnp.sum(rows, dtype=jnp.int32)
