"""Orders of summation: which rounded adds a sum over the last axis is made of."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from normlab.config import require
from normlab.numerics.exact import two_sum
from normlab.numerics.formats import FloatFormat, rounded_pair, rounded_sum
from normlab.registry import unknown

_WRITTEN = re.compile(r"([a-z_]+)(\d+|\(\d+\))?")  # lanes8; lanes(8) in old records
_RENAMED = {"rounded": "exact_then_round"}
_UNROLL = {"cpu": 8}
"""The most steps in one turn of a loop: 16 are no faster on a CPU. Elsewhere 32, as each turn is a
launch of kernels there; 32 are still compiled to one, 64 are not (benchmarks/gpu_code.py)."""
_LANES = 64  # accumulators of an exact sum, whose order cannot be seen


@dataclasses.dataclass(frozen=True)
class Order:
    """An order of summation: sequential, pairwise, lanesK, blocksK, cascadeK, exact_then_round.

    Or `tree_…`, an explicit tree in postfix: `tree_0_2_a_1_3_a_a` is (s₀ + s₂) + (s₁ + s₃), with
    sᵢ the sums of every 4th term, as those of `lanes4`. A row of four elements has one in each.
    """

    name: str
    width: int | None = None  # the k of lanesK, blocksK and cascadeK, or the leaves of a tree
    postfix: str | None = None  # of a tree: its leaves by number, and an `a` for each add

    def __post_init__(self):
        """Refuse an unknown name, a missing width and one too many."""
        if self.name not in SUMS:
            raise unknown("order of summation", self.name, ALL_ORDERS)
        if self.name == "tree":
            leaves(self.postfix or "")
        elif self.name in _WIDE:
            require(
                (self.width or 0) >= 1,
                f"order {self}: expected {self.name}K with K ≥ 1, such as {self.name}8",
            )
        else:
            require(self.width is None, f"order {self}: expected {self.name}, which takes no width")

    @classmethod
    def parse(cls, text: str) -> "Order":
        """The order written `NAME`, `NAMEK` or `tree_POSTFIX`."""
        name, _, postfix = text.partition("_")
        if name == "tree":
            return cls(name, leaves(postfix), postfix)
        if not (written := _WRITTEN.fullmatch(text)):
            raise unknown("order of summation", text, ALL_ORDERS)
        name = _RENAMED.get(written[1], written[1])
        return cls(name, None if written[2] is None else int(written[2].strip("()")))

    def __str__(self) -> str:
        """The string that `parse` reads."""
        if self.name == "tree":
            return f"tree_{self.postfix}"
        return self.name if self.width is None else f"{self.name}{self.width}"

    @property
    def has_lanes(self) -> bool:
        """Whether it has strided sums, and a tree over them."""
        return self.name in ("lanes", "tree")

    def lanes(self, terms: Array, to: FloatFormat) -> Array:
        """The K strided sums of `lanesK` or of a tree's leaves, [*batch, K]."""
        return _strided(terms, to, self.width or 1)

    def join(self, lanes: Array, to: FloatFormat) -> Array:
        """The lanes added up by the order's tree."""
        return _pairwise(lanes, to) if self.postfix is None else _joins(lanes, to, self.postfix)

    def sum(
        self, terms: Array, to: FloatFormat, tree: FloatFormat | None = None, copies: int = 1
    ) -> Array:
        """Sum float32 values of the format over the last axis, in this order, in float32.

        The sums of `lanesK`, or a tree's leaves, are added in the format `tree`, where it is
        another one. In fp64 the terms and the sum are float64. The terms are given once and summed
        as so many copies; what all copies have alike is made once.
        """
        if copies > 1:
            if self.name == "pairwise" and not self._keeps_what_is_lost(to):
                while terms.shape[-1] % 2 == 0:
                    terms = rounded_sum(*_halves(terms), to)
            terms = jnp.concatenate([terms] * copies, axis=-1)
        if tree is not None and tree != to:
            lanes = self.lanes(terms, to)
            return self.join(lanes.astype(jnp.float64) if tree.is_float64 else lanes, tree)

        def add(terms: Array, to: FloatFormat) -> Array:
            further = () if self.postfix is None else (self.postfix,)
            return SUMS[self.name](terms, to, self.width or 1, *further)

        return _lifted(add, terms, to) if self._keeps_what_is_lost(to) else add(terms, to)

    def _keeps_what_is_lost(self, to: FloatFormat) -> bool:
        """Whether an add needs `two_sum` in a format that reaches down to float32's least value."""
        split = self.name in ("blocks", "exact_then_round") or not to.held_in_float32
        return split and to.exponent == 8 and to.mantissa != 23


def _sequential(terms: Array, to: FloatFormat, _: int = 1) -> Array:
    """Index 0 to d-1, one rounded add at a time."""
    return _strided(terms, to, 1)[..., 0]


