"""A model in a family's layout: what is kept, what is chosen and said, what is refused."""

import numpy as np
import pytest

from normlab.norms import all_norms
from normlab.pretrained.export.fit import NoFamily, eps_choices, fitted
from normlab.transforms import apply
from tests.conftest import forward, tiny_model
from tests.support.export_models import MADE_HERE

pytestmark = pytest.mark.system

GATED = {"activation": "silu", "gated": True}


def same(a, b, tokens, rtol=0.0):
    before = forward(a, tokens)
    np.testing.assert_allclose(forward(b, tokens), before, rtol=0, atol=rtol * np.abs(before).max())


def test_a_model_made_here_is_one_of_llamas(tokens):
    """Bit for bit, and its config.json says it all."""
    model = tiny_model()
    fit = fitted(model)
    assert (fit.family, fit.notes) == ("llama", [])
    assert fit.config["rms_norm_eps"] == model.norm.eps
    assert "query_pre_attn_scalar" not in fit.config  # a word of Gemma's
    same(model, fit.model, tokens)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.system] * (family not in ("gemma2", "gpt2")))
        for family in MADE_HERE
    ],
)
def test_a_family_is_found_for_what_was_trained_here(family, tokens):
    model = tiny_model(**MADE_HERE[family])
    fit = fitted(model)
    assert fit.family == family
    same(model, fit.model, tokens, 1e-5)
    if model.placement.type == "lns":
        assert fit.notes == ["The weights of 2 norms hold the constant factor behind them."]


def test_a_rewrite_takes_nothing_from_the_logits_and_says_what_it_did(tokens):
    model = apply(tiny_model(), "rescale:0.25+fold")
    fit = fitted(model, "llama")
    assert fit.config["rms_norm_eps"] == model.norm.eps / 16
    assert fit.config["tie_word_embeddings"] is False
    said = " ".join(fit.notes)
    assert "hold the factor 0.25" in said
    assert "The head was the embedding" in said
    assert "The weights of 4 norms are 1" in said
    same(model, fit.model, tokens, 1e-6)
    np.testing.assert_array_equal(
        fit.model.embed.embedding[...] * 4, np.asarray(fit.model.head.kernel[...]).T
    )


def test_keys_of_a_config_that_nothing_changed_are_kept():
    model = tiny_model(tied=False)
    original = {"model_type": "llama", "of_ones_own": 3, **fitted(model).config}
    fit = fitted(apply(model, "rescale:0.5"), "llama", original)
    assert fit.config == original | {"rms_norm_eps": original["rms_norm_eps"] / 4}


def test_one_eps_for_all_is_said_with_those_that_want_another():
    model = apply(tiny_model(placement="peri"), "rescale:0.25")
    fit = fitted(model, "gemma2")
    assert {norm.config.eps for norm in all_norms(fit.model)} == {model.norm.eps}
    (said,) = [note for note in fit.notes if "ε" in note]
    assert "5 of 9 norms want 6.25e-07" in said
    assert eps_choices(model) == [1e-5, 1e-5 / 16]
    other = fitted(model, "gemma2", eps=1e-5 / 16)
    assert other.config["rms_norm_eps"] == 1e-5 / 16
    assert any("4 of 9 norms want 1e-05" in note for note in other.notes)


def test_weights_are_as_a_stored_one_less_gives_them_again():
    model = tiny_model(placement="peri")
    model.norm_final.weight[...] = np.float32(1e-3) * model.norm_final.weight[...]
    fit = fitted(model)
    gamma = np.asarray(fit.model.norm_final.weight[...])
    np.testing.assert_array_equal((gamma - np.float32(1)) + np.float32(1), gamma)
    assert any("stored as γ − 1" in note for note in fit.notes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"norm": "dyt", "placement": "peri"},
            r"no family has dyt at placement peri.*gemma2, has norm = rmsnorm, not dyt",
        ),
        ({"norm": "layernorm"}, "the nearest, gpt_neox, has gated = False, not True"),
        ({"placement": "deepnorm"}, "no family has rmsnorm at placement deepnorm"),
        ({"positions": "none"}, "has positions = rotary, not none"),
        ({"norm": "fixnorm"}, "no family has fixnorm at placement pre"),
        (
            {"placement_fields": {"norm_qk": True, "norm_qk_rotated": True}},
            "has norm of q and k after positions = False, not True",
        ),
    ],
)
def test_what_no_family_can_say_names_the_nearest(given, message):
    with pytest.raises(NoFamily, match=message):
        fitted(tiny_model(**given))


def test_one_norm_for_two_branches_is_written_once_or_not_at_all():
    """Phi stores one norm for both; where the two have come apart, it is another family's."""
    model = tiny_model("layernorm", "parallel", gated=False, head_bias=True, tied=False)
    with pytest.raises(NoFamily, match="has tensors = one for both, not blocks.0.attention"):
        fitted(model, "phi")
    for block in model.blocks:
        block.mlp.norm_in.weight[...] = block.attention.norm_in.weight[...]
        block.mlp.norm_in.bias[...] = block.attention.norm_in.bias[...]
    assert fitted(model).family == "phi"
