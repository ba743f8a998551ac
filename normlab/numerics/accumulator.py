"""The accumulator: what a norm is handed at call time, so that it obeys a precision."""

import copy
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from normlab.numerics.accumulate import accumulate, repeated, sum_of_squares, wide_mean, widened
from normlab.numerics.datapath import Datapath
from normlab.numerics.eps import EpsForm
from normlab.numerics.exact import divided, fma, no_contract, order_after
from normlab.numerics.formats import round_to
from normlab.numerics.presets import Arithmetic, arithmetic
from normlab.numerics.refusal import DoesNotFit
from normlab.numerics.row_stages import RowStages
from normlab.numerics.welford import moments


class Statistic(NamedTuple):
    """The statistic of some rows, and what it was made of.

    Args:
        z: the scaled rows [*batch, d], less their mean where asked.
        mean: the mean of z² or of |z|, [*batch, 1].
        x: what was summed, before any scale and mean, in float32 [*batch, n].
        sums: every sum as the unit held it, each [*batch, 1]: Σ, and before it Σx if centred.
        total: Σ̂, of which `mean` is a share [*batch, 1].
        centred: Σx was taken off first.
        power: 2, or 1 where sizes were summed.
        row: what the norm was given, where x is made of it.
        middle: the mean that was taken off, [*batch, 1].
    """

    z: Array
    mean: Array
    x: Array
    sums: tuple[Array, ...]
    total: Array
    centred: bool
    power: int = 2
    row: Array | None = None
    middle: Array | None = None


