"""Approximate norms: each one's own property, and how far it is from the exact norm."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.norms import norms
from normlab.norms.approximate import dyadic
from normlab.norms.reference import dyadic as dyadic_reference
from normlab.numerics.histogram import histogram
from tests.support.norm_references import exact, reference
from tests.support.norm_walk import FINAL, call, make, observed, row, told

APPROXIMATE = [n for n in norms if norms[n].__module__.endswith("approximate")]


def relative(got, wanted):
    """The error of each row, over the row's norm."""
    wanted = np.float64(wanted)
    return np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_formula_without_centring(name):
    """With it: the walk over all norms."""
    norm, x = make(name, center=False, eps=1e-3), row(size=0.1, shift=0.05)
    np.testing.assert_allclose(call(norm, x), reference(norm, x), rtol=3e-5, atol=3e-6)


LIMITS = {
    "doubled": 1e-6, "dyadic": 2**-8, "fast-rsqrt": 1.76e-3, "iterl2": 3.6e-3, "max-rescale": 1e-6
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_row_without_mean_is_near_the_exact_norm(name):
    norm = make(name)
    for seed in range(12):
        x = row(seed, shift=0.0)
        assert relative(call(norm, x), exact(norm.config, x)).max() < LIMITS[name]


@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_l1_is_layernorm_on_gaussian_rows_only(shift, size):
    norm = make("l1", 1024, eps=0.0)
    signs = size * np.tile(np.float32([shift - 1, shift + 1]), 512)  # mean |x − μ| is σ there
    x = np.concatenate([row(width=1024, shift=shift * size, size=size, count=256), signs[None]])
    ratio = np.linalg.norm(call(norm, x), axis=-1) / math.sqrt(1024)
    np.testing.assert_allclose(ratio[-1], math.sqrt(2 / math.pi), rtol=1e-5)
    ratio = ratio[:-1]
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(256) < 0.01


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 10))
def test_l1_ignores_shift_and_positive_scale(factor, shift, seed):
    norm, x = make("l1", eps=0.0), row(seed)
    np.testing.assert_allclose(call(norm, np.float32(factor * x + shift)), call(norm, x), atol=2e-4)


OBSERVED = ("overflowed", "max_abs", "max_square", "squares", "sums")


def test_l1_accumulates_sizes_and_not_squares():
    norm, x = make("l1", 16, center=False), row(width=16, size=100.0)
    y, seen = observed(norm, x, "fp16:pairwise", *OBSERVED)  # Σx² ≈ 160,000, Σ|x| ≈ 1,300
    assert int(seen.overflowed) == 0
    np.testing.assert_allclose(y, reference(norm, x), rtol=2e-3)
    sizes = np.abs(np.float64(x)).sum(-1)
    np.testing.assert_array_equal(seen.sums, histogram(jnp.float32(sizes)))


@settings(deadline=None, max_examples=20)
@given(shift=st.floats(-8, 8), seed=st.integers(0, 10))
def test_dropped_mean_shrinks_by_its_factor(shift, seed):
    norm, x = make("dropped-mean", eps=0.1), row(seed, shift=shift)
    wide = np.float64(x)
    variance, mean = wide.var(-1, keepdims=True), wide.mean(-1, keepdims=True)
    factor = np.sqrt((variance + 0.1) / (variance + mean**2 + 0.1))
    np.testing.assert_allclose(call(norm, x), factor * exact(norm.config, x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("center", "eps"), [(False, 1e-5), (True, 0.0)])
def test_max_rescale_is_exact_and_does_not_overflow(center, eps):
    norm = make("max-rescale", 16, center=center, eps=eps)
    for power in range(-100, 101, 4):
        x = row(width=16) * np.float32(2.0**power)
        wanted = exact(norm.config, x)
        if (largest := np.abs(wanted).max()) > 1e-18:
            np.testing.assert_allclose(call(norm, x), wanted, rtol=1e-5, atol=1e-6 * largest)
            half = call(norm, x, "fp16:pairwise")
            np.testing.assert_allclose(half, wanted, atol=4e-3 * largest)
        else:
            np.testing.assert_allclose(call(norm, x), wanted, atol=1e-18)
    if center and eps:
        for size in np.float32([1e-30, 1.0, 3e16, 3e38]):
            for precision in ("fp32", "fp16:pairwise"):
                y = call(norm, np.full_like(x, size), precision)
                assert np.array_equal(y, np.zeros_like(x)), (size, precision)


def test_max_rescale_up_to_the_largest_number_of_float32():
    norm = make("max-rescale", 16, center=False)
    signs = np.where(row(width=16) > 0, 1.0, -1.0)
    for size in (8e37, 1e38, 3.4e38):
        np.testing.assert_allclose(call(norm, np.float32(size * signs)), signs, rtol=1e-6)


def test_max_rescale_where_the_plain_sum_overflows():
    x, norm = row(width=16, size=1e3), make("max-rescale", 16, center=False)
    plain = make("rmsnorm", 16)
    assert np.abs(call(plain, x, "fp16:pairwise")).max() == 0
    assert relative(call(norm, x, "fp16:pairwise"), exact(plain.config, x)).max() < 2e-3


def test_max_rescale_leaves_out_a_static_scale():
    x, norm = row(width=16), make("max-rescale", 16, center=False)
    scaled, alone = (call(norm, x, "fp16:pairwise", scale) for scale in (1e4, 1.0))
    assert np.array_equal(scaled, alone)


@pytest.mark.parametrize("name", ["max-rescale", "l1", "i-bert", "ai-layernorm", "dropped-mean"])
def test_a_row_of_zeros_gives_the_bias(name):
    y = call(make(name), np.zeros((5, 48), np.float32))
    assert np.array_equal(y, np.zeros((5, 48)))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 50), size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_doubled_is_rmsnorm(seed, size):
    x = row(seed, size=size)
    a, b = call(make("doubled"), x), call(make("rmsnorm"), x)
    np.testing.assert_allclose(a, b, rtol=4e-7, atol=2.0**-23 * np.abs(b).max())


