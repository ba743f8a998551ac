"""The stages that a probe tells apart, their alternatives, and what each makes of its input.

The arithmetic is that of `normlab.numerics`, called one stage at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from normlab.numerics import Accumulator, Datapath, Mean, Root, round_to
from normlab.numerics.eps import EpsForm
from normlab.numerics.exact import divided, fma, no_contract
from normlab.numerics.output import Output
from normlab.numerics.root import GUESSED

NARROW = ("fp16", "bf16")
FORMATS = (None, *NARROW)
LANES, BLOCKS, CASCADES = (2, 4, 8, 16, 32, 64, 128), (2, 4, 8, 16, 32, 64), (4, 8, 16)
ENTRIES, MOST_NEWTON = (16, 32, 64, 128, 256), 2
Numbers = Any
"""An array of JAX's or NumPy's."""
SIZE, ROWS = 1024, 384
"""The fewest elements of a call, and a call's rows."""
WRITTEN = "fp32:pairwise"
"""A sum of which nothing is asked; `fp32` alone would be XLA's own arithmetic."""
WIDE = "fp64"
WELFORD = tuple(f"welford{k}{turns}" for k in (4, 8, 16) for turns in ("", "x2"))
JOINED, FUSED, APART = "joined", "fused", "apart"
"""How a row meets γ and 1/rms, if not one by one: x·(γ/rms), fma(x, r, −μr), x·r − μ·r."""


