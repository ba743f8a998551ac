"""The rescaled stream: c times as large, and not a bit of a logit else for c = 2ᵏ."""

import jax
import numpy as np
import pytest

from normlab.model import placements
from normlab.norms import norms
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.rescale import OF_ALPHA, OF_EPS
from tests.conftest import tiny_model
from tests.support.transform_models import bits, close, double, same, seen

SUMS = sorted({"pre", "peri", "reordered", "sandwich", "sub-ln", "normformer", "lns", "parallel"})
"""Placements whose stream is a sum."""

OTHERS = sorted(set(norms) - {*OF_EPS, *OF_ALPHA})


@pytest.mark.parametrize(
    ("placement", "c"), [*((placement, 0.25) for placement in SUMS), ("pre", 2.0**10)]
)
def test_a_power_of_two_changes_no_bit(placement, c):
    model = tiny_model("layernorm", placement, bias=True, positions="learned")
    before = bits(model)
    made = apply(model, f"rescale({c})")
    (said, was), (says, found) = seen(model), seen(made)
    assert np.array_equal(says, said)
    assert bits(model) == before
    for site, x in found.items():
        assert np.array_equal(x, c * was[site]), site


@pytest.mark.parametrize(
    ("norm", "placement", "norm_embed"),
    [
        *((norm, "peri", False) for norm in (*OF_EPS, *OF_ALPHA)),
        *((norm, "pre", True) for norm in ("layernorm", "scalenorm", "dyt")),
        *((norm, "reordered", False) for norm in ("layernorm", "fixnorm", "dyt")),
    ],
)
def test_any_factor_is_exact_and_so_is_eps(norm, placement, norm_embed):
    """ε as large as the statistic: left as it is, it would be another network."""
    with jax.enable_x64(True):
        fields = {"eps": 0.5} if norm in OF_EPS else {}
        sites = {"norm_embed": norm_embed}
        model = double(norm, placement, norm_fields=fields, placement_fields=sites, layers=1)
        made = apply(model, "rescale:0.3")
        (said, was), (says, found) = seen(model), seen(made)
        assert close(said, says)
        peak, before = (np.abs(x["norm_final"]).max() for x in (found, was))
        assert peak == pytest.approx(0.3 * before, rel=1e-12)


def test_a_stored_one_plus_w_is_rescaled_as_it_acts():
    with jax.enable_x64(True):
        model = double("rmsnorm", "peri", norm_fields={"one_plus": True})
        assert same(model, apply(model, "rescale:0.3"))


@pytest.mark.parametrize(
    "refused", [("i-bert", "seednorm"), pytest.param(OTHERS, marks=pytest.mark.system)]
)
def test_every_norm_type_is_rescaled_exactly_or_refused(refused):
    assert len(OTHERS) == len(norms) - len(OF_EPS) - len(OF_ALPHA)
    for norm in refused:
        with pytest.raises(DoesNotApply, match=f"norm '{norm}' at .* can't be told"):
            apply(tiny_model(norm, layers=1), "rescale:2")


@pytest.mark.parametrize("placement", [p for p in placements if p not in SUMS])
def test_streams_that_a_norm_replaces_are_refused(placement):
    with pytest.raises(DoesNotApply, match=f"placement '{placement}' normalizes the stream itself"):
        apply(tiny_model("layernorm", placement), "rescale:2")
