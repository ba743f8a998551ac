"""The accumulator: what a norm is handed at call time, so that it obeys a precision."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from normlab.numerics.accumulate import accumulate, sum_of_squares, widened
from normlab.numerics.eps import EpsForm
from normlab.numerics.exact import no_contract, order_after
from normlab.numerics.formats import round_to
from normlab.numerics.precision import Precision
from normlab.numerics.range_counts import RangeCounts


class Accumulator:
    """How one norm accumulates, by which static scale, and what it saw while doing so.

    The one mechanism by which a norm obeys a precision. A norm is written as

        y = acc.normalize(x, eps) * weight                      # RMSNorm
        y = acc.normalize(x, eps, center=True) * weight + bias  # LayerNorm

    or, where it needs more, from `acc.moments`. It knows nothing of formats, orders and options.

    Make one inside the traced function, for one norm: with `observe`, it collects tracers.

    Args:
        precision: a precision or its string.
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
        self.observed: RangeCounts | None = RangeCounts.nothing() if observe else None
        self.entered: Any = None  # what a norm that estimates its statistic is told of the block
        self._exact: tuple[Array, int] | None = None  # Σ of the last rows, and d; until ε is known

    def normalize(
        self,
        x: Float[Array, "*batch d"],
        eps: float,
        center: bool = False,
        first: int | None = None,
        form: EpsForm = EpsForm.UNDER,
        row: Float[Array, "*batch e"] | None = None,
    ) -> Float[Array, "*batch d"]:
        """The normalized row: z · `inverse_rms`, with z and ms as `moments` gives them."""
        z, mean_square = self.moments(x, center, first, row)
        return z * self.inverse_rms(mean_square, eps, form)

    def normalize_groups(
        self, x: Float[Array, "*batch d"], groups: int, eps: float
    ) -> Float[Array, "*batch d"]:
        """The row in `groups` equal parts, each centred and normalized as a row of its own."""
        scale: Any = self.scale  # a row's scale is that of each of its parts
        scale = scale[..., None] if jnp.ndim(scale) else scale
        parts = Accumulator(self.precision, scale, self.observed is not None)
        rows = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        y = parts.normalize(rows, eps, center=True)
        self.observed = parts.observed
        return y.reshape(x.shape)

    def inverse_rms(
        self,
        mean_square: Float[Array, "*batch 1"],
        eps: float | Float[Array, "*batch 1"],
        form: EpsForm = EpsForm.UNDER,
    ) -> Float[Array, "*batch 1"]:
        """Rsqrt(ms + ε/s²): ε is scaled as x was, or a change of ε would be measured.

        It is 0 where the sum overflowed, and nothing hides that. For the other forms see `EpsForm`.
        """
        form, multiplier = EpsForm(form), self._multiplier(mean_square.dtype)
        if self.observed is not None and self._exact is not None:
            (exact, d), self._exact = self._exact, None
            terms = 1 if self.precision.mean else d
            beside = terms * form.beside_mean(eps, multiplier)
            self.observed = self.observed.with_eps(exact, beside, d, self.precision.format, form)
        return form.inverse(mean_square, eps, multiplier, self._apart)

    def moments(
        self,
        x: Float[Array, "*batch d"],
        center: bool = False,
        first: int | None = None,
        row: Float[Array, "*batch e"] | None = None,
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch 1"]]:
        """The scaled row z = x · (1/s), less its mean where asked, and its accumulated mean square.

        Args:
            x: rows to be normalized, each on the last axis; taken to float32. In plain fp32,
                float64 rows stay what they are: the exact arithmetic to compare with.
            center: subtract the mean (LayerNorm, GroupNorm). The mean square is then the variance.
            first: take the statistic of the first so many coordinates only (partial RMSNorm).
            row: what the norm was given, where x is made of it: `observed` says its norm.
        """
        x = widened(x, self.precision)
        part = self._scaled(x)[..., :first]
        if not center:
            total = self._total(part)
            self._record(x[..., :first], total, row=row)
            return self._scaled(self._after(total, x)), self._share(total, part)
        added = self._added(part, self.precision.input)
        mean = self._share(added, part)
        again = self._scaled(self._after(mean, x))
        centred = self.held(again - mean)
        summed = again if self.precision.onepass else centred
        squares = total = self._total(summed[..., :first])
        if self.precision.onepass:
            total = squares - self._apart(self._terms(part) * (mean * mean))
        self._record(x[..., :first], total, (added, squares), row=row)
        centred = self.held(self._scaled(self._after(total, x)) - mean)
        return centred, self._share(total, part)

    def deviations(
        self, x: Float[Array, "*batch d"], center: bool = False
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch 1"]]:
        """As `moments`, with the accumulated mean of |z| in place of the mean square (L1 norms)."""
        x = widened(x, self.precision)
        z = self._scaled(x)
        added = self._added(z, self.precision.input) if center else None
        z = z if added is None else self.held(z - self._share(added, z))
        total = self._added(jnp.abs(z), self.precision.input)
        self._record(x, total, None if added is None else (added, total), power=1)
        return z, self._share(total, z)

    def held(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """What the unit holds x as: in the format, where it takes its input in the format."""
        return round_to(x, self.precision.format) if self.precision.input else x

    def mean(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz/d by the precision, the last axis kept; not observed."""
        return self._share(self._added(z), z)

    def sum(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz by the precision (d times the mean, where it has the option `mean`); not observed."""
        return self._added(z) * (z.shape[-1] // self._terms(z))

    def sum_of_squares(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz² by the precision (d times the mean, where it has the option `mean`); not observed."""
        return self._total(z) * (z.shape[-1] // self._terms(z))

    def _total(self, z: Array) -> Array:
        return sum_of_squares(z, self.precision)[..., None]

    def _added(self, z: Array, held: bool = False) -> Array:
        return accumulate(z, self.precision, held)[..., None]

    def _terms(self, z: Array) -> int:
        """What a total is divided by: d, or 1 where each term has been divided already."""
        return 1 if self.precision.mean else z.shape[-1]

    def _share(self, total: Array, z: Array) -> Array:
        """A total over its terms. XLA makes a product of the division anyway, so let it be seen."""
        terms = self._terms(z)
        return total / terms if self.precision.plain else self._apart(total * (1.0 / terms))

    def _scaled(self, x: Array) -> Array:
        x = self.held(x)
        if isinstance(self.scale, int | float) and self.scale == 1:
            return self._apart(x)
        return self.held(self._apart(x * self._multiplier(x.dtype)))

    def _after(self, known: Array, x: Array) -> Array:
        """Have x once more rather than store what was made of it; XLA sees to plain fp32."""
        return x if self.precision.plain else order_after(known, x)

    def _apart(self, x: Array) -> Array:
        """Keep a step from being contracted with the next; plain fp32 is as XLA has it."""
        return x if self.precision.plain else no_contract(x)

    def _multiplier(self, dtype: Any = jnp.float32) -> Array:
        """1/s. XLA makes it of a division by s anyway, so let it be seen."""
        return 1.0 / jnp.asarray(self.scale, dtype)

    def _record(
        self,
        x: Array,
        total: Array,
        sums: tuple[Array, ...] | None = None,
        power: int = 2,
        row: Array | None = None,
    ) -> None:
        """Note the rows x and their totals, of squares or (`power` 1) of sizes.

        Of centred rows also all `sums` as the unit held them, before anything was made of them. A
        row is not of zeros where float32 tells it from its mean, whatever the unit made of it.
        """
        if self.observed is None:
            return
        held = total if sums is None else jnp.concatenate(sums, axis=-1)
        from_mean = x if sums is None else x - jnp.mean(x, axis=-1, keepdims=True)
        whole = jnp.sum(jnp.abs(from_mean) ** power, axis=-1, keepdims=True)
        exact = whole * self._multiplier() ** power * (self._terms(x) / x.shape[-1])
        size, left = (jnp.max(jnp.abs(r), axis=-1, keepdims=True) for r in (x, from_mean))
        square = jnp.sum((from_mean if row is None else row) ** 2, axis=-1, keepdims=True)
        self._exact = (exact, x.shape[-1]) if power == 2 else None  # ε adds to a sum of squares
        self.observed = self.observed.with_rows(
            x,
            square,
            exact,
            total,
            lost=jnp.any(self._out_of_range(held), axis=-1),
            filled=left > 2.0**-20 * size,
            to=self.precision.format,
        )

    def _out_of_range(self, sums: Array) -> Array:
        to = self.precision.format
        saturated = jnp.abs(sums) >= to.max if to.overflow == "saturate" else False
        return ~jnp.isfinite(sums) | saturated
