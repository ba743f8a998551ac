"""Which arithmetics explain which rows."""

from typing import NamedTuple

import numpy as np

from normlab.numerics import Datapath, Mean
from normlab.probe.interval import inside, interval
from normlab.probe.kernel import Seen
from normlab.probe.merges import Learned
from normlab.probe.observe import Observed, same
from normlab.probe.stages import (
    APART,
    FUSED,
    Front,
    Sum,
    Tail,
    datapath,
    held,
    leaving,
    rooted,
    scalars,
)


class Arithmetic(NamedTuple):
    """One arithmetic: every stage."""

    input: str | None
    sum: Sum | Learned
    front: Front
    tail: Tail

    @property
    def path(self) -> Datapath:
        """In the words of `normlab.numerics`, as far as they go: pairwise stands for a tree."""
        sum = self.sum
        if isinstance(sum, Learned):
            sum = Sum(sum.square, f"{sum.format}:pairwise")
        return datapath(self.input, sum, self.front, self.tail)

    @property
    def possible(self) -> bool:
        """Whether a sum that is to be fused with ε is there to be."""
        return not (self.front.fused and self.sum.averaged)

    @property
    def has_words(self) -> bool:
        """Whether `path` is the whole of it: no learned tree, no way that a datapath lacks."""
        fused = self.tail.way == FUSED and self.sum.variance is not None
        known = isinstance(self.sum, Sum) and not self.front.fused
        return known and (not self.tail.way or fused)


class Rows:
    """Some rows, the sums that arithmetics make of them, and what their outputs allow."""

    def __init__(self, observed: Observed, seen: Seen):
        self.observed, self.seen = observed, seen
        self._statistics = dict[tuple, tuple[np.ndarray, np.ndarray, np.ndarray | None]]()
        self._numbers = dict[tuple, np.ndarray]()
        self._limits = dict[tuple, tuple[np.ndarray, np.ndarray]]()

    def _key(self, a: Arithmetic) -> tuple:
        apart = self.observed.center or a.sum.averaged
        return a.input, a.sum, a.front.mean if apart else Mean()

    def statistic(self, a: Arithmetic) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """See `Sum.statistic`."""
        key = self._key(a)
        if key not in self._statistics:
            made = a.sum.statistic(self.seen.x, a.input, key[2], self.observed.center)
            self._statistics[key] = made
        return self._statistics[key]

    def numbers(self, a: Arithmetic) -> np.ndarray:
        """What each row is multiplied, or divided, by: [n, 1]."""
        key = *self._key(a), a.front
        if key not in self._numbers:
            total, eps = self.statistic(a)[1], self.seen.eps
            if a.sum.averaged:
                self._numbers[key] = rooted(total, a.front, eps)
            else:
                self._numbers[key] = scalars(total, a.front, eps, self.seen.x.shape[-1])
        return self._numbers[key]

    def explained(self, a: Arithmetic) -> np.ndarray:
        """Whether the number lies where the row's outputs allow it: [n].

        Where each arithmetic has a row of its own to normalize, or outputs have 8 bits and a scale,
        whether it predicts the outputs.
        """
        scaled = a.tail.parts(self.seen.x.shape[-1]) is not None
        if scaled or a.tail.way in (FUSED, APART) or (self.observed.center and self._at_once(a)):
            told = np.isfinite(self.seen.y).all(-1)
            return np.asarray(same(self.predicted(a), self.seen.y).all(-1) | ~told)
        key = self._key(a) if self.observed.center else None, a.tail, a.front.divides
        if key not in self._limits:
            z = self.statistic(a)[0]
            self._limits[key] = interval(z, self.seen.weight, self.seen.y, a.tail, a.front.divides)
        return inside(self.numbers(a)[:, 0], self._limits[key])

    def _at_once(self, a: Arithmetic) -> bool:
        return a.sum.variance is not None or isinstance(a.sum, Learned)

    def predicted(self, a: Arithmetic) -> np.ndarray:
        """The rows that leave: [n, d]."""
        z, _, middle = self.statistic(a)
        number, weight = self.numbers(a), self.seen.weight
        if a.tail.way not in (FUSED, APART):
            return leaving(z, number, weight, a.tail, a.front.divides)
        whole = held(self.seen.x, a.input)
        return leaving(whole, number, weight, a.tail, False, middle)

    def best(self, left: list[Arithmetic]) -> list[Arithmetic]:
        """Those that explain most of the rows."""
        counts = [int(self.explained(a).sum()) for a in left]
        return [a for a, count in zip(left, counts, strict=True) if count == max(counts)]