def _pairwise(terms: Array, to: FloatFormat, _: int = 1) -> Array:
    """Add adjacent pairs, and again; an odd one out meets the zero that pads it."""
    level = 0
    while terms.shape[-1] > 1:
        even, odd = _halves(terms)
        place = np.arange(even.shape[-1], dtype=np.uint32) + np.uint32(level << 24)
        terms = rounded_sum(even, odd, to, place)
        level += 1
    return terms[..., 0]


def _lanes(terms: Array, to: FloatFormat, k: int) -> Array:
    """Strided sequential sums, k of them, then pairwise: a SIMD unit."""
    return _pairwise(_strided(terms, to, k), to)


def leaves(postfix: str) -> int:
    """How many leaves a tree has, each number from 0 on once.

    Raises:
        ValueError: a text that is no tree.
    """
    parts, depth, found = postfix.split("_"), 0, list[int]()
    for part in parts:
        found += [int(part)] if part.isdecimal() else []
        depth += 1 if part.isdecimal() else -1 if part == "a" and depth > 1 else -len(parts) - 1
    require(
        depth == 1 and sorted(found) == list(range(len(found))),
        f"order tree_{postfix}: expected a tree in postfix with each of its leaves 0, 1, … once "
        "and an `a` for each add, such as tree_0_2_a_1_3_a_a",
    )
    return len(found)


def _tree(terms: Array, to: FloatFormat, k: int, postfix: str) -> Array:
    """Strided sums, a leaf each, added as a tree in postfix says: any hardware's own tree."""
    return _joins(_strided(terms, to, k), to, postfix)


def _joins(lanes: Array, to: FloatFormat, postfix: str) -> Array:
    stack: list[Array] = []
    for part in postfix.split("_"):
        if part == "a":
            right, left = stack.pop(), stack.pop()
            stack.append(rounded_sum(left, right, to, 1 << 24))
        else:
            stack.append(lanes[..., int(part)])
    return stack[0]


def _blocks(terms: Array, to: FloatFormat, k: int) -> Array:
    """Exact inside a block of k, one rounding as it is added to the carry: a matrix unit."""
    blocks = _padded(terms, k), jnp.zeros_like(_padded(terms, k))
    while k % 2 == 0:
        blocks, k = _halved(*blocks), k // 2
    count = blocks[0].shape[-1] // k
    blocks = _joined(*(part.reshape(*terms.shape[:-1], count, k) for part in blocks))

    def add(carry, block, index):
        total, lost = two_sum(carry, block[0])
        return rounded_pair(total, block[1] + lost, to, index.astype(jnp.uint32))

    return _fold(add, jnp.zeros((*terms.shape[:-1], 1), jnp.float32), blocks, 1)[..., 0]


def _exact_then_round(terms: Array, to: FloatFormat, _: int = 1) -> Array:
    """The exact sum, rounded once."""
    return rounded_pair(*_exact_sum(terms), to)


def _lifted(add: Callable[[Array, FloatFormat], Array], terms: Array, to: FloatFormat) -> Array:
    """The sums, small rows times 2^64: what their adds lose would be below 2^-126, and be flushed.

    With one exponent bit less the format has its smallest normal value 2^64 higher, too.
    """
    small = jnp.max(jnp.abs(terms), axis=-1) < 2.0**-40

    def both(terms: Array) -> Array:
        high = add(terms * 2.0**64, dataclasses.replace(to, exponent=7)) * 2.0**-64
        return jnp.where(small, high, add(terms, to))

    return lax.cond(jnp.any(small), both, lambda terms: add(terms, to), terms)


