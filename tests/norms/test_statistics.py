"""What tells one statistic from another: partial, grouped, with one weight for all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, ModelConfig
from normlab.model.transformer import length_of
from normlab.norms import norms
from normlab.numerics.eps import EpsForm
from normlab.scaling import weights
from normlab.scaling.bound import norm_bounds
from tests.conftest import recorded, tiny_model
from tests.support.norm_walk import call, jacobian, make, randomized, row, started


def test_prmsnorm_divides_by_its_first_coordinates():
    x = row()
    assert np.array_equal(call(make("prmsnorm", share=1.0), x), call(make("rmsnorm"), x))
    norm = make("prmsnorm", share=0.25, eps=0.0)  # 12 of 48
    y = call(norm, x)
    moved = x.copy()
    moved[:, 12:] *= 5.0
    assert np.array_equal(call(norm, moved)[:, :12], y[:, :12])
    np.testing.assert_allclose(call(norm, np.float32(7.0 * x)), y, rtol=1e-5)
    assert np.abs(np.sqrt((y**2).mean(-1)) - 1).max() > 0.05  # only its first part has RMS 1
    np.testing.assert_allclose((y[:, :12] ** 2).mean(-1), 1.0, rtol=1e-5)
    assert not norms["prmsnorm"].unit_rows


def test_prmsnorm_takes_one_coordinate_at_least():
    y = call(make("prmsnorm", 8, share=0.0625, eps=0.0), row(width=8))
    np.testing.assert_allclose(np.abs(y[:, 0]), 1.0, rtol=1e-6)


def test_scalenorm_gives_every_row_the_same_length():
    norm, x = randomized(make("scalenorm")), row()
    length = float(norm.length[...])
    np.testing.assert_allclose(np.linalg.norm(call(norm, x), axis=-1), abs(length), rtol=1e-5)
    as_rms = make("rmsnorm", eps=0.0)
    as_rms.weight[...] = np.full(48, length / np.sqrt(48), np.float32)
    np.testing.assert_allclose(call(norm, x), call(as_rms, x), rtol=1e-5)
    np.testing.assert_allclose(weights.gamma(norm), length / np.sqrt(48), rtol=1e-6)


def test_scalenorm_floors_a_tiny_row_and_has_a_gradient_at_zero():
    norm = make("scalenorm", eps=1e-5)
    tiny = np.full((5, 48), 1e-9, np.float32)
    np.testing.assert_allclose(call(norm, tiny), np.sqrt(48) * tiny / 1e-5, rtol=1e-5)
    slopes = jacobian(norm, np.zeros(48, np.float32)).sum(0)
    np.testing.assert_allclose(slopes, np.sqrt(48) / 1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", list(EpsForm))
def test_where_eps_stands_is_where_it_acts(form):
    x, eps = row(), 0.5
    square = (np.float64(x) ** 2).mean(-1, keepdims=True)
    below = {
        "under": np.sqrt(square + eps),
        "added": np.sqrt(square) + eps,
        "floor": np.maximum(np.sqrt(square), eps),
    }
    norm = make("rmsnorm", eps=eps, eps_form=form)
    np.testing.assert_allclose(call(norm, x), x / below[form], rtol=1e-6)
    assert np.isfinite(jacobian(norm, np.zeros(48, np.float32))).all()


def test_a_weight_stored_as_w_acts_as_one_plus_w():
    stored, usual = make("rmsnorm", one_plus=True), make("rmsnorm")
    assert np.array_equal(stored.weight[...], np.zeros(48))
    assert np.array_equal(call(stored, row()), call(usual, row()))
    w = np.float32(np.random.default_rng(0).normal(0, 0.3, 48))
    stored.weight[...], usual.weight[...] = w, 1 + w
    assert np.array_equal(call(stored, row()), call(usual, row()))
    assert np.array_equal(weights.gamma(stored), weights.gamma(usual))


def test_groupnorm_is_layernorm_in_each_group():
    x = row()
    one = randomized(make("groupnorm", groups=1))
    layer = make("layernorm")
    layer.weight[...], layer.bias[...] = one.weight[...], one.bias[...]
    np.testing.assert_allclose(call(one, x), call(layer, x), rtol=1e-6, atol=1e-6)
    four = make("groupnorm", groups=4, eps=0.0)
    y, moved = call(four, x), x.copy()
    moved[:, 12:24] = 9.0 * moved[:, 12:24] - 3.0
    again = call(four, moved)
    assert np.array_equal(again[:, :12], y[:, :12])
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-5)


def test_groupnorm_takes_a_scale_for_each_head_and_for_each_row():
    norm, x = make("groupnorm", 8), np.float32(np.random.default_rng(0).normal(size=(3, 5, 8)))
    heads = np.float32([[[1], [2], [4], [8], [16]]]) * np.ones((3, 1, 1), np.float32)
    exact = call(norm, x, "fp32", np.ones((3, 5, 1), np.float32))
    for scale in (heads, np.exp2(np.float32(x[..., :1] > 0))):
        assert np.array_equal(call(norm, x, "fp32", scale), exact)
    assert np.array_equal(call(norm, x, "fp32", heads[0]), exact)


def test_groups_that_do_not_divide_the_width_are_refused():
    with pytest.raises(
        ValueError, match=r"norm.groups = 5 doesn't divide the width 48 of blocks.0"
    ):
        make("groupnorm", groups=5)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("prmsnorm", {"share": 0.0}, "norm.share = 0.0: expected 0 < p ≤ 1"),
        ("groupnorm", {"groups": 0}, "norm.groups = 0: expected a number ≥ 1"),
        ("scalenorm", {"eps": -1.0}, "norm.eps = -1.0"),
        ("fixnorm", {"embed_length": 0.0}, "norm.embed_length = 0.0: expected a number > 0"),
    ],
)
def test_bad_values_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        norms[name].Config(**fields)


@partial(jax.jit, static_argnames="graphdef")
def _ends(graphdef, state, tokens, h):
    model = nnx.merge(graphdef, state)
    return model.embed_tokens(tokens, Context()), model.logits(h)


def ends(model, tokens, h):
    """The stream before the blocks, and the logits of rows behind them."""
    return jax.device_get(_ends(*nnx.split(model), tokens, h))


H = row(width=32)


def test_fixnorm_gives_cosines(tokens):
    model = tiny_model("fixnorm", norm_fields={"embed_length": 3.0})
    table = np.float64(model.embed.embedding[...])
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    x, logits = ends(model, tokens, call(model.norm_final, H))
    np.testing.assert_allclose(x, float(model.embed_length[...]) * unit[tokens], rtol=1e-5)
    cosines = (H / np.linalg.norm(H, axis=1, keepdims=True)) @ unit.T
    g = float(model.norm_final.length[...])
    np.testing.assert_allclose(logits, g * cosines, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "fields"), [("fixnorm", {}), ("layernorm", {"embed_length": 3})])
def test_the_size_of_an_embedding_row_says_nothing(norm, fields, tokens):
    """The paper's FixNorm beside LayerNorm: `model.embed_length`, which norm=fixnorm implies."""
    model = tiny_model(norm, **fields)
    before = ends(model, tokens, H)
    model.embed.embedding[...] *= np.exp2(np.arange(97) % 5).astype(np.float32)[:, None]
    for now, then in zip(ends(model, tokens, H), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-5)
    graphdef, state = nnx.split(model)

    def total(state):
        x, logits = _ends(graphdef, state, tokens, H)
        return jnp.sum(jnp.sin(x)) + jnp.sum(logits**2)

    gradient = np.asarray(jax.jit(jax.grad(total))(state)["embed"]["embedding"][...])
    along = np.sum(gradient * np.asarray(model.embed.embedding[...]), axis=1)
    sizes = np.linalg.norm(model.embed.embedding[...], axis=1)
    assert np.abs(along).max() < 1e-4 * np.abs(gradient * sizes[:, None]).max()  # no radial part


