"""Folding: exact in float64, bit for bit for powers of two, nothing else touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import placements
from normlab.norms import all_norms, norms
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.fold import absorb
from normlab.transforms.surgery import read_by_maps
from tests.conftest import same_trees, tiny_model
from tests.support.transform_models import bits, double, same, seen

UNFOLDED = {"none", "seednorm", "tapernorm", "bhyt-estimated"}
"""Types whose weight is no factor after everything else, or is known, or that have none."""

FLOAT32 = {"fast-rsqrt"}
"""Types that are made of float32's bits."""


def params():
    """Every type that can be folded; those that take long to compile are system tests."""
    for norm in sorted(set(norms) - UNFOLDED - FLOAT32):
        module = norms[norm].__module__.rpartition(".")[2]
        slow = module in ("approximate", "batch", "integer") or norm == "bhyt"
        yield pytest.param(norm, marks=[pytest.mark.system] * slow)


@pytest.mark.parametrize("norm", list(params()))
def test_folding_is_exact(norm):
    with jax.enable_x64(True):
        folds(double(norm, tied=False, bias=True, layers=1), 1e-12)


@pytest.mark.system
@pytest.mark.parametrize("norm", sorted(FLOAT32))
def test_folding_is_exact_up_to_rounding(norm):
    folds(tiny_model(norm, tied=False, bias=True, layers=1), 2e-6)


def folds(model, limit):
    before = bits(model)
    folded = apply(model, "fold")
    assert same(model, folded, limit)
    assert bits(model) == before
    for owner, name, _ in read_by_maps(folded):
        left = getattr(owner, name)
        assert left is None or (left.gamma() is None and left.beta() is None) or left.gamma() == 1


@pytest.mark.system
@pytest.mark.parametrize("placement", placements)
def test_folding_is_exact_in_every_placement(placement):
    with jax.enable_x64(True):
        fields = {"norm_embed": True}
        model = double("layernorm", placement, tied=False, gated=False, placement_fields=fields)
        if placement in ("post", "deepnorm"):  # every norm writes to the stream
            with pytest.raises(DoesNotApply, match=f"no weight.*{placement}"):
                apply(model, "fold")
        else:
            assert same(model, apply(model, "fold"))


def test_powers_of_two_change_no_bit():
    model = tiny_model(tied=False)
    rng = np.random.default_rng(0)
    for norm in all_norms(model):
        norm.weight[...] = jnp.float32(2.0 ** rng.integers(-3, 4, norm.width))
    assert np.array_equal(seen(model)[0], seen(apply(model, "fold"))[0])


def test_a_stored_one_plus_w_is_folded_as_it_acts():
    with jax.enable_x64(True):
        fields = {"one_plus": True}
        model = double("rmsnorm", norm_fields=fields, tied=False)
        assert same(model, apply(model, "fold"))


def test_a_tied_head_and_its_norm_stay_as_they_are():
    with jax.enable_x64(True):
        model = double("layernorm")
        folded = apply(model, "fold")
        assert same(model, folded)
    assert folded.head is None
    assert same_trees(nnx.state(folded.norm_final), nnx.state(model.norm_final))
    assert folded.embed.embedding[...] is model.embed.embedding[...]


def test_a_bias_after_the_weight_becomes_the_maps_bias():
    """c* = c + βW, by hand."""
    linear = small_linear()
    kernel = np.asarray(linear.kernel[...])
    a, b = np.array([2.0, -1.0, 0.5]), np.array([1.0, 0.0, 4.0])
    absorb(linear, a, b)
    np.testing.assert_array_equal(linear.kernel[...], a[:, None] * kernel)
    np.testing.assert_allclose(linear.bias[...], kernel[0] + 4 * kernel[2], rtol=1e-6)


def small_linear():
    from normlab.model.linear import Linear

    return Linear(3, 2, bias=False, std=1.0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("placement", ["pre", "peri"])
def test_a_linear_norm_folds_away(placement):
    """A fixed map at inference: into the map behind it, and behind a branch into the one before."""
    with jax.enable_x64(True):
        model = double("batchnorm", placement, tied=False)
        for norm in all_norms(model):
            norm.variance[...] = norm.variance[...] ** 2
        folded = apply(model, "fold")
        assert same(model, folded)
    assert all_norms(model)
    assert not all_norms(folded)


def test_a_tapernorm_folds_away_once_its_gate_is_shut():
    with jax.enable_x64(True):
        model = double("tapernorm", tied=False, norm_fields={"keep_final": False})
        for norm in all_norms(model):
            norm.gate[...] = jnp.float64(0.0)
        folded = apply(model, "fold")
        assert same(model, folded)
    assert not all_norms(folded)


@pytest.mark.parametrize("shut", [True, False])
def test_a_norm_that_stays_does_not_keep_the_others_from_being_folded(shut):
    """TaperNorm keeps its final norm, whose weight does not act last."""
    with jax.enable_x64(True):
        model = double("tapernorm", tied=False)
        inner = [norm for norm in all_norms(model) if norm is not model.norm_final]
        for norm in inner[: len(inner) if shut else 1]:
            norm.gate[...] = jnp.float64(0.0)
        folded = apply(model, "fold")
        assert same(model, folded)
    assert len(all_norms(folded)) == len(all_norms(model)) - (len(inner) if shut else 1)


@pytest.mark.parametrize(
    ("norm", "placement", "fields", "message"),
    [
        ("rmsnorm", "post", {}, "no weight, bias or linear norm.*placement post"),
        ("rmsnorm", "reordered", {}, "no weight, bias or linear norm.*placement reordered"),
        ("seednorm", "pre", {}, "the weight of seednorm doesn't act last"),
    ],
)
def test_what_cannot_be_folded_is_refused(norm, placement, fields, message):
    with pytest.raises(DoesNotApply, match=message):
        apply(tiny_model(norm, placement), "fold")


def test_a_folded_model_has_nothing_left_to_fold():
    model = tiny_model()
    with pytest.raises(DoesNotApply, match="no weight"):
        apply(model, "fold+fold")
