"""Where a search begins: rows whose sum needs no order, and every stage but the order."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from normlab.numerics import Mean
from normlab.numerics.eps import EpsForm
from normlab.numerics.root import GUESSED
from normlab.probe.interval import inside, interval
from normlab.probe.kernel import Seen
from normlab.probe.observe import Observed
from normlab.probe.rows import READ
from normlab.probe.stages import (
    FORMATS,
    WIDE,
    Front,
    Sum,
    Tail,
    averaged,
    held,
    joined,
    means,
    rooted,
    roots,
    sums,
    wide_means,
    wide_sums,
    with_eps,
)

Total = tuple[str | None, str, str]
"""Of a square and of two of them: the formats of each, of the adder, and of the last add."""
Explained = tuple[Total, Front, Tail]


def beginnings(observed: Observed, seen: Seen, ends: list[Tail], d: int) -> list[Explained]:
    """All that explains most rows whose sum needs no order.

    Every sum of such rows is known but for its rounding. From it each front makes a number for each
    row, and each tail, of those in `ends`, says which numbers the row's outputs allow.
    """
    x = held_input(observed, seen.x)
    scaled = ends[0].parts(d) is not None  # by a scale the places of a block belong together
    columns = np.argsort(x == 0, axis=-1, kind="stable")[:, : d if scaled else READ + 2]
    x, weight, y = (np.take_along_axis(part, columns, -1) for part in (x, seen.weight, seen.y))
    allowed = {
        (tail, divides): interval(x, weight, y, tail, divides)
        for tail, divides in product(ends, (False, True))
    }
    best, kept = 0, list[Explained]()
    for made, fronts in numbers(averages(x, observed, seen.eps, d), seen.eps):
        for tail in ends:
            good = inside(made, allowed[tail, fronts[0][0][1].divides]).sum(-1)
            if good.max() > best:
                best, kept = int(good.max()), []
            for row in np.flatnonzero(good == best):
                kept += [(total, front, tail) for total, front in fronts[row]]
    return kept


def held_input(observed: Observed, x: np.ndarray) -> np.ndarray:
    """Rows as the kernel takes them."""
    return held(x, observed.inputs[0])


def two_terms(x: np.ndarray, input: str | None) -> dict[Total, np.ndarray]:
    """Σ of the two largest elements' squares in every pair of formats, [n, 1] each."""
    columns = np.argsort(-np.abs(x), axis=-1, kind="stable")[:, :2]
    two = np.take_along_axis(x, columns, -1)
    found = {}
    for square, form in product(FORMATS, ("fp32", "fp16", "bf16")):
        if square == form:
            continue  # the adder rounds its terms anyway
        for tree in (form,) if form == "fp32" else (form, "fp32"):
            given = Sum(square, f"{form}:pairwise")
            if tree != form:
                given = Sum(square, f"{form}:lanes2", tree)
            found[square, form, tree] = given.statistic(two, input, means(8)[0], False)[1]
    return found


class Means(NamedTuple):
    """Every mean of every total [m, n, 1] and what it is; and such with ε in one rounding."""

    values: np.ndarray
    names: list[tuple[Total, Mean]]
    fused: np.ndarray
    totals: list[Total]


def averages(x: np.ndarray, observed: Observed, eps: np.ndarray, d: int) -> Means:
    """Those of rows [n, READ + 2]."""
    input = observed.inputs[0]
    found = two_terms(x, input)
    stacked = np.stack(list(found.values()))
    made, names = [], list[tuple[Total, Mean]]()
    for mean in means(d):
        made.append(averaged(stacked, mean, d))
        names += [(total, mean) for total in found]
    wide = () if observed.center else product([*means(d), *wide_means()], FORMATS)
    full = np.concatenate([x, np.zeros((len(x), d - x.shape[-1]), np.float32)], -1)
    for mean, square in wide:
        made.append(wide_sums(square, d)[0].statistic(full, input, mean, False)[1][None])
        names.append(((square, WIDE, WIDE), mean))
    single = [total for total in found if total[1] == "fp32"]
    fused = with_eps(np.stack([found[total] for total in single]), eps, d)
    return Means(np.concatenate(made), names, fused, single)


def numbers(
    average: Means, eps: np.ndarray
) -> Iterator[tuple[np.ndarray, list[list[tuple[Total, Front]]]]]:
    """What the fronts make of the means, and of each row of it what makes it."""
    beside = [joined(average.values, eps, to) for to in FORMATS]
    under = [(total, mean, to, False) for to in FORMATS for total, mean in average.names]
    under += [(total, Mean(), None, True) for total in average.totals]
    alike, names = grouped(np.concatenate([*beside, average.fused]), under)
    for root in roots():
        made = rooted(alike, Front(Mean(), None, EpsForm.UNDER, root), np.float32(0))
        yield (
            made[..., 0],
            [
                [
                    (total, Front(mean, to, EpsForm.UNDER, root, fused))
                    for total, mean, to, fused in group
                ]
                for group in names
            ],
        )
    alike, pairs = grouped(average.values, average.names)
    exact = [root for root in roots() if root.kind not in GUESSED]
    for form, to, root in product((EpsForm.ADDED, EpsForm.FLOOR), FORMATS, exact):
        made = rooted(alike, Front(Mean(), to, form, root), eps)
        yield (
            made[..., 0],
            [[(total, Front(mean, to, form, root)) for total, mean in group] for group in pairs],
        )


def grouped(rows: np.ndarray, names: Sequence[Any]) -> tuple[np.ndarray, list[list[Any]]]:
    """The rows [m, n, 1] that differ, and of each the names that it has."""
    alike, where = np.unique(rows, axis=0, return_inverse=True)
    groups = list[list[Any]]([] for _ in alike)
    for name, place in zip(names, where.ravel(), strict=True):
        groups[place].append(name)
    return alike, groups


def of_total(total: Total, mean: Mean, d: int) -> list[Sum]:
    """Every sum whose squares and adders have these formats; float64's orders come later.

    In rows that need no order float64 is as float32, or as float32's orders that add small first.
    """
    square, form, tree = total
    wide = wide_sums(square, d)[:1]
    if mean.wide:
        return wide
    narrow = "fp32" if form == WIDE else form
    found = [sum for sum in sums(narrow, [square], d) if tree in (form, sum.tree)]
    return wide + found if form == WIDE else found + wide * (form == "fp32")