def in_few_sizes(stage: Callable[..., Numbers]) -> Callable[..., np.ndarray]:
    """A stage of elements alone, called with arrays of few sizes: each size is compiled.

    Its arrays are broadcast against each other; what it makes has their shape.
    """

    @functools.wraps(stage)
    def sized(*given: Any) -> np.ndarray:
        is_array = [isinstance(a, np.ndarray | np.generic | Array) for a in given]
        arrays = np.broadcast_arrays(
            *(a for a, is_one in zip(given, is_array, strict=True) if is_one)
        )
        shape, size = arrays[0].shape, arrays[0].size
        full = max(SIZE, 4 ** -(-(size - 1).bit_length() // 2))
        flat = iter([np.concatenate([a.ravel(), np.ones(full - size, a.dtype)]) for a in arrays])
        made = stage(
            *(next(flat) if is_one else a for a, is_one in zip(given, is_array, strict=True))
        )
        return np.asarray(made)[:size].reshape(shape)

    return sized


def in_whole_rows(x: np.ndarray) -> np.ndarray:
    """The same rows [n, d], then ones, up to a multiple of ROWS: one size is compiled, or two."""
    return np.concatenate([x, np.ones((-len(x) % ROWS, x.shape[-1]), x.dtype)])


class Sum(NamedTuple):
    """How squares are rounded and added; or by which updates a variance is made at once."""

    square: str | None
    text: str
    tree: str | None = None
    variance: str | None = None

    @property
    def format(self) -> str:
        """Of the adder."""
        return self.text.partition(":")[0]

    @property
    def told(self) -> str:
        """As a report says it."""
        return self.variance or self.text + (f", tree {self.tree}" if self.tree else "")

    @property
    def averaged(self) -> bool:
        """Whether the mean is made with the sum."""
        return self.format == WIDE or self.variance is not None

    def statistic(
        self, x: np.ndarray, input: str | None, mean: Mean, center: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of rows [n, d] what is normalized, their Σ [n, 1], and the mean that was taken off.

        The mean in place of Σ, where it is `averaged`.
        """
        z = held(x, input)
        if self.format == WIDE:
            squares = np.asarray(held(np.square(z), self.square), float)
            return z, wide_mean(wide_sum(squares, self.text.partition(":")[2]), mean, z), None
        z, total, mean_square, middle = statistic(in_whole_rows(z), self, mean, center)
        total = total if self.variance is None else mean_square
        z, total = np.asarray(z)[: len(x)], np.asarray(total)[: len(x)]
        return z, total, None if middle is None else np.asarray(middle)[: len(x)]


class Front(NamedTuple):
    """What becomes of a sum before the row is multiplied, or divided, by it.

    Where it is `fused`, Σ · round(1/d) + ε rounds once, in float32.
    """

    mean: Mean
    eps: str | None
    form: EpsForm
    root: Root
    fused: bool = False

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
    way: str = ""

    @property
    def path(self) -> Datapath:
        """A datapath of these stages alone."""
        stages = self._asdict()
        del stages["way"]
        return Datapath(sum=WRITTEN, **stages)

    @property
    def by_row(self) -> "Tail":
        """The same of a call with one row, as a kernel with a scale for a tensor is called."""
        return self._replace(output=self.output and Output(self.output).by_row.text)

    def parts(self, d: int) -> int | None:
        """Elements of a row that leave with a scale of their own; None where there is none."""
        return None if self.output is None else Output(self.output).parts(d)


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


def wide_sums(square: str | None, d: int) -> list[Sum]:
    """Every sum in float64."""
    lanes = [f"lanes{k}" for k in LANES if k < d]
    return [Sum(square, f"{WIDE}:{order}") for order in ("sequential", "pairwise", *lanes)]


def wide_sum(terms: np.ndarray, order: str) -> np.ndarray:
    """The sum over the last axis of float64 [n, d] in one of these orders, [n, 1]; in NumPy."""
    if order == "sequential":
        return np.add.accumulate(terms, axis=-1)[:, -1:]
    if order.startswith("lanes"):
        k = int(order.removeprefix("lanes"))
        terms = np.pad(terms, ((0, 0), (0, -terms.shape[-1] % k)))
        terms = np.add.accumulate(terms.reshape(len(terms), -1, k), axis=1)[:, -1]
    while terms.shape[-1] > 1:
        terms = np.pad(terms, ((0, 0), (0, terms.shape[-1] % 2)))
        terms = terms[:, 0::2] + terms[:, 1::2]
    return terms


def wide_mean(total: np.ndarray, mean: Mean, z: np.ndarray) -> np.ndarray:
    """Of a sum in float64, [n, 1]: made in float64 and rounded, or of the rounded sum."""
    d = z.shape[-1]
    if not mean.wide:
        return averaged(np.float32(total), mean, d)
    made = total / d if mean.kind == "divide" else total * (1 / d)
    return made.astype(np.float32)


def means(d: int) -> list[Mean]:
    """Every way from Σ to its mean."""
    kinds = ("reciprocal", "divide") if d & (d - 1) else ("reciprocal", "divide", "shift")
    return [Mean(kind, form) for kind, form in product(kinds, FORMATS)]


def wide_means() -> list[Mean]:
    """Those of a sum in float64 that round once."""
    return [Mean(kind, WIDE) for kind in ("divide", "reciprocal")]


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
    every = product(FORMATS, FORMATS, (False, True), outputs)
    found = [Tail(*said) for said in every if not said[2] or said[3] in NARROW]
    return found + [Tail(None, None, False, output, JOINED) for output in outputs]


def alike(outputs: Sequence[str | None], dtype: str | None) -> list[list[Tail]]:
    """The same in groups that nothing tells apart: each rounds to the same formats in turn.

    `dtype` is a format in which γ is given; None where it is made of what is given.
    """
    groups: dict[tuple, list[Tail]] = {}
    for tail in tails(outputs):
        before = _in_turn(tail.product, tail.output if tail.cast_first else None)
        held = None if tail.weight == dtype else tail.weight
        after = _in_turn(tail.weight, tail.output)
        groups.setdefault((before, held, after, tail.way), []).append(tail)
    return list(groups.values())


def _in_turn(*formats: str | None) -> tuple[str | None, ...]:
    """Formats without float32, and none twice in a row."""
    return tuple(form for form, _ in groupby(form for form in formats if form))


def held(x: Numbers, to: str | None) -> np.ndarray:
    """A stage's result in its format."""
    return np.asarray(x, np.float32) if to is None else rounded(x, to)


rounded = in_few_sizes(round_to)


@in_few_sizes
def averaged(total: Numbers, mean: Mean, d: int) -> Numbers:
    """The mean of a sum, in its format."""
    return held(mean.of(jnp.asarray(total), d), mean.format)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def statistic(x: Numbers, sum: Sum, mean: Mean, center: bool) -> Any:
    """What is normalized, Σ, its mean, and the mean that was taken off; `mean` is how.

    Rows are held in the input's format already: one program for all of those.
    """
    path = Datapath(
        square=sum.square,
        sum=sum.text,
        tree=sum.tree,
        mean=mean,
        variance=sum.variance,
    )
    found = Accumulator(path).statistic(x, center)
    return found.z, found.total, found.mean, found.middle


@in_few_sizes
def scalars(total: Numbers, front: Front, eps: Numbers, d: int) -> Numbers:
    """1/rms, or the rms that divides, of sums [n, 1]; one operation at a time."""
    if front.fused:
        square, root = jnp.asarray(with_eps(total, eps, d)), front.root
        return root.whole(square) if front.divides else root.inverse(square)
    return rooted(averaged(total, front.mean, d), front, eps)


@in_few_sizes
def with_eps(total: Numbers, eps: Numbers, d: int) -> Numbers:
    """Σ · round(1/d) + ε in a fused multiply-add."""
    return fma(total, np.float32(1 / d), eps)


@in_few_sizes
def joined(mean: Numbers, eps: Numbers, to: str | None) -> Numbers:
    """Mean + ε, in the format."""
    return Accumulator(Datapath(sum=WRITTEN, eps=to)).with_eps(mean, eps)


@in_few_sizes
def rooted(mean: Numbers, front: Front, eps: Numbers) -> Numbers:
    """The same of means."""

    def step(x: Array) -> Array:
        return jnp.asarray(held(x, front.eps))

    made = jnp.asarray(mean)
    return front.form.inverse(made, eps, jnp.float32(1), step, front.root, front.divides)


def leaving(
    z: np.ndarray,
    scalar: np.ndarray,
    weight: np.ndarray,
    tail: Tail,
    divides: bool,
    middle: np.ndarray | None = None,
) -> np.ndarray:
    """The rows that leave [n, d], of rows and their scalars [n, 1].

    Args:
        z: what is normalized; where the way is FUSED or APART, with the mean still in it.
        scalar: 1/rms, or the rms that divides.
        weight: γ.
        tail: the stages from here.
        divides: the scalar divides.
        middle: μ, [n, 1], for those ways.
    """
    middle = np.zeros_like(scalar) if middle is None else middle
    parts = [in_whole_rows(part) for part in (z, scalar, weight, middle)]
    return np.asarray(_leaving(*parts, tail, divides))[: len(z)]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _leaving(
    z: Numbers, scalar: Numbers, weight: Numbers, middle: Numbers, tail: Tail, divides: bool
) -> Array:
    acc = Accumulator(tail.by_row.path)
    match tail.way:
        case "joined":
            joined = divided(weight, scalar) if divides else no_contract(weight * scalar)
            return acc.affine(z * joined, None, None, jnp.float32)
        case "fused":
            y = fma(z, scalar, no_contract(-scalar * middle))
        case "apart":
            y = no_contract(z * scalar) - no_contract(scalar * middle)
        case _:
            y = divided(z, scalar) if divides else z * scalar
    return acc.affine(acc.product(y), weight, None, jnp.float32)


def datapath(input: str | None, sum: Sum, front: Front, tail: Tail) -> Datapath:
    """The whole, in the words of `normlab.numerics`."""
    return dataclasses.replace(
        tail.path,
        input=input,
        square=sum.square,
        sum=sum.text,
        tree=sum.tree,
        variance=sum.variance,
        fused=sum.variance is not None and tail.way == FUSED,
        mean=front.mean,
        eps=front.eps,
        root=front.root,
    )
