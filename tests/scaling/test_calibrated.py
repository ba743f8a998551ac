"""Scales from recorded norms."""

import jax
import numpy as np
import pytest

from normlab.norms import Site, norms
from normlab.scaling import scales
from normlab.scaling.calibrated import _layer, _norm, recorded
from normlab.scaling.moments import headroom
from tests.conftest import tiny_model
from tests.support.scaling_models import GATED, random_tokens, sizes

TOKENS = random_tokens(3, 64)  # windows as long as those of random_tokens: one program for all
RANDOM = np.random.default_rng(0).integers(0, 97, (4, 64))


def shallow(**fields):
    sites = {"norm_qk": True}
    return tiny_model("layernorm", "peri", placement_fields=sites, layers=1, **GATED, **fields)


def test_recorded_norms_are_those_of_the_rows_that_are_summed():
    found, expected = recorded(shallow(), TOKENS), sizes(shallow(), TOKENS)
    assert found.keys() == expected.keys()
    for site, x in expected.items():
        assert found[site].shape == (192, {"query": 4, "key": 2}.get(site.split(".")[-2:][0], 1))
        np.testing.assert_allclose(found[site], x, rtol=1e-4)


def test_norms_are_recorded_in_float32_on_every_device(monkeypatch):
    """On a GPU, products of float32 are TF32 where nothing else is asked for."""
    traced = ""

    def spy(*layer):
        nonlocal traced
        traced += str(jax.make_jaxpr(_layer, static_argnums=(0, 1))(*layer))
        return _layer(*layer)

    monkeypatch.setattr("normlab.scaling.calibrated._layer", spy)
    recorded(shallow(), TOKENS[:1])
    assert traced.count("dot_general[") * 2 == traced.count("Precision.HIGHEST") > 0


@pytest.mark.parametrize(
    ("rule", "summary"),
    [
        ("calibrated", lambda x: np.median(x, axis=0)),
        ("calibrated_mean", lambda x: np.mean(x, axis=0)),
        ("calibrated_max", lambda x: np.max(x, axis=0)),
        ("random_tokens", lambda x: np.sqrt(x.min(axis=0) * x.max(axis=0))),
    ],
)
def test_a_rule_sums_up_what_its_tokens_make(rule, summary):
    """The calibration's, or always the same random ones: there the middle, with headroom."""
    own = rule == "random_tokens"
    model, found = shallow(), scales(shallow(), rule, calibration=TOKENS)
    for site, x in sizes(model, RANDOM if own else TOKENS).items():
        width = 8 if site.endswith("qk") else 32
        expected = summary(x) / (headroom(width) if own else 1)
        np.testing.assert_allclose(np.ravel(found[site]), expected, rtol=1e-4)


def test_a_head_that_is_larger_gets_a_larger_scale():
    model = shallow()
    kernel = model.blocks[0].attention.branch.query.kernel
    kernel[...] = np.asarray(kernel[...]) * np.float32(np.where(np.arange(32) < 8, 1000, 1))
    found = scales(model, "calibrated", calibration=TOKENS)["blocks.0.attention.query.norm_qk"]
    assert found.shape == (4, 1)
    assert found[0, 0] > 50 * found[1, 0]


def test_a_row_of_zeros_counts_as_one_that_eps_rules():
    """A token that was never trained must not make a scale of nothing for all others."""
    site, table = "blocks.0.attention.norm_in", np.asarray(shallow().embed.embedding[...]).copy()
    before = scales(shallow(), "random_tokens")[site]
    table[RANDOM[0, 0]] = 0
    model = shallow()
    model.embed.embedding[...] = table
    seen = table[RANDOM.ravel()]
    largest = np.linalg.norm(seen - seen.mean(-1, keepdims=True), axis=-1).max()
    after = scales(model, "random_tokens")[site]
    assert after == pytest.approx(np.sqrt(np.sqrt(32 * 1e-5) * largest) / headroom(32), rel=1e-4)
    assert 0.1 * before < after < before


def test_what_is_measured_is_what_the_norm_sums():
    x = np.random.default_rng(0).normal(5.0, 1.0, (7, 4, 32)).astype(np.float32)
    x[..., -1] = 3000.0

    def measured(name, **fields):
        norm = norms[name](32, Site("norm_in", "norm_in"), norms[name].Config(**fields))
        return np.asarray(_norm(x, norm))

    np.testing.assert_allclose(measured("rmsnorm"), np.linalg.norm(x, axis=-1), rtol=1e-5)
    centred = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(measured("layernorm"), np.linalg.norm(centred, axis=-1), rtol=1e-5)
    first = np.linalg.norm(x[..., :8], axis=-1)
    np.testing.assert_allclose(measured("prmsnorm", share=0.25), first, rtol=1e-5)
    groups = x.reshape(7, 4, 4, 8)
    groups = np.linalg.norm(groups - groups.mean(-1, keepdims=True), axis=-1)
    found = measured("groupnorm", groups=4).reshape(7, 4, 4)
    np.testing.assert_allclose(found, groups.swapaxes(1, 2), rtol=1e-5)
