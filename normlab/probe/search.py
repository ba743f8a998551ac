"""The search: from rows that need no order to every order, and to rows that tell the rest apart."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from normlab.numerics import Mean, Root
from normlab.numerics.eps import EpsForm
from normlab.probe.beginnings import beginnings, of_total
from normlab.probe.explain import Arithmetic, Rows
from normlab.probe.finding import Finding, finding
from normlab.probe.kernel import Function, Kernel, Seen
from normlab.probe.merges import VARIANCES, Learned
from normlab.probe.observe import observe
from normlab.probe.refine import asked, refined
from normlab.probe.rows import Design
from normlab.probe.stages import (
    APART,
    FUSED,
    WELFORD,
    WIDE,
    WRITTEN,
    Front,
    Sum,
    Tail,
    alike,
    wide_sums,
)
from normlab.probe.stepped import stepped
from normlab.probe.tree import learned

EPS = (1e-5, 1e-2, 0.3, 2.0)
SPIKES, DENSE, FEW = 64, 384, 24
"""Rows without an order for each ε; rows with one, and those that are looked at first."""
BOUNDS = {"fp16": (2, 7), "bf16": (-3, 7), "fp32": (-3, 7)}
"""Exponents of a large element beside which a negligible one is no subnormal number."""
DENSE_BOUNDS = (-3, 3)


def probe(
    f: Function | Kernel, d: int = 768, dtype: str = "fp32", seed: int = 0, name: str = "kernel"
) -> Finding:
    """Find the arithmetic of a norm by what it makes of rows.

    Args:
        f: f(x, weight, eps): rows [n, d] and γ [d] in NumPy, of the dtype; gives rows.
        d: the width.
        dtype: fp32, fp16 or bf16.
        seed: of the rows.
        name: what the report calls it.
    """
    kernel = f if isinstance(f, Kernel) else Kernel(f, d, dtype, name)
    return Search(kernel, np.random.default_rng(seed)).run()


class Search:
    """One kernel, what was seen of it, and what makes more rows."""

    def __init__(self, kernel: Kernel, rng: np.random.Generator):
        self.kernel, self.rng = kernel, rng
        self.observed = observe(kernel, Design(kernel.d, rng))
        kernel.batch = self.observed.together
        self.design = Design(kernel.d, rng, self.observed.center)

    def run(self) -> Finding:
        """The whole search."""
        d = self.kernel.d
        groups = alike(self.observed.outputs, None if self.observed.one_plus else self.kernel.dtype)
        ends = [group[0] for group in groups]
        self.groups = {group[0]: group for group in groups}
        spikes = self.asked(self.spikes())
        every = beginnings(self.observed, spikes, ends, d)
        input = self.observed.inputs[0]
        left = [
            Arithmetic(input, of_total(total, front.mean, d)[0], front, tail)
            for total, front, tail in every
        ]
        starts = self.refined(left, self.spikes)
        left = self.ordered(starts)
        found = finding(self, self.ended(left))
        if found.exact or not (own := self.with_tree(starts)):
            return found
        dense = self.asked(self.dense())
        few = Rows(self.observed, dense[:FEW]).best(own)  # of thousands
        best = Rows(self.observed, dense).best(few)
        return max(found, finding(self, self.ended(best)), key=lambda found: found.share)

    def with_tree(self, starts: list[Arithmetic]) -> list[Arithmetic]:
        """All with a sum that is learned; none where nothing shows it."""
        d, center = self.kernel.d, self.observed.center
        narrow = [
            a._replace(sum=Sum(a.sum.square, "fp32:sequential")) if a.sum.format == WIDE else a
            for a in starts
            if not a.front.mean.wide
        ]
        tree = learned(self, narrow[0]) if narrow else None
        if tree is None:
            return []
        if center:
            found = [
                a._replace(sum=sum) for sum in variances(tree) for a in self.compiled(means(d))
            ]
            shared = [a for a in found if a.front.mean == Mean() or not needs_share(a)]
            return [a for a in shared if a.possible]
        same = [a for a in narrow if same_adder(a, narrow[0])]
        return [a._replace(sum=sum) for sum in squares(tree) for a in same]

    def ended(self, left: list[Arithmetic]) -> list[Arithmetic]:
        """Less of what rows with a sum in an order tell apart, float64's own orders at last."""
        left = self.refined(left, partial(self.half, left[0]))
        d, wide = self.kernel.d, any(a.sum.format == WIDE for a in left)
        if not wide:
            return left
        orders = {a: wide_sums(a.sum.square, d) if a.sum.format == WIDE else [a.sum] for a in left}
        left = list(dict.fromkeys(a._replace(sum=sum) for a in left for sum in orders[a]))
        return self.refined(left, self.ties)

    def ordered(self, left: list[Arithmetic]) -> list[Arithmetic]:
        """Each with the orders that explain most rows; where a mean is taken off, Welford's too."""
        totals = [(a.sum.square, a.sum.format, a.sum.tree or a.sum.format) for a in left]
        wide = [
            a._replace(sum=sum)
            for a, t in zip(left, totals, strict=True)
            for sum in self.sums(of_total(t, a.front.mean, self.kernel.d))
        ]
        if self.observed.center:
            welford = [Sum(None, WRITTEN, None, text) for text in WELFORD]
            wide += [a._replace(sum=sum) for sum in welford for a in self.compiled([Mean()])]
        wide = [a for a in dict.fromkeys(wide) if a.possible]
        return Rows(self.observed, self.asked(self.dense())).best(wide)

    def sums(self, found: list[Sum]) -> list[Sum]:
        """Every order; of a variance also in one pass."""
        if not self.observed.center:
            return found
        found = [sum for sum in found if sum.format != WIDE]
        return found + [sum._replace(text=f"{sum.text}.onepass") for sum in found]

    def compiled(self, means: list[Mean]) -> list[Arithmetic]:
        """Norms that take the mean off as libraries compile them: float32 up to one or two casts.

        Their sums are to be replaced.
        """
        plain = [tail for tail in self.groups if tail.product is None]
        both = product(self.observed.outputs, (FUSED, APART))
        ends = plain + [Tail(None, None, False, output, way) for output, way in both]
        roots = [Root(kind) for kind in ("sqrt", "rsqrt", "divide")]
        fronts = [
            Front(mean, None, EpsForm.UNDER, root, fused)
            for mean, root, fused in product(means, roots, (False, True))
            if mean == Mean() or not fused
        ]
        return [
            Arithmetic(self.observed.inputs[0], Sum(None, WRITTEN), front, tail)
            for front, tail in product(fronts, ends)
            if not (front.divides and tail.way in (FUSED, APART))
        ]

    def like(self, tail: Tail) -> list[Tail]:
        """What nothing tells from it, itself included."""
        return self.groups.get(tail, [tail])

    def refined(self, left: list[Arithmetic], pool: Callable[[], Seen]) -> list[Arithmetic]:
        """Less of what rows of the pool tell apart."""
        return refined(self.kernel, self.observed, left, pool, self.rng)

    def asked(self, rows: Seen) -> Seen:
        """What the kernel makes of rows."""
        return asked(self.kernel, self.observed, rows)

    def given(self, x: np.ndarray, eps: tuple[float, ...]) -> Seen:
        """Rows with one γ and each ε for an equal share of them."""
        x = self.kernel.cast(x)
        stored = self.kernel.cast(self.rng.normal(1, 0.5, x.shape[-1]))
        weight = np.broadcast_to(stored + np.float32(self.observed.one_plus), x.shape)
        all_eps = np.repeat(np.array(eps, np.float32), -(-len(x) // len(eps)))[: len(x), None]
        return Seen(x, weight, all_eps, np.zeros_like(x))

    def spikes(self) -> Seen:
        """Rows whose sum needs no order; half of them with elements to read 1/rms from."""
        low, high = BOUNDS[self.kernel.dtype]
        read = self.design.read(self.design.spikes(2 * SPIKES, low, high))
        x = np.stack([read, self.design.spikes(2 * SPIKES, -8, 9)], 1).reshape(-1, self.kernel.d)
        return self.given(x, EPS)

    def half(self, a: Arithmetic) -> Seen:
        """Rows with elements to read 1/rms from; whose orders differ most; at a step of 1/rms."""
        makers = (self.design.half, self.design.swamped, self.design.swamped)
        x = [make(DENSE // 3, *DENSE_BOUNDS) for make in makers]
        if not self.observed.center:
            x[2] = stepped(x[2], a.sum.square, a.front, EPS[0], self.kernel.cast)
        return self.mixed(x, EPS[:1])

    def ties(self) -> Seen:
        """Rows whose sum lies between two float32: there float64's orders show."""
        return self.given(self.design.ties(DENSE, *BOUNDS[self.kernel.dtype]), EPS)

    def dense(self) -> Seen:
        """Rows with a sum in an order."""
        makers = (self.design.dense, self.design.half, self.design.swamped)
        return self.mixed([make(DENSE // 3, *DENSE_BOUNDS) for make in makers], EPS[:2])

    def mixed(self, parts: list[np.ndarray], eps: tuple[float, ...]) -> Seen:
        """Rows of all kinds, in an order of its own."""
        return self.given(self.rng.permutation(np.concatenate(parts)), eps)


def same_adder(a: Arithmetic, other: Arithmetic) -> bool:
    """Whether squares and adds have the same formats."""
    return (a.sum.square, a.sum.format) == (other.sum.square, other.sum.format)


def means(d: int) -> list[Mean]:
    """Those of float32."""
    return [Mean(kind) for kind in ("reciprocal", "divide")[: 2 if d & (d - 1) else 1]]


def squares(tree: Learned) -> list[Learned]:
    """The same tree, with squares that are rounded, and that are not."""
    plain = tree.square is None and tree.format == "fp32"
    return [tree._replace(fused=fused) for fused in ("", "later", "earlier")[: 3 if plain else 1]]


def variances(tree: Learned) -> list[Learned]:
    """The same tree for both sums of a norm that takes the mean off."""
    return [
        sum._replace(variance=variance, away=away)
        for sum, variance, away in product(squares(tree), (None, *VARIANCES), (False, True))
    ]


def needs_share(a: Arithmetic) -> bool:
    """Whether it has a product with 1/d that is fused with what follows."""
    shared = (a.sum.variance or "").startswith("shared")
    return shared or a.front.fused or (isinstance(a.sum, Learned) and a.sum.away)
