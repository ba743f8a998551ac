"""Where ε stands in a norm, and all that follows from it: the one place to change or to add a form.

With m the mean square of a row (or its variance) a norm divides by √(m + ε), by √m + ε, or by
max(√m, ε). A static scale s divides the row, and ε with it: ε/s² under the root, ε/s at the root.
"""

from collections.abc import Callable
from enum import StrEnum

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from normlab.numerics.refusal import DoesNotFit
from normlab.numerics.root import GUESSED, NATIVE, Root
from normlab.registry import unknown

Step = Callable[[Array], Array]
"""What keeps one step of a low-precision sum from being contracted with the next."""


class EpsForm(StrEnum):
    """`norm.eps_form`: ε under the root, added to the root, or the root's least value."""

    UNDER = "under"
    ADDED = "added"
    FLOOR = "floor"

    @classmethod
    def _missing_(cls, value: object) -> "EpsForm":
        raise unknown("form of ε", value, cls)

    @property
    def power(self) -> int:
        """ε of a row c·x that is ε of x, over c^power."""
        match self:
            case EpsForm.UNDER:
                return 2
            case EpsForm.ADDED | EpsForm.FLOOR:
                return 1

    def least_rms(self, eps: float) -> float:
        """The RMS at which ε begins to rule a row."""
        match self:
            case EpsForm.UNDER:
                return eps**0.5
            case EpsForm.ADDED | EpsForm.FLOOR:
                return eps

    @property
    def cap(self) -> float:
        """Times `least_rms`: the largest static scale at which no underflow harms any row.

        See docs/scales.md, "The cap".
        """
        match self:
            case EpsForm.ADDED:
                return float(np.sqrt(2))
            case EpsForm.UNDER | EpsForm.FLOOR:
                return 128.0

    def beside_mean(self, eps: Float[Array, "..."] | float, over: Array) -> Array:
        """What stands beside the mean square of x·`over`: ε·over², or (ε·over)²."""
        match self:
            case EpsForm.UNDER:
                square = over**2  # beyond float32 for a tiny row's scale, though ε·over² is not
                return jnp.where(jnp.isinf(square), (eps * over) * over, eps * square)
            case EpsForm.ADDED | EpsForm.FLOOR:
                return (eps * over) ** 2

    def inverse(
        self,
        mean_square: Float[Array, "*batch 1"],
        eps: Float[Array, "*batch 1"] | float,
        over: Float[Array, "..."],
        held: Step,
        root: Root = NATIVE,
        divides: bool = False,
    ) -> Float[Array, "*batch 1"]:
        """What the row x·`over` is multiplied by; 0 where its mean square is infinite.

        Args:
            mean_square: of the row x·`over`.
            eps: ε.
            over: 1/s.
            held: what ε, and its sum with the mean square, are held as; keeps steps apart.
            root: how 1/√ is made.
            divides: give what the row is divided by instead.
        """
        if self is EpsForm.UNDER:
            square = held(mean_square + held(self.beside_mean(eps, over)))
            return root.whole(square) if divides else root.inverse(square)
        if root.kind in GUESSED:
            raise DoesNotFit(
                f"root.kind = {root.kind!r}: makes 1/√(m + ε), but the norm has ε outside the root "
                f"(eps_form = {str(self)!r}); expected eps_form = 'under', or another kind of root"
            )
        zero = mean_square == 0  # where √ has no derivative; a row of zeros gets 0
        size = jnp.where(zero, 0.0, root.whole(jnp.where(zero, 1.0, mean_square)))
        least = held(eps * over)
        match self:
            case EpsForm.ADDED:
                divisor = held(size + least)
            case EpsForm.FLOOR:
                divisor = jnp.maximum(size, least)
        return divisor if divides else root.reciprocal(divisor)

    def loses(
        self,
        total: Float[Array, "*batch 1"],
        lost: Float[Array, "*batch 1"],
        beside: Float[Array, "..."],
        unit: float,
    ) -> Bool[Array, "*batch 1"]:
        """Where it costs more than one rounding that a sum of squares is short of `lost`.

        Args:
            total: Σ.
            lost: the most that underflow takes from it.
            beside: d times `beside_mean`.
            unit: half the distance from 1 to the next value of the format.
        """
        match self:
            case EpsForm.UNDER:
                return lost > unit * (total + beside)
            case EpsForm.FLOOR:
                return lost > unit * jnp.maximum(total, beside)
            case EpsForm.ADDED:  # √Σ − √(Σ − lost) without a difference of roots
                root, left = jnp.sqrt(total), jnp.sqrt(total - lost)
                return 2 * lost > unit * (root + jnp.sqrt(beside)) * (root + left)

    def divisor(self, mean_square: np.ndarray, eps: float) -> np.ndarray:
        """What a row is divided by, in float64."""
        match self:
            case EpsForm.UNDER:
                return np.sqrt(mean_square + eps)
            case EpsForm.ADDED:
                return np.sqrt(mean_square) + eps
            case EpsForm.FLOOR:
                return np.maximum(np.sqrt(mean_square), eps)
