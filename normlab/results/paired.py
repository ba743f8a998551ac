"""The difference of two perplexities of one model on one text, and how sure it is."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64


class Difference(NamedTuple):
    """A difference of perplexities and its standard error (NaN for a single window)."""

    delta: float
    stderr: float


def paired_difference(
    nll: Float64[np.ndarray, " k"],
    reference: Float64[np.ndarray, " k"],
    counts: Int64[np.ndarray, " k"],
) -> Difference:
    """Perplexity minus that of a reference on the same K windows, with its paired standard error.

    With S the sum of NLL, N the count and m = S/N, perplexity is p = exp(m). By the delta method
    for a ratio, window i moves p₁ − p₀ by gᵢ/N with

        gᵢ = p₁(S₁ᵢ − m₁nᵢ) − p₀(S₀ᵢ − m₀nᵢ),    SE = √(K/(K−1) · Σ gᵢ²) / N.

    Windows are taken as independent draws. The NLLs of one window in the two precisions are
    correlated, which makes this error so much smaller than the unpaired one.

    Args:
        nll: sums of NLL of each window, in nats.
        reference: the same of the reference.
        counts: what each window's sum is divided by (tokens, or words).
    """
    total, windows = counts.sum(), len(counts)
    means = nll.sum() / total, reference.sum() / total
    with np.errstate(over="ignore", invalid="ignore"):
        p, q = map(_exp, means)
        influence = p * (nll - means[0] * counts) - q * (reference - means[1] * counts)
        squares = float(np.square(influence).sum())
        delta = p - q
    if windows < 2:
        return Difference(delta, math.nan)
    return Difference(delta, math.sqrt(windows / (windows - 1) * squares) / float(total))


def _exp(x: float) -> float:
    """By the system's library, as perplexities are: NumPy's may differ in the last bit."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
