"""The decoder: that each field of its config is its formula, causality, dropout, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, ModelConfig, PlacementConfig, Transformer
from normlab.model.transformer import transposed
from normlab.norms import all_norms, norms
from normlab.norms.sites import NormAt
from normlab.numerics import Precision
from normlab.registry import UnknownNameError
from tests.conftest import TINY, VOCAB, tiny_model
from tests.support.passes import QUICK, TOKENS, assert_causal, passed
from tests.support.transformer_reference import Reference, weights

CONFIGS = {
    "shape": {
        "layers": 3, "width": 48, "heads": 4, "kv_heads": 1, "head_dim": 8, "hidden": 40,
        "gated": False, "activation": "relu", "rope_theta": 100.0, "embed_factor": 3.0,
        "rope_dim": 4, "branch_factor": 0.5, "logit_factor": 2.0,
    },
    "stem and head": {
        "positions": "learned", "max_length": 20, "bias": True, "tied": False, "causal": False,
        "activation": "gelu", "attention_scale": 2.0, "logit_softcap": 0.5,
        "head_bias": True, "mlp_bias": False, "embed_width": 24,
    },
    "long": {
        "window": 4, "global_every": 2, "local_rope_theta": 100.0, "rope_divisors": (2.0,) * 8,
        "rope_factor": 1.5,
        "attention_softcap": 0.1, "qkv_bias": True, "embed_length": 3.0,
        "activation": "gelu_tanh",
    },
    "no positions": {"positions": "none", "bias": True, "qkv_bias": False, "window": 4},
}  # fmt: skip
OF_WINDOWS = ("global_every", "local_rope_theta")
OF_SHAPES = {
    "layers", "width", "heads", "kv_heads", "head_dim", "hidden", "gated", "positions", "bias",
    "qkv_bias", "mlp_bias", "head_bias", "tied", "embed_length", "embed_width",
}  # fmt: skip
"""A model without one of these has other arrays, which the formula could not take."""
ELSEWHERE = {"init_std", "dropout", "max_length"}
"""Of the initial values (test_placement_rows.py), of training, and a bound: tests below."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_its_formula(name):
    model = tiny_model(**CONFIGS[name])
    expected = Reference(model).logits(TOKENS)
    found = passed(model).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert ("head.kernel" in weights(model)) == (not model.config.tied)
    assert ("positions.embedding" in weights(model)) == (model.config.positions == "learned")


def test_every_field_is_in_one_of_these_configs_and_changes_something():
    """In the formula, with which the model agrees."""
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    assert fields - ELSEWHERE == set().union(*CONFIGS.values()) - ELSEWHERE
    for fields in CONFIGS.values():
        model = tiny_model(**fields)
        expected = Reference(model).logits(TOKENS)
        for field in fields.keys() - ELSEWHERE - OF_SHAPES:
            gone = {field, *(OF_WINDOWS if field == "window" else ())}
            other = {name: value for name, value in fields.items() if name not in gone}
            model.config = ModelConfig(**(TINY | other))
            assert not np.array_equal(Reference(model).logits(TOKENS), expected), field


REACHING = ("bhyt-estimated", "fixnorm", "none")  # beyond their row, into the model
EACH = [n if n in REACHING else pytest.param(n, marks=pytest.mark.system) for n in norms]


@pytest.mark.parametrize("norm", EACH)
def test_no_token_sees_a_later_one(norm):
    """The same for every placement: test_placement_rows.py; that rows are apart: tests/norms."""
    fields = {"branch_gain": 1.0} if norm == "none" else {}  # open branches
    assert_causal(tiny_model(norm, norm_fields=fields, layers=1))


def test_a_precision_is_given_to_a_call_and_changes_no_weight():
    model, low = tiny_model(layers=1), Precision.parse("fp16:sequential")
    before = weights(model)
    both = lambda: [model(TOKENS, Context(given)) for given in (None, low)]  # noqa: E731
    exact, rounded = jax.jit(both, compiler_options=QUICK)()
    assert np.abs(rounded - exact).max() > 0
    np.testing.assert_allclose(rounded, exact, atol=0.02 * np.abs(exact).max())
    assert all(np.array_equal(a, before[name]) for name, a in weights(model).items())


def test_dropout_needs_a_key_and_depends_on_nothing_else():
    model = tiny_model(dropout=0.5, layers=1)
    run = jax.jit(lambda key: model(TOKENS, Context(dropout_key=key)), compiler_options=QUICK)
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)

    def drawn(key):
        program = str(jax.make_jaxpr(lambda: model(TOKENS, Context(dropout_key=key)))())
        return program.count("name=_bernoulli")

    assert drawn(jax.random.key(1)) == 3, "the stem and each branch"
    assert drawn(None) == 0


