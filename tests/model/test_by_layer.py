"""A pass layer by layer against the model's own, and how many programs it takes."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.evaluation.perplexity import unit_scales
from normlab.model import Context, placements
from normlab.model.by_layer import ByLayer
from tests.conftest import recorded, tiny_model
from tests.support.passes import placed

PRECISION = "fp16:pairwise"
LOCAL = {"window": 5, "global_every": 3, "local_rope_theta": 50.0}


@partial(jax.jit, static_argnums=(0, 1))
def layer(call, graphdef, state, scales, x):
    """What `tests.conftest.recorded` records, but for streams and scores."""
    context = Context(PRECISION, scales, capture=True, observe=True)
    x = call(nnx.merge(graphdef, state), x, context)
    return x, {site: (row, context.observed.get(site)) for site, row in context.inputs.items()}


def assert_same(model, tokens):
    """By layer and at once: logits, the inputs of norms and what their sums made of them."""
    factors = 2.0 ** np.arange(100)  # a scale of its own for each site
    scales = {s: one * f for (s, one), f in zip(unit_scales(model).items(), factors, strict=False)}
    ((logits, seen),) = ByLayer(model)(layer, [tokens], scales)
    expected, told = recorded(model, tokens, PRECISION, scales)
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    close(logits, expected)
    assert seen.keys() == told.inputs.keys()
    for site, (rows, counts) in seen.items():
        close(rows, told.inputs[site])
        jax.tree.map(close, counts, told.observed.get(site))


@pytest.mark.system
def test_blocks_that_are_alike_share_a_program_however_many_there_are(tokens):
    """Local and global ones are of two kinds."""
    layer.clear_cache()
    assert_same(tiny_model(layers=3, **LOCAL), tokens)
    assert layer._cache_size() == 2 + 3  # with the embedding, the last norm and the head
    deep = tiny_model(layers=9, **LOCAL)
    ByLayer(deep)(layer, [tokens], unit_scales(deep))
    assert layer._cache_size() == 2 * (2 + 3)


@pytest.mark.system
@pytest.mark.parametrize("name", placements)
def test_every_placement_is_the_same_by_layer(name, tokens):
    assert_same(placed(name), tokens)