def _cascade(terms: Array, to: FloatFormat, k: int) -> Array:
    """PyTorch's on a CPU: vectors of k in four accumulators, in levels of 16, then lane by lane.

    As `cascade_sum` of aten/src/ATen/native/cpu/SumKernel.cpp, with k = 8 for float32 on x86.
    """
    count = terms.shape[-1] // k
    cut = [4 * k * (count // 4), k * count]
    levels, vectors, tail = (p for p in jnp.split(terms, cut, axis=-1))
    four = _levels(levels, to, 4 * k)
    accumulators = [four[..., i * k : (i + 1) * k] for i in range(4)]
    for i in range(count % 4):
        accumulators[0] = rounded_sum(accumulators[0], vectors[..., i * k : (i + 1) * k], to)
    lanes = functools.reduce(lambda a, b: rounded_sum(a, b, to), accumulators)
    start = _cascade(tail, to, 1) if tail.shape[-1] else jnp.zeros_like(lanes[..., 0])
    return functools.reduce(lambda a, i: rounded_sum(a, lanes[..., i], to), range(k), start)


def _levels(terms: Array, to: FloatFormat, k: int, step: int = 16, levels: int = 4) -> Array:
    """The k strided sums, left to right in blocks of 16 pieces, in blocks of 16 of those, and on.

    What fills no block stays on its level; at the end the levels are added, the lowest first.
    """
    left = [jnp.zeros((*terms.shape[:-1], k), terms.dtype)]
    for level in range(levels):
        full = terms.shape[-1] // (k * step) if level < levels - 1 else 0
        if (rest := terms[..., full * k * step :]).shape[-1]:
            left.append(_strided(rest, to, k))
        if not full:
            break
        blocks = terms[..., : full * k * step].reshape(*terms.shape[:-1], full, k * step)
        terms = _strided(blocks, to, k).reshape(*terms.shape[:-1], full * k)
    return functools.reduce(lambda a, b: rounded_sum(a, b, to), left)


SUMS: dict[str, Callable[..., Array]] = {
    "sequential": _sequential,
    "pairwise": _pairwise,
    "lanes": _lanes,
    "blocks": _blocks,
    "cascade": _cascade,
    "exact_then_round": _exact_then_round,
    "tree": _tree,
}
"""Each order of summation by name: (terms, format, width[, postfix]) → their sum."""
_WIDE = ("lanes", "blocks", "cascade")
_SHOWN = {name: f"{name}K" for name in _WIDE} | {"tree": "tree_POSTFIX"}
ALL_ORDERS = tuple(_SHOWN.get(name, name) for name in SUMS)


def _padded(terms: Array, multiple: int) -> Array:
    """`terms` with zeros up to a multiple on the last axis; adding a zero rounds nothing."""
    missing = -terms.shape[-1] % multiple
    return jnp.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, missing)]) if missing else terms


def _halves(terms: Array) -> tuple[Array, Array]:
    """The even and the odd places. Slices, as a reshape to pairs costs five times the time."""
    terms = _padded(terms, 2)
    return terms[..., 0::2], terms[..., 1::2]


def _strided(terms: Array, to: FloatFormat, k: int) -> Array:
    """The k sums of every k-th term, each from left to right."""
    lane = jnp.arange(k, dtype=jnp.uint32)

    def add(total, piece, index):
        return rounded_sum(total, piece, to, index.astype(jnp.uint32) * k + lane)

    return _fold(add, jnp.zeros((*terms.shape[:-1], k), terms.dtype), terms, k)


def _fold(step: Callable, carry: Any, terms: Any, k: int) -> Any:
    """Carry = step(carry, terms[..., i*k : (i+1)*k], i) for i = 0, 1, …, the end padded by zeros.

    `terms` is an array or a tuple of them, sliced as they lie in memory. Nothing is transposed, and
    nothing padded but a last piece that k leaves short. To pad a row costs as much as to sum it.
    """
    terms = jax.tree.map(lambda row: _padded(row, k), terms)
    pieces = jax.tree.leaves(terms)[0].shape[-1] // k
    most = _UNROLL.get(jax.default_backend(), 32)
    unroll = max(u for u in range(1, most + 1) if pieces % u == 0)

    def piece(index):
        return jax.tree.map(lambda row: lax.dynamic_slice_in_dim(row, index * k, k, -1), terms)

    def turn(t, carry):
        for index in (t * unroll + i for i in range(unroll)):
            carry = step(carry, piece(index), index)
        return carry

    return lax.fori_loop(0, pieces // unroll, turn, carry)


def _exact_sum(terms: Array) -> tuple[Array, Array]:
    """A sum over the last axis as total + rest, to about 48 bits (Ogita, Rump & Oishi 2005, Sum2).

    For halves of one sign whose sum does not overflow it is exact up to 16,000 terms. The rests are
    multiples of 2^-24, at most (d/64 + 6) 2^-8 together, so that 24 bits hold their sum.
    """
    if terms.shape[-1] <= _LANES:
        return _joined(terms, jnp.zeros_like(terms))
    zeros = jnp.zeros((*terms.shape[:-1], _LANES), jnp.float32)
    return _joined(*_fold(_add_exactly, (zeros, zeros), terms, _LANES))


def _add_exactly(carry: tuple[Array, Array], piece: Array, _: Array) -> tuple[Array, Array]:
    total, lost = two_sum(carry[0], piece)
    return total, carry[1] + lost


def _joined(total: Array, rest: Array) -> tuple[Array, Array]:
    """The sum over the last axis of totals, and with the rests what they lose."""
    while total.shape[-1] > 1:
        total, rest = _halved(total, rest)
    return total[..., 0], rest[..., 0]


def _halved(total: Array, rest: Array) -> tuple[Array, Array]:
    """Adjacent totals added, and with their rests what that lost."""
    total, lost = two_sum(*_halves(total))
    return total, sum(_halves(rest), lost)
