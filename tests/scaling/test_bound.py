"""The bound: no row of any input exceeds it."""

import numpy as np
import pytest

from normlab.model import placements
from normlab.scaling import RuleDoesNotApply, scales
from normlab.scaling.bound import norm_bounds
from tests.conftest import tiny_model
from tests.support.scaling_models import EVERYWHERE, GATED, placed, random_tokens, sizes


def shares(model, tokens):
    """The largest of ‖x‖ / bound over the rows, by site."""
    bounds, found = norm_bounds(model), sizes(model, tokens)
    assert bounds.keys() == found.keys()
    return {site: np.max(x / np.reshape(bounds[site], -1)) for site, x in found.items()}


@pytest.mark.parametrize(
    "spread", [0.7, *(pytest.param(s, marks=pytest.mark.system) for s in (0.0, 2.0))]
)
@pytest.mark.parametrize("placement", placements)
def test_no_row_exceeds_its_bound(placement, spread):
    model = placed(placement, spread=spread)
    for site, share in shares(model, random_tokens(16)).items():
        assert share <= 1 + 1e-5, site


def test_a_norm_that_does_not_bound_its_rows_has_no_bound():
    with pytest.raises(RuleDoesNotApply, match="norm 'prmsnorm' at .* doesn't promise; take"):
        scales(tiny_model("prmsnorm"), "bound")


def test_the_bound_on_a_single_token_with_normed_values_is_met():
    """One token attends to itself: with P the identity, its heads have the norm that is proved."""
    model = tiny_model(placement="hybridnorm", layers=1, spread=0.0)
    branch = model.blocks[0].attention.branch
    branch.out.kernel[...] = np.eye(32, dtype=np.float32)
    branch.value.kernel[...] = 1e6 * np.asarray(branch.value.kernel[...])  # ε doesn't count
    table = model.embed.embedding
    table[...] = 1e-4 * np.asarray(table[...])  # the stream adds next to nothing
    share = shares(model, random_tokens(4, 1))["blocks.0.attention.post_norm"]
    assert share == pytest.approx(1, rel=2e-3)


def test_the_bound_is_met_where_nothing_is_lost():
    """The embedding's longest row is the bound of the first norm."""
    share = shares(tiny_model(**GATED), np.arange(97)[:, None])["blocks.0.attention.norm_in"]
    assert share == pytest.approx(1, rel=1e-5)


def test_one_direction_that_every_map_stretches_comes_close():
    """A bound that were loose by construction would fail here: rank-one maps, lined up."""
    model = tiny_model(placement="peri", layers=1, gated=False, activation="relu")
    ones = np.ones(32, np.float32)
    part = model.blocks[0].mlp
    for array, values in (
        (model.embed.embedding, np.ones((97, 32))),
        (part.branch.gate.kernel, np.ones((32, 128))),
        (part.branch.down.kernel, np.ones((128, 32))),
        (part.norm_in.weight, ones),
        (model.blocks[0].attention.norm_out.weight, 0 * ones),
    ):
        array[...] = np.float32(values)
    share = shares(model, random_tokens(1))["blocks.0.mlp.norm_out"]
    assert share == pytest.approx(1, rel=2e-3)


def test_its_scale_cannot_overflow():
    model = tiny_model(placement="peri", placement_fields=EVERYWHERE, **GATED)
    bounds = norm_bounds(model)
    for site, s in scales(model, "bound").items():
        assert np.max((bounds[site] / np.float64(s)) ** 2) <= 2.0**14 * (1 + 1e-5)
