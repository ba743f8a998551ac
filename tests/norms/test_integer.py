"""Integer norms: the same in Python's unbounded integers, and how far from the exact norm."""

import math

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from normlab.norms.integer import compressed_square, factored, isqrt, quantize
from normlab.norms.reference import ai_layernorm_row, i_bert_row
from tests.support.norm_references import exact, reference
from tests.support.norm_walk import call, make, row


def some_integers(seed=0):
    """Small ones, powers of two and squares with their neighbours, random ones of 32 bits."""
    rng = np.random.default_rng(seed)
    squares = np.concatenate([np.arange(300), rng.integers(0, 2**16, 20_000), [2**16 - 1]]) ** 2
    powers = 2 ** np.arange(33)
    around = np.concatenate([squares, powers])[:, None] + np.array([-1, 0, 1])
    n = np.concatenate([np.arange(70_000), around.ravel(), rng.integers(0, 2**32, 200_000)])
    return n[(n >= 0) & (n < 2**32)]


ROOT = jax.jit(isqrt, static_argnums=1)


def test_isqrt_is_exact():
    n = some_integers()
    got = np.asarray(ROOT(np.uint32(n)))
    assert got.tolist() == [math.isqrt(int(v)) for v in n]


def test_four_iterations_are_not_enough_and_five_are():
    """The paper says four; the catalogue's example is 1109156374."""
    n = np.random.default_rng(1).integers(2**30, 2**31, 400_000)
    n[0] = 1109156374
    four, five = (np.asarray(ROOT(np.uint32(n), steps)).astype(np.int64) for steps in (4, 5))
    assert (math.isqrt(int(n[0])), four[0], five[0]) == (33303, 33304, 33303)
    off = four - np.array([math.isqrt(int(v)) for v in n])
    assert set(off.tolist()) == {0, 1}  # one too many, and
    assert 2e-5 < off.mean() < 5e-4  # seldom


WIDTH, COUNT = 256, 32


@pytest.mark.parametrize(
    ("bits", "center"),
    [
        *((8, True), (16, False), (16, True), (20, False)),
        *(pytest.param(*more, marks=pytest.mark.extended) for more in ((4, True), (4, False))),
    ],
)
def test_i_bert_is_the_same_in_unbounded_integers(bits, center):
    norm = make("i-bert", WIDTH, bits=bits, center=center)
    x = row(width=WIDTH, count=COUNT)
    x[0, 7], x[1], x[2, :128] = 900.0, 2.5, -2.5  # an outlier, a constant row, half of one
    x[3] *= 1e-4  # where ε rules
    x[4] = 0.0
    x[4, 3] = 1.0
    wanted = np.stack([i_bert_row(one, norm.config) for one in x])
    # The integers are the same; what is left is float32's product with √d/2³⁰.
    np.testing.assert_allclose(call(norm, x), wanted, rtol=2e-7, atol=0)


@settings(deadline=None, max_examples=20)
@example(size=4.5390625, tail=6, shift=0.0, seed=96)  # x·(most/top) rounds to most + 1/2: clipped
@given(
    size=st.floats(1e-3, 1e3),
    tail=st.integers(0, 6),
    shift=st.floats(-5, 5),
    seed=st.integers(0, 99),
)
def test_i_bert_overflows_on_no_row(size, tail, shift, seed):
    norm = make("i-bert", WIDTH, bits=24)
    x = np.float32(size * (row(seed, 64, shift, count=COUNT) ** (2 * tail + 1)))
    x = np.tile(x, (1, 4))
    wanted = np.stack([i_bert_row(one, norm.config) for one in x])
    np.testing.assert_allclose(call(norm, x), wanted, rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("bits", "limit", "center"),
    [(8, 2e-2, True), (16, 5e-4, False), (16, 5e-4, True)],
)
def test_i_bert_nears_the_exact_norm_with_its_bits(bits, limit, center):
    norm, x = make("i-bert", WIDTH, bits=bits, center=center), row(width=WIDTH, count=COUNT)
    wanted = exact(norm.config, x)
    error = np.linalg.norm(call(norm, x) - wanted, axis=-1) / math.sqrt(WIDTH)
    assert limit / 20 < error.max() < limit


def test_i_bert_with_more_bits_is_not_always_better():
    """⌊2³¹/σ⌋ has few bits where σ is large, and is always too small."""
    x = row(width=WIDTH, count=COUNT, shift=0.0)
    ratio = {
        bits: np.linalg.norm(call(make("i-bert", WIDTH, bits=bits), x), axis=-1) / 16
        for bits in (16, 24)
    }
    assert np.abs(ratio[16] - 1).max() < 5e-4
    assert 1e-3 < 1 - ratio[24].mean() < 5e-2


def test_i_bert_keeps_to_eps():
    x = np.tile(row(width=WIDTH, count=8, shift=0.0, size=3e-3), (4, 1))
    norm = make("i-bert", WIDTH, bits=16)  # σ² ≈ ε: without ε the rows would be larger by √2
    np.testing.assert_allclose(call(norm, x), exact(norm.config, x), atol=2e-3)
    without = call(make("i-bert", WIDTH, bits=16, eps=0.0), x)
    np.testing.assert_allclose(np.sqrt((without**2).mean(-1)), 1, atol=1e-3)


