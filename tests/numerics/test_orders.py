"""Orders of summation, bit for bit against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import lax

from normlab.numerics import FloatFormat, Order, Precision, accumulate, sum_of_squares
from normlab.numerics.formats import rounded_pair, rounded_sum
from tests.support.numerics_reference import (
    ORDERS,
    cast,
    extreme_rows,
    rounded,
    same,
    squares,
    summed,
)

LENGTHS = (1, 2, 3, 7, 8, 9, 17, 63, 65, 127, 128, 255, 576, 1000)
total_of_squares = jax.jit(sum_of_squares, static_argnums=1)
total = jax.jit(accumulate, static_argnums=1)


def wrong(sums, x, text: str) -> int:
    """The check of this file: in how many rows a sum of squares differs from the loops."""
    precision = Precision.parse(text)
    want = summed(squares(x, precision.format), precision)
    return int((~same(sums(x), want.astype(np.float32))).sum())


@pytest.mark.parametrize("order", ORDERS)
@settings(deadline=None, max_examples=6)
@given(
    st.sampled_from(LENGTHS),
    st.floats(0, 14),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fp16", "fp8_e5m2", "fp8_e4m3", "fp16.flush", "fp16.saturate", "e5m12"]),
)
def test_sums_of_squares_of_extreme_rows(order, d, octaves, seed, name):
    x = extreme_rows(seed, d, octaves)
    text = f"{name}:{order}"
    assert wrong(lambda x: total_of_squares(x, text), x, text) == 0


@settings(deadline=None, max_examples=6)
@given(
    st.sampled_from(ORDERS),
    st.integers(1, 8192),
    st.floats(0, 12),
    st.integers(0, 2**32 - 1),
)
def test_any_length(order, d, octaves, seed):
    text = f"fp16:{order}"
    assert wrong(lambda x: total_of_squares(x, text), extreme_rows(seed, d, octaves, 4), text) == 0


numbers = st.floats(-(2.0**17), 2.0**17, width=32)
vectors = hnp.arrays(np.float32, st.integers(1, 8192), elements=numbers, fill=numbers)


def check_both_sums(x, text: str) -> None:
    """Σx and Σx² of rows against the loops; a sum that cancels may be either zero."""
    precision = Precision.parse(text)
    to = precision.format
    assert wrong(lambda x: total_of_squares(x, text), x, text) == 0
    held = to.with_option("flush") if to.exponent == 8 and not to.is_float32 else to
    with np.errstate(invalid="ignore"):  # one infinity less another
        want, got = summed(rounded(x, held), precision), np.asarray(total(x, precision))
    assert (same(got, want) | ((got == 0) & (want == 0))).all()


@settings(deadline=None, max_examples=5)
@given(vectors, st.sampled_from(ORDERS))
@example(np.float32([65504, 16, -65504, 2.0**-24, -16] * 1638 + [1, -1]), "lanes(64)")
@example(np.linspace(-3, 3.5, 8192, dtype=np.float32), "blocks(100)")
def test_any_vector(x, order):
    check_both_sums(x[None], f"fp16:{order}")


@pytest.mark.system
@settings(deadline=None, max_examples=40)
@given(vectors, st.sampled_from(ORDERS), st.sampled_from(["fp16", "fp8_e4m3", "bf16", "e4m9"]))
def test_many_more_vectors(x, order, name):
    check_both_sums(x[None], f"{name}:{order}")


any_format = st.builds(
    "e{}m{}{}".format,
    st.integers(2, 8),
    st.sampled_from([*range(1, 22), 23]),
    st.sampled_from(["", ".flush", ".saturate", ".flush.saturate"]),
)


def check_format(name, order, d, seed):
    octaves = 1.0 if int(name[1]) < 5 else 8.0
    check_both_sums(extreme_rows(seed, d, octaves, 8) / 16, f"{name}:{order}")


@settings(deadline=None, max_examples=6)
@given(any_format, st.sampled_from(ORDERS), st.sampled_from(LENGTHS[:9]), st.integers(0, 2**32 - 1))
def test_sums_in_any_format(name, order, d, seed):
    check_format(name, order, d, seed)


@pytest.mark.system
@settings(deadline=None, max_examples=40)
@given(any_format, st.sampled_from(ORDERS), st.sampled_from(LENGTHS), st.integers(0, 2**32 - 1))
def test_sums_in_many_more_formats(name, order, d, seed):
    check_format(name, order, d, seed)


@pytest.mark.parametrize("order", ["rounded", "blocks(16384)"])
def test_an_exact_sum_of_15000_halves_beside_its_midpoints(order):
    """Sums on a midpoint of FP16, and one smallest step, 2^-24, below and above it."""
    rng, d, n = np.random.default_rng(0), 15_000, 48
    steps = np.zeros((n, d), np.int64)
    steps[:, 40:] = cast(2.0 ** rng.uniform(-12, 0, (n, d - 40)), "fp16").astype(np.float64) * 2**24
    places = np.frexp(steps.sum(-1).astype(float))[1]
    ulp = 1 << (places - 11)
    target = (steps.sum(-1) // ulp + 2) * ulp + ulp // 2 + np.arange(n) % 3 - 1
    rest = target - steps.sum(-1)
    steps[:, :40] = (rest[:, None] >> np.arange(40) & 1) << np.arange(40)
    x = rng.permuted(np.float32(steps * 2.0**-24), axis=-1)
    want = rounded(target * 2.0**-24, FloatFormat.parse("fp16"))
    assert same(total(x, f"fp16:{order}"), want).all()
    assert not same(cast(x.sum(-1, dtype=np.float32), "fp16"), want).all()


@pytest.mark.system
@pytest.mark.parametrize("order", ORDERS)
@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 8192),
    st.floats(0, 14),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fp16", "fp8_e5m2", "fp8_e4m3", "fp16.flush", "e4m2", "e6m9", "e5m14"]),
)
def test_many_more_of_any_length(order, d, octaves, seed, name):
    x, text = extreme_rows(seed, d, octaves, 4), f"{name}:{order}"
    assert wrong(lambda x: total_of_squares(x, text), x, text) == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3"])
def test_signed_sums(order, name):
    x = extreme_rows(3, 200, 5.0)
    precision = Precision.parse(f"{name}:{order}")
    want = summed(cast(x, name), precision)
    got = np.asarray(total(x, precision))
    assert (same(got, want) | ((got == 0) & (want == 0))).all()


@pytest.mark.parametrize("order", ["sequential", "pairwise", "lanes(8)"])
def test_bf16_over_all_of_float32s_range(order):
    """With float32's exponent, what falls below 2^-126 is zero, on every machine."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((64, 90)) * 2.0 ** rng.uniform(-75, 62, (64, 1)))
    assert (np.abs(x).min(), np.abs(x).max()) < (2.0**-63, np.inf)
    text = f"bf16:{order}"
    assert wrong(lambda x: total_of_squares(x, text), x, text) == 0


