"""The accumulator: what a norm is handed at call time, so that it obeys a precision."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from normlab.numerics.accumulate import accumulate, sum_of_squares
from normlab.numerics.formats import round_to
from normlab.numerics.observed import Observed
from normlab.numerics.precision import Precision


class Accumulator:
    """How one norm accumulates, by which static scale, and what it saw while doing so.

    The one mechanism by which a norm obeys a precision. A norm is written as

        y = acc.normalize(x, eps) * gain                      # RMSNorm
        y = acc.normalize(x, eps, center=True) * gain + bias  # LayerNorm

    or, where it needs more, from `acc.moments`. It knows nothing of formats, orders and options.

    Make one inside the traced function, for one norm: with `observe`, it collects tracers.

    Args:
        precision: a precision or its string; its rule is not applied here but by who knows the
            scales.
        scale: s, by which the row is divided; broadcasts against x: a number, a number for each
            row [*batch, 1], for each head [heads, 1] against [*batch, heads, head_dim].
        observe: keep `observed`. Where it is off, nothing is computed for it.
    """

    def __init__(
        self,
        precision: str | Precision = "fp32",
        scale: Float[Array, "..."] | float = 1.0,
        observe: bool = False,
    ):
        self.precision = Precision.parse(precision)
        self.scale = scale
        self.observed: Observed | None = Observed.nothing() if observe else None

    def normalize(
        self,
        x: Float[Array, "*batch d"],
        eps: float,
        center: bool = False,
        first: int | None = None,
    ) -> Float[Array, "*batch d"]:
        """The normalized row z · rsqrt(ms + ε/s²), with z and ms as `moments` gives them."""
        z, mean_square = self.moments(x, center, first)
        return z * self.inverse_rms(mean_square, eps)

    def inverse_rms(
        self, mean_square: Float[Array, "*batch 1"], eps: float
    ) -> Float[Array, "*batch 1"]:
        """Rsqrt(ms + ε/s²): ε is scaled as x was, or a change of ε would be measured.

        It is 0 where the sum overflowed, and nothing hides that.
        """
        return lax.rsqrt(mean_square + eps * self._multiplier() ** 2)

    def moments(
        self, x: Float[Array, "*batch d"], center: bool = False, first: int | None = None
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch 1"]]:
        """The scaled row z = x · (1/s), less its mean where asked, and its accumulated mean square.

        Args:
            x: rows to be normalized, each on the last axis; taken to float32.
            center: subtract the mean (LayerNorm, GroupNorm). The mean square is then the variance.
            first: take the statistic of the first so many coordinates only (partial RMSNorm).
        """
        x = jnp.asarray(x, jnp.float32)
        z = self._held(self._scaled(self._held(x)))
        part = z[..., :first]
        if not center:
            total = self._total(part)
            self._record(x[..., :first], total, part)
            return z, total / self._terms(part)
        mean = self.mean(part)
        centred = self._held(z - mean)
        total = self._total_about(mean, part, centred[..., :first])
        self._record(x[..., :first], total, centred[..., :first], mean)
        return centred, total / self._terms(part)

    def mean(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz/d by the precision, the last axis kept; not observed."""
        return accumulate(z, self.precision)[..., None] / self._terms(z)

    def sum(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz by the precision (d times the mean, where it has the option `mean`); not observed."""
        return accumulate(z, self.precision)[..., None] * (z.shape[-1] // self._terms(z))

    def sum_of_squares(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz² by the precision (d times the mean, where it has the option `mean`); not observed."""
        return self._total(z) * (z.shape[-1] // self._terms(z))

    def _total(self, z: Array) -> Array:
        return sum_of_squares(z, self.precision)[..., None]

    def _total_about(self, mean: Array, z: Array, centred: Array) -> Array:
        if self.precision.onepass:
            return self._total(z) - self._terms(z) * (mean * mean)
        return self._total(centred)

    def _terms(self, z: Array) -> int:
        """What a total is divided by: d, or 1 where each term has been divided already."""
        return 1 if self.precision.mean else z.shape[-1]

    def _held(self, x: Array) -> Array:
        """What the unit holds x as: in the format, where it takes its input in the format."""
        return round_to(x, self.precision.format) if self.precision.input else x

    def _scaled(self, x: Array) -> Array:
        unscaled = isinstance(self.scale, int | float) and self.scale == 1
        return x if unscaled else x * self._multiplier()

    def _multiplier(self) -> Array:
        """1/s in float32. XLA makes it of a division by s anyway, so let it be seen."""
        return 1.0 / jnp.asarray(self.scale, jnp.float32)

    def _record(self, x: Array, total: Array, summed: Array, mean: Array | None = None) -> None:
        """Note the rows x: their totals, and the vectors whose squares were summed."""
        if self.observed is None:
            return
        sums = total if mean is None else jnp.concatenate([total, mean], axis=-1)
        filled = jnp.max(jnp.abs(summed), axis=-1, keepdims=True) > 0
        tiny = total < self.precision.format.smallest_normal
        self.observed += Observed(
            rows=jnp.int32(total.size),
            overflowed=_count(jnp.any(self._out_of_range(sums), axis=-1)),
            subnormal=_count(tiny & (total > 0)),
            zero=_count((total <= 0) & filled),
            max_abs=jnp.max(jnp.abs(x)),
            max_square=jnp.max(jnp.sum(x * x, axis=-1)),
        )

    def _out_of_range(self, sums: Array) -> Array:
        to = self.precision.format
        saturated = jnp.abs(sums) >= to.max if to.overflow == "saturate" else False
        return ~jnp.isfinite(sums) | saturated


def _count(rows: Array) -> Array:
    return jnp.sum(rows, dtype=jnp.int32)
