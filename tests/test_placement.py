"""Placements: which sites hold a norm, and what the residual wrapper makes of them."""

import jax
import numpy as np
import pytest
from conftest import tiny_model

from normlab.model import Context, PlacementConfig, placements
from normlab.model.placement import SITES
from normlab.registry import UnknownNameError

EXPECTED = {
    "pre": {"norm_in", "norm_final"},
    "post": {"norm_skip"},
    "peri": {"norm_in", "norm_out", "norm_final"},
}


def sites(model, tokens):
    context = Context(capture=True)
    model(tokens, context)
    return context.inputs


@pytest.mark.parametrize("name", EXPECTED)
def test_the_table_is_the_papers(name):
    assert placements[name].sites == EXPECTED[name]


@pytest.mark.parametrize("name", placements)
def test_every_site_of_a_placement_is_visited_once_for_each_sublayer(name, tokens):
    seen = list(sites(tiny_model(placement=name), tokens))
    for kind in SITES:
        found = [s for s in seen if s.endswith(kind)]
        expected = 0
        if kind in placements[name].sites:
            expected = 1 if kind in ("norm_embed", "norm_final") else 4
        assert len(found) == expected, kind


@pytest.mark.parametrize("name", placements)
def test_a_source_is_given(name):
    assert "arXiv" in placements[name].source


def residual(placement, tokens):
    """The stream into and out of the first attention, with that branch's raw output."""
    model = tiny_model(placement=placement)
    context = Context()
    x = model.stem(tokens, context)
    sublayer = model.blocks[0].attention
    return sublayer, x, sublayer(x, context)


def rms(x):
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-5)


def test_pre_is_x_plus_f_of_norm(tokens):
    sublayer, x, y = residual("pre", tokens)
    np.testing.assert_allclose(y, x + sublayer.branch(rms(x), Context()), atol=1e-5)


def test_post_is_norm_of_x_plus_f(tokens):
    sublayer, x, y = residual("post", tokens)
    np.testing.assert_allclose(y, rms(x + sublayer.branch(x, Context())), atol=1e-4)


def test_peri_is_x_plus_norm_of_f_of_norm(tokens):
    sublayer, x, y = residual("peri", tokens)
    np.testing.assert_allclose(y, x + rms(sublayer.branch(rms(x), Context())), atol=1e-4)


def test_under_peri_the_output_does_not_see_the_size_of_a_branch(tokens):
    def scaled(placement):
        model = tiny_model(placement=placement, norm_fields={"eps": 0.0})
        before = model(tokens)
        for block in model.blocks:
            block.mlp.branch.down.kernel[...] *= 3.0
            block.attention.branch.out.kernel[...] *= 3.0
        return np.abs(model(tokens) - before).max()

    assert scaled("peri") < 1e-4
    assert scaled("pre") > 1e-2


def test_embed_and_qk_norms_can_be_added_to_any_row(tokens):
    model = tiny_model()
    plain = len(sites(model, tokens))
    from normlab.model import Transformer

    config = PlacementConfig("pre", norm_embed=True, norm_qk=True)
    seen = sites(Transformer(model.config, model.norm, config, 97), tokens)
    assert len(seen) == plain + 1 + 4
    assert seen["norm_embed"].shape == (2, 16, 32)
    assert seen["blocks.0.attention.query.norm_qk"].shape == (2, 16, 2, 16)


def test_without_norms_a_branch_starts_silent_and_its_gain_learns_first(tokens):
    model = tiny_model("none")
    x = model.stem(tokens, Context())
    assert np.array_equal(model.blocks[0](x, Context()), x)
    from flax import nnx

    graphdef, params = nnx.split(model)
    gradient = jax.grad(lambda p: nnx.merge(graphdef, p)(tokens).std())(params)
    block = gradient["blocks"][0]["mlp"]
    assert np.abs(block["branch_gain"][...]).max() > 0
    assert np.abs(block["branch"]["down"]["kernel"][...]).max() == 0


def test_an_unknown_placement_names_the_nearest():
    with pytest.raises(UnknownNameError, match="placement 'perry'. Did you mean 'peri'"):
        PlacementConfig(type="perry")