@pytest.mark.parametrize("order", ["sequential", "pairwise", "blocks(4)"])
def test_without_jit(order):
    x, text = extreme_rows(5, 19, 3.0, 6), f"fp16:{order}"
    assert wrong(lambda x: sum_of_squares(x, text), x, text) == 0


@pytest.mark.parametrize(
    "order",
    [pytest.param(o, marks=[] if o == "pairwise" else pytest.mark.system) for o in ORDERS],
)
def test_under_vmap_and_inside_scan(order):
    x, text = extreme_rows(5, 70, 3.0, 6), f"fp16:{order}"
    assert wrong(jax.jit(jax.vmap(lambda row: sum_of_squares(row, text))), x, text) == 0
    scan = lambda x: lax.scan(lambda c, row: (c, sum_of_squares(row, text)), 0, x)[1]  # noqa: E731
    assert wrong(scan, jnp.asarray(x), text) == 0
    folded = total_of_squares(x.reshape(3, 2, 70), text)
    assert same(folded.reshape(6), total_of_squares(x, text)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_infinities_and_nans(order):
    x = np.ones((4, 100), np.float32)
    x[0, 50], x[1, 3], x[2, 99] = np.inf, np.nan, 256.0
    got = np.asarray(total_of_squares(x, f"fp16:{order}"))
    assert same(got, [np.inf, np.nan, np.inf, 100]).all()
    x[0, 51] = -np.inf
    assert np.isnan(np.asarray(total(x, f"fp16:{order}"))[0])


@pytest.mark.parametrize("mantissa", range(1, 22))
def test_infinities_in_every_width(mantissa):
    """Whichever of the two addends is infinite: the sum is as IEEE 754 has it."""
    edges = np.array([np.inf, -np.inf, np.nan, 1.5, -1.5, 0.0], np.float32)
    a, b = (np.ravel(part) for part in np.meshgrid(edges, edges))
    with np.errstate(invalid="ignore"):
        want = a + b
    to = FloatFormat.parse(f"e8m{mantissa}")
    assert same(rounded_sum(jnp.asarray(a), jnp.asarray(b), to), want).all()
    lost = np.where(np.isfinite(a), 0, np.nan).astype(np.float32)  # as `two_sum` has it
    got = rounded_pair(jnp.asarray(a), jnp.asarray(lost), to)
    assert same(got, a).all()


@pytest.mark.parametrize("mantissa", [12, 21])
def test_sums_beyond_float32_are_infinite_on_both_sides(mantissa):
    x = np.full((2, 4), 3e38, np.float32) * [[1], [-1]]
    got = np.asarray(total(x.astype(np.float32), f"e8m{mantissa}:sequential"))
    assert same(got, [np.inf, -np.inf]).all()


def test_left_to_right_stalls_and_the_others_do_not():
    ones = np.ones(4096, np.float32)
    sums = {order: float(total(ones, f"fp16:{order}")) for order in ORDERS}
    assert sums.pop("sequential") == 2048
    assert set(sums.values()) == {4096.0}


def test_one_lane_and_blocks_of_one_are_sequential():
    x = extreme_rows(7, 333, 4.0)
    first = total_of_squares(x, "fp16:sequential")
    for order in ("lanes(1)", "blocks(1)"):
        assert same(total_of_squares(x, f"fp16:{order}"), first).all()


def test_fp32_in_an_order_is_that_order():
    """No rounding stands between product and sum here: nothing may contract them."""
    x = extreme_rows(9, 300, 3.0)
    carry = np.zeros(16, np.float32)
    for column in np.moveaxis(x * x, -1, 0):
        carry = carry + column
    assert same(total_of_squares(x, "fp32:sequential"), carry).all()
    exact = np.float32((x * x).astype(np.float64).sum(-1))
    for order in ("rounded", "blocks(300)"):
        assert same(total_of_squares(x, f"fp32:{order}"), exact).all()


@pytest.mark.parametrize("d", [8, 64, 300, 576])
@pytest.mark.parametrize("order", ORDERS)
def test_fp32_contracts_nothing_at_any_width(order, d):
    """Whether a product meets an add in one loop depends on both, so both are walked."""
    precision = Precision.parse(f"fp32:{order}")
    x = np.float32(np.random.default_rng(0).normal(1.0, 1.0, (64, d)))
    want = summed(squares(x, precision.format), precision)
    assert same(total_of_squares(x, f"fp32:{order}"), want).all()


def test_stochastic_sums_do_not_stall():
    """Left to right, nearest rounding stays at 2048 and stochastic rounding is right on average."""
    x = np.float32(np.float16(np.random.default_rng(0).uniform(0.5, 1, (400, 4096))))
    exact = x.astype(np.float64).sum(-1)
    error = np.asarray(total(x, "fp16.stochastic(3):sequential")) - exact
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(len(error))
    assert (np.asarray(total(x, "fp16:sequential")) < exact - 500).all()


@pytest.mark.parametrize("text", ["sequential", "pairwise", "lanes(8)", "blocks(16)", "rounded"])
def test_strings_round_trip(text):
    assert str(Order.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pairwize", "Did you mean 'pairwise'"),
        ("lanes", r"expected lanes\(k\) with k ≥ 1"),
        ("blocks(0)", r"expected blocks\(k\) with k ≥ 1"),
        ("rounded(4)", "takes no width"),
        ("lanes(x)", r"Did you mean 'lanes\(k\)'"),
    ],
)
def test_bad_strings_say_what_was_expected(text, says):
    with pytest.raises(ValueError, match=says):
        Order.parse(text)


