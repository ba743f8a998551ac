"""Approximate norms: each one's own property, and how far it is from the exact norm."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.norms import Site, norms
from normlab.norms.approximate import dyadic
from normlab.numerics import Accumulator
from normlab.numerics.histogram import histogram
from tests.support.norm_references import FORMULAS, arithmetic_reference, exact
from tests.support.norm_references import dyadic as dyadic_reference

SITE = Site("norm_final", "norm_final")
APPROXIMATE = [n for n in norms if norms[n].__module__.endswith("approximate")]


def make(name, width=48, **fields):
    return norms[name](width, SITE, norms[name].Config(**fields))


def rows(count=5, width=48, shift=0.7, size=3.0, seed=0):
    return np.float32(np.random.default_rng(seed).normal(shift, size, (count, width)))


@functools.cache
def compiled(config, width, precision):
    return jax.jit(lambda x: norms[config.type](width, SITE, config)(x, Accumulator(precision)))


def call(norm, x, precision="fp32"):
    """The rows of a norm with its initial parameters."""
    return np.asarray(compiled(norm.config, norm.width, precision)(x))


@functools.cache
def seen(config, width, precision):
    """What the accumulator of a norm observed."""

    def run(x):
        acc = Accumulator(precision, observe=True)
        norms[config.type](width, SITE, config)(x, acc)
        return acc.observed

    return jax.jit(run)


def relative(got, wanted):
    """The error of each row, over the row's norm."""
    wanted = np.float64(wanted)
    return np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)


def test_there_is_a_formula_for_each():
    assert set(APPROXIMATE) <= set(FORMULAS)


@pytest.mark.parametrize("name", APPROXIMATE)
@pytest.mark.parametrize("center", [False, True])
def test_formula_with_and_without_centring(name, center):
    if name == "doubled" and center:
        pytest.skip("it can't centre")
    norm, x = make(name, center=center, eps=1e-3), rows(size=0.1, shift=0.05)
    np.testing.assert_allclose(call(norm, x), arithmetic_reference(norm, x), rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("name", sorted(set(APPROXIMATE) - {"dropped-mean"}))
def test_a_row_without_mean_is_near_the_exact_norm(name):
    norm, x = make(name, center=name != "doubled", width=768), rows(64, 768, shift=0.0)
    limit = {"l1": 0.1, "dyadic": 2**-8, "fast-rsqrt": 1.76e-3, "iterl2": 3.6e-3}.get(name, 1e-6)
    assert relative(call(norm, x), exact(norm.config, x)).max() < limit


@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("size", [1e-2, 1e2])
def test_l1_is_layernorm_on_gaussian_rows_only(shift, size):
    norm = make("l1", width=1024, eps=0.0)
    x = rows(256, 1024, shift=shift * size, size=size)
    ratio = np.linalg.norm(call(norm, x), axis=-1) / math.sqrt(1024)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(256) < 0.01
    signs = size * np.tile(np.float32([shift - 1, shift + 1]), 512)  # mean |x − μ| is σ there
    ratio = np.linalg.norm(call(norm, signs)) / math.sqrt(1024)
    np.testing.assert_allclose(ratio, math.sqrt(2 / math.pi), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 10))
def test_l1_ignores_shift_and_positive_scale(factor, shift, seed):
    norm, x = make("l1", eps=0.0), rows(seed=seed)
    np.testing.assert_allclose(call(norm, np.float32(factor * x + shift)), call(norm, x), atol=2e-4)


def test_l1_accumulates_sizes_and_not_squares():
    norm, x = make("l1", 16, center=False), rows(width=16, size=100.0)
    observed = seen(norm.config, 16, "fp16:pairwise")(x)  # Σx² ≈ 160,000, Σ|x| ≈ 1,300
    assert int(observed.overflowed) == 0
    np.testing.assert_allclose(call(norm, x, "fp16:pairwise"), call(norm, x), rtol=2e-3)
    sizes = np.abs(np.float64(x)).sum(-1)
    np.testing.assert_array_equal(observed.sums, histogram(jnp.float32(sizes)))


