"""The stages that a probe tells apart, their alternatives, and what each makes of its input.

The arithmetic is that of `normlab.numerics`, called one stage at a time.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from normlab.numerics import Accumulator, Datapath, Mean, Root, round_to
from normlab.numerics.eps import EpsForm
from normlab.numerics.exact import divided
from normlab.numerics.root import GUESSED

NARROW = ("fp16", "bf16")
FORMATS = (None, *NARROW)
LANES, BLOCKS, CASCADES = (2, 4, 8, 16, 32, 64, 128), (2, 4, 8, 16, 32, 64), (4, 8, 16)
ENTRIES, MOST_NEWTON = (16, 32, 64, 128, 256), 2
Numbers = Any
"""An array of JAX's or NumPy's."""
WRITTEN = "fp32:pairwise"
"""A sum of which nothing is asked; `fp32` alone would be XLA's own arithmetic."""


class Sum(NamedTuple):
    """How squares are rounded and added."""

    square: str | None
    text: str
    tree: str | None = None

    @property
    def format(self) -> str:
        """Of the adder."""
        return self.text.partition(":")[0]

    @property
    def told(self) -> str:
        """As a report says it."""
        return self.text + (f", tree {self.tree}" if self.tree else "")


class Front(NamedTuple):
    """What becomes of a sum before the row is multiplied, or divided, by it."""

    mean: Mean
    eps: str | None
    form: EpsForm
    root: Root

    @property
    def divides(self) -> bool:
        """Whether the row is divided by the rms."""
        return self.root.kind == "divide"


class Tail(NamedTuple):
    """What becomes of x · 1/rms."""

    product: str | None
    weight: str | None
    cast_first: bool
    output: str | None

    @property
    def path(self) -> Datapath:
        """A datapath of these stages alone."""
        return Datapath(sum=WRITTEN, **self._asdict())


def orders(d: int) -> list[str]:
    """Every order that adds d terms in another way than those before it."""
    wide = {"lanes": LANES, "blocks": BLOCKS, "cascade": CASCADES}
    given = [f"{name}{k}" for name, widths in wide.items() for k in widths if k < d]
    return ["sequential", "pairwise", "exact_then_round", *given]


def sums(format: str, squares: list[str | None], d: int) -> Iterator[Sum]:
    """Every sum in a format."""
    for square, order in product(squares, orders(d)):
        yield Sum(square, f"{format}:{order}")
        if order.startswith("lanes") and format != "fp32":
            yield Sum(square, f"{format}:{order}", "fp32")


def means(d: int) -> list[Mean]:
    """Every way from Σ to its mean."""
    kinds = ("reciprocal", "divide") if d & (d - 1) else ("reciprocal", "divide", "shift")
    return [Mean(kind, form) for kind, form in product(kinds, FORMATS)]


def roots() -> list[Root]:
    """Every root, the plainest first."""
    found = [Root(kind, form) for kind in ("rsqrt", "sqrt", "divide") for form in FORMATS]
    steps = range(MOST_NEWTON + 1)
    for form, newton in product(FORMATS, steps):
        found.append(Root("magic", form, newton=newton))
        found += [
            Root("table", form, entries, line, newton)
            for entries, line in product(ENTRIES, (False, True))
        ]
    return found


def fronts(d: int) -> list[Front]:
    """Every front; a root that makes 1/√(m + ε) at once has ε under it."""
    return [
        Front(mean, eps, form, root)
        for mean, eps, form, root in product(means(d), FORMATS, EpsForm, roots())
        if form is EpsForm.UNDER or root.kind not in GUESSED
    ]


def tails(outputs: Sequence[str | None]) -> list[Tail]:
    """Every tail that ends in one of these formats."""
    return [
        Tail(*said)
        for said in product(FORMATS, FORMATS, (False, True), outputs)
        if said[3] or not said[2]
    ]


def alike(outputs: Sequence[str | None], dtype: str | None) -> list[list[Tail]]:
    """The same in groups that nothing tells apart: each rounds to the same formats in turn.

    `dtype` is a format in which γ is given; None where it is made of what is given.
    """
    groups: dict[tuple, list[Tail]] = {}
    for tail in tails(outputs):
        before = _in_turn(tail.product, tail.output if tail.cast_first else None)
        held = None if tail.weight == dtype else tail.weight
        after = _in_turn(tail.weight, tail.output)
        groups.setdefault((before, held, after), []).append(tail)
    return list(groups.values())


def _in_turn(*formats: str | None) -> tuple[str | None, ...]:
    """Formats without float32, and none twice in a row."""
    return tuple(form for form, _ in groupby(form for form in formats if form))


def held(x: Numbers, to: str | None) -> Array:
    """A stage's result in its format."""
    return jnp.asarray(x, jnp.float32) if to is None else round_to(x, to)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def totals(
    x: Numbers, input: str | None, sum: Sum, mean: Mean, center: bool
) -> tuple[Array, Array]:
    """The row that is normalized [n, d] and its Σ [n, 1]; `mean` matters where μ is taken off."""
    path = Datapath(input=input, square=sum.square, sum=sum.text, tree=sum.tree, mean=mean)
    found = Accumulator(path).statistic(x, center)
    return found.z, found.total


def scalars(total: Numbers, front: Front, eps: Numbers, d: int) -> np.ndarray:
    """1/rms, or the rms that divides, of sums [n, 1]; one operation at a time."""
    mean = held(front.mean.of(total, d), front.mean.format)
    return np.asarray(rooted(mean, front, eps))


def joined(mean: Numbers, eps: Numbers, to: str | None) -> Array:
    """Mean + ε, in the format."""
    return Accumulator(Datapath(sum=WRITTEN, eps=to)).with_eps(mean, eps)


def rooted(mean: Numbers, front: Front, eps: Numbers) -> Array:
    """The same of means."""
    step = functools.partial(held, to=front.eps)
    one = jnp.float32(1)
    return front.form.inverse(mean, eps, one, step, front.root, front.divides)


@functools.partial(jax.jit, static_argnums=(3, 4))
def leaving(z: Numbers, scalar: Numbers, weight: Numbers, tail: Tail, divides: bool) -> Array:
    """The rows that leave [n, d], of rows and their scalars [n, 1]."""
    acc = Accumulator(tail.path)
    y = acc.product(divided(z, scalar) if divides else z * scalar)
    return acc.affine(y, weight, None, jnp.float32)


def datapath(input: str | None, sum: Sum, front: Front, tail: Tail) -> Datapath:
    """The whole, in the words of `normlab.numerics`."""
    return dataclasses.replace(
        tail.path,
        input=input,
        square=sum.square,
        sum=sum.text,
        tree=sum.tree,
        mean=front.mean,
        eps=front.eps,
        root=front.root,
    )
