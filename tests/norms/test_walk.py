"""Every registered norm: formula and gradients against float64, and the property of its kind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.config import build, to_dict
from normlab.norms import Norm, NormConfig, NormContext, NormState, norms
from normlab.norms.approximate import ByInverseRoot
from normlab.norms.around import around
from normlab.norms.pointwise import dyt_alpha
from normlab.numerics import Datapath, Root
from tests.support.norm_references import parameters, reference
from tests.support.norm_walk import (
    FINAL,
    HUGE,
    LARGE,
    LOST,
    PLAIN,
    ROWS,
    SCALES,
    SITE,
    WEIGHT,
    WIDTH,
    call,
    jacobian,
    make,
    randomized,
    row,
    told,
    walked,
)
from tests.support.numerics_reference import same

EXACT = [n for n in norms if not norms[n].__module__.endswith(("approximate", "integer"))]
"""The types without tests of their own arithmetic."""
STATISTICAL = [n for n in EXACT if norms[n].has_statistic]


@pytest.mark.parametrize("name", norms)
def test_formula(name):
    """Of rows [5, 5, d] of any size, some of them with a static scale."""
    seen = walked(name)
    np.testing.assert_allclose(seen.wide, reference(seen.norm, ROWS), rtol=2e-5, atol=2e-6)


VARIANTS = [
    ("rmsnorm", {"eps_form": "added", "eps": 0.1}),
    ("rmsnorm", {"eps_form": "floor", "eps": 2.9}),
    ("rmsnorm", {"one_plus": True}),
    ("rmsnorm", {"use_weight": False}),
    ("layernorm", {"eps_form": "added", "one_plus": True}),
    ("prmsnorm", {"share": 0.3}),
    ("none", {"method": "fixup"}),
    ("seednorm", {"heads": 4}),
]


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_formula_in_other_conventions(name, fields):
    """And ε moves with s in each form."""
    norm, x = randomized(make(name, **fields)), row()
    for scale in (1.0, 8.0):
        y = call(norm, x, "fp32", scale)
        np.testing.assert_allclose(y, reference(norm, x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", norms)
def test_gradients_against_float64_differences(name):
    """Of the inputs and of every parameter; of the parameters alone, where the norm rounds.

    The differences are good to about 1e-9 of a slope. A float32 gradient is a sum of up to 240
    rounded products, each good to 6e-8 of the largest, through a division and a root: 1e-5 at
    the worst of these rows; 1e-4 of the largest slope leaves room for another backend's tanh.
    """
    seen = walked(name)
    start = parameters(seen.norm) | {"x": np.float64(PLAIN)}
    found = dict(seen.gradients)
    if not norms[name].differentiable:
        del found["x"]
    assert found
    for which, gradient in found.items():
        slopes = np.zeros(start[which].shape)
        for index in np.ndindex(*slopes.shape):
            slopes[index] = slope(seen.norm, start, which, index)
        worst = np.abs(gradient - slopes).max()
        assert worst < 1e-4 * max(1.0, np.abs(slopes).max()), (which, worst)


def slope(norm, start, which, index, h=1e-6):
    values = []
    for step in (h, -h):
        p = start | {which: start[which].copy()}
        p[which][index] += step
        values.append((reference(norm, p.pop("x"), p) * WEIGHT[:5]).sum())
    return (values[0] - values[1]) / (2 * h)


def test_only_norms_that_round_are_spared_the_gradient_of_their_inputs():
    assert {n for n in norms if not norms[n].differentiable} == {"ai-layernorm", "dyadic", "i-bert"}


@functools.partial(jax.jit, static_argnums=0)
def both_scales(graphdef, state, x):
    norm = nnx.merge(graphdef, state)
    return norm(x), norm(x, told("fp32", 3.0))


ROOTS = [n for n in norms if issubclass(norms[n], ByInverseRoot)]


@pytest.mark.parametrize("name", [*EXACT, "doubled", "dropped-mean", "l1", "max-rescale", *ROOTS])
def test_float64_rows_stay_in_float64(name):
    """The exact arithmetic that transforms are compared with; 1e-12 is a few hundred roundings.

    Types with a root of their own round it elsewhere under a scale, and guess it from float32's
    bits.
    """
    graphdef, state = nnx.split(randomized(make(name)))
    with jax.enable_x64(True):
        state = jax.tree.map(lambda v: jnp.asarray(np.float64(v)), state)
        x = np.float64(row()) + 1e-9
        wanted = reference(nnx.merge(graphdef, state), x)
        for y in both_scales(graphdef, state, x)[: 1 if name in ROOTS else 2]:
            assert y.dtype == jnp.float64
            np.testing.assert_allclose(y, wanted, rtol=2e-7 if name in ROOTS else 1e-12, atol=1e-13)


@pytest.mark.system
def test_a_low_precision_gives_the_same_bits_without_jit():
    """Of every norm that accumulates, weight and bias included; 1/3.7 is no float32.

    The root is named: XLA's own `rsqrt` has another last bit in a loop that it can't vectorize (jax
    0.12). But for SeeDNorm, whose weight is a float32 dot product, as XLA has it.
    """
    path = Datapath(sum="fp16", root=Root("sqrt"))
    made = {n: randomized(make(n)) for n in norms if norms[n].has_statistic and n != "seednorm"}
    each = lambda x: [norm(x, told(path, 3.7)) for norm in made.values()]  # noqa: E731
    for name, y, eager in zip(made, jax.jit(each)(ROWS), each(ROWS), strict=True):
        assert same(y, eager).all(), name


@pytest.mark.parametrize("name", norms)
def test_integer_rows_come_back_as_floats(name):
    kept = jax.eval_shape(make(name), jax.ShapeDtypeStruct((3, WIDTH), jnp.int32))
    assert kept.dtype == jnp.float32


WORDS = {"eps_form": ["added"], "method": ["skipinit"]}


def others(config, name):
    """The config with other values of a field, those that it takes."""
    value = getattr(config, name)
    candidates = [not value] if isinstance(value, bool) else [0.5, 2.0, 0.2, 4, 2]
    for other in WORDS.get(name, candidates):
        try:
            yield build(NormConfig, to_dict(config) | {name: other})
        except (ValueError, TypeError):
            continue


@pytest.mark.system
@pytest.mark.parametrize("name", EXACT)
def test_every_field_of_a_config_changes_something(name):
    """The output, the parameters, the state, or what the type asks of the model around it."""
    default = norms[name].Config()
    usual = effect(default)
    for field in dataclasses.fields(default):
        if field.name != "type":
            assert any(usual != effect(c) for c in others(default, field.name)), field.name


def effect(config):
    kind, seen = norms[config.type], []
    x = row() * np.float32([[1], [1], [1], [1], [1e-3]])
    for site in (SITE, FINAL) if hasattr(config, "keep_final") else (SITE,):
        norm = randomized(kind(WIDTH, site, config))
        seen.append(norm(x))
        if jax.tree.leaves(nnx.state(norm, NormState)):
            for progress in (0.05, 0.15, 0.6):
                seen.append(norm(x[None], NormContext(progress=np.float32(progress))))
        seen += jax.tree.leaves(nnx.state(norm))
    return [np.asarray(a).tobytes() for a in seen], around(config, WIDTH, 8)


@pytest.mark.parametrize("name", norms)
def test_is_documented_and_sound(name):
    norm = make(name)
    assert issubclass(norms[name], Norm)
    assert "arXiv" in norms[name].__doc__
    assert norm.config.type == name
    half = jax.ShapeDtypeStruct((1, 5, WIDTH), jnp.bfloat16)
    call = lambda x: make(name)(x)  # noqa: E731
    train = lambda x: make(name)(x, NormContext(progress=jnp.float32(0.5)))  # noqa: E731
    for made in (call, train):
        kept = jax.eval_shape(made, half)
        assert (kept.shape, kept.dtype) == (half.shape, half.dtype)


@pytest.mark.parametrize("precision", ["fp32", "fp16:lanes8", "fp16:blocks16"])
@pytest.mark.parametrize("name", norms)
def test_no_rows_are_no_rows(name, precision):
    kept = jax.eval_shape(lambda x: make(name)(x, told(precision)), np.zeros((0, WIDTH)))
    assert kept.shape == (0, WIDTH)


@pytest.mark.parametrize("name", norms)
def test_a_statistic_is_observed_where_there_is_one(name):
    seen = walked(name)
    rows = len(ROWS) * getattr(seen.norm.config, "groups", 1) * norms[name].has_statistic
    assert int(seen.rows) == rows


@pytest.mark.parametrize("name", norms)
def test_a_precision_acts_where_there_is_a_statistic_and_nowhere_else(name):
    """A column of fp16 says something of the one and would say nothing of the other."""
    seen = walked(name)
    half, wide = seen.half[LARGE], seen.wide[LARGE]
    assert np.array_equal(half, wide) != norms[name].has_statistic
    np.testing.assert_allclose(half, wide, rtol=0.02, atol=0.02)
    if norms[name].has_statistic and name not in ("max-rescale", "l1"):  # which stay in range
        lost = walked(name, start=True).half[LOST]
        assert np.abs(lost).max() == 0  # an infinite sum gives 0


def staged():
    """The types with a statistic; those that compute more than one by themselves are first."""
    own = [*(n for n in ROOTS if norms[n].has_statistic), "tapernorm"]
    others = (n for n in norms if norms[n].has_statistic and n not in own)
    return [*own, *(pytest.param(n, marks=pytest.mark.system) for n in others)]


@pytest.mark.parametrize("name", staged())
def test_every_stage_of_a_datapath_acts(name):
    """Each in a format of two bits; the last row is one that ε rules."""
    norm, x = randomized(make(name)), np.concatenate([row(), np.float32(1e-7) * row()[:1]])
    stages = ("input", "eps", "product", "weight", "output")
    paths = [Datapath(sum="fp32:lanes8"), *(Datapath(**{stage: "e8m1"}) for stage in stages)]
    plain, *others = jax.jit(lambda x: [norm(x, told(path)) for path in paths])(x)
    for stage, y in zip(stages, others, strict=True):
        assert (np.linalg.norm(y - plain, axis=-1) > 1e-3 * np.linalg.norm(plain, axis=-1)).any(), (
            stage
        )


@pytest.mark.parametrize("name", [*STATISTICAL, "dropped-mean", "dyadic", "fast-rsqrt", "iterl2"])
def test_the_statistic_is_numpys_float16_bit_for_bit(name):
    """And rows out of range are counted."""
    seen = walked(name)
    (got,) = seen.totals
    want = sum_in_float16(summed_part(seen.norm, ROWS / SCALES, "pairwise") ** 2, "pairwise")
    assert np.array_equal(got.reshape(want.shape), np.float32(want))
    assert int(seen.overflowed) == np.isinf(want).sum() > 0


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm"])
def test_the_statistic_left_to_right_is_numpys_float16(name):
    norm, x = make(name, eps=0.0), row() * np.float32([[1], [1], [3], [300], [900]])
    z = summed_part(norm, x / np.float32(2), "sequential")
    with np.errstate(divide="ignore"):
        want = np.float64(sum_in_float16(z**2, "sequential"))[:, None] / WIDTH
        want = np.where(np.isinf(want), 0.0, np.float64(z) / np.sqrt(want))
    got = call(norm, x, "fp16:sequential", 2.0)
    assert (np.abs(got).max(-1) == 0).sum() >= 1
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def summed_part(norm, z, order):
    """What is squared and summed, in float32, with the mean as float16 finds it."""
    c = norm.config
    if c.type == "groupnorm":
        z = z.reshape(len(z), c.groups, -1)
    if c.type == "prmsnorm":
        z = z[:, : max(1, int(norm.width * c.share))]
    if c.type == "groupnorm" or norm.centres:
        share = np.float32(1) / np.float32(z.shape[-1])
        z = z - (np.float32(sum_in_float16(z, order)) * share)[..., None]
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


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_power_of_two_scale_changes_no_bit_in_fp32_and_undoes_overflow(name):
    plain, scaled = walked(name, start=True), walked(name, start=True, undoing=True)
    assert np.array_equal(scaled.wide[HUGE], plain.wide[HUGE])
    np.testing.assert_allclose(scaled.half[HUGE], plain.wide[HUGE], atol=0.1)
    assert np.abs(plain.half[HUGE]).max() == 0  # rsqrt(inf) = 0, and nothing hides it


@pytest.mark.parametrize(
    ("name", "precision"),
    [("layernorm", "bf16:pairwise"), ("rmsnorm", "bf16:pairwise"), ("rmsnorm", "fp16:sequential")],
)
def test_a_power_of_two_scale_is_good_in_other_formats_and_orders(name, precision):
    norm, x = make(name), row(size=2000.0)
    mended = call(norm, x, precision, 2.0**13)
    np.testing.assert_allclose(mended, call(norm, x), atol=0.1)


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 10))
def test_layernorm_ignores_shift_and_positive_scale(factor, shift, seed):
    norm, x = make("layernorm", eps=0.0), row(seed)
    np.testing.assert_allclose(call(norm, np.float32(factor * x + shift)), call(norm, x), atol=2e-4)


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(-10, 10).filter(lambda f: abs(f) > 0.1), seed=st.integers(0, 10))
def test_rmsnorm_ignores_scale_but_not_shift(factor, seed):
    norm, x = make("rmsnorm", eps=0.0), row(seed)
    y = call(norm, x)
    np.testing.assert_allclose(call(norm, np.float32(factor * x)), np.sign(factor) * y, atol=1e-4)
    assert np.abs(call(norm, x + 1) - y).max() > 1e-2


def test_layernorm_of_a_constant_row_is_its_bias():
    norm = randomized(make("layernorm"))
    y = call(norm, np.full((5, WIDTH), 3.0, np.float32))
    np.testing.assert_allclose(y, np.tile(norm.bias[...], (5, 1)), atol=1e-6)


def test_center_scale_and_bias_are_independent():
    same = make("layernorm", center=False, bias=False)
    assert np.array_equal(call(same, row()), call(make("rmsnorm"), row()))
    for name in ("layernorm", "rmsnorm"):
        for scale in (False, True):
            for bias in (False, True):
                norm = make(name, use_weight=scale, bias=bias)
                assert (norm.weight is not None) == scale
                assert (norm.bias is not None) == bias


def test_dyt_is_odd_bounded_and_elementwise():
    norm, x = randomized(make("dyt")), row()
    y = call(norm, x)
    assert np.array_equal(call(norm, -x), -y)
    assert (np.abs(y) <= np.abs(norm.weight[...])).all()
    slopes = jacobian(norm, x[0])
    assert np.count_nonzero(slopes - np.diag(np.diag(slopes))) == 0
    slope = np.diag(jacobian(norm, np.zeros(WIDTH, np.float32)))
    np.testing.assert_allclose(slope, np.asarray(norm.weight[...]) * norm.alpha[...], rtol=1e-6)


@pytest.mark.parametrize(
    ("width", "attention", "other"),
    # 1024 to 8192 and 5120 (13B): DyT's paper; 128: narrower than any width it gives
    [(1024, 1.0, 1.0), (2048, 1.0, 0.5), (4096, 0.8, 0.2), (8192, 0.2, 0.05), (128, 1.0, 1.0)],
)
def test_dyt_alpha_is_the_papers(width, attention, other):
    mlp = dataclasses.replace(SITE, name="blocks.3.mlp.norm_in")
    assert dyt_alpha(width, SITE) == pytest.approx(attention)
    assert dyt_alpha(width, mlp) == pytest.approx(other)
    assert dyt_alpha(width, FINAL) == pytest.approx(other)
    assert make("dyt", width, mlp, use_weight=False).alpha[...] == pytest.approx(other)


def test_dyt_alpha_between_two_widths_meets_the_papers_13b():
    mlp = dataclasses.replace(SITE, name="blocks.3.mlp.norm_in")
    assert round(dyt_alpha(5120, SITE), 1) == 0.6
    assert round(dyt_alpha(5120, mlp), 2) == 0.15


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("rmsnorm", {"eps": -1.0}, "norm.eps = -1.0: expected a number ≥ 0"),
        ("rmsnorm", {"eps_form": "undr"}, "norm.eps_form 'undr'. Did you mean 'under'"),
        (
            "rmsnorm",
            {"one_plus": True, "use_weight": False},
            "norm.use_weight = False: there is none",
        ),
        ("dyt", {"alpha": 0.0}, "norm.alpha = 0.0: expected a number > 0"),
    ],
)
def test_bad_values_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        norms[name].Config(**fields)
