"""Histograms on a logarithmic axis whose bins are the same everywhere, so that they add up."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

LOW, HIGH, STEPS = -60, 60, 4
"""Bins reach from 2^LOW to 2^HIGH, STEPS to an octave; one more on each side takes the rest."""

BINS = (HIGH - LOW) * STEPS + 2

_EDGES = [int(np.float32(2 ** (k / STEPS)).view(np.int32)) & 0x7FFFFF for k in range(1, STEPS)]
"""Mantissa bits of the edges inside an octave; the octaves' own edges are exact powers of two."""


def histogram(values: Float[Array, "..."]) -> Int[Array, " bins"]:
    """Counts of positive values by their size; zeros and NaN are in no bin, infinity in the last.

    The bin is read off the bits of the float32, so that no logarithm is rounded over an edge.
    """
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32).ravel() & 0x7FFFFFFF
    steps = sum(((bits & 0x7FFFFF) >= edge).astype(jnp.int32) for edge in _EDGES)
    place = jnp.clip(((bits >> 23) - 127 - LOW) * STEPS + steps + 1, 0, BINS - 1)
    counted = (bits > 0) & (bits <= 0x7F800000)
    place = jnp.where(counted, place, BINS)
    return jnp.zeros(BINS, jnp.int32).at[place].add(1, mode="drop")


def median(counts: Int[np.ndarray, " bins"]) -> float | None:
    """The value that half of those counted stay below; None where nothing was counted.

    Interpolated in the logarithm within its bin, so off by less than a factor of 2^(1/STEPS). In a
    bin at either end it is that end's edge.
    """
    total = int(counts.sum())
    if not total:
        return None
    below = np.concatenate([[0], np.cumsum(counts)])
    place = int(np.searchsorted(below, total / 2, side="left")) - 1
    if place in (0, BINS - 1):
        return 2.0 ** (LOW if place == 0 else HIGH)
    share = (total / 2 - below[place]) / counts[place]
    return 2.0 ** (LOW + (place - 1 + share) / STEPS)


def packed(counts: Int[np.ndarray, " bins"]) -> dict[str, Any]:
    """`first`: log₂ of the lower edge of the first bin that holds something; `counts` from it on.

    A bin is 1/STEPS octaves wide. What lies below 2^LOW is given as the bin under it.
    """
    (held,) = np.nonzero(counts)
    if not len(held):
        return {"first": 0.0, "counts": []}
    kept = counts[held[0] : held[-1] + 1]
    return {"first": LOW + (int(held[0]) - 1) / STEPS, "counts": [int(n) for n in kept]}


def unpacked(given: dict[str, Any]) -> Int[np.ndarray, " bins"]:
    """The counts that `packed` was given."""
    counts = np.zeros(BINS, np.int64)
    start = round((given["first"] - LOW) * STEPS) + 1
    counts[start : start + len(given["counts"])] = given["counts"]
    return counts


def edges() -> Float[np.ndarray, " bins"]:
    """log₂ of each bin's lower edge, the two at the ends taken for bins like the others."""
    return LOW + (np.arange(BINS) - 1) / STEPS
