"""Small models in float64 with every parameter moved, for the tests of the transforms."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.model import Context, PlacementConfig, Transformer
from normlab.norms import norms
from tests.conftest import tiny_model

TOKENS = np.random.default_rng(0).integers(0, 31, (2, 8)).astype(np.int32)
SMALL = {"layers": 2, "width": 16, "heads": 2}


def moved(model, seed=0, dtype=jnp.float64, size=0.3):
    """The model with random numbers added to every parameter: no gain is 1, no bias 0."""
    rng = np.random.default_rng(seed)
    graphdef, params = nnx.split(model)
    params = jax.tree.map(lambda p: jnp.asarray(p + rng.normal(0, size, p.shape), dtype), params)
    made = nnx.merge(graphdef, params)
    for table in (made.embed, made.positions):
        if table is not None:
            table.dtype = dtype
    return made


def small(norm="rmsnorm", placement="pre", norm_fields=None, placement_fields=None, **fields):
    """A moved model of two blocks; call it with 64-bit types enabled."""
    shape = SMALL | fields
    model = tiny_model(norm, placement, vocab_size=31, norm_fields=norm_fields, **shape)
    if placement_fields:
        config = PlacementConfig(type=placement, **placement_fields)
        model = Transformer(model.config, norms[norm].Config(**(norm_fields or {})), config, 31)
    return moved(model)


def logits(model, tokens=TOKENS):
    """What it says of some tokens."""
    return np.asarray(model(tokens))


def stream(model, tokens=TOKENS):
    """The residual stream where each norm that reads it does, and the final one's input."""
    context = Context(capture=True)
    model(tokens, context)
    kinds = ("norm_in", "norm_final")
    return {n: np.asarray(x) for n, x in context.inputs.items() if n.rpartition(".")[2] in kinds}


def same(a, b, limit=1e-12):
    """Whether two models say the same, relative to the largest logit."""
    before, after = logits(a), logits(b)
    assert np.isfinite(before).all()
    return np.abs(before - after).max() <= limit * np.abs(before).max()


def bits(model):
    """Every array of a model, to see that it wasn't touched."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(model))]