def test_doubled_leaves_the_range_of_fp16_a_factor_of_two_earlier():
    x = np.full((5, 16), 60.0, np.float32)  # Σx² = 57,600; doubled 115,200
    assert np.abs(call(make("rmsnorm", 16), x, "fp16:pairwise")).min() > 0.9
    assert np.abs(call(make("doubled", 16), x, "fp16:pairwise")).max() == 0


def test_doubled_can_not_centre():
    with pytest.raises(ValueError, match="'doubled' makes an RMSNorm of a LayerNorm and can't"):
        make("doubled", center=True)


def roots(name, v, *fields):
    """The relative error of a type's 1/√v, for each of several configs."""
    kinds = [make(name, 1, FINAL, **given) for given in fields]
    got = jax.jit(lambda v: [kind.inverse_root(v, lambda step: step) for kind in kinds])(
        np.float32(v)
    )
    return [np.float64(one) * np.sqrt(np.float64(np.float32(v))) - 1 for one in got]


# Two octaves, since both methods depend on the mantissa and the exponent's parity only.
GRID = np.linspace(1, 4, 30_000, endpoint=False)


def test_fast_rsqrt_error_after_each_step():
    scales = 2.0 ** np.array([[-100], [0], [100]])
    errors = roots("fast-rsqrt", GRID * scales, *({"steps": steps} for steps in range(4)))
    for steps, worst in enumerate([3.438e-2, 1.7524e-3, 4.8e-6, 3e-7]):
        error = errors[steps]
        most = np.abs(error).max(-1)
        assert (most < worst).all()
        assert (0.9 * worst < most).all() or steps == 3
        assert steps == 0 or error.max() < 3e-7  # never above, but for float32's rounding


def test_iterl2_worst_error_after_so_many_steps():
    errors = roots("iterl2", GRID, *({"steps": steps} for steps in (5, 8, 10)))
    for error, worst in zip(errors, (3.52e-3, 1.1e-4, 1.1e-5), strict=True):
        assert 0.9 * worst < np.abs(error).max() < worst
    assert np.abs(errors[0]).max() > 2.0**-11  # five steps are not within half an ulp of fp16


def test_iterl2_converges_fastest_at_newtons_rate():
    m = 1.25  # c·f = ½ for c = 0.4
    fields = [{"steps": n, "rate": 0.4} for n in range(4)]
    fields += [{"steps": n, "rate": 0.2} for n in (6, 7)]
    *errors, before, after = (abs(e) for e in roots("iterl2", m, *fields))
    assert errors[2] < 2 * errors[1] ** 2
    assert errors[3] < 2 * errors[2] ** 2 + 2e-7
    assert after / before == pytest.approx(1 - 2 * 0.2 * m, rel=0.1)


nearest = jax.jit(dyadic)


@settings(deadline=None, max_examples=100)
@given(r=st.floats(2.0**-100, 2.0**100, width=32), bits=st.integers(1, 22))
def test_dyadic_number_is_the_nearest(r, bits):
    b, c = (int(part) for part in nearest(np.float32(r), bits))
    assert (b, c) == dyadic_reference(r, bits)
    error = abs(Fraction(b) * Fraction(2) ** -c - Fraction(r))
    assert error <= Fraction(2) ** (-c - 1)
    assert 2 ** (bits - 1) <= b <= 2**bits


