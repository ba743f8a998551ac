"""What tells one statistic from another: partial, grouped, with one gain for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import norms
from normlab.numerics import Accumulator
from normlab.scaling import weights
from normlab.scaling.bound import norm_bounds
from tests.conftest import tiny_model
from tests.norms.test_walk import make, randomized, row

FP32 = Accumulator()


def test_prmsnorm_divides_by_its_first_coordinates():
    x = row()
    whole = make("prmsnorm", share=1.0)(x, FP32)
    assert np.array_equal(whole, make("rmsnorm")(x, FP32))
    norm = make("prmsnorm", share=0.25, eps=0.0)  # 12 of 48
    y = norm(x, FP32)
    moved = x.copy()
    moved[:, 12:] *= 5.0
    assert np.array_equal(norm(moved, FP32)[:, :12], y[:, :12])
    np.testing.assert_allclose(norm(np.float32(7.0 * x), FP32), y, rtol=1e-5)
    assert np.abs(np.sqrt((y**2).mean(-1)) - 1).max() > 0.05  # only its first part has RMS 1
    np.testing.assert_allclose((y[:, :12] ** 2).mean(-1), 1.0, rtol=1e-5)
    assert not norms["prmsnorm"].unit_rows


def test_prmsnorm_takes_one_coordinate_at_least():
    y = make("prmsnorm", width=8, share=0.0625, eps=0.0)(row(width=8), FP32)
    np.testing.assert_allclose(np.abs(y[:, 0]), 1.0, rtol=1e-6)


def test_scalenorm_gives_every_row_the_same_length():
    norm, x = randomized(make("scalenorm")), row()
    length = float(norm.length[...])
    np.testing.assert_allclose(np.linalg.norm(norm(x, FP32), axis=-1), abs(length), rtol=1e-5)
    as_rms = make("rmsnorm", eps=0.0)
    as_rms.gain[...] = jnp.full(48, length / np.sqrt(48))
    np.testing.assert_allclose(norm(x, FP32), as_rms(x, FP32), rtol=1e-5)
    np.testing.assert_allclose(weights.gain(norm), length / np.sqrt(48), rtol=1e-6)


def test_scalenorm_floors_a_tiny_row_and_has_a_gradient_at_zero():
    norm = make("scalenorm", eps=1e-5)
    tiny = np.full((1, 48), 1e-9, np.float32)
    np.testing.assert_allclose(norm(tiny, FP32), np.sqrt(48) * tiny / 1e-5, rtol=1e-5)
    slope = jax.grad(lambda x: norm(x, FP32).sum())(jnp.zeros(48))
    np.testing.assert_allclose(slope, np.sqrt(48) / 1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["under", "added", "floor"])
def test_where_eps_stands_is_where_it_acts(form):
    x, eps = row(), 0.5
    square = (np.float64(x) ** 2).mean(-1, keepdims=True)
    below = {
        "under": np.sqrt(square + eps),
        "added": np.sqrt(square) + eps,
        "floor": np.maximum(np.sqrt(square), eps),
    }
    y = make("rmsnorm", eps=eps, eps_form=form)(x, FP32)
    np.testing.assert_allclose(y, x / below[form], rtol=1e-6)
    zero = jax.grad(lambda v: make("rmsnorm", eps=eps, eps_form=form)(v, FP32).sum())(jnp.zeros(48))
    assert np.isfinite(zero).all()


def test_a_gain_stored_as_w_acts_as_one_plus_w():
    stored, usual = make("rmsnorm", one_plus=True), make("rmsnorm")
    assert np.array_equal(stored.gain[...], np.zeros(48))
    assert np.array_equal(stored(row(), FP32), usual(row(), FP32))
    w = np.float32(np.random.default_rng(0).normal(0, 0.3, 48))
    stored.gain[...], usual.gain[...] = jnp.asarray(w), jnp.asarray(1 + w)
    assert np.array_equal(stored(row(), FP32), usual(row(), FP32))
    assert np.array_equal(weights.gain(stored), weights.gain(usual))


def test_groupnorm_is_layernorm_in_each_group():
    x = row()
    one = randomized(make("groupnorm", groups=1))
    layer = make("layernorm")
    layer.gain[...], layer.bias[...] = one.gain[...], one.bias[...]
    np.testing.assert_allclose(one(x, FP32), layer(x, FP32), rtol=1e-6, atol=1e-6)
    four = make("groupnorm", groups=4, eps=0.0)
    y, moved = four(x, FP32), x.copy()
    moved[:, 12:24] = 9.0 * moved[:, 12:24] - 3.0
    again = four(moved, FP32)
    assert np.array_equal(again[:, :12], y[:, :12])
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-5)


def test_groupnorm_takes_a_scale_for_each_head_and_for_each_row():
    norm, x = (
        make("groupnorm", width=8),
        np.float32(np.random.default_rng(0).normal(size=(3, 5, 8))),
    )
    exact = norm(x, FP32)
    for scale in (np.float32([[1], [2], [4], [8], [16]]), np.exp2(np.float32(x[..., :1] > 0))):
        assert np.array_equal(norm(x, Accumulator("fp32", jnp.asarray(scale))), exact)


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


def test_fixnorm_gives_cosines(tokens):
    model = tiny_model("fixnorm", norm_fields={"embed_length": 3.0})
    table = np.float64(model.embed.embedding[...])
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    x = model.stem(tokens, Context())
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 3.0, rtol=1e-5)
    h = row(width=32)
    cosines = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ unit.T
    g = float(model.norm_final.length[...])
    logits = model.logits(model.norm_final(h, FP32))
    np.testing.assert_allclose(logits, g * cosines, rtol=1e-4, atol=1e-5)


def test_rows_of_one_length_go_with_any_norm(tokens):
    """The paper's FixNorm beside LayerNorm: `model.embed_length`, which norm=fixnorm implies."""
    model = tiny_model("layernorm", embed_length=3.0)
    x = model.stem(tokens, Context())
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 3.0, rtol=1e-5)
    before = model(tokens)
    model.embed.embedding[...] *= np.exp2(np.arange(97) % 5).astype(np.float32)[:, None]
    np.testing.assert_allclose(model(tokens), before, rtol=1e-5, atol=1e-5)
    assert tiny_model("layernorm").embed_length is None
    assert float(tiny_model("fixnorm").embed_length[...]) == pytest.approx(np.sqrt(32))
    assert float(tiny_model("fixnorm", embed_length=3.0).embed_length[...]) == 3.0
    with pytest.raises(ValueError, match="model.embed_length = 0: expected a number > 0"):
        tiny_model("layernorm", embed_length=0)


