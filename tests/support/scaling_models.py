"""What the tests of the scale rules ask of `tiny_model`: rows at its norms, its matrices."""

from functools import partial

import numpy as np

from tests.conftest import VOCAB
from tests.support.passes import EVERYWHERE, GATED, PLAIN
from tests.support.passes import placed as plainly_placed
from tests.support.transformer_reference import Reference

placed = partial(plainly_placed, sites=EVERYWHERE)
"""A model of this placement with every norm that it may have."""

KINDS = {"plain": PLAIN, "gated": GATED}
UNEVEN = 0.7
"""`spread` of weights that are far from isotropic."""


def random_tokens(windows=4, length=16, seed=0):
    """Token ids, [windows, length]."""
    return np.random.default_rng(seed).integers(0, VOCAB, (windows, length)).astype(np.int32)


def rows(model, tokens):
    """The rows that enter each norm, in float64 NumPy: [b, l, d], or [b, l, heads, k]."""
    reference = Reference(model)
    reference.logits(tokens)
    return reference.inputs


def sizes(model, tokens):
    """The norm of every row that every norm sums, [rows, heads or 1]."""
    found = {}
    for site, x in rows(model, tokens).items():
        x = x - x.mean(-1, keepdims=True) if model.norm.type == "layernorm" else x
        found[site] = np.linalg.norm(x, axis=-1).reshape(-1, x.shape[2] if x.ndim == 4 else 1)
    return found


def kernel(linear):
    """W in float64."""
    return np.asarray(linear.kernel[...], np.float64)


def weight(norm):
    """γ in float64."""
    return np.asarray(norm.weight[...], np.float64)


def isotropic(n, d, seed=0):
    """Rows of norm √d in every direction alike."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x * np.sqrt(d) / np.linalg.norm(x, axis=1, keepdims=True)


def frobenius(matrix):
    """‖M‖_F."""
    return np.sqrt(np.sum(matrix**2))
