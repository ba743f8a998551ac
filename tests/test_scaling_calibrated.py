"""Scales from recorded norms."""

import jax
import numpy as np
import pytest
from flax import nnx
from scaling_models import KINDS, random_tokens, uneven

from normlab.model import Context
from normlab.scaling import scales
from normlab.scaling.calibrated import _sizes, recorded
from normlab.scaling.moments import headroom

TOKENS = random_tokens(3)


@pytest.fixture(scope="module")
def model():
    return uneven("layernorm", "peri", sites={"norm_qk": True}, **KINDS["gated"], layers=1)


def by_hand(model, site):
    """The norms of centred rows, from the captured inputs."""
    context = Context(capture=True)
    model(TOKENS, context)
    x = np.float64(context.inputs[site])
    x = x - x.mean(-1, keepdims=True)
    return np.linalg.norm(x, axis=-1).reshape(48, -1)


@pytest.mark.parametrize("site", ["blocks.0.mlp.norm_out", "blocks.0.attention.query.norm_qk"])
def test_recorded_norms_are_those_of_the_captured_rows(model, site):
    np.testing.assert_allclose(recorded(model, TOKENS)[site], by_hand(model, site), rtol=1e-4)


def test_norms_are_recorded_in_float32_on_every_device(model):
    """On a GPU, products of float32 are TF32 where nothing else is asked for."""
    graphdef, params = nnx.split(model)
    traced = str(jax.make_jaxpr(lambda p: _sizes(graphdef, p, TOKENS[:1]))(params))
    assert traced.count("dot_general[") * 2 == traced.count("Precision.HIGHEST") > 0


@pytest.mark.parametrize(
    ("rule", "summary"),
    [("calibrated", np.median), ("calibrated_mean", np.mean), ("calibrated_max", np.max)],
)
def test_a_summary_of_the_calibration_tokens(model, rule, summary):
    found = scales(model, rule, calibration=TOKENS)
    for site in ("norm_final", "blocks.0.attention.key.norm_qk"):
        expected = summary(by_hand(model, site), axis=0)
        np.testing.assert_allclose(np.ravel(found[site]), expected, rtol=1e-4)


def test_a_head_that_is_larger_gets_a_larger_scale():
    model = uneven(sites={"norm_qk": True}, **KINDS["gated"], layers=1)
    kernel = model.blocks[0].attention.branch.query.kernel
    kernel[:, :6] = kernel[:, :6] * 1000
    found = scales(model, "calibrated", calibration=TOKENS)["blocks.0.attention.query.norm_qk"]
    assert found.shape == (4, 1)
    assert found[0, 0] > 50 * found[1, 0]


def test_random_tokens_are_always_the_same(model):
    first, second = (scales(model, "random_tokens") for _ in range(2))
    assert all(np.array_equal(first[site], second[site]) for site in first)


def test_random_tokens_take_the_middle(model):
    tokens = np.random.default_rng(0).integers(0, model.embed.num_embeddings, (4, 16))
    sizes = recorded(model, tokens)["norm_final"]
    expected = np.sqrt(sizes.min() * sizes.max()) / headroom(24)
    assert scales(model, "random_tokens")["norm_final"] == pytest.approx(expected, rel=1e-5)
