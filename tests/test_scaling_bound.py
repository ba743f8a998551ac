"""The bound: no row of any input exceeds it."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_models import KINDS, random_tokens, uneven

from normlab.model import placements
from normlab.scaling import scales
from normlab.scaling.bound import norm_bounds
from normlab.scaling.calibrated import recorded

SITES = {"norm_embed": True, "norm_qk": True}


def largest_share(model, tokens):
    """The largest of ‖x‖ / bound over the rows, by site."""
    bounds = norm_bounds(model)
    return {
        site: float(np.max(sizes / np.reshape(bounds[site], -1)))
        for site, sizes in recorded(model, tokens).items()
    }


@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from(list(placements)),
    st.sampled_from(list(KINDS)),
    st.floats(0, 2),
    st.integers(0, 10_000),
)
def test_no_recorded_row_exceeds_its_bound(placement, kind, spread, seed):
    norm = "layernorm" if kind == "plain" else "rmsnorm"
    model = uneven(norm, placement, seed, spread, SITES, **KINDS[kind])
    for site, share in largest_share(model, random_tokens(4, seed=seed)).items():
        assert share <= 1 + 1e-5, site


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
    model = uneven(placement="peri", sites=SITES, **KINDS["gated"])
    bounds = norm_bounds(model)
    for site, s in scales(model, "bound").items():
        assert np.max((bounds[site] / np.float64(s)) ** 2) <= 2.0**14 * (1 + 1e-5)