def test_rows_start_at_the_length_that_is_asked_for():
    assert started("layernorm").embed_length is None
    assert float(started("layernorm", embed_length=3.0).embed_length[...]) == 3.0
    assert float(started("fixnorm").embed_length[...]) == pytest.approx(np.sqrt(32))
    assert float(started("fixnorm", embed_length=3.0).embed_length[...]) == 3.0
    asked = started("fixnorm", norm_fields={"embed_length": 2.0})
    assert float(asked.embed_length[...]) == 2.0
    with pytest.raises(ValueError, match="model.embed_length = 0: expected a number > 0"):
        ModelConfig(embed_length=0)


def test_what_rows_of_one_length_leave_without_effect_is_refused():
    for norm, fields in (("fixnorm", {}), ("layernorm", {"embed_length": 3.0})):
        with pytest.raises(ValueError, match=r"model.embed_factor = 2.0 means nothing where every"):
            tiny_model(norm, embed_factor=2.0, **fields)
    with pytest.raises(ValueError, match=r"norm.embed_length = 2.0 means nothing beside model\."):
        tiny_model("fixnorm", embed_length=3.0, norm_fields={"embed_length": 2.0})


@pytest.mark.system
def test_no_row_of_a_fixnorm_model_exceeds_its_bound(tokens):
    model = tiny_model("fixnorm")
    inputs = recorded(model, tokens)[1].inputs
    for site, bound in norm_bounds(model).items():
        largest = np.linalg.norm(inputs[site], axis=-1).max()
        assert largest <= bound * (1 + 1e-5), site


def test_a_row_of_zeros_has_a_length_and_a_slope():
    """As `F.normalize` of the authors' code has it: x / max(‖x‖, 1e-12)."""
    rows = np.float32([[3, 4], [0, 0]])
    assert np.array_equal(length_of(rows)[0], [5.0])
    slopes = jax.grad(lambda x: (x / length_of(x))[0].sum())(jnp.asarray(rows))
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes, [[4 * (4 - 3) / 125, 3 * (3 - 4) / 125], [0, 0]], atol=1e-7)
    many = row()
    usual = jnp.linalg.norm(many, axis=-1, keepdims=True)
    assert np.array_equal(length_of(many), usual)