@settings(deadline=None, max_examples=20)
@given(shift=st.floats(-8, 8), seed=st.integers(0, 10))
def test_dropped_mean_shrinks_by_its_factor(shift, seed):
    norm, x = make("dropped-mean", eps=0.1), rows(seed=seed, shift=shift)
    wide = np.float64(x)
    variance, mean = wide.var(-1, keepdims=True), wide.mean(-1, keepdims=True)
    factor = np.sqrt((variance + 0.1) / (variance + mean**2 + 0.1))
    np.testing.assert_allclose(call(norm, x), factor * exact(norm.config, x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("center", "eps"), [(False, 1e-5), (True, 0.0), (True, 1.0)])
def test_max_rescale_is_exact_and_does_not_overflow(center, eps):
    norm = make("max-rescale", 16, center=center, eps=eps)
    for power in range(-100, 101, 4):
        x = rows(width=16) * np.float32(2.0**power)
        wanted = exact(norm.config, x)
        if (largest := np.abs(wanted).max()) > 1e-18:
            np.testing.assert_allclose(call(norm, x), wanted, rtol=1e-5, atol=1e-6 * largest)
            half = call(norm, x, "fp16:pairwise")
            np.testing.assert_allclose(half, wanted, atol=4e-3 * largest)
        else:
            np.testing.assert_allclose(call(norm, x), wanted, atol=1e-18)


def test_max_rescale_up_to_the_largest_number_of_float32():
    norm = make("max-rescale", 16, center=False)
    signs = np.where(rows(width=16) > 0, 1.0, -1.0)
    for size in (8e37, 1e38, 3.4e38):
        np.testing.assert_allclose(call(norm, np.float32(size * signs)), signs, rtol=1e-6)


def test_max_rescale_where_the_plain_sum_overflows():
    x = rows(width=16, size=1e3)
    plain = make("rmsnorm", 16)
    assert np.abs(call(plain, x, "fp16:pairwise")).max() == 0
    norm = make("max-rescale", 16, center=False)
    assert relative(call(norm, x, "fp16:pairwise"), exact(plain.config, x)).max() < 2e-3


def test_max_rescale_leaves_out_a_static_scale():
    x, norm = rows(), make("max-rescale")
    scaled = norm(x, Accumulator("fp16:pairwise", scale=1e4))
    assert np.array_equal(scaled, norm(x, Accumulator("fp16:pairwise")))


@pytest.mark.parametrize("name", ["max-rescale", "l1", "i-bert", "ai-layernorm", "dropped-mean"])
def test_a_row_of_zeros_gives_the_bias(name):
    y = call(make(name), np.zeros((2, 48), np.float32))
    assert np.array_equal(y, np.zeros((2, 48)))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 50), size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_doubled_is_rmsnorm(seed, size):
    x = rows(seed=seed, size=size)
    a, b = call(make("doubled"), x), call(make("rmsnorm"), x)
    np.testing.assert_allclose(a, b, rtol=4e-7, atol=2.0**-23 * np.abs(b).max())


def test_doubled_leaves_the_range_of_fp16_a_factor_of_two_earlier():
    x = np.full((1, 16), 60.0, np.float32)  # Σx² = 57,600; doubled 115,200
    assert np.abs(call(make("rmsnorm", 16), x, "fp16:pairwise")).min() > 0.9
    assert np.abs(call(make("doubled", 16), x, "fp16:pairwise")).max() == 0


def test_doubled_can_not_centre():
    with pytest.raises(ValueError, match="'doubled' makes an RMSNorm of a LayerNorm and can't"):
        make("doubled", center=True)


def roots(name, v, **fields):
    """The relative error of a type's 1/√v."""
    got = np.float64(jax.jit(make(name, width=1, **fields).inverse_root)(jnp.float32(v)))
    return got * np.sqrt(np.float64(np.float32(v))) - 1


# Two octaves, since both methods depend on the mantissa and the exponent's parity only.
GRID = np.linspace(1, 4, 30_000, endpoint=False)


@pytest.mark.parametrize(
    ("steps", "worst"), [(0, 3.438e-2), (1, 1.7523e-3), (2, 4.8e-6), (3, 3e-7)]
)
def test_fast_rsqrt_error_after_each_step(steps, worst):
    for scale in (2.0**-100, 1.0, 2.0**100):
        error = roots("fast-rsqrt", GRID * scale, steps=steps)
        assert 0.9 * worst < np.abs(error).max() < worst or steps == 3
        assert np.abs(error).max() < worst
        assert steps == 0 or error.max() < 3e-7  # never above, but for float32's rounding


@pytest.mark.parametrize(("steps", "worst"), [(5, 3.5e-3), (8, 1.1e-4), (10, 1.1e-5)])
def test_iterl2_worst_error_after_so_many_steps(steps, worst):
    error = np.abs(roots("iterl2", GRID, steps=steps))
    assert 0.9 * worst < error.max() < 1.03 * worst
    if steps == 5:
        assert error.max() > 2.0**-11  # five steps are not within half an ulp of fp16


def test_iterl2_converges_fastest_at_newtons_rate():
    m = 1.25  # c·f = ½ for c = 0.4
    errors = [abs(roots("iterl2", m, steps=n, rate=0.4)) for n in range(4)]
    assert errors[2] < 2 * errors[1] ** 2
    assert errors[3] < 2 * errors[2] ** 2 + 2e-7
    slower = [abs(roots("iterl2", m, steps=n, rate=0.2)) for n in (6, 7)]
    assert slower[1] / slower[0] == pytest.approx(1 - 2 * 0.2 * m, rel=0.1)


