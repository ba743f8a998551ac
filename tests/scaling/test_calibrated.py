"""Scales from recorded norms."""

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import Site, norms
from normlab.scaling import scales
from normlab.scaling.calibrated import _norm, _sizes, recorded
from normlab.scaling.moments import headroom
from tests.support.scaling_models import KINDS, random_tokens, uneven

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


def test_a_row_of_zeros_counts_as_one_that_eps_rules():
    """A token that was never trained must not make a scale of nothing for all others."""
    model = uneven("rmsnorm", "pre", layers=1, **KINDS["gated"])
    site = "blocks.0.attention.norm_in"
    before = scales(model, "random_tokens")[site]
    model.embed.embedding[...] = model.embed.embedding[...].at[5].set(0.0)
    eps = model.blocks[0].attention.norm_in.config.eps
    largest = recorded(model, np.arange(61)[None, :16])[site].max()
    after = scales(model, "random_tokens")[site]
    assert after == pytest.approx(np.sqrt(np.sqrt(24 * eps) * largest) / headroom(24), rel=0.5)
    assert 0.1 * before < after < before


def test_what_is_measured_is_what_the_norm_sums():
    x = np.random.default_rng(0).normal(5.0, 1.0, (7, 4, 24)).astype(np.float32)
    x[..., -1] = 3000.0

    def sizes(name, **fields):
        norm = norms[name](24, Site("norm_in", "norm_in"), norms[name].Config(**fields))
        return np.asarray(_norm(x, norm))

    np.testing.assert_allclose(sizes("rmsnorm"), np.linalg.norm(x, axis=-1), rtol=1e-5)
    centred = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(sizes("layernorm"), np.linalg.norm(centred, axis=-1), rtol=1e-5)
    first = np.linalg.norm(x[..., :6], axis=-1)
    np.testing.assert_allclose(sizes("prmsnorm", share=0.25), first, rtol=1e-5)
    groups = x.reshape(7, 4, 3, 8)
    groups = np.linalg.norm(groups - groups.mean(-1, keepdims=True), axis=-1)
    found = sizes("groupnorm", groups=3).reshape(7, 3, 4)
    np.testing.assert_allclose(found, groups.swapaxes(1, 2), rtol=1e-5)


def test_random_tokens_take_the_middle(model):
    tokens = np.random.default_rng(0).integers(0, model.embed.num_embeddings, (4, 16))
    sizes = recorded(model, tokens)["norm_final"]
    expected = np.sqrt(sizes.min() * sizes.max()) / headroom(24)
    assert scales(model, "random_tokens")["norm_final"] == pytest.approx(expected, rel=1e-5)
