"""What the tests of the transforms ask of models in float64.

Operation by operation: a transformed model differs from the one before in few of them, so that all
of these models share what is compiled, while each would be a program of its own.
"""

from functools import partial

import jax
import numpy as np
from flax import nnx

from normlab.model import Context
from tests.conftest import tiny_model
from tests.support.passes import TOKENS

double = partial(tiny_model, dtype=np.float64)
"""The tiny model in float64; call it with 64-bit types enabled."""


def seen(model):
    """What it says of some tokens, and the stream where norms read it: input and final norms."""
    context = Context(capture=True)
    logits = np.asarray(model(TOKENS, context))
    kinds = ("norm_in", "norm_final")
    stream = {n: x for n, x in context.inputs.items() if n.rpartition(".")[2] in kinds}
    return logits, {name: np.asarray(x) for name, x in stream.items()}


def close(before, after, limit=1e-12):
    """Whether two models' logits are the same, relative to the largest."""
    assert np.isfinite(before).all()
    return np.abs(before - after).max() <= limit * np.abs(before).max()


def same(a, b, limit=1e-12):
    """Whether two models say the same."""
    return close(seen(a)[0], seen(b)[0], limit)


def bits(model):
    """Every array of a model, to see that it wasn't touched."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(model))]
