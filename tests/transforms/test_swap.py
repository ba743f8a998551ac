"""Swapping every norm of a model for another type with the same parameters."""

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import Norm
from normlab.numerics import Precision
from normlab.registry import UnknownNameError
from normlab.transforms.remove import freeze
from normlab.transforms.swap import swap
from tests.conftest import tiny_model
from tests.support.passes import QUICK, TOKENS, passed


def logits(model):
    return passed(model).logits


def kinds(model):
    return {n.config.type for _, n in nnx.iter_graph(model) if isinstance(n, Norm)}


def arrays(model):
    return jax.tree.leaves(nnx.state(model))


@pytest.fixture(scope="module")
def layernorm():
    """A post-norm LayerNorm model."""
    return tiny_model("layernorm", "post", norm_fields={"eps": 1e-3}, layers=1)


@pytest.mark.parametrize(
    ("name", "fields", "limit"),
    [
        ("max-rescale", {}, 1e-5),
        ("iterl2", {"steps": 10}, 1e-4),
        ("i-bert", {"bits": 16}, 1e-2),
    ],
)
def test_a_good_approximation_computes_the_same(layernorm, name, fields, limit):
    swapped = swap(layernorm, name, **fields)
    assert kinds(swapped) == {name}
    assert swapped.norm.type == name
    assert swapped.norm.eps == 1e-3
    a, b = logits(layernorm), logits(swapped)
    assert 0 < np.abs(a - b).max() < limit * np.abs(a).max() or name == "max-rescale"


def test_weights_are_shared_and_the_model_is_left_as_it_is(layernorm):
    before = logits(layernorm)
    swapped = swap(layernorm, "i-bert", bits=4)
    pairs = zip(arrays(layernorm), arrays(swapped), strict=True)
    assert all(a is b for a, b in pairs)
    assert kinds(layernorm) == {"layernorm"}
    assert np.array_equal(logits(layernorm), before)
    assert np.abs(logits(swapped) - before).max() > 0.05


def test_back_again_is_the_same_model(layernorm):
    back = swap(swap(layernorm, "dyadic", bits=4), "layernorm")
    assert back.norm == layernorm.norm
    assert np.array_equal(logits(back), logits(layernorm))


def test_a_field_of_one_type_is_no_field_of_the_next(layernorm):
    assert swap(swap(layernorm, "i-bert", bits=20), "dyadic").norm.bits == 8


def test_an_rmsnorm_is_not_centred_and_every_site_is_swapped():
    model = tiny_model("rmsnorm", "peri", layers=1)
    same = swap(model, "doubled")
    np.testing.assert_allclose(logits(same), logits(model), atol=1e-5)
    assert not swap(model, "i-bert").norm.center
    sites = [n.site.name for _, n in nnx.iter_graph(model) if isinstance(n, Norm)]
    assert sites == [n.site.name for _, n in nnx.iter_graph(same) if isinstance(n, Norm)]
    assert "blocks.0.mlp.norm_out" in sites


def test_what_a_config_says_is_not_lost():
    added = tiny_model("rmsnorm", layers=1, norm_fields={"eps_form": "added"})
    assert swap(added, "doubled").norm.eps_form == "added"
    with pytest.raises(ValueError, match="'i-bert' .* has eps_form = 'added': 'i-bert' has none"):
        swap(added, "i-bert")
    stored = tiny_model("rmsnorm", layers=1, norm_fields={"one_plus": True})
    assert swap(stored, "i-bert").norm.one_plus


def test_a_norm_of_another_meaning_is_not_taken_for_a_layernorm():
    for name in ("l1", "i-bert", "dyadic", "layernorm"):  # four statistics, or one
        with pytest.raises(
            ValueError, match=f"'{name}' .* norm 'groupnorm' .*a type like LayerNorm"
        ):
            swap(tiny_model("groupnorm", layers=1), name)
    partial = tiny_model("prmsnorm", layers=1, norm_fields={"share": 0.5})
    for name in ("rmsnorm", "doubled"):
        with pytest.raises(ValueError, match=f"has share = 0.5: '{name}' has none"):
            swap(partial, name)
    assert swap(partial, "prmsnorm").norm.share == 0.5
    whole = tiny_model("prmsnorm", layers=1, norm_fields={"share": 1.0})
    assert swap(whole, "doubled").norm.type == "doubled"


def test_a_layernorm_does_not_become_what_can_not_centre(layernorm):
    with pytest.raises(ValueError, match="'doubled' can't take the place .* can't centre"):
        swap(layernorm, "doubled")


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("dyt", "i-bert", r"'i-bert' can't take the place of norm 'dyt' at .*: .*alpha"),
        ("rmsnorm", "dyt", r"'dyt' can't take the place of norm 'rmsnorm' at .*: .*alpha"),
        ("rmsnorm", "none", "'none' can't take the place of norm 'rmsnorm'"),
        ("rmsnorm", "layernorm", "the same norm under another name"),
    ],
)
def test_names_the_parameters_that_do_not_fit(model, name, message):
    with pytest.raises(ValueError, match=message):
        swap(tiny_model(model, layers=1), name)


def test_a_norm_that_another_transform_rewrote_is_refused():
    frozen = freeze(tiny_model("rmsnorm", layers=1), {"norm_final": 2.0})
    with pytest.raises(ValueError, match="rewritten by another transform: swap before it"):
        swap(frozen, "i-bert")


def test_names_the_field_and_the_type_that_there_is_not():
    model = tiny_model("rmsnorm", layers=1)
    with pytest.raises(ValueError, match="'i-bert' has no field 'steps'; it has bias, bits"):
        swap(model, "i-bert", steps=2)
    with pytest.raises(ValueError, match="norm.bits = 30: expected 2 to 24"):
        swap(model, "i-bert", bits=30)
    with pytest.raises(UnknownNameError, match="Did you mean 'i-bert'"):
        swap(model, "ibert")


def test_a_swapped_norm_obeys_a_precision():
    model = tiny_model("rmsnorm", layers=1)
    swapped, low = swap(model, "fast-rsqrt", steps=3), Precision.parse("bf16:pairwise")
    asked = ((model, low), (swapped, low), (swapped, None))
    said = lambda: [one(TOKENS, Context(precision)) for one, precision in asked]  # noqa: E731
    a, b, exact = jax.jit(said, compiler_options=QUICK)()
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(b - exact).max() > 1e-4
