"""Range counts, made beside a norm: an accumulator that also notes what it was asked for."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from normlab.numerics.accumulator import Accumulator, Statistic
from normlab.numerics.eps import EpsForm
from normlab.numerics.formats import as_format, round_to
from normlab.numerics.range_counts import RangeCounts
from normlab.numerics.stage_counts import StageCounts, stage_format


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A statistic, by whom it was accumulated, and the ε that joined it, if any yet."""

    acc: Accumulator
    statistic: Statistic
    beside: Array | None = None  # ε/s², or (ε/s)²: what stands beside the mean square
    form: EpsForm = EpsForm.UNDER


class RangeRecorder(Accumulator):
    """An accumulator with the same bits that knows afterwards which rows it was given.

    Make one for one call of a norm, inside the traced function: what it notes are tracers.
    """

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.seen: list[_Seen] = []  # shared with what `scaled_by` makes
        self.stages: dict[str, StageCounts] = {}
        self._rows: list[tuple[Array, tuple[int, ...]]] = []  # where not of zeros; their shape

    def noted(self, stage: str, x: Array) -> Array:
        """`x`; of a datapath its largest value is kept, and which rows left the format."""
        if not self.datapath.stages:
            return x
        if stage == "input":
            self._rows[:] = [(jnp.any(x != 0, axis=-1, keepdims=True), x.shape)]
        to = stage_format(self.datapath, stage)
        held = round_to(self.apart(x * x), to) if stage == "square" else x
        if self._rows and held.shape[:-1] == self._rows[0][1][:-1]:
            counts = StageCounts.of(held, self._rows[0][0], to, self._rows[0][1])
            before = self.stages.get(stage)
            self.stages[stage] = counts if before is None else before + counts
        return x

    def statistic(self, *given: Any, **named: Any) -> Statistic:
        """As it is, and noted."""
        found = super().statistic(*given, **named)
        self.seen.append(_Seen(self, found))
        return found

    def _root(
        self, mean_square: Array, eps: float | Array, form: EpsForm, divides: bool = False
    ) -> Array:
        """As it is; ε belongs to the statistic noted last, if that is a sum of squares."""
        if self.seen and self.seen[-1].beside is None and self.seen[-1].statistic.power == 2:
            beside = EpsForm(form).beside_mean(eps, self.multiplier(mean_square.dtype))
            self.seen[-1] = dataclasses.replace(self.seen[-1], beside=beside, form=EpsForm(form))
        return super()._root(mean_square, eps, form, divides)

    def counts(self) -> RangeCounts:
        """Of all rows noted so far."""
        found = RangeCounts.nothing()
        for seen in self.seen:
            found = found + _counts(seen)
        return dataclasses.replace(found, stages=dict(self.stages))


def _counts(seen: _Seen) -> RangeCounts:
    """Of one statistic.

    A row is not of zeros where float32 tells it from its mean, whatever the unit made of it.
    """
    acc, s = seen.acc, seen.statistic
    x, to, terms = s.x, acc.precision.format, acc.terms(s.x)
    from_mean = x - jnp.mean(x, axis=-1, keepdims=True) if s.centred else x
    whole = jnp.sum(jnp.abs(from_mean) ** s.power, axis=-1, keepdims=True)
    exact = whole * acc.multiplier() ** s.power * (terms / x.shape[-1])
    size, left = (jnp.max(jnp.abs(r), axis=-1, keepdims=True) for r in (x, from_mean))
    square = jnp.sum((from_mean if s.row is None else s.row) ** 2, axis=-1, keepdims=True)
    sums = jnp.concatenate(s.sums, axis=-1)
    last = to if acc.datapath.tree is None else as_format(acc.datapath.tree)
    saturated = jnp.abs(sums) >= last.max if last.overflow == "saturate" else False
    counts = RangeCounts.of_rows(
        x,
        square,
        exact,
        s.total,
        lost=jnp.any(~jnp.isfinite(sums) | saturated, axis=-1),
        filled=left > 2.0**-20 * size,
        to=to,
    )
    if seen.beside is None:
        return counts
    return counts.with_eps(exact, terms * seen.beside, x.shape[-1], to, seen.form)
