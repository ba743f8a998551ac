"""Small models whose weights are far from isotropic, for the tests of the scale rules."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import ModelConfig, PlacementConfig, Transformer, placements
from normlab.norms import norms
from normlab.scaling.calibrated import recorded

VOCAB = 61
PLAIN = {"gated": False, "activation": "gelu", "positions": "learned", "bias": True}
GATED = {"kv_heads": 2, "head_dim": 6}
KINDS = {"plain": PLAIN, "gated": GATED}
EACH_PLACEMENT = [
    pytest.param(name, marks=[] if name in ("pre", "post", "peri") else pytest.mark.system)
    for name in placements
]


@cache
def skeleton(norm, placement, sites, fields):
    """A transformer's structure and the shapes of its weights; nothing is initialized."""
    config = ModelConfig(
        **({"layers": 2, "width": 24, "heads": 4, "max_length": 16} | dict(fields))
    )
    where = PlacementConfig(type=placement, **dict(sites))
    make = lambda: Transformer(config, norms[norm].Config(), where, VOCAB)  # noqa: E731
    return nnx.split(nnx.eval_shape(make))


def uneven(norm="rmsnorm", placement="pre", seed=0, spread=0.7, sites=None, **fields):
    """A random transformer: log-normal gains, rows and columns of unequal size, biases."""
    graphdef, shapes = skeleton(
        norm, placement, tuple((sites or {}).items()), tuple(fields.items())
    )
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        name, shape = jax.tree_util.keystr(path), leaf.shape
        if len(shape) < 2:
            bias = "bias" in name
            x = 0.1 * rng.normal(size=shape) if bias else np.exp(rng.normal(0, spread, shape))
        else:
            rows, columns = (np.exp(rng.normal(0, spread, n)) for n in shape)
            x = 0.1 * rng.normal(size=shape) * rows[:, None] * columns
        return jnp.asarray(x, jnp.float32)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(value, shapes))


EVERYWHERE = {"norm_embed": True, "norm_qk": True}


@cache
def observed(placement, seed=0):
    """An uneven model of this placement with every norm that it may have, and its rows' norms.

    Placements take turns between a plain MLP behind LayerNorms and a gated one behind RMSNorms.
    """
    turn = sorted(placements).index(placement) + seed
    kind, norm = (("plain", "layernorm"), ("gated", "rmsnorm"))[turn % 2]
    sites = EVERYWHERE | ({"post_share": 0.5} if placement == "mix-ln" else {})
    model = uneven(norm, placement, seed, sites=sites, **KINDS[kind])
    return model, recorded(model, random_tokens(8))


def random_tokens(windows=4, length=16, seed=0):
    """Token ids, [windows, length]."""
    return np.random.default_rng(seed).integers(0, VOCAB, (windows, length)).astype(np.int32)


def kernel(linear):
    """W in float64."""
    return np.asarray(linear.kernel[...], np.float64)


def gain(norm):
    """γ in float64."""
    return np.asarray(norm.gain[...], np.float64)


def isotropic(n, d, seed=0):
    """Rows of norm √d in every direction alike."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x * np.sqrt(d) / np.linalg.norm(x, axis=1, keepdims=True)
