"""The bound: no row of any input exceeds it."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.model import placements
from normlab.scaling import RuleDoesNotApply, scales
from normlab.scaling.bound import norm_bounds
from normlab.scaling.calibrated import recorded
from tests.support.scaling_models import EVERYWHERE, KINDS, observed, random_tokens, uneven


def largest_share(model, tokens):
    """The largest of ‖x‖ / bound over the rows, by site."""
    bounds = norm_bounds(model)
    return {
        site: float(np.max(sizes / np.reshape(bounds[site], -1)))
        for site, sizes in recorded(model, tokens).items()
    }


@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from(["pre", "post", "peri", "sub-ln", "hybridnorm-star"]),
    st.sampled_from(list(KINDS)),
    st.floats(0, 2),
    st.integers(0, 10_000),
)
def test_no_recorded_row_exceeds_its_bound(placement, kind, spread, seed):
    norm = "layernorm" if kind == "plain" else "rmsnorm"
    model = uneven(norm, placement, seed, spread, EVERYWHERE, **KINDS[kind])
    for site, share in largest_share(model, random_tokens(4, seed=seed)).items():
        assert share <= 1 + 1e-5, site


@pytest.mark.parametrize("placement", placements)
def test_no_row_of_any_placement_exceeds_its_bound(placement):
    model, found = observed(placement)
    bounds = norm_bounds(model)
    assert found.keys() == bounds.keys()
    for site, sizes in found.items():
        assert np.max(sizes / np.reshape(bounds[site], -1)) <= 1 + 1e-5, site


def test_a_norm_that_does_not_bound_its_rows_has_no_bound():
    with pytest.raises(RuleDoesNotApply, match="norm 'prmsnorm' at .* doesn't promise; take"):
        scales(uneven("prmsnorm", layers=1), "bound")


def test_the_bound_on_a_single_token_with_normed_values_is_met():
    """One token attends to itself: with P the identity, its heads have the norm that is proved."""
    model = uneven(placement="hybridnorm", layers=1, spread=0.0, heads=4, positions="none")
    branch = model.blocks[0].attention.branch
    branch.out.kernel[...] = jnp.eye(24)
    model.embed.embedding[...] *= 1e-4  # the stream adds next to nothing
    branch.value.kernel[...] *= 1e6  # ε doesn't count
    bounds, found = norm_bounds(model), recorded(model, random_tokens(4, 1))
    share = found["blocks.0.attention.norm_skip"] / bounds["blocks.0.attention.norm_skip"]
    assert share.max() == pytest.approx(1, rel=2e-3)


def test_the_bound_is_met_where_nothing_is_lost():
    """One token, one direction: the embedding's longest row is the bound of the first norm."""
    model = uneven(placement="pre", **KINDS["gated"])
    longest = int(jnp.argmax(jnp.linalg.norm(model.embed.embedding[...], axis=1)))
    share = largest_share(model, np.full((1, 16), longest))["blocks.0.attention.norm_in"]
    assert share == pytest.approx(1, rel=1e-5)


def test_one_direction_that_every_map_stretches_comes_close():
    """A bound that were loose by construction would fail here: rank-one maps, lined up."""
    model = uneven(placement="peri", layers=1, gated=False, activation="relu")
    ones = np.ones(24, np.float32)
    model.embed.embedding[...] = jnp.outer(jnp.ones(61), ones)
    part = model.blocks[0].mlp
    part.branch.gate.kernel[...] = jnp.outer(ones, jnp.ones(96))
    part.branch.down.kernel[...] = jnp.outer(jnp.ones(96), ones)
    part.norm_in.gain[...] = jnp.asarray(ones)
    model.blocks[0].attention.norm_out.gain[...] *= 0
    share = largest_share(model, random_tokens(1))["blocks.0.mlp.norm_out"]
    assert share == pytest.approx(1, rel=2e-3)


def test_its_scale_cannot_overflow():
    model = uneven(placement="peri", sites=EVERYWHERE, **KINDS["gated"])
    bounds = norm_bounds(model)
    for site, s in scales(model, "bound").items():
        assert np.max((bounds[site] / np.float64(s)) ** 2) <= 2.0**14 * (1 + 1e-5)
