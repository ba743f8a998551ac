"""Rows on which two arithmetics differ, looked for until none is found."""

from collections.abc import Callable, Iterator

import numpy as np

from normlab.probe.explain import Arithmetic, Rows
from normlab.probe.kernel import Kernel, Seen
from normlab.probe.observe import Observed
from normlab.probe.rows import NEGLIGIBLE
from normlab.probe.stages import leaving

PAIRS, TRIED, EACH, VARIANTS, ROUNDS, IDLE = 12, 192, 16, 4, 16, 3
"""Pairs in a round, rows tried and asked for each, values of an element, rounds, and in vain."""
Cast = Callable[[np.ndarray], np.ndarray]
Pool = Callable[[], Seen]
"""Makes rows with γ and ε, and no outputs as yet."""


def refined(
    kernel: Kernel, observed: Observed, left: list[Arithmetic], pool: Pool, rng: np.random.Generator
) -> list[Arithmetic]:
    """What is left after rows on which pairs of it differ; the end is some rounds in vain."""
    idle = 0
    for _ in range(ROUNDS):
        if idle == IDLE or len(left) == 1:
            break
        parts = [row for row in aimed(observed, left, pool, kernel.cast, rng) if row is not None]
        if not parts:
            idle += 1
            continue
        found = Seen.joined(parts)
        found = found[np.resize(np.arange(len(found)), PAIRS * EACH)]  # one shape: it is compiled
        seen = asked(kernel, observed, found)
        kept = Rows(observed, seen).best(left)
        idle = idle + 1 if len(kept) == len(left) else 0
        left = kept
    return left


def asked(kernel: Kernel, observed: Observed, rows: Seen) -> Seen:
    """The same rows with what the kernel makes of them; a call for each γ and ε."""
    y = np.zeros_like(rows.x)
    together = np.concatenate([rows.weight, rows.eps], -1)
    _, group = np.unique(together, axis=0, return_inverse=True)
    for g in np.unique(group):
        at = np.flatnonzero(group.ravel() == g)
        weight = rows.weight[at[0]] - np.float32(observed.one_plus)
        y[at] = kernel(rows.x[at], weight, float(rows.eps[at[0], 0]))
    return Seen(rows.x, rows.weight, rows.eps, y)


def aimed(
    observed: Observed, left: list[Arithmetic], pool: Pool, cast: Cast, rng: np.random.Generator
) -> Iterator[Seen | None]:
    """For some pairs, rows of a pool on which they differ most, their small elements aimed."""
    rows = Rows(observed, pool())
    for _ in range(PAIRS):
        one, other = pair(left, rng)
        yield between(rows, one, other, cast, rng)


def pair(left: list[Arithmetic], rng: np.random.Generator) -> tuple[Arithmetic, Arithmetic]:
    """Two that differ; in a stage that is drawn first, so that rare differences get their turn."""
    one = left[rng.integers(len(left))]
    stages = [{getattr(a, name) for a in left} for name in ("sum", "front", "tail")]
    names = [n for n, s in zip(("sum", "front", "tail"), stages, strict=True) if len(s) > 1]
    name = names[rng.integers(len(names))]
    others = [a for a in left if getattr(a, name) != getattr(one, name)]
    return one, others[rng.integers(len(others))]


def between(
    rows: Rows, one: Arithmetic, other: Arithmetic, cast: Cast, rng: np.random.Generator
) -> Seen | None:
    """Rows whose small elements leave as other numbers by one arithmetic than by the other."""
    if rows.observed.center and one.tail.way != other.tail.way:
        return unlike(rows, one, other)
    a, b = rows.numbers(one), rows.numbers(other)
    with np.errstate(all="ignore"):
        b = b if one.front.divides == other.front.divides else 1 / b
        apart = np.nan_to_num(np.abs(a / b - 1)[:, 0], posinf=0)
    if one.tail == other.tail and not apart.any():
        return None
    at = np.argsort(-apart, kind="stable")[:TRIED]
    seen = rows.seen[at]
    tried, small = aimed_values(seen, cast, rng)
    flat = tried.reshape(-1, tried.shape[-1])
    weight = np.broadcast_to(seen.weight, tried.shape).reshape(flat.shape)
    ends = []
    for arithmetic in (one, other):
        number = np.tile(rows.numbers(arithmetic)[at], (VARIANTS, 1))
        ends.append(leaving(flat, number, weight, arithmetic.tail, arithmetic.front.divides))
    differs = (ends[0] != ends[1]).reshape(tried.shape)
    made = np.take_along_axis(tried, np.argmax(differs, axis=0)[None], 0)[0]
    if rows.observed.center:  # pairs ±t, so that the mean stays 0
        even, odd = made[:, : made.shape[1] // 2 * 2 : 2], made[:, 1::2]
        odd[:] = np.where(small[:, 1::2], -even, odd)
    best = np.argsort(-differs.any(0).sum(-1), kind="stable")[:EACH]
    return Seen(made[best], seen.weight[best], seen.eps[best], seen.y[best])


def unlike(rows: Rows, one: Arithmetic, other: Arithmetic) -> Seen | None:
    """Rows as they are, of which the two predict other outputs."""
    differs = (rows.predicted(one) != rows.predicted(other)).sum(-1)
    best = np.argsort(-differs, kind="stable")[:EACH]
    best = best[differs[best] > 0]
    return rows.seen[best] if len(best) else None


def aimed_values(seen: Seen, cast: Cast, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Several of each row, its small elements drawn again [variants, n, d]; and which they are."""
    top = np.abs(seen.x).max(-1, keepdims=True)
    small = (seen.x != 0) & (np.abs(seen.x) <= 2 * NEGLIGIBLE * top)
    size = np.exp2(np.floor(np.log2(np.where(small, np.abs(seen.x), 1)))) * np.sign(seen.x)
    drawn = size * cast(rng.uniform(1, 2, (VARIANTS, *seen.x.shape)))
    return np.where(small, drawn, seen.x), small