def test_dyadic_on_integers_is_a_product_and_a_shift():
    norm, bits = make("dyadic", center=False, use_weight=False, bias=False, bits=16), 16
    q = np.random.default_rng(0).integers(-128, 128, (20, 48))
    for rows in q.reshape(4, 5, 48):
        mean_square = np.float32((rows**2).sum(-1)) / np.float32(48)
        inverse = np.asarray(jax.lax.rsqrt(mean_square + np.float32(1e-5)))
        for whole, got, r in zip(rows, call(norm, np.float32(rows)), inverse, strict=True):
            b, c = dyadic_reference(float(r), bits)
            assert [Fraction(float(v)) for v in got] == [Fraction(int(n) * b, 2**c) for n in whole]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("fast-rsqrt", {"steps": -1}, "norm.steps = -1: expected a number ≥ 0"),
        ("iterl2", {"steps": -1}, "norm.steps = -1: expected a number ≥ 0"),
        ("iterl2", {"rate": 0.5}, "norm.rate = 0.5: expected 0 < rate < 0.5"),
        ("dyadic", {"bits": 23}, "norm.bits = 23: expected 1 to 22"),
    ],
)
def test_refuses(name, fields, message):
    with pytest.raises(ValueError, match=message):
        norms[name].Config(**fields)


def test_a_negative_variance_is_no_number_as_in_layernorm():
    rng = np.random.default_rng(0)  # the mean's rounding decides about the sign of Σx²/d − μ²
    x = np.float32(rng.uniform(100, 300, (256, 1)) + rng.normal(size=(256, 48)))
    names = ("layernorm", "fast-rsqrt")
    made = jax.jit(lambda x: [make(name)(x, told("bf16.onepass")) for name in names])(x)
    wanted, found = (np.isnan(y) for y in made)
    assert wanted.any()
    assert not wanted.all()
    assert np.array_equal(found, wanted)


QUICK = {("doubled", False), ("l1", False), ("max-rescale", True)}
MORE = {(name, center) for name in APPROXIMATE for center in (False, name != "doubled")} - QUICK


@pytest.mark.parametrize(
    ("name", "center"),
    [*sorted(QUICK), *(pytest.param(*more, marks=pytest.mark.extended) for more in sorted(MORE))],
)
def test_the_row_that_is_observed_is_the_one_that_was_read(name, center):
    """Whatever is summed of it: sizes, x over its largest element, [x, −x]."""
    x = row(width=16) * np.float32(1e5)
    seen = observed(make(name, 16, center=center), x, "fp16:pairwise", *OBSERVED)[1]
    centred = center and name != "dropped-mean"  # its statistic is uncentred
    squares = (np.float64(x - x.mean(-1, keepdims=True) if centred else x) ** 2).sum(-1)
    assert float(seen.max_abs) == np.abs(x).max()
    np.testing.assert_allclose(seen.max_square, squares.max(), rtol=1e-5)
    np.testing.assert_array_equal(seen.squares, histogram(jnp.float32(squares)))


def in_halves(x):
    return np.float32(np.float16(x))


def test_a_unit_that_reads_halves_rescales_and_centres_in_halves():
    """The option `.input` at each step of its own that a norm makes of the row."""
    x = row(count=64) * np.float32(10)
    held = in_halves(x)
    z = held / np.exp2(np.frexp(np.abs(held).max(-1, keepdims=True))[1])  # rounds nothing
    mean_square = (np.float64(z) ** 2).mean(-1, keepdims=True)
    rescaled = make("max-rescale", center=False, eps=0.0)
    assert np.array_equal(call(rescaled, x, "fp32.input"), call(rescaled, x, "fp32"))
    y = call(rescaled, x, "fp16:exact_then_round.input")
    np.testing.assert_allclose(y, z / np.sqrt(mean_square), rtol=6e-4)
    # A multiple of z, and of z alone, so that elements that agree in halves agree in the output.
    largest = np.abs(z).max(-1, keepdims=True)
    assert np.abs(y / np.abs(y).max(-1, keepdims=True) - z / largest).max() < 3e-7
    y = call(make("dropped-mean", eps=0.0), x, "fp16:exact_then_round.input")
    mean = np.float32(np.float16(held.sum(-1, keepdims=True))) / np.float32(48)
    centred = in_halves(held - mean)
    largest = np.abs(centred).max(-1, keepdims=True)
    assert np.abs(y / np.abs(y).max(-1, keepdims=True) - centred / largest).max() < 3e-7
