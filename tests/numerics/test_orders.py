"""Orders of summation, bit for bit against loops in NumPy."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
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


def wrong_squares(got, x, text: str) -> int:
    """In how many rows a sum of squares differs from the loops."""
    precision = Precision.parse(text)
    want = summed(squares(x, precision.format), precision)
    return int((~same(got, want.astype(np.float32))).sum())


def wrong_sums(got, x, text: str) -> int:
    """In how many rows a sum differs from the loops; one that cancels may be either zero."""
    precision = Precision.parse(text)
    to = precision.format
    held = to.with_option("flush") if to.exponent == 8 and not to.is_float32 else to
    with np.errstate(invalid="ignore"):  # one infinity less another
        want = summed(rounded(x, held), precision)
    return int((~(same(got, want) | ((np.asarray(got) == 0) & (want == 0)))).sum())


# --- each order: one program, several formats and lengths

FURTHER = {
    "sequential": ("fp8_e4m3", "e5m12"),
    "pairwise": ("fp16.saturate", "e5m12"),
    "lanes3": ("fp16.truncate", "e4m9.flush.saturate"),
    "lanes64": ("fp16.flush", "e8m21"),
    "blocks4": ("fp8_e4m3", "e5m12"),
    "blocks100": ("fp8_e4m3.saturate", "e3m2"),
    "cascade8": ("fp16.flush", "e5m12"),
    "exact_then_round": ("fp16.flush", "e5m14"),
    "tree_1_0_2_a_a": ("fp8_e4m3", "e5m12"),
}
"""Formats of one order, beside those of all. A sum of more than 10 bits is no float32."""
BESIDE = ("fp16", "bf16", "fp32")
"""In fp32 no rounding stands between product and sum: nothing may contract them."""


def some_rows(name, d, seed):
    """Rows of several spreads, and of infinities and NaNs; for bf16 over float32's whole range."""
    octaves = (0.0, 3.0, 1.0) if name.startswith("e3") else (0.0, 5.0, 14.0)
    x = np.concatenate([extreme_rows(seed + i, d, o) for i, o in enumerate(octaves)])
    edges = np.ones((4, d), np.float32)
    edges[0, d // 2], edges[1, d // 3], edges[2, -1] = np.inf, np.nan, 256.0
    edges[3, 0], edges[3, -1] = -np.inf, np.inf
    return np.concatenate([x, edges])


@functools.cache
def sums(order):
    """For each format and length: (the rows, their sums, their sums of squares)."""
    asked = [(name, 100) for name in BESIDE + FURTHER[order]] + [("fp16", 1), ("fp16", 9)]
    given = [some_rows(name, d, seed) for seed, (name, d) in enumerate(asked)]

    @jax.jit
    def both(given):
        texts = [f"{name}:{order}" for name, _ in asked]
        return [
            (accumulate(x, t) if t.startswith("fp16:") else None, sum_of_squares(x, t))
            for x, t in zip(given, texts, strict=True)
        ]

    return list(zip(asked, given, jax.device_get(both(given)), strict=True))


OF_A_KIND = [
    pytest.param(o, marks=[pytest.mark.system] * (o in ("lanes64", "blocks100"))) for o in ORDERS
]


@pytest.mark.parametrize("order", OF_A_KIND)
def test_sums_of_extreme_rows(order):
    for (name, d), x, (signed, squared) in sums(order):
        text = f"{name}:{order}"
        assert wrong_squares(squared, x, text) == 0, (text, d)
        assert signed is None or wrong_sums(signed, x, text) == 0, (text, d)


@pytest.mark.parametrize("order", OF_A_KIND)
def test_infinities_and_nans(order):
    _, x, (signed, squared) = sums(order)[0]
    assert x.shape[1] == 100
    assert same(squared[-4:], [np.inf, np.nan, np.inf, np.inf]).all()
    assert same(signed[-4:], [np.inf, np.nan, 99 + 256, np.nan]).all()


@pytest.mark.parametrize(
    "order", [pytest.param(o, marks=[] if o == "pairwise" else pytest.mark.system) for o in ORDERS]
)
def test_bf16_over_all_of_float32s_range(order):
    """With float32's exponent, what falls below 2^-126 is zero, on every machine."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((64, 90)) * 2.0 ** rng.uniform(-75, 62, (64, 1)))
    assert (np.abs(x).min(), np.abs(x).max()) < (2.0**-63, np.inf)
    assert wrong_squares(total_of_squares(x, f"bf16:{order}"), x, f"bf16:{order}") == 0


@pytest.mark.parametrize(
    "order",
    [pytest.param(o, marks=[] if o == "blocks4" else pytest.mark.system) for o in ORDERS],
)
def test_what_an_add_loses_near_float32s_least_value(order):
    """It is subnormal there, and decides ties: in e8mY with Y > 10, and in exact blocks."""
    rng = np.random.default_rng(1)
    x = np.float32(rng.standard_normal((200, 9)) * 2.0 ** rng.uniform(-120, -60, (200, 9)))
    x[:20] = 0
    x[:20, 3:5] = np.float32([float.fromhex("0x1.8d9p-113"), float.fromhex("0x1.801p-125")])
    for name in ("e8m12", "e8m21", "bf16"):
        assert wrong_sums(total(x, f"{name}:{order}"), x, f"{name}:{order}") == 0, name


@pytest.mark.extended
@pytest.mark.parametrize("d", [8, 64, 300, 576])
@pytest.mark.parametrize("order", ORDERS)
def test_fp32_contracts_nothing_at_any_width(order, d):
    """Whether a product meets an add in one loop depends on both, so both are walked."""
    x = np.float32(np.random.default_rng(0).normal(1.0, 1.0, (64, d)))
    assert wrong_squares(total_of_squares(x, f"fp32:{order}"), x, f"fp32:{order}") == 0


def check_both_sums(x, text: str) -> None:
    """Σx and Σx² of rows against the loops."""
    assert wrong_squares(total_of_squares(x, text), x, text) == 0
    assert wrong_sums(total(x, text), x, text) == 0


ALTERNATING = np.float32([65504, 16, -65504, 2.0**-24, -16] * 1638 + [1, -1])
RISING = np.linspace(-3, 3.5, 8192, dtype=np.float32)


@pytest.mark.system
@pytest.mark.parametrize(("x", "order"), [(ALTERNATING, "lanes64"), (RISING, "blocks100")])
def test_a_long_vector_that_cancels(x, order):
    check_both_sums(x[None], f"fp16:{order}")


numbers = st.floats(-(2.0**17), 2.0**17, width=32)
vectors = hnp.arrays(np.float32, st.integers(1, 8192), elements=numbers, fill=numbers)


@pytest.mark.extended
@settings(deadline=None, max_examples=40)
@given(vectors, st.sampled_from(ORDERS), st.sampled_from(["fp16", "fp8_e4m3", "bf16", "e4m9"]))
def test_any_vector(x, order, name):
    check_both_sums(x[None], f"{name}:{order}")


any_format = st.builds(
    "e{}m{}{}".format,
    st.integers(2, 8),
    st.sampled_from([*range(1, 22), 23]),
    st.sampled_from(["", ".flush", ".saturate", ".flush.saturate"]),
)


@pytest.mark.extended
@settings(deadline=None, max_examples=40)
@given(any_format, st.sampled_from(ORDERS), st.sampled_from(LENGTHS), st.integers(0, 2**32 - 1))
def test_sums_in_any_format(name, order, d, seed):
    octaves = 1.0 if int(name[1]) < 5 else 8.0
    check_both_sums(extreme_rows(seed, d, octaves, 8) / 16, f"{name}:{order}")


@pytest.mark.extended
@pytest.mark.parametrize("order", ORDERS)
@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 8192) | st.sampled_from(LENGTHS),
    st.floats(0, 14),
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        ["fp16", "fp8_e5m2", "fp8_e4m3", "fp16.flush", "fp16.saturate", "e4m2", "e6m9", "e5m14"]
    ),
)
def test_sums_of_any_length(order, d, octaves, seed, name):
    x, text = extreme_rows(seed, d, octaves, 4), f"{name}:{order}"
    assert wrong_squares(total_of_squares(x, text), x, text) == 0


@pytest.mark.parametrize(
    "order", ["exact_then_round", pytest.param("blocks16384", marks=pytest.mark.system)]
)
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
@pytest.mark.parametrize("order", ["sequential", "pairwise", "blocks4"])
def test_without_jit(order):
    x, text = extreme_rows(5, 19, 3.0, 6), f"fp16:{order}"
    assert wrong_squares(sum_of_squares(x, text), x, text) == 0


@pytest.mark.parametrize(
    "order",
    [pytest.param(o, marks=[] if o == "pairwise" else pytest.mark.system) for o in ORDERS],
)
def test_under_vmap_and_inside_scan(order):
    x, text = extreme_rows(5, 70, 3.0, 6), f"fp16:{order}"

    @jax.jit
    def ways(x):
        each = lambda row: sum_of_squares(row, text)  # noqa: E731
        scanned = lax.scan(lambda c, row: (c, each(row)), 0, x)[1]
        return jax.vmap(each)(x), scanned, each(x.reshape(3, 2, 70)).reshape(6)

    for got in ways(x):
        assert wrong_squares(got, x, text) == 0


@pytest.mark.parametrize(
    "mantissas", [(1, 7, 10, 11, 21), pytest.param(range(1, 22), marks=pytest.mark.extended)]
)
def test_infinities_in_every_width(mantissas):
    """Whichever of the two addends is infinite: the sum is as IEEE 754 has it."""
    edges = np.array([np.inf, -np.inf, np.nan, 1.5, -1.5, 0.0], np.float32)
    a, b = (np.ravel(part) for part in np.meshgrid(edges, edges))
    with np.errstate(invalid="ignore"):
        want = a + b
    lost = np.where(np.isfinite(a), 0, np.nan).astype(np.float32)  # as `two_sum` has it

    @jax.jit
    def made(a, b, lost):
        formats = [FloatFormat.parse(f"e8m{mantissa}") for mantissa in mantissas]
        return [(rounded_sum(a, b, to), rounded_pair(a, lost, to)) for to in formats]

    for added, alone in made(a, b, lost):
        assert same(added, want).all()
        assert same(alone, a).all()


@pytest.mark.parametrize("mantissa", [12, 21])
def test_sums_beyond_float32_are_infinite_on_both_sides(mantissa):
    x = np.full((2, 4), 3e38, np.float32) * [[1], [-1]]
    got = np.asarray(total(x.astype(np.float32), f"e8m{mantissa}:sequential"))
    assert same(got, [np.inf, -np.inf]).all()


@pytest.mark.parametrize("order", ["lanes1", "blocks1"])
def test_one_lane_and_blocks_of_one_are_sequential(order):
    x = extreme_rows(7, 100, 4.0)
    assert wrong_squares(total_of_squares(x, f"fp16:{order}"), x, "fp16:sequential") == 0


def test_stochastic_sums_do_not_stall():
    """Left to right, where nearest rounding stays at 2048, it is right on average."""
    x = np.float32(np.float16(np.random.default_rng(0).uniform(0.5, 1, (400, 4096))))
    error = np.asarray(total(x, "fp16.stochastic3:sequential")) - x.astype(np.float64).sum(-1)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(len(error))


@pytest.mark.parametrize(
    "text", ["sequential", "pairwise", "lanes8", "blocks16", "exact_then_round"]
)
def test_strings_round_trip(text):
    assert str(Order.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pairwize", "Did you mean 'pairwise'"),
        ("lanes", r"expected lanesK with K ≥ 1"),
        ("blocks0", r"expected blocksK with K ≥ 1"),
        ("rounded(4)", "takes no width"),
        ("lanes(x)", r"Did you mean 'lanesK'"),
    ],
)
def test_bad_strings_say_what_was_expected(text, says):
    with pytest.raises(ValueError, match=says):
        Order.parse(text)


def test_the_reference_itself_adds_as_numpy_does():
    x = np.float32(np.random.default_rng(2).normal(size=(32, 200)))
    for dtype, name in ((np.float16, "fp16"), (np.float32, "fp32")):
        carry = np.zeros(32, dtype)
        for q in np.moveaxis(dtype(x * x), -1, 0):
            carry = carry + q
        precision = Precision.parse(f"{name}:sequential")
        assert same(carry, summed(squares(x, precision.format), precision)).all()
        assert same(rounded(x, precision.format), dtype(x)).all()
