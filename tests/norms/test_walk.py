"""Every registered norm: formula and gradients against float64, and the property of its kind."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import normlab.numerics.accumulator
from normlab.norms import Norm, NormState, Site, norms
from normlab.norms.pointwise import dyt_alpha
from normlab.numerics import Accumulator
from tests.support.norm_references import FORMULAS

SITE = Site("norm_in", "blocks.0.attention.norm_in")
FINAL = Site("norm_final", "norm_final")
EXACT = [n for n in norms if not norms[n].__module__.endswith(("approximate", "integer"))]
"""The types without tests of their own arithmetic."""


def make(name, width=48, site=SITE, **fields):
    return norms[name](width, site, norms[name].Config(**fields))


STATES = {
    "mean": 0.4, "variance": 1.7, "gate": 0.3, "scaled_square": 0.6, "square": 2.0, "size": 0.9,
    "seen": 0.3, "pull": 0.0,
}  # fmt: skip


def randomized(norm, seed=0):
    """The norm with everything that training changes moved away from its initial value."""
    graphdef, params, state = nnx.split(norm, nnx.Param, NormState)
    rng = np.random.default_rng(seed)
    moved = jax.tree.map(lambda p: p + jnp.float32(rng.normal(0, 0.3, p.shape)), params)
    for path, variable in nnx.to_flat_state(state):
        variable[...] = jnp.full_like(variable[...], STATES[path[-1]])
    return nnx.merge(graphdef, moved, state)


def row(seed=0, width=48, shift=0.7, size=3.0):
    return np.float32(np.random.default_rng(seed).normal(shift, size, (5, width)))


def parameters(norm):
    """What the norm stores, by name, in float64."""
    flat = nnx.to_flat_state(nnx.state(norm))
    return {path[-1]: np.array(variable[...], np.float64) for path, variable in flat}


def affine(c, p, y):
    y = y * (p["gain"] + getattr(c, "one_plus", False)) if "gain" in p else y
    return y + p["bias"] if "bias" in p else y


def over_rms(c, x, part=slice(None), eps=None):
    """The rows over their root mean square, by the first coordinates where `part` says so."""
    eps, form = c.eps if eps is None else eps, getattr(c, "eps_form", "under")
    square = (x[..., part] ** 2).mean(-1, keepdims=True)
    root = np.sqrt(square)
    return (
        x
        / {
            "under": np.sqrt(square + eps),
            "added": root + eps,
            "floor": np.maximum(root, eps),
        }[form]
    )


def reference(norm, x, p=None):
    """The formula of each type in float64 NumPy, written apart from the code under test.

    Args:
        norm: only its config and its width are read where `p` is given.
        x: rows.
        p: parameters and state by name.
    """
    c, x, d = norm.config, np.float64(x), norm.width
    p = parameters(norm) if p is None else p
    match c.type:
        case "layernorm" | "rmsnorm":
            return affine(c, p, over_rms(c, x - x.mean(-1, keepdims=True) if c.center else x))
        case "prmsnorm":
            return affine(c, p, over_rms(c, x, slice(max(1, math.floor(d * c.share)))))
        case "scalenorm" | "fixnorm":
            size = np.sqrt((x**2).sum(-1, keepdims=True))
            return p["length"] * x / np.maximum(size, c.eps)
        case "groupnorm":
            parts = x.reshape(*x.shape[:-1], c.groups, -1)
            parts = over_rms(c, parts - parts.mean(-1, keepdims=True))
            return affine(c, p, parts.reshape(x.shape))
        case "batchnorm":
            return affine(c, p, (x - p["mean"]) / np.sqrt(p["variance"] + c.eps))
        case "seednorm":
            parts = (x * p["direction"]).reshape(*x.shape[:-1], c.heads or 1, -1)
            along = np.repeat(parts.sum(-1), parts.shape[-1], axis=-1)
            return (np.tanh(along) * p["alpha"] + p.get("gain", 0.0)) * over_rms(c, x)
        case "tapernorm":
            gain, factor = p.get("gain", 1.0), p["scaled_square"] / max(p["square"], 1e-300)
            linear = factor * x * (gain + p["delta"])
            return p["gate"] * over_rms(c, x) * gain + (1 - p["gate"]) * linear
        case "dyt":
            return affine(c, p, np.tanh(p["alpha"] * x))
        case "derf":
            return affine(c, p, np.vectorize(math.erf)(p["alpha"] * x + p["shift"]))
        case "bhyt" | "bhyt-estimated":  # at this site the one is the other
            return affine(c, p, np.tanh(p["lam"] / c.kappa * over_rms(c, x)))
        case "none":
            return x + p.get("shift", 0.0)
    if c.type in FORMULAS:
        return affine(c, p, FORMULAS[c.type](c, x))
    raise NotImplementedError(f"norm {c.type!r} has no reference here: write one")


@pytest.mark.parametrize("name", norms)
def test_formula(name):
    norm, x = randomized(make(name)), row()
    np.testing.assert_allclose(norm(x, Accumulator()), reference(norm, x), rtol=2e-5, atol=2e-6)


VARIANTS = [
    ("rmsnorm", {"eps_form": "added", "eps": 0.1}),
    ("rmsnorm", {"eps_form": "floor", "eps": 2.9}),
    ("rmsnorm", {"one_plus": True}),
    ("rmsnorm", {"scale": False}),
    ("layernorm", {"eps_form": "added", "one_plus": True}),
    ("prmsnorm", {"share": 0.3}),
    ("none", {"method": "fixup"}),
    ("seednorm", {"heads": 4}),
]


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_formula_in_other_conventions(name, fields):
    norm, x = randomized(make(name, **fields)), row()
    np.testing.assert_allclose(norm(x, Accumulator()), reference(norm, x), rtol=2e-5, atol=2e-6)
    scaled = norm(x, Accumulator("fp32", 8.0))  # ε moves with s in each form
    np.testing.assert_allclose(scaled, norm(x, Accumulator()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", norms)
def test_gradients_against_float64_differences(name):
    """Of the inputs and of every parameter; of the parameters alone, where the norm rounds.

    The differences are good to about 1e-9 of a slope. A float32 gradient is a sum of up to 40
    rounded products, each good to 6e-8 of the largest, through a division and a root: 1e-5 at
    the worst of these rows; 1e-4 of the largest slope leaves room for another backend's tanh.
    """
    norm, x = randomized(make(name, width=8)), row(1, 8)
    weight = np.random.default_rng(2).normal(size=x.shape)
    graphdef, params, state = nnx.split(norm, nnx.Param, NormState)

    def total(params, x):
        return jnp.sum(nnx.merge(graphdef, params, state)(x, Accumulator()) * jnp.float32(weight))

    of_params, of_x = jax.grad(total, argnums=(0, 1))(params, x)
    found = {path[-1]: np.asarray(v[...]) for path, v in nnx.to_flat_state(of_params)}
    found |= {"x": of_x} if norms[name].differentiable else {}
    assert found or name == "none"
    start = parameters(norm) | {"x": np.float64(x)}
    for which, gradient in found.items():
        slopes = np.zeros(start[which].shape)
        for index in np.ndindex(*slopes.shape):
            slopes[index] = slope(norm, start, which, index, weight)
        worst = np.abs(gradient - slopes).max()
        assert worst < 1e-4 * max(1.0, np.abs(slopes).max()), (which, worst)


def test_only_norms_that_round_are_spared_the_gradient_of_their_inputs():
    assert {n for n in norms if not norms[n].differentiable} == {"ai-layernorm", "dyadic", "i-bert"}


def slope(norm, start, which, index, weight, h=1e-6):
    values = []
    for step in (h, -h):
        p = start | {which: start[which].copy()}
        p[which][index] += step
        values.append((reference(norm, p.pop("x"), p) * weight).sum())
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("name", EXACT)
def test_float64_rows_stay_in_float64(name):
    """The exact arithmetic that transforms are compared with; 1e-12 is a few hundred roundings."""
    with jax.enable_x64(True):
        graphdef, state = nnx.split(randomized(make(name)))
        wide = nnx.merge(graphdef, jax.tree.map(lambda v: v.astype(jnp.float64), state))
        x = np.float64(row()) + 1e-9
        for acc in (Accumulator(), Accumulator("fp32", 3.0)):
            y = wide(jnp.asarray(x), acc)
            assert y.dtype == jnp.float64
            np.testing.assert_allclose(y, reference(wide, x), rtol=1e-12, atol=1e-13)


CHANGES = {
    "eps": 0.5, "eps_form": "added", "alpha": 0.25, "shift": 0.5, "lam": 2.0, "kappa": 5.0,
    "share": 0.5, "groups": 2, "embed_length": 2.0, "momentum": 0.5, "start": 0.2, "end": 0.5,
    "ema": 0.5, "method": "skipinit", "branch_gain": 0.5, "heads": 4, "anchor": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [(n, f) for n in EXACT for f in norms[n].Config.__dataclass_fields__ if f != "type"],
)
def test_every_field_of_a_config_changes_something(name, field):
    """The output, the parameters, the state, or what the type asks of the model around it."""
    default = norms[name].Config()
    changed = CHANGES.get(field, not getattr(default, field))
    assert effect(default) != effect(dataclasses.replace(default, **{field: changed}))


@functools.cache
def effect(config):
    kind, seen = norms[config.type], []
    x = row() * np.float32([[1], [1], [1], [1], [1e-3]])
    for site in (SITE, FINAL):
        norm = randomized(kind(48, site, config))
        seen.append(norm(x, Accumulator()))
        for progress in (0.05, 0.15, 0.6):
            seen.append(norm.during_training(x[None], Accumulator(), jnp.float32(progress)))
        seen += jax.tree.leaves(nnx.state(norm))
    scales = [kind.init_scale(config, matrix, 8) for matrix in ("gate", "out", "embed")]
    around = kind.embed_scale(config, 48), kind.embed_length(config, 48)
    return [np.asarray(a).tobytes() for a in seen], scales, around, kind.branch_gain(config, 8)


@pytest.mark.parametrize("name", norms)
def test_is_documented_and_sound(name):
    norm = make(name)
    assert issubclass(norms[name], Norm)
    assert "arXiv" in norms[name].__doc__
    assert norm.config.type == name
    x = row()
    assert norm(x, Accumulator()).shape == x.shape
    assert norm(x.astype(jnp.bfloat16), Accumulator()).dtype == jnp.bfloat16
    again = norm.during_training(x[None].astype(jnp.bfloat16), Accumulator(), jnp.float32(0.5))
    assert again.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", norms)
def test_a_statistic_is_observed_where_there_is_one(name):
    norm, acc = make(name), Accumulator(observe=True)
    norm(row(), acc)
    rows = 5 * getattr(norm.config, "groups", 1) * norms[name].has_statistic
    assert int(acc.observed.rows) == rows


@pytest.mark.parametrize(
    "name",
    [  # a shape that no other norm sums is compiled for it alone
        pytest.param(name, marks=[pytest.mark.system] * (name in ("bhyt", "groupnorm")))
        for name in norms
    ],
)
def test_a_precision_acts_where_there_is_a_statistic_and_nowhere_else(name):
    """A column of fp16 says something of the one and would say nothing of the other."""
    norm, x = randomized(make(name)), row(size=10.0)
    wide, half = (np.asarray(norm(x, Accumulator(p))) for p in ("fp32", "fp16:pairwise"))
    assert np.array_equal(half, wide) != norms[name].has_statistic
    np.testing.assert_allclose(half, wide, rtol=0.02, atol=0.02)
    if norms[name].has_statistic and name not in ("max-rescale", "l1"):  # which stay in range
        lost = make(name)(np.tile(np.float32([999, -999]), (2, 24)), Accumulator("fp16:pairwise"))
        assert np.abs(lost).max() == 0  # an infinite sum gives 0


STATISTICAL = [n for n in EXACT if norms[n].has_statistic]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *((n, "pairwise") for n in STATISTICAL),
        ("rmsnorm", "sequential"),
        ("layernorm", "sequential"),
    ],
)
def test_the_statistic_is_numpys_float16_bit_for_bit(name, order, monkeypatch):
    """And rows out of range are counted: the last two overflow."""
    totals = []

    def spy(z, precision):
        totals.append(true(z, precision))
        return totals[-1]

    true = normlab.numerics.accumulator.sum_of_squares
    monkeypatch.setattr(normlab.numerics.accumulator, "sum_of_squares", spy)
    norm, x = make(name), row() * np.float32([[1], [1], [3], [300], [900]])
    acc = Accumulator(f"fp16:{order}", 2.0, observe=True)
    norm(x, acc)
    (got,) = totals
    want = sum_in_float16(summed_part(norm, np.float32(x / 2), order) ** 2, order)
    assert np.array_equal(np.asarray(got), np.float32(want))
    assert int(acc.observed.overflowed) == np.isinf(want).sum() > 0


def summed_part(norm, z, order):
    """What is squared and summed, in float32, with the mean as float16 finds it."""
    c = norm.config
    if c.type == "groupnorm":
        z = z.reshape(len(z), c.groups, -1)
    if c.type == "prmsnorm":
        z = z[:, : max(1, int(norm.width * c.share))]
    if c.type == "groupnorm" or getattr(c, "center", False):
        z = z - (np.float32(sum_in_float16(z, order)) / np.float32(z.shape[-1]))[..., None]
    return z


def sum_in_float16(terms, order):
    """Rounded terms, then a rounding after each add, by NumPy's float16."""
    with np.errstate(over="ignore"):
        terms = np.float16(terms)
        if order == "sequential":
            return np.add.accumulate(terms, axis=-1, dtype=np.float16)[..., -1]
        size = 1 << (terms.shape[-1] - 1).bit_length()
        terms = np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, size - terms.shape[-1])])
        while terms.shape[-1] > 1:
            terms = terms[..., ::2] + terms[..., 1::2]
        return terms[..., 0]


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


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((n, "fp16:pairwise") for n in STATISTICAL), ("layernorm", "bf16:pairwise"),
     ("rmsnorm", "bf16:pairwise"), ("rmsnorm", "fp16:sequential")],
)  # fmt: skip
def test_a_power_of_two_scale_changes_no_bit_in_fp32_and_heals_overflow(name, precision):
    norm, x = make(name), row(size=2000.0)
    exact = norm(x, Accumulator())
    assert np.array_equal(norm(x, Accumulator("fp32", 2.0**13)), exact)
    healed = norm(x, Accumulator(precision, 2.0**13))
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
        ("rmsnorm", {"eps_form": "undr"}, "norm.eps_form 'undr'. Did you mean 'under'"),
        ("rmsnorm", {"one_plus": True, "scale": False}, "norm.scale = False: there is none"),
        ("dyt", {"alpha": 0.0}, "norm.alpha = 0.0: expected a number > 0"),
    ],
)
def test_bad_values_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        norms[name].Config(**fields)