def test_what_rows_of_one_length_leave_without_effect_is_refused():
    for norm, fields in (("fixnorm", {}), ("layernorm", {"embed_length": 3.0})):
        with pytest.raises(ValueError, match=r"model.embed_factor = 2.0 means nothing where every"):
            tiny_model(norm, embed_factor=2.0, **fields)
    with pytest.raises(ValueError, match=r"norm.embed_length = 2.0 means nothing beside model\."):
        tiny_model("fixnorm", embed_length=3.0, norm_fields={"embed_length": 2.0})


def test_fixnorm_ignores_the_size_of_embedding_rows(tokens):
    model = tiny_model("fixnorm", layers=1, width=16)
    before = model(tokens)
    sizes = np.exp2(np.arange(97) % 5).astype(np.float32)
    model.embed.embedding[...] *= sizes[:, None]
    np.testing.assert_allclose(model(tokens), before, rtol=1e-5, atol=1e-5)
    graphdef, params = nnx.split(model)
    total = lambda p: jnp.sum(nnx.merge(graphdef, p)(tokens) ** 2)  # noqa: E731
    gradients = jax.jit(jax.grad(total))(params)
    gradient = gradients["embed"]["embedding"][...]
    along = np.sum(np.asarray(gradient) * np.asarray(model.embed.embedding[...]), axis=1)
    assert np.abs(along).max() < 1e-4 * np.abs(gradient).max()  # no radial part
    context = Context(capture=True)
    model(tokens, context)
    for site, bound in norm_bounds(model).items():
        largest = np.linalg.norm(context.inputs[site], axis=-1).max()
        assert largest <= bound * (1 + 1e-5), site