def test_i_bert_refuses_bits_that_could_overflow_the_sum():
    make("i-bert", 4096, bits=20)
    with pytest.raises(ValueError, match="norm.bits = 21: the sum of 4096 such integers .* 20"):
        make("i-bert", 4096, bits=21)
    with pytest.raises(ValueError, match="norm.bits = 25: expected 2 to 24"):
        make("i-bert", bits=25)


@settings(deadline=None, max_examples=20)
@given(bits=st.integers(2, 24), seed=st.integers(0, 99), size=st.floats(1e-9, 1e9))
def test_quantizing_moves_nothing_by_more_than_half_a_step(bits, seed, size):
    x = np.float32(size * row(seed))
    q, scale = (np.asarray(part) for part in quantize(x, bits))
    assert np.abs(q).max() == 2 ** (bits - 1) - 1
    # Half a step, and what float32 makes of x/S: up to 2^(bits−25) of a step.
    assert (
        np.abs(np.float64(scale) * q - x) <= np.float64(scale) * (0.5 + 2.0 ** (bits - 22))
    ).all()


LONG = {"width": 576, "count": 100}


@pytest.mark.parametrize(
    ("factors", "rounding", "center"),
    [(0, False, True), (0, True, True), (3, False, True), (3, True, True), (3, False, False)],
)
def test_ai_layernorm_is_the_same_in_unbounded_integers(factors, rounding, center):
    norm = make("ai-layernorm", 576, factors=factors, rounding=rounding, center=center)
    x = row(**LONG)
    x[0], x[1, :288], x[2, 5] = 2.5, -2.5, 60.0
    wanted = np.stack([ai_layernorm_row(one, norm.config) for one in x[:12]])
    np.testing.assert_allclose(call(norm, x)[:12], wanted, rtol=2e-5, atol=2e-6)


compressed = jax.jit(compressed_square, static_argnums=1)


def test_truncated_squares_err_as_the_catalogue_says():
    x = np.arange(-127, 128)
    square = 16 * np.asarray(compressed(x, False), np.int64)
    lost = 1 - square / np.maximum(x**2, 1)
    assert (square <= x**2).all()
    assert lost[127 + 79] == lost[np.abs(x) >= 64].max() == pytest.approx(0.34, abs=0.005)
    small = (np.abs(x) >= 4) & (np.abs(x) < 64)
    assert lost[127 + 7] == lost[small].max() == pytest.approx(0.67, abs=0.005)
    assert (square[np.abs(x) < 4] == 0).all()
    rounded = 16 * np.asarray(compressed(x, True), np.int64)
    assert abs((rounded - x**2).sum()) < 0.11 * abs((square - x**2).sum())


@pytest.mark.parametrize("width", [576, pytest.param(4096, marks=pytest.mark.extended)])
def test_ai_layernorm_truncation_is_a_nearly_constant_gain(width):
    x = row(shift=0.0, **(LONG | {"width": width}))

    def weight(**fields):
        norm = make("ai-layernorm", width, **fields)
        return np.linalg.norm(call(norm, x), axis=-1) / math.sqrt(width)

    plain = weight(factors=0)
    assert 0.055 < plain.mean() - 1 < 0.065
    assert plain.std() < 0.005
    assert 1.046 < plain.min() < plain.max() < 1.078
    assert 0.08 < weight(factors=3).mean() - 1 < 0.09  # more elements fill their 8 bits
    assert abs(weight(factors=0, rounding=True).mean() - 1) < 0.01
    assert abs(weight(factors=3, rounding=True).mean() - 1) < 0.005


@settings(deadline=None, max_examples=20)
@given(factors=st.integers(0, 3), seed=st.integers(0, 99), size=st.floats(1e-20, 1e20))
def test_each_element_has_the_smallest_factor_that_holds_it(factors, seed, size):
    x = np.float32(size * row(seed))
    whole, power, scale = (np.asarray(part) for part in factored(x, factors))
    assert power.min() >= 0
    assert power.max() == factors
    assert (np.abs(whole) <= 127 << power).all()
    below = (power > 0) & (np.abs(x / scale) <= 127 * 2.0 ** (power - 1.0))
    assert not below.any()
    assert (np.abs(np.float64(scale) * whole - x) <= scale * 2.0**power * 0.501).all()


def test_ai_layernorm_refuses():
    with pytest.raises(ValueError, match="norm.factors = 4: expected 0 to 3"):
        make("ai-layernorm", factors=4)
    with pytest.raises(ValueError, match="width 65536"):
        make("ai-layernorm", 65536)


@pytest.mark.parametrize("name", ["i-bert", "ai-layernorm"])
@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_none_is_lost_whole(name, lost):
    x = row()
    x[1, 7] = lost
    y = call(make(name), x)
    assert np.isnan(y[1]).all()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()


@pytest.mark.parametrize("name", ["i-bert", "ai-layernorm"])
def test_gain_and_bias_are_applied_in_float(name):
    norm, x = make(name), row()
    norm.weight[...] = np.linspace(-1, 1, 48, dtype=np.float32) * (np.arange(48) != 3)
    norm.bias[...] = np.linspace(2, 3, 48, dtype=np.float32)  # β/γ would fail there
    np.testing.assert_allclose(call(norm, x), reference(norm, x), rtol=2e-5, atol=2e-6)
