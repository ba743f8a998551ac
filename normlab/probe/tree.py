"""The tree of a sum that is none of our orders, learned from what a large square absorbs.

FPRev (arXiv:2411.00442) learns a tree from a number and its negative that swamp what was added
before they cancel. Squares never cancel. Here one large square stands beside two, each of which it
absorbs: only where those two meet first does their sum survive. That says which two of three terms
meet first, and so everything. The difference is one unit in the last place of the sum, which an
element aimed at a boundary of the output's format shows.

Of a norm that takes the mean off, Σx is learned: there a number and its negative do cancel. A small
one beside them is left where those two meet first, and shows as the mean in an element that is 0.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from normlab.probe.explain import Arithmetic
from normlab.probe.kernel import BITS
from normlab.probe.merges import Learned, Merges
from normlab.probe.observe import rounded
from normlab.probe.rows import NEGLIGIBLE
from normlab.probe.stages import leaving, scalars

if TYPE_CHECKING:
    from normlab.probe.search import Search

TRIED, BATCH, MOST, EPS = 256, 512, 1024, 1e-5
"""Large elements and small ones that are tried, rows in a call, the widest row, and ε."""
CANCELLED, CENTRED_WEIGHT = (2.0**14, 2.0**-14), 2.0**14
"""What cancels and what is left, which any float32 sum absorbs; γ keeps that in range of halves."""


class Gauge(NamedTuple):
    """A large element, a small one, and one to read from with its γ; what that gives alone."""

    large: float
    small: float
    read: float
    weight: float
    alone: float


Meet = Callable[..., np.ndarray]
"""Whether the terms `one` and `other` meet before either meets `pivot`, given first: [n]."""


def learned(search: "Search", a: Arithmetic) -> Learned | None:
    """The tree of the adder that this arithmetic has; None where nothing shows it."""
    d = search.kernel.d
    if d > MOST or a.tail.parts(d) is not None:
        return None
    if search.observed.center:
        meet = partial(left_over, search)
        if meet(np.arange(3), np.array([1, 2, 0]), np.array([2, 0, 1])).sum() != 1:
            return None  # of three terms two meet first
        return Learned(None, "fp32", tree(meet, d))
    gauge = gauged(search, a)
    if gauge is None or met(search, gauge, *same_length(1, 1, np.array([1])))[0]:
        return None  # the large one alone already gives something else
    return Learned(a.sum.square, a.sum.format, tree(partial(met, search, gauge), d))


def tree(meet: Meet, d: int) -> Merges:
    """The tree over d terms."""
    merges: list[tuple[int, int]] = []

    def build(leaves: list[int]) -> int:
        pivot, rest = leaves[0], leaves[1:]
        groups = []
        while rest:
            first, others = rest[0], np.array(rest[1:], int)
            together = meet(*same_length(pivot, first, others))
            groups.append([first, *others[together].tolist()])
            rest = others[~together].tolist()
        node = pivot
        for group in in_order(pivot, groups):
            below = build(group)
            merges.append((node, below))
            node = d + len(merges) - 1
        return node

    def in_order(pivot: int, groups: list[list[int]]) -> list[list[int]]:
        """Those that meet the pivot first come first."""
        firsts = np.array([group[0] for group in groups], int)
        one, other = np.triu_indices(len(groups), 1)
        before = meet(*same_length(firsts[other], pivot, firsts[one]))
        late = np.zeros(len(groups), int)
        np.add.at(late, np.where(before, other, one), 1)
        return [groups[i] for i in np.argsort(late, kind="stable")]

    build(list(range(d)))
    return tuple(merges)


def same_length(*parts: np.ndarray | int) -> list[np.ndarray]:
    """Places as arrays of one length."""
    return [np.asarray(part) for part in np.broadcast_arrays(*parts)]


def gauged(search: "Search", a: Arithmetic) -> Gauge | None:
    """Elements by which a unit in the last place of the sum shows in an output."""
    kernel, rng = search.kernel, search.rng
    bits = BITS[a.sum.format]
    large = rounded(8 * rng.uniform(1, 2, TRIED), "bf16")[:, None]  # its square is exact
    unit = np.exp2(np.floor(np.log2(np.square(large, dtype=float))) - bits + 1)
    small = kernel.cast(np.sqrt(0.4 * unit))
    alone = rounded(large * large, a.sum.format).astype(np.float32)
    after = (alone + unit).astype(np.float32)
    eps = np.full((TRIED, 1), EPS, np.float32)
    ends = [scalars(total, a.front, eps, kernel.d) for total in (alone, after)]
    read = kernel.cast(8 * NEGLIGIBLE * rng.uniform(1, 2, (TRIED, 1024)))
    plus = np.float32(search.observed.one_plus)
    weight = kernel.cast(rng.uniform(0, 1, (TRIED, 1024)) + 1 - plus) + plus
    made = [leaving(read, end, weight, a.tail, a.front.divides) for end in ends]
    seen = np.argwhere(made[0] != made[1])
    if not len(seen):
        return None
    row, column = seen[0]
    of = large[row, 0], small[row, 0], read[row, column], weight[row, column], made[0][row, column]
    return Gauge(*map(float, of))


def met(
    search: "Search", gauge: Gauge, large: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Whether the terms `one` and `other` meet before either meets `large`: [n]."""
    stored = np.full(search.kernel.d, gauge.weight - search.observed.one_plus, np.float32)
    sizes = gauge.large, gauge.small, gauge.small, gauge.read
    y = read(search, stored, [large, one, other], sizes)
    return y != np.float32(gauge.alone)


def left_over(
    search: "Search", small: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """The same of Σx: whether the small one is left where a number and its negative cancel."""
    stored = np.full(search.kernel.d, CENTRED_WEIGHT - search.observed.one_plus, np.float32)
    y = read(search, stored, [small, one, other], (CANCELLED[1], CANCELLED[0], -CANCELLED[0], 0))
    return y != 0


def read(
    search: "Search",
    stored: np.ndarray,
    taken: list[np.ndarray],
    sizes: tuple[float, float, float, float],
) -> np.ndarray:
    """Of rows with three elements of these sizes what leaves at a fourth place, [n]."""
    found = np.zeros(len(taken[0]), np.float32)
    for start in range(0, len(found), BATCH):
        places = [part[start : start + BATCH] for part in taken]
        every = np.arange(len(places[0]))
        x = np.zeros((BATCH, search.kernel.d), np.float32)
        free = (np.stack(places, -1)[:, :, None] != np.arange(4)).all(1).argmax(-1)
        x[every, free] = sizes[3]
        for place, value in zip(places[::-1], sizes[2::-1], strict=True):
            x[every, place] = value
        y = search.kernel(x, stored, EPS)
        found[start : start + BATCH] = y[every, free]
    return found