def _fused(x):
    """A native half fma: the square is not rounded before it is added."""
    carry = np.zeros(x.shape[0])
    for column in np.moveaxis(np.float16(x).astype(np.float64), -1, 0):
        carry = np.float16(carry + column * column).astype(np.float64)
    return np.float32(carry)


def _reduce_precision(x):
    def add(carry, q):
        return lax.reduce_precision(carry + q, 5, 10), None

    q = lax.reduce_precision(jnp.asarray(x * x), 5, 10)
    return lax.scan(add, jnp.zeros(x.shape[0]), q.T)[0]


TRAPS = {
    "jnp.sum": lambda x: jnp.sum(jnp.float16(x * x), axis=-1),
    "jnp.sum, dtype": lambda x: jnp.sum(jnp.float16(x * x), axis=-1, dtype=jnp.float16),
    "lax.reduce": lambda x: lax.reduce(jnp.float16(x * x), np.float16(0), lax.add, (1,)),
    "casts dropped": lambda x: functools.reduce(np.add, np.moveaxis(x * x, -1, 0)),
    "fused multiply-add": _fused,
}


@pytest.mark.parametrize("trap", TRAPS)
def test_the_check_catches_a_planted_trap(trap):
    x = np.float32(np.float16(np.random.default_rng(0).normal(size=(128, 576))))
    assert wrong(lambda x: total_of_squares(x, "fp16:sequential"), x, "fp16:sequential") == 0
    assert wrong(TRAPS[trap], x, "fp16:sequential") > 16


def test_the_check_catches_reduce_precision_alone():
    x = np.float32(np.random.default_rng(0).normal(size=(128, 64)) * 2.0**-9)
    assert wrong(lambda x: total_of_squares(x, "fp16:sequential"), x, "fp16:sequential") == 0
    assert wrong(_reduce_precision, x, "fp16:sequential") > 16


def test_the_reference_itself_adds_as_numpy_halves_do():
    x = np.float32(np.random.default_rng(2).normal(size=(32, 200)))
    carry = np.zeros(32, np.float16)
    for q in np.moveaxis(np.float16(x * x), -1, 0):
        carry = carry + q
    precision = Precision.parse("fp16:sequential")
    assert same(carry, summed(squares(x, precision.format), precision)).all()
    assert same(rounded(x, precision.format), np.float16(x)).all()
