"""The decoder: causality, shapes, and that each field of its config does something."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, ModelConfig
from normlab.model.attention import rotate
from normlab.norms import norms
from normlab.registry import UnknownNameError
from tests.conftest import TINY, tiny_model

SMOOTH = [name for name in norms if norms[name].differentiable]
CASES = [(norm, "rotary") for norm in SMOOTH] + [("rmsnorm", p) for p in ("learned", "none")]


@pytest.mark.parametrize(("norm", "positions"), CASES)
def test_causality_through_gradients(norm, positions, tokens):
    """The same for every placement: test_placement_rows.py."""
    model = tiny_model(norm, positions=positions, norm_fields=silent(norm))

    def loss(x, at):
        context = Context()
        for block in model.blocks:
            x = block(x, context)
        return model.logits(context.norm(model.norm_final, x))[:, at].sum()

    x = model.stem(tokens, Context())
    gradient = jax.grad(loss)(x, 5)
    assert np.abs(gradient[:, :6]).sum(-1).min() > 0, "each earlier token must matter"
    assert np.abs(gradient[:, 6:]).max() == 0, "no later token may"


def silent(norm):
    """Fields that open the branches of a norm-free model."""
    return {"branch_gain": 1.0} if norm == "none" else {}


CHANGES = {
    "layers": 3, "width": 48, "heads": 4, "kv_heads": 1, "head_dim": 8, "hidden": 40,
    "activation": "relu", "gated": False, "positions": "none", "rope_theta": 100.0,
    "rope_divisors": (2.0,) * 8, "causal": False, "window": 4, "attention_scale": 2.0,
    "attention_softcap": 0.1, "logit_softcap": 0.1, "embed_factor": 3.0, "tied": False,
    "embed_length": 3.0,
    "bias": True, "qkv_bias": True, "init_std": 0.1, "dropout": 0.5,
}  # fmt: skip
BESIDE = {
    "window": {"global_every": None},
    "global_every": {"window": 4},
    "local_rope_theta": {"window": 4},
}
LATER = {"global_every": 2, "local_rope_theta": 100.0}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ModelConfig)])
def test_every_field_changes_something(field, tokens):
    if field == "max_length":
        with pytest.raises(ValueError, match="16 tokens are more than model.max_length = 8"):
            tiny_model(max_length=8)(tokens)
        return
    base = BESIDE.get(field, {})
    value = (CHANGES | LATER)[field]
    assert outcome(tokens, **base) != outcome(tokens, **(base | {field: value}))


def outcome(tokens, **fields):
    """Shapes of the parameters, and the logits, of a model whose vectors aren't at their start."""
    model = tiny_model(**({"init_std": 0.3} | fields))
    graphdef, params = nnx.split(model)
    moved = jax.tree.map(lambda p: p + 0.1 if p.ndim == 1 else p, params)
    shapes = [p.shape for p in jax.tree.leaves(params)]
    context = Context(dropout_key=jax.random.key(0))
    return shapes, np.asarray(nnx.merge(graphdef, moved)(tokens, context)).tobytes()


def test_a_precision_is_given_to_a_call_and_changes_no_weight(tokens):
    from normlab.numerics import Precision

    model = tiny_model(init_std=8.0)
    before = [np.asarray(p) for p in jax.tree.leaves(nnx.state(model))]
    exact = model(tokens)
    low = model(tokens, Context(Precision.parse("fp16:sequential")))
    assert np.abs(low - exact).max() > 0
    assert np.array_equal(model(tokens), exact)
    after = jax.tree.leaves(nnx.state(model))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_grouped_queries_equal_heads_with_repeated_keys_and_values(tokens):
    grouped = tiny_model(heads=4, kv_heads=2)
    full = tiny_model(heads=4)
    graphdef, _ = nnx.split(full)
    state = nnx.state(grouped)
    for block in state["blocks"].values():
        for name in ("key", "value"):
            linear = block["attention"]["branch"][name]
            heads = linear["kernel"][...].reshape(32, 2, 8)
            linear["kernel"] = linear["kernel"].replace(jnp.repeat(heads, 2, 1).reshape(32, 32))
    np.testing.assert_allclose(nnx.merge(graphdef, state)(tokens), grouped(tokens), atol=1e-5)


def test_rotation_keeps_norms_and_sees_only_distances():
    rng = np.random.default_rng(0)
    q, k = (np.float32(rng.normal(size=(1, 12, 1, 8))) for _ in range(2))
    q[:], k[:] = q[:, :1], k[:, :1]
    frequencies = {"theta": 100.0}
    rq, rk = rotate(jnp.asarray(q), **frequencies), rotate(jnp.asarray(k), **frequencies)
    np.testing.assert_allclose(np.linalg.norm(rq, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
    scores = np.einsum("bqhd,bkhd->qk", rq, rk)
    for distance in range(12):
        diagonal = np.diag(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)


def test_a_tied_head_is_the_embedding():
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(nnx.state(tiny_model()))]
    assert not any("head" in n for n in names)
    model = tiny_model()
    x = np.float32(np.random.default_rng(0).normal(size=(1, 2, TINY["width"])))
    np.testing.assert_allclose(model.logits(x), x @ model.embed.embedding[...].T, atol=1e-5)


def test_dropout_needs_a_key_and_depends_on_nothing_else(tokens):
    model = tiny_model(dropout=0.5)
    assert np.array_equal(model(tokens), model(tokens))
    run = lambda seed: model(tokens, Context(dropout_key=jax.random.key(seed)))  # noqa: E731
    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_dropout_keeps_the_mean_and_draws_anew_each_time():
    context, x = Context(dropout_key=jax.random.key(0)), jnp.ones((200, 200))
    first, second = context.dropout(x, 0.25), context.dropout(x, 0.25)
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


def test_a_scale_for_a_site_that_is_none_is_refused(tokens):
    model = tiny_model()
    found = "unknown site 'norm_finale'. Did you mean 'norm_final'"
    with pytest.raises(UnknownNameError, match=found):
        model(tokens, Context(scales={"norm_finale": 2.0}))
    assert model(tokens, Context(scales={"norm_final": 2.0})).shape == (2, 16, 97)


def test_tokens_are_a_batch_of_sequences():
    model = tiny_model(layers=1, width=8)
    for shape in ((8,), (1, 1, 8)):
        with pytest.raises(ValueError, match=r"tokens of shape .*: expected \[batch, length\]"):
            model(np.zeros(shape, np.int32))