def test_dropout_keeps_the_mean_and_draws_again_each_time():
    def twice():
        context = Context(dropout_key=jax.random.key(0))
        return [context.dropout(jnp.ones((200, 200)), 0.25) for _ in range(2)]

    first, second = map(np.asarray, jax.jit(twice)())
    assert not np.array_equal(first, second)
    assert first.mean() == pytest.approx(1.0, abs=0.02)  # 8 standard errors
    assert set(np.unique(first)) == {0.0, np.float32(1 / 0.75)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 128, "heads": 3}, "width = 128 is not divisible by model.heads = 3; .* is 2"),
        ({"heads": 4, "kv_heads": 3}, "the nearest number of key/value heads that divides it is"),
        ({"activation": "gelo"}, "unknown model.activation 'gelo'. Did you mean 'gelu'"),
        ({"positions": "rotery"}, "Did you mean 'rotary'"),
        ({"layers": 0}, "model.layers = 0: expected a number ≥ 1"),
        ({"kv_heads": 0}, "model.kv_heads = 0: expected a number ≥ 1"),
        ({"head_dim": -2}, "model.head_dim = -2: expected a number ≥ 1"),
        ({"hidden": 0}, "model.hidden = 0: expected a number ≥ 1"),
        ({"rope_theta": 0.0}, "model.rope_theta = 0.0: expected a number > 0"),
        ({"positions": "none", "rope_theta": 9.0}, "rope_theta = 9.0 means nothing without .*rota"),
        ({"positions": "learned", "rope_divisors": (2.0,) * 16}, "rope_divisors = .*without model"),
        (
            {"positions": "none", "window": 4, "local_rope_theta": 9.0},
            "local_rope_theta = 9.0 means nothing without model.positions=rotary",
        ),
        ({"init_std": 0.0}, "model.init_std = 0.0: expected a number > 0, or null"),
        ({"dropout": 1.0}, "model.dropout = 1.0: expected 0 ≤ p < 1"),
        ({"width": 6, "heads": 2}, "set model.head_dim=4"),
    ],
)
def test_impossible_shapes_are_refused_with_the_nearest_that_works(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


def said(model, tokens, **context):
    """The shape of a model's logits; nothing is computed."""
    graphdef, params = nnx.split(model)
    return jax.eval_shape(
        lambda p, t: nnx.merge(graphdef, p)(t, Context(**context)), params, tokens
    ).shape


def test_a_scale_for_a_site_that_is_none_is_refused(tokens):
    model = tiny_model()
    found = "unknown site 'norm_finale'. Did you mean 'norm_final'"
    with pytest.raises(UnknownNameError, match=found):
        said(model, tokens, scales={"norm_finale": 2.0})
    assert said(model, tokens, scales={"norm_final": 2.0}) == (2, 16, 97)


def test_tokens_are_a_batch_of_sequences_no_longer_than_the_model_reads():
    for shape in ((8,), (1, 1, 8)):
        with pytest.raises(ValueError, match=r"tokens of shape .*: expected \[batch, length\]"):
            said(tiny_model(), np.zeros(shape, np.int32))
    long = np.zeros((1, 65), np.int32)
    with pytest.raises(ValueError, match="65 tokens are more than model.max_length = 64"):
        said(tiny_model(), long)
    assert said(tiny_model(), long[:, :64]) == (1, 64, 97)


def test_the_gradient_of_a_transposed_table_is_its_transpose():
    gradient = jnp.arange(6.0).reshape(2, 3)
    (found,) = jax.vjp(transposed, jnp.zeros((3, 2)))[1](gradient)
    np.testing.assert_array_equal(found, gradient.T)


@pytest.mark.system
def test_norms_of_single_sites_are_those_of_a_model_of_their_type():
    """A pattern for all sites is the model of that type, bit for bit; others are left."""
    config, pre = ModelConfig(**TINY), PlacementConfig()
    plain, layer, dyt = (norms[name].Config() for name in ("rmsnorm", "layernorm", "dyt"))
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)

    def logits(norm, *at):
        model = Transformer(config, norm, pre, VOCAB, 3, at)
        return np.asarray(nnx.jit(lambda m: m(tokens))(model)), model

    wanted, _ = logits(layer)
    found, _ = logits(plain, NormAt("*", dyt), NormAt("*", layer))
    assert found.tobytes() == wanted.tobytes()
    mixed, model = logits(plain, NormAt("blocks.0.*", dyt), NormAt("norm_final", layer))
    kinds = {norm.site.name: norm.config.type for norm in all_norms(model)}
    assert kinds == {
        "norm_final": "layernorm",
        "blocks.0.attention.norm_in": "dyt", "blocks.0.mlp.norm_in": "dyt",
        "blocks.1.attention.norm_in": "rmsnorm", "blocks.1.mlp.norm_in": "rmsnorm",
    }  # fmt: skip
    assert np.isfinite(mixed).all()
    assert mixed.tobytes() != wanted.tobytes()
    with pytest.raises(ValueError, match=r"'blocks.2.\*'. Did you mean 'blocks.*'"):
        logits(plain, NormAt("blocks.2.*", dyt))
