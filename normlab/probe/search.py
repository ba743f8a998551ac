"""The search: from rows that need no order to every order, and to rows that tell the rest apart."""

from collections.abc import Callable
from functools import partial

import numpy as np

from normlab.probe.beginnings import Total, beginnings, of_total
from normlab.probe.explain import Arithmetic, Rows
from normlab.probe.finding import Finding, finding
from normlab.probe.kernel import Function, Kernel, Seen
from normlab.probe.observe import observe
from normlab.probe.refine import asked, refined
from normlab.probe.rows import Design
from normlab.probe.stages import Sum, alike
from normlab.probe.stepped import stepped
from normlab.probe.tree import learned

EPS = (1e-5, 1e-2, 0.3, 2.0)
SPIKES, DENSE = 64, 384
"""Rows without an order for each ε; rows with one."""
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
        self.design = Design(kernel.d, rng, self.observed.center)

    def run(self) -> Finding:
        """The whole search."""
        d = self.kernel.d
        groups = alike(self.observed.outputs, None if self.observed.one_plus else self.kernel.dtype)
        ends = [group[0] for group in groups]
        spikes = self.asked(self.spikes())
        every = beginnings(self.observed, spikes, ends, d)
        input = self.observed.inputs[0]
        left = [Arithmetic(input, of_total(t, d)[0], front, tail) for t, front, tail in every]
        self.groups = {group[0]: group for group in groups}
        starts = self.refined(left, self.spikes)
        left = self.ordered(starts)
        found = finding(self, self.refined(left, partial(self.half, left[0])))
        if found.exact or (tree := learned(self, starts[0])) is None:
            return found
        own = [a._replace(sum=tree) for a in starts if same_adder(a, starts[0])]
        best = Rows(self.observed, self.asked(self.dense())).best(own)
        return max(found, finding(self, best), key=lambda found: found.share)

    def ordered(self, left: list[Arithmetic]) -> list[Arithmetic]:
        """Each with the orders that explain most rows."""
        totals = [(a.sum.square, a.sum.format, a.sum.tree or a.sum.format) for a in left]
        every = {total: self.sums(total) for total in totals}
        wide = [a._replace(sum=sum) for a, t in zip(left, totals, strict=True) for sum in every[t]]
        return Rows(self.observed, self.asked(self.dense())).best(wide)

    def sums(self, total: Total) -> list[Sum]:
        """Every order; of a variance also in one pass."""
        found = of_total(total, self.kernel.d)
        once = [sum._replace(text=f"{sum.text}.onepass") for sum in found]
        return found + once * self.observed.center

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
