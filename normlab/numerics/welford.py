"""PyTorch's row moments on a CPU: mean and variance by Welford's updates on vectors."""

import functools
import re

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from normlab.config import require
from normlab.numerics.exact import divided, fma, no_contract, once, sloped

CHUNK = 16
_WRITTEN = re.compile(r"welford([1-9]\d*)(?:x([12]))?")
_Moments = tuple[int, Array, Array]
"""Terms, their mean, the sum of their squares about it."""


def lanes(text: str) -> tuple[int, int]:
    """The K lanes of `welfordK` and the accumulators that take turns: 2 in `welfordKx2`.

    Raises:
        ValueError: another text.
    """
    written = _WRITTEN.fullmatch(text)
    require(
        written is not None,
        f"variance = {text!r}: expected welfordK or welfordKx2, such as welford8x2",
    )
    assert written is not None
    return int(written[1]), int(written[2] or 1)


def moments(
    x: Float[Array, "*batch d"], text: str
) -> tuple[Float[Array, "*batch 1"], Float[Array, "*batch 1"]]:
    """Mean and biased variance of each row, in float32, as `RowwiseMoments` makes them.

    Source: aten/src/ATen/native/cpu/moments_utils.h of PyTorch 2.13. A vector of halves is two of
    float32. Chunks of 16 vectors are joined in a cascade, then the lanes one by one after the rest.
    The compiler contracts the scalar steps, too. Derivatives are those of float32.
    """
    mean, squares = _row(lax.stop_gradient(x), *lanes(text))
    about = jnp.mean(x, axis=-1, keepdims=True)
    spread = jnp.mean((x - about) ** 2, axis=-1, keepdims=True)
    variance = divided(squares, float(x.shape[-1]))
    return sloped(mean[..., None], about), sloped(variance[..., None], spread)


def _row(x: Array, k: int, turns: int) -> tuple[Array, Array]:
    vectors = x.shape[-1] // (k * turns)
    cut = vectors * k * turns
    whole = x[..., :cut].reshape(*x.shape[:-1], vectors, turns, k)
    total = _tail(x[..., cut:])
    if vectors:
        count, means, squares = _cascade(_chunks(whole, vectors, turns), vectors)
        for i in range(k):
            total = _join_scalars((count, means[..., i], squares[..., i]), total)
    return total[1], total[2]


def _chunks(whole: Array, vectors: int, turns: int) -> list[list[_Moments]]:
    """Of each chunk the moments of each turn, lane by lane; all full chunks side by side."""
    full, rest = divmod(vectors, CHUNK)
    found = list[list[_Moments]]()
    if full:
        parts = whole[..., : full * CHUNK, :, :]
        parts = parts.reshape(*whole.shape[:-3], full, CHUNK, turns, whole.shape[-1])
        means, squares = _updates(jnp.moveaxis(parts, -3, 0))
        for i in range(full):
            a, b = means[..., i, :, :], squares[..., i, :, :]
            found.append([(CHUNK, a[..., t, :], b[..., t, :]) for t in range(turns)])
    if rest:
        a, b = _updates(jnp.moveaxis(whole[..., full * CHUNK :, :, :], -3, 0))
        found.append([(rest, a[..., t, :], b[..., t, :]) for t in range(turns)])
    return found


def _updates(pieces: Array) -> tuple[Array, Array]:
    """Welford's updates over the first axis; each join that follows would compute them again."""
    mean = squares = jnp.zeros_like(pieces[0])
    for j, x in enumerate(pieces):
        away = x - mean
        mean = fma(away, np.float32(1) / np.float32(j + 1), mean)
        squares = fma(away, x - mean, squares)
    return once(mean), once(squares)


def _cascade(chunks: list[list[_Moments]], vectors: int) -> _Moments:
    """Each chunk joins the lowest level; two full ones of a level make one of the next."""
    zero = jnp.zeros_like(chunks[0][0][1])
    depth = max(1, (len(chunks) - 1).bit_length())
    levels: list[_Moments] = [(0, zero, zero)] * depth
    for i, parts in enumerate(chunks):
        levels[0] = functools.reduce(lambda into, part: _join(part, into), parts, levels[0])
        mask, j = i + 1, 1
        while j < depth and not mask & 1:
            levels[j], levels[j - 1] = _join(levels[j - 1], levels[j]), (0, zero, zero)
            mask, j = mask >> 1, j + 1
    return functools.reduce(lambda into, level: _join(level, into), levels[1:], levels[0])


def _join(part: _Moments, into: _Moments) -> _Moments:
    """Vectors of moments joined; one fused step."""
    (m, mean, squares), (n, mean0, squares0) = part, into
    if not m + n:
        return into
    away = mean - mean0
    step = no_contract(np.float32(m) / np.float32(m + n) * away)
    total = fma(away * np.float32(n), step, squares0 + squares)
    return m + n, mean0 + step, total


def _join_scalars(part: _Moments, into: _Moments) -> _Moments:
    (m, mean, squares), (n, mean0, squares0) = part, into
    share, away = np.float32(m) / np.float32(m + n), mean - mean0
    square = no_contract(no_contract(away * away) * share)
    return m + n, fma(away, share, mean0), squares0 + fma(square, np.float32(n), squares)


def _tail(x: Array) -> _Moments:
    """What fills no vector, one by one."""
    mean = squares = jnp.zeros_like(x, shape=x.shape[:-1])
    for i in range(x.shape[-1]):
        away = x[..., i] - mean
        mean = mean + divided(away, float(i + 1))
        squares = fma(away, x[..., i] - mean, squares)
    return x.shape[-1], mean, squares