@settings(deadline=None, max_examples=100)
@given(r=st.floats(2.0**-100, 2.0**100, width=32), bits=st.integers(1, 22))
def test_dyadic_number_is_the_nearest(r, bits):
    b, c = (int(part) for part in dyadic(jnp.float32(r), bits))
    assert (b, c) == dyadic_reference(r, bits)
    error = abs(Fraction(b) * Fraction(2) ** -c - Fraction(r))
    assert error <= Fraction(2) ** (-c - 1)
    assert 2 ** (bits - 1) <= b <= 2**bits


def test_dyadic_on_integers_is_a_product_and_a_shift():
    norm, bits = make("dyadic", center=False, scale=False, bias=False, bits=16), 16
    q = np.random.default_rng(0).integers(-128, 128, (20, 48))
    y = call(norm, np.float32(q))
    for row, got in zip(q, y, strict=True):
        mean_square = np.float32((row**2).sum()) / np.float32(48)
        inverse = jax.lax.rsqrt(jnp.float32(mean_square + np.float32(1e-5)))
        b, c = dyadic_reference(float(inverse), bits)
        assert [Fraction(float(v)) for v in got] == [Fraction(int(n) * b, 2**c) for n in row]


@pytest.mark.parametrize("name", ["fast-rsqrt", "iterl2", "dyadic", "doubled", "dropped-mean"])
def test_a_sum_that_overflows_gives_zero_as_in_the_exact_norm(name):
    norm, x = make(name, 4, center=False), rows(width=4, size=1e3)
    assert np.abs(call(norm, x, "fp16:pairwise")).max() == 0
    assert int(seen(norm.config, 4, "fp16:pairwise")(x).overflowed) == 5


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
        make(name, **fields)


@pytest.mark.parametrize("name", ["fast-rsqrt", "iterl2", "dyadic"])
def test_a_negative_variance_is_no_number_as_in_layernorm(name):
    rng = np.random.default_rng(0)  # the mean's rounding decides about the sign of Σx²/d − μ²
    x = np.float32(rng.uniform(100, 300, (256, 1)) + rng.normal(size=(256, 48)))
    wanted = np.isnan(call(make("layernorm"), x, "bf16.onepass"))
    assert wanted.any()
    assert np.array_equal(np.isnan(call(make(name), x, "bf16.onepass")), wanted)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_the_row_that_is_observed_is_the_one_that_was_read(name, center):
    """Whatever is summed of it: sizes, x over its largest element, [x, −x]."""
    center = center and name not in ("doubled", "dropped-mean")  # their statistic is uncentred
    acc, x = Accumulator("fp16:pairwise", observe=True), rows() * np.float32(1e5)
    make(name, center=center)(x, acc)
    squares = (np.float64(x - x.mean(-1, keepdims=True) if center else x) ** 2).sum(-1)
    assert float(acc.observed.max_abs) == np.abs(x).max()
    np.testing.assert_allclose(acc.observed.max_square, squares.max(), rtol=1e-5)
    np.testing.assert_array_equal(acc.observed.squares, histogram(jnp.float32(squares)))


def in_halves(x):
    return np.float32(np.float16(x))


def test_a_unit_that_reads_halves_rescales_and_centres_in_halves():
    """The option `.input` at each step of its own that a norm makes of the row."""
    x = rows(64) * np.float32(10)
    held = in_halves(x)
    z = in_halves(held * (np.float32(1) / np.abs(held).max(-1, keepdims=True)))
    mean_square = (np.float64(z) ** 2).mean(-1, keepdims=True)
    y = call(make("max-rescale", center=False, eps=0.0), x, "fp32.input")
    assert np.array_equal(y, call(make("max-rescale", center=False, eps=0.0), x, "fp32"))
    y = call(make("max-rescale", center=False, eps=0.0), x, "fp16:rounded.input")
    np.testing.assert_allclose(y, z / np.sqrt(mean_square), rtol=6e-4)
    # A multiple of z, and of z alone, so that elements that agree in halves agree in the output.
    assert np.abs(y / np.abs(y).max(-1, keepdims=True) - z).max() < 3e-7
    y = call(make("dropped-mean", eps=0.0), x, "fp16:rounded.input")
    mean = np.float32(np.float16(held.sum(-1, keepdims=True))) / np.float32(48)
    centred = in_halves(held - mean)
    largest = np.abs(centred).max(-1, keepdims=True)
    assert np.abs(y / np.abs(y).max(-1, keepdims=True) - centred / largest).max() < 3e-7
