"""Every registered norm: formula against float64, gradients, and the property of its kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.norms import Norm, Site, norms
from normlab.norms.pointwise import dyt_alpha
from normlab.numerics import Accumulator

SITE = Site("norm_in", "blocks.0.attention.norm_in")


def make(name, width=48, **fields):
    return norms[name](width, SITE, norms[name].Config(**fields))


def randomized(norm, seed=0):
    """The norm with every parameter moved away from its initial value."""
    graphdef, params = nnx.split(norm)
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda p: p + jnp.float32(rng.normal(0, 0.3, p.shape)), params)
    return nnx.merge(graphdef, moved)


def row(seed=0, width=48, shift=0.7, size=3.0):
    return np.float32(np.random.default_rng(seed).normal(shift, size, (5, width)))


def affine(norm, y):
    y = y * np.float64(norm.gain[...]) if norm.gain is not None else y
    return y + np.float64(norm.bias[...]) if norm.bias is not None else y


def reference(norm, x):
    """The formula of each type in float64 NumPy, written apart from the code under test."""
    c, x = norm.config, np.float64(x)
    match c.type:
        case "layernorm" | "rmsnorm":
            x = x - x.mean(-1, keepdims=True) if c.center else x
            return affine(norm, x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps))
        case "dyt":
            return affine(norm, np.tanh(np.float64(norm.alpha[...]) * x))
        case "none":
            return x
    raise NotImplementedError(f"norm {c.type!r} has no reference here: write one")


@pytest.mark.parametrize("name", norms)
def test_formula(name):
    norm, x = randomized(make(name)), row()
    np.testing.assert_allclose(norm(x, Accumulator()), reference(norm, x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", norms)
def test_gradients_against_float64_differences(name):
    norm, x = randomized(make(name, width=8)), row(1, 8)
    weight = np.random.default_rng(2).normal(size=x.shape)
    gradient = jax.grad(lambda x: jnp.sum(norm(x, Accumulator()) * jnp.float32(weight)))(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-6
        up, down = reference(norm, x + step), reference(norm, x - step)
        slope = ((up - down) * weight).sum() / 2e-6
        assert abs(gradient[index] - slope) < 1e-4 * max(1, abs(slope))


CHANGES = {"eps": 0.5, "alpha": 0.25}


@pytest.mark.parametrize(
    ("name", "field"),
    [(n, f) for n in norms for f in norms[n].Config.__dataclass_fields__ if f != "type"],
)
def test_every_field_of_a_config_changes_something(name, field):
    """The output, the parameters, or what the type asks of the model around it."""
    default = norms[name].Config()
    value = getattr(default, field)
    changed = CHANGES.get(field, (not value) if isinstance(value, bool) else 1.0)
    assert effect(default) != effect(dataclasses.replace(default, **{field: changed}))


def effect(config):
    kind = norms[config.type]
    norm = randomized(kind(48, SITE, config))
    shapes = [p.shape for p in jax.tree.leaves(nnx.state(norm))]
    y = np.asarray(norm(row(), Accumulator())).tobytes()
    return shapes, y, kind.embed_scale(config, 48), kind.branch_gain(config)


@pytest.mark.parametrize("name", norms)
def test_is_documented_and_sound(name):
    norm = make(name)
    assert issubclass(norms[name], Norm)
    assert "arXiv" in norms[name].__doc__
    assert norm.config.type == name
    x = row()
    assert norm(x, Accumulator()).shape == x.shape
    assert norm(x.astype(jnp.bfloat16), Accumulator()).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", norms)
def test_a_statistic_is_observed_where_there_is_one(name):
    acc = Accumulator(observe=True)
    make(name)(row(), acc)
    assert (int(acc.observed.rows) == 5) == norms[name].has_statistic


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 10))
def test_layernorm_ignores_shift_and_positive_scale(factor, shift, seed):
    norm, x = make("layernorm", eps=0.0), row(seed)
    moved = norm(np.float32(factor * x + shift), Accumulator())
    np.testing.assert_allclose(moved, norm(x, Accumulator()), atol=2e-4)


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(-10, 10).filter(lambda f: abs(f) > 0.1), seed=st.integers(0, 10))
def test_rmsnorm_ignores_scale_but_not_shift(factor, seed):
    norm, x = make("rmsnorm", eps=0.0), row(seed)
    y = norm(x, Accumulator())
    moved = norm(np.float32(factor * x), Accumulator())
    np.testing.assert_allclose(moved, np.sign(factor) * y, atol=1e-4)
    assert np.abs(norm(x + 1, Accumulator()) - y).max() > 1e-2


def test_layernorm_of_a_constant_row_is_its_bias():
    norm = randomized(make("layernorm"))
    y = norm(np.full((1, 48), 3.0, np.float32), Accumulator())
    np.testing.assert_allclose(y[0], norm.bias[...], atol=1e-6)


def test_center_scale_and_bias_are_independent():
    x = row()
    same = make("layernorm", center=False, bias=False)(x, Accumulator())
    assert np.array_equal(same, make("rmsnorm")(x, Accumulator()))
    for name in ("layernorm", "rmsnorm"):
        for scale in (False, True):
            for bias in (False, True):
                norm = make(name, scale=scale, bias=bias)
                assert (norm.gain is not None) == scale
                assert (norm.bias is not None) == bias


@pytest.mark.parametrize("precision", ["fp16:sequential", "fp16:pairwise", "bf16:pairwise"])
@pytest.mark.parametrize("name", [n for n in norms if norms[n].has_statistic])
def test_a_power_of_two_scale_changes_no_bit_in_fp32_and_heals_overflow(name, precision):
    norm, x = make(name), row(size=100.0)
    exact = norm(x, Accumulator())
    assert np.array_equal(norm(x, Accumulator("fp32", 512.0)), exact)
    healed = norm(x, Accumulator(precision, 512.0))
    np.testing.assert_allclose(healed, exact, atol=0.1)
    broken = norm(x, Accumulator(precision))
    if precision.startswith("fp16"):
        assert np.abs(broken).max() == 0  # rsqrt(inf) = 0, and nothing hides it


def test_dyt_is_odd_bounded_and_elementwise():
    norm, x = randomized(make("dyt")), row()
    y = norm(x, Accumulator())
    assert np.array_equal(norm(-x, Accumulator()), -y)
    assert (np.abs(y) <= np.abs(norm.gain[...])).all()
    jacobian = jax.jacobian(lambda v: norm(v, Accumulator()))(x[0])
    assert np.count_nonzero(jacobian - np.diag(np.diag(jacobian))) == 0
    slope = jnp.diag(jax.jacobian(lambda v: norm(v, Accumulator()))(jnp.zeros(48)))
    np.testing.assert_allclose(slope, norm.gain[...] * norm.alpha[...], rtol=1e-6)


@pytest.mark.parametrize(
    ("width", "attention", "other"),
    # 1024 to 8192 and 5120 (13B): DyT's paper; 128: narrower than any width it gives
    [(1024, 1.0, 1.0), (2048, 1.0, 0.5), (4096, 0.8, 0.2), (8192, 0.2, 0.05), (128, 1.0, 1.0)],
)
def test_dyt_alpha_is_the_papers(width, attention, other):
    mlp, final = Site("norm_in", "blocks.3.mlp.norm_in"), Site("norm_final", "norm_final")
    assert dyt_alpha(width, SITE) == pytest.approx(attention)
    assert dyt_alpha(width, mlp) == pytest.approx(other)
    assert dyt_alpha(width, final) == pytest.approx(other)
    assert make("dyt", width=width).alpha[...] == pytest.approx(attention)


def test_dyt_alpha_between_two_widths_meets_the_papers_13b():
    mlp = Site("norm_in", "blocks.3.mlp.norm_in")
    assert round(dyt_alpha(5120, SITE), 1) == 0.6
    assert round(dyt_alpha(5120, mlp), 2) == 0.15


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("rmsnorm", {"eps": -1.0}, "norm.eps = -1.0: expected a number ≥ 0"),
        ("dyt", {"alpha": 0.0}, "norm.alpha = 0.0: expected a number > 0"),
    ],
)
def test_bad_values_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        norms[name].Config(**fields)