class Accumulator(RowStages):
    """How one norm accumulates, and by which static scale: a value, whose methods are functions.

    The one mechanism by which a norm obeys a precision. A norm is written as

        y = acc.normalize(x, eps) * weight                      # RMSNorm
        y = acc.normalize(x, eps, center=True) * weight + bias  # LayerNorm

    or, where it needs more, from `acc.moments`. It knows nothing of formats, orders and options.

    Args:
        precision: a precision, or a datapath; or what names it.
        scale: s, by which the row is divided. It broadcasts against x: a number, a number for each
            row [*batch, 1], for each head [heads, 1] against [*batch, heads, head_dim].
    """

    def __init__(
        self, precision: str | Arithmetic = "fp32", scale: Float[Array, "..."] | float = 1.0
    ):
        given = arithmetic(precision)
        self.datapath = given if isinstance(given, Datapath) else Datapath(sum=str(given))
        self.precision = self.datapath.precision
        self.scale = scale

    def scaled_by(self, scale: Float[Array, "..."] | float) -> Self:
        """The same with another s."""
        made = copy.copy(self)
        made.scale = scale
        return made

    def widened(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` in float32; in plain fp32 float64 stays what it is."""
        return widened(x, self.datapath.plain)

    def normalize(
        self,
        x: Float[Array, "*batch d"],
        eps: float,
        center: bool = False,
        first: int | None = None,
        form: EpsForm = EpsForm.UNDER,
        row: Float[Array, "*batch e"] | None = None,
    ) -> Float[Array, "*batch d"]:
        """The normalized row: `over_rms` of z and ms as `moments` gives them."""
        found = self.statistic(x, center, first, row)
        if self.datapath.fused and found.middle is not None:
            root = self._root(found.mean, eps, form)
            z, away = self._scaled(self.widened(x)), no_contract(-root * found.middle)
            return self.product(fma(z, root, away))
        return self.over_rms(found.z, found.mean, eps, form)

    def normalize_groups(
        self, x: Float[Array, "*batch d"], groups: int, eps: float
    ) -> Float[Array, "*batch d"]:
        """The row in `groups` equal parts, each centred and normalized as a row of its own."""
        scale: Any = self.scale  # a row's scale is that of each of its parts
        parts = self.scaled_by(scale[..., None] if jnp.ndim(scale) else scale)
        rows = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        y = parts.normalize(rows, eps, center=True)
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
        return self._root(mean_square, eps, form)

    def over_rms(
        self,
        z: Float[Array, "*batch d"],
        mean_square: Float[Array, "*batch 1"],
        eps: float | Float[Array, "*batch 1"],
        form: EpsForm = EpsForm.UNDER,
    ) -> Float[Array, "*batch d"]:
        """Z · `inverse_rms`, or z / rms where the unit divides."""
        divides = self.datapath.root.kind == "divide"
        root = self._root(mean_square, eps, form, divides)
        return self.product(divided(z, root) if divides else z * root)

    def with_eps(
        self, mean_square: Float[Array, "*batch 1"], eps: Float[Array, "..."]
    ) -> Float[Array, "*batch 1"]:
        """Ms + ε, for a norm with a root of its own; `eps` is scaled as z was."""
        return self._held(mean_square + self._held(eps, self.datapath.eps), self.datapath.eps)

    def _root(
        self, mean_square: Array, eps: float | Array, form: EpsForm, divides: bool = False
    ) -> Array:
        """1/rms, or rms where the unit divides by it."""
        path, over = self.datapath, self.multiplier(mean_square.dtype)

        def held(x: Array) -> Array:
            return self.noted("eps", self._held(x, path.eps))

        mean_square = self.apart(mean_square)  # which may be a product
        found = EpsForm(form).inverse(mean_square, eps, over, held, path.root, divides)
        return self.noted("root", found)

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
            row: what the norm was given, where x is made of it: range counts tell of its norm.
        """
        found = self.statistic(x, center, first, row)
        return found.z, found.mean

    def deviations(
        self, x: Float[Array, "*batch d"], center: bool = False
    ) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch 1"]]:
        """As `moments`, with the accumulated mean of |z| in place of the mean square (L1 norms)."""
        found = self.statistic(x, center, power=1)
        return found.z, found.mean

    def statistic(
        self,
        x: Float[Array, "*batch d"],
        center: bool = False,
        first: int | None = None,
        row: Float[Array, "*batch e"] | None = None,
        power: int = 2,
    ) -> Statistic:
        """What `moments` (`power` 2) and `deviations` (1) give, and how it came about."""
        x = self.widened(x)
        if power == 1:
            return self._sizes(x, center)
        path, part = self.datapath, self.noted("input", self._scaled(x))[..., :first]
        if path.variance is not None:
            return self._by_moments(x, part, center, first, row)
        if not center:
            part, copies = self._mirrored(part)
            total, mean_square = self._means(part, square=True, copies=copies)
            z, summed = self._scaled(self._after(total, x)), x[..., :first]
            summed = jnp.concatenate([summed, -summed], axis=-1) if path.mirrored else summed
            return Statistic(z, mean_square, summed, (total,), total, False, row=row)
        added, mean = self._means(part, square=False)
        again = self._scaled(self._after(mean, x))
        centred = self.held(again - mean)
        summed = again if self.precision.onepass else centred
        squares, mean_square = self._means(summed[..., :first], square=True)
        total = squares
        if self.precision.onepass:
            total = squares - self.apart(self.terms(part) * (mean * mean))
            mean_square = self._share(total, part)
        z, summed = self.held(self._scaled(self._after(total, x)) - mean), x[..., :first]
        sums = (added, squares)
        return Statistic(z, mean_square, summed, sums, total, True, row=row, middle=mean)

    def _mirrored(self, part: Array) -> tuple[Array, int]:
        """Of [x, −x] what is to be squared, and how often: both have the same squares.

        Not where rounding depends on an element's place.
        """
        copies = 1 + self.datapath.mirrored
        if "stochastic" in f"{self.datapath.sum} {self.datapath.square}":
            return repeated(part, copies), 1
        return part, copies

    def _by_moments(
        self, x: Array, part: Array, center: bool, first: int | None, row: Array | None
    ) -> Statistic:
        """Mean and variance at once; a norm that doesn't centre has none."""
        text = self.datapath.variance or ""
        if not center:
            raise DoesNotFit(f"variance = {text!r}: expected a norm that takes the mean off")
        mean, variance = (self.noted("mean", m) for m in moments(part, text))
        z, total = self._scaled(self._after(mean, x)) - mean, variance * part.shape[-1]
        sums = (mean * part.shape[-1], total)
        return Statistic(z, variance, x[..., :first], sums, total, True, row=row, middle=mean)

    def _sizes(self, x: Array, center: bool) -> Statistic:
        z = self._scaled(x)
        added = self._added(z, self.precision.input) if center else None
        z = z if added is None else self.held(z - self._share(added, z))
        total = self._added(jnp.abs(z), self.precision.input)
        sums = (total,) if added is None else (added, total)
        return Statistic(z, self._share(total, z), x, sums, total, center, power=1)

    def held(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """What the unit holds x as: in the format, where it takes its input in the format."""
        return round_to(x, self.precision.format) if self.precision.input else x

    def mean(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz/d by the precision, the last axis kept; not counted."""
        return self._share(self._added(z), z)

    def sum(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz by the precision (d times the mean, where it has the option `mean`); not counted."""
        return self._added(z) * (z.shape[-1] // self.terms(z))

    def sum_of_squares(self, z: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
        """Σz² by the precision (d times the mean, where it has the option `mean`); not counted."""
        return self._total(z) * (z.shape[-1] // self.terms(z))

    def _total(self, z: Array, copies: int = 1) -> Array:
        path = self.datapath
        if path.square is None:
            return sum_of_squares(z, self.precision, path.tree, copies)[..., None]
        return self._added(round_to(self.apart(z * z), path.square), copies=copies)

    def _added(self, z: Array, held: bool = False, copies: int = 1) -> Array:
        return accumulate(z, self.precision, held, self.datapath.tree, copies)[..., None]

    def _means(self, z: Array, square: bool, copies: int = 1) -> tuple[Array, Array]:
        """A sum (of squares) of so many copies, and its mean."""
        path = self.datapath
        if square:
            self.noted("square", z)
        if path.mean.wide:
            terms = self._held(z * z, path.square) if square else z
            terms, share = repeated(terms, copies), path.mean.share(copies * z.shape[-1])
            found = wide_mean(terms, self.precision.summation, share)
            total, mean = found[0][..., None], found[1][..., None]
        else:
            total = self._total(z, copies) if square else self._added(z, self.precision.input)
            mean = self._share(total, z, copies)
        return self.noted("sum", total), self.noted("mean", mean)

    def terms(self, z: Array) -> int:
        """What a total is divided by: d, or 1 where each term has been divided already."""
        return 1 if self.precision.mean else z.shape[-1]

    def _share(self, total: Array, z: Array, copies: int = 1) -> Array:
        """A total over its terms. XLA makes a product of the division anyway, so let it be seen."""
        terms, mean = self.terms(z), self.datapath.mean
        terms = terms if self.precision.mean else copies * terms
        if self.datapath.plain:
            return total / terms
        return self._held(mean.of(total, terms), mean.format)

    def _scaled(self, x: Array) -> Array:
        x = self.held(self._held(x, self.datapath.input))
        if isinstance(self.scale, int | float) and self.scale == 1:
            return self.apart(x)
        return self.held(self.apart(x * self.multiplier(x.dtype)))

    def _after(self, known: Array, x: Array) -> Array:
        """Have x once more rather than store what was made of it; XLA sees to plain fp32."""
        return x if self.datapath.plain else order_after(known, x)

    def multiplier(self, dtype: Any = jnp.float32) -> Array:
        """1/s. XLA makes it of a division by s anyway, so let it be seen."""
        return 1.0 / jnp.asarray(self.scale, dtype)
