"""Attention against its formula in float64 NumPy, each of its options on and off."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from normlab.model import Context
from normlab.model import attention as module
from normlab.model.attention import BLOCKS, QUERIES, Attention, spans
from normlab.model.placement import Wiring
from tests.conftest import tiny_model

LENGTH, HEADS, KV, SIZE = 9, 4, 2, 8


def reference(x, attention, local):
    """The formula, head by head and query by query."""
    c = attention.config
    x = np.asarray(x, np.float64)

    def project(linear):
        y = x @ np.asarray(linear.kernel[...], np.float64)
        y = y if linear.bias is None else y + np.asarray(linear.bias[...], np.float64)
        return y.reshape(LENGTH, -1, SIZE)

    def turned(vector, position):
        theta = c.local_rope_theta if local and c.local_rope_theta else c.rope_theta
        divisors = (1.0,) * 4 if local and c.local_rope_theta else c.rope_divisors or (1.0,) * 4
        out = np.empty(SIZE)
        for i in range(SIZE // 2):
            angle = position * theta ** (-2 * i / SIZE) / divisors[i]
            a, b = vector[i], vector[i + SIZE // 2]
            out[i] = a * np.cos(angle) - b * np.sin(angle)
            out[i + SIZE // 2] = b * np.cos(angle) + a * np.sin(angle)
        return out

    q, k, v = (project(m) for m in (attention.query, attention.key, attention.value))
    heads = np.zeros((LENGTH, HEADS, SIZE))
    for h in range(HEADS):
        g = h // (HEADS // KV)
        for i in range(LENGTH):
            seen = range(LENGTH) if not c.causal else range(i + 1)
            seen = [j for j in seen if not local or i - j < c.window]
            query = turned(q[i, h], i)
            scores = np.array([query @ turned(k[j, g], j) for j in seen])
            scores *= SIZE**-0.5 if c.attention_scale is None else c.attention_scale
            if c.attention_softcap is not None:
                scores = c.attention_softcap * np.tanh(scores / c.attention_softcap)
            weights = np.exp(scores - scores.max())
            heads[i, h] = weights / weights.sum() @ v[seen, g]
    y = heads.reshape(LENGTH, -1) @ np.asarray(attention.out.kernel[...], np.float64)
    return y if attention.out.bias is None else y + np.asarray(attention.out.bias[...])


OPTIONS = [
    {},
    {"attention_scale": 0.7},
    {"attention_softcap": 0.3},
    {"rope_divisors": (1.0, 2.0, 4.0, 8.0), "rope_theta": 50.0},
    {"causal": False},
    {"causal": False, "attention_softcap": 0.3},
    {"bias": True},
    {"qkv_bias": True},
    {"window": 3},
    {"window": 3, "attention_softcap": 0.3},
    {"window": 3, "local_rope_theta": 10.0, "rope_divisors": (2.0,) * 4},
]
CASES = [(options, False) for options in OPTIONS]
CASES += [(options, True) for options in OPTIONS if "window" in options]


def attended(options, local):
    """What attention gives, and what it should."""
    config = tiny_model(heads=HEADS, kv_heads=KV, init_std=0.5, **options).config
    attention = Attention(config, Wiring(), lambda *_: None, local, nnx.Rngs(0))
    for linear in (attention.query, attention.key, attention.value, attention.out):
        if linear.bias is not None:
            linear.bias[...] = jnp.linspace(-1.0, 1.0, linear.bias.shape[0])
    x = np.random.default_rng(0).standard_normal((1, LENGTH, 32)).astype(np.float32)
    y = jax.jit(lambda x: attention(x, Context()))(jnp.asarray(x))
    return y[0], reference(x[0], attention, local)


@pytest.mark.parametrize(("options", "local"), CASES)
def test_the_formula(options, local):
    y, expected = attended(options, local)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("options", "local"), [c for c in CASES if c[0].get("causal", True)])
def test_the_formula_in_blocks_of_queries(options, local, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 4)
    y, expected = attended(options, local)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)


@given(st.integers(1, 20_000), st.none() | st.integers(1, 5_000))
def test_spans_take_each_query_once_and_each_key_that_it_sees(length, window):
    blocks = spans(length, window)
    assert len(blocks) <= BLOCKS
    assert (len(blocks) == 1) == (length <= QUERIES)
    assert (blocks[0][0].start, blocks[-1][0].stop) == (0, length)
    assert all(a.stop == b.start for (a, _), (b, _) in pairwise(blocks))
    for queries, keys in blocks:
        oldest = 0 if window is None else max(0, queries.start - window + 1)
        assert (keys.start, keys.stop) == (oldest, queries.stop)
