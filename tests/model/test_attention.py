"""Attention against its formula in float64 NumPy, each of its options on and off."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.model import Context
from normlab.model import attention as module
from normlab.model.attention import BLOCKS, QUERIES, rotate, scaled_attention, soft_cap, spans
from tests.conftest import tiny_model
from tests.support.passes import QUICK
from tests.support.transformer_reference import Reference

LENGTH = 9
OPTIONS = [
    {},
    {"attention_scale": 0.7, "bias": True},
    {"attention_softcap": 0.3, "rope_divisors": (1.0, 2.0, 4.0, 8.0), "rope_theta": 50.0},
    {"causal": False, "qkv_bias": True},
    {"causal": False, "attention_softcap": 0.3},
    {"window": 3, "global_every": 2, "qkv_bias": True},
    {
        "window": 3,
        "global_every": 2,
        "attention_softcap": 0.3,
        "local_rope_theta": 10.0,
        "rope_divisors": (2.0,) * 4,
        "rope_factor": 1.5,
    },
]  # of two layers, the second is global


@pytest.mark.parametrize("options", OPTIONS)
def test_the_formula_at_once_and_in_blocks_of_queries(options, monkeypatch):
    model = tiny_model(heads=4, kv_heads=2, layers=2 if "window" in options else 1, **options)
    x = np.random.default_rng(0).normal(0, 2, (1, LENGTH, 32)).astype(np.float32)

    def attended():
        return [block.attention.branch(x, Context()) for block in model.blocks]

    def both():
        at_once = attended()
        monkeypatch.setattr(module, "QUERIES", 4)
        return at_once, attended()

    found, reference = jax.jit(both, compiler_options=QUICK)(), Reference(model)
    for layer in range(len(model.blocks)):
        name = f"blocks.{layer}.attention"
        expected = reference.attention(f"{name}.branch", name, np.float64(x), layer + 1)
        for way in found:
            np.testing.assert_allclose(way[layer], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_own_gradient_is_the_one_that_jax_derives(dtype, cap):
    draw = np.random.default_rng(0).standard_normal
    given = [jnp.asarray(draw((2, LENGTH, h, 8)), dtype) for h in (4, 2, 2, 4)]  # grouped heads
    age = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    mask = ((age >= 0) & (age < 5))[None, None]

    def derived(q, k, v):
        k, v = (jnp.repeat(t, 2, axis=2) for t in (k, v))
        products = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32)
        scores = jnp.where(mask, soft_cap(products * 0.3, cap), -jnp.inf)
        return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores).astype(dtype), v)

    def both(*given):
        ways = derived, lambda *qkv: scaled_attention(*qkv, mask, 0.3, cap)
        found = [jax.vjp(way, *given[:3]) for way in ways]
        return [(out, *back(given[3])) for out, back in found]

    for expected, found in zip(*jax.jit(both, compiler_options=QUICK)(*given), strict=True):
        assert found.dtype == expected.dtype == dtype
        tolerance = 1e-5 if dtype == "float32" else 2**-6
        largest = np.abs(np.float32(expected)).max()
        np.testing.assert_allclose(
            np.float32(found), np.float32(expected), rtol=0, atol=tolerance * largest
        )


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


def test_rotation_keeps_norms_and_sees_only_distances():
    rng = np.random.default_rng(0)
    rows = np.repeat(np.float32(rng.normal(size=(2, 1, 1, 8))), 12, axis=1)
    q, k = np.asarray(jax.jit(lambda x: rotate(x, theta=100.0))(rows))[:, :, 0]
    np.testing.assert_allclose(
        np.linalg.norm([q, k], axis=-1), np.linalg.norm(rows, axis=-1)[:, :, 0], rtol=1e-5
    )
    for distance in range(12):
        diagonal = np.diag(q @ k.T, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
