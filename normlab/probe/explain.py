"""Which arithmetics explain which rows."""

from typing import NamedTuple

import numpy as np

from normlab.numerics import Datapath, Mean
from normlab.probe.interval import interval
from normlab.probe.kernel import Seen
from normlab.probe.merges import Learned
from normlab.probe.observe import Observed
from normlab.probe.stages import Front, Sum, Tail, datapath, held, leaving, scalars, totals


class Arithmetic(NamedTuple):
    """One arithmetic: every stage."""

    input: str | None
    sum: Sum | Learned
    front: Front
    tail: Tail

    @property
    def path(self) -> Datapath:
        """In the words of `normlab.numerics`, which have no learned tree: pairwise stands there."""
        sum = self.sum
        if isinstance(sum, Learned):
            sum = Sum(sum.square, f"{sum.format}:pairwise")
        return datapath(self.input, sum, self.front, self.tail)


class Rows:
    """Some rows, the sums that arithmetics make of them, and what their outputs allow."""

    def __init__(self, observed: Observed, seen: Seen):
        self.observed, self.seen = observed, seen
        self._totals = dict[tuple, tuple[np.ndarray, np.ndarray]]()
        self._numbers = dict[tuple, np.ndarray]()
        self._limits = dict[tuple, tuple[np.ndarray, np.ndarray]]()

    def _key(self, a: Arithmetic) -> tuple:
        return a.input, a.sum, a.front.mean if self.observed.center else Mean()

    def totals(self, a: Arithmetic) -> tuple[np.ndarray, np.ndarray]:
        """The row that is normalized [n, d], and its Σ [n, 1]."""
        key = self._key(a)
        if key not in self._totals:
            if isinstance(a.sum, Learned):
                z = held(self.seen.x, a.input)
                made = z, a.sum.total(np.asarray(z))
            else:
                made = totals(self.seen.x, a.input, a.sum, key[2], self.observed.center)
            self._totals[key] = np.asarray(made[0]), np.asarray(made[1])
        return self._totals[key]

    def numbers(self, a: Arithmetic) -> np.ndarray:
        """What each row is multiplied, or divided, by: [n, 1]."""
        key = *self._key(a), a.front
        if key not in self._numbers:
            total = self.totals(a)[1]
            self._numbers[key] = scalars(total, a.front, self.seen.eps, self.seen.x.shape[-1])
        return self._numbers[key]

    def explained(self, a: Arithmetic) -> np.ndarray:
        """Whether the number lies where the row's outputs allow it: [n]."""
        key = self._key(a) if self.observed.center else None, a.tail, a.front.divides
        if key not in self._limits:
            z = self.totals(a)[0]
            self._limits[key] = interval(z, self.seen.weight, self.seen.y, a.tail, a.front.divides)
        low, high = self._limits[key]
        number = self.numbers(a)[:, 0]
        return (low <= number) & (number <= high)

    def predicted(self, a: Arithmetic) -> np.ndarray:
        """The rows that leave: [n, d]."""
        z, _ = self.totals(a)
        made = leaving(z, self.numbers(a), self.seen.weight, a.tail, a.front.divides)
        return np.asarray(made)

    def best(self, left: list[Arithmetic]) -> list[Arithmetic]:
        """Those that explain most of the rows."""
        counts = [int(self.explained(a).sum()) for a in left]
        return [a for a, count in zip(left, counts, strict=True) if count == max(counts)]
