"""What the scale rules read of a model."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.norms import Site, norms
from normlab.scaling import weights
from tests.conftest import tiny_model
from tests.support.scaling_models import GATED, KINDS, placed, random_tokens, rows
from tests.support.transformer_reference import Reference


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(8, 8), (5, 17), (17, 5), (1, 6)]),
    st.floats(0, 3),
    st.floats(-12, 12),
    st.integers(0, 999),
)
def test_the_spectral_norm_is_met_from_above(shape, spread, size, seed):
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.normal(0, spread, shape[0]))
    matrix = np.float32(10**size * rows[:, None] * rng.normal(size=shape))
    exact = np.linalg.norm(matrix.astype(np.float64), 2)
    found = weights.spectral_norm(jnp.asarray(matrix))
    assert exact * (1 - 1e-5) <= found <= exact * 1.001


def test_the_spectral_norm_of_two_equal_singular_values():
    """Where power iteration has no gap to work with."""
    assert weights.spectral_norm(3 * jnp.eye(64)) == pytest.approx(3, rel=1e-3)


def test_the_spectral_norm_of_zero_is_zero():
    assert weights.spectral_norm(jnp.zeros((3, 4))) == 0.0


def test_each_value_head_stands_beside_its_queries():
    """The values that the weights give are those that attention of a token to itself passes on."""
    model = tiny_model(bias=True, **GATED)
    branch, name = model.blocks[0].attention.branch, "blocks.0.attention"
    x = np.random.default_rng(0).normal(size=(5, 1, 32))
    w, b = weights.values(branch)
    out = np.float64(branch.out.kernel[...])
    expected = Reference(model).attention(f"{name}.branch", name, x, 1)
    passed_on = (x @ np.float64(w) + b) @ out + np.float64(branch.out.bias[...])
    np.testing.assert_allclose(passed_on, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_add_up_to_the_embedding(kind):
    model, tokens = tiny_model("dyt", embed_factor=3.0, **KINDS[kind]), random_tokens(1)
    found = [c * np.float64(table) for c, table in weights.tables(model)]
    total = found[0][tokens] + (found[1][:16] if len(found) > 1 else 0)
    np.testing.assert_allclose(total, Reference(model).embed_tokens(tokens), rtol=1e-5)


def test_every_norm_is_found_by_its_site():
    model = placed("peri")
    seen, found = rows(model, random_tokens(1)), weights.norms_by_site(model)
    assert found.keys() == seen.keys()
    assert all(norm.width == seen[site].shape[-1] for site, norm in found.items())


def test_what_a_norm_lacks_is_neutral():
    model = tiny_model()
    model.norm_final.weight = None
    assert np.array_equal(weights.gamma(model.norm_final), np.ones(32))
    assert np.array_equal(weights.shift(model.norm_final), np.zeros(32))
    assert not model.norm_final.centres


def test_what_a_scale_is_capped_by_and_what_a_statistic_is_centred_on():
    def made(name, **fields):
        return norms[name](16, Site("norm_in", "norm_in"), norms[name].Config(**fields))

    assert made("rmsnorm", eps=1e-6).least_rms() == pytest.approx(1e-3)
    assert made("rmsnorm", eps=1e-6, eps_form="added").least_rms() == 1e-6
    assert made("scalenorm", eps=1e-6).least_rms() == 2.5e-7
    assert made("layernorm").centres
    assert not made("dropped-mean").centres
    assert made("scalenorm").eps_form == "floor"
