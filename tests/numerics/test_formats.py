"""Rounding to a float format, bit for bit against NumPy and ml_dtypes."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from normlab.numerics import FloatFormat, round_to
from tests.support.numerics_reference import DTYPES, all_values, cast, hard_values, rounded, same

jitted = jax.jit(round_to, static_argnums=1)
ROOT = Path(__file__).parents[2]


def wrong(rounding, name: str = "fp16") -> int:
    """The check of this file: how many hard values a rounding gets wrong."""
    x = hard_values(name)
    return int((~same(rounding(x), cast(x, name))).sum())


@pytest.mark.parametrize("name", DTYPES)
def test_every_value_midpoints_neighbours_and_any_float32(name):
    bits = np.random.default_rng(1).integers(0, 2**32, 500_000, dtype=np.uint64)
    values = all_values(name)
    assert values.size == 2 ** (8 * np.dtype(DTYPES[name]).itemsize)
    hard, any_float32 = hard_values(name), bits.astype(np.uint32).view(np.float32)
    assert same(hard[: len(values)], values).all()
    x = np.concatenate([hard, any_float32])
    got = np.asarray(jitted(x, name))
    assert same(got, cast(x, name)).all()
    assert same(got[: len(values)], values).all()


@pytest.mark.system
@pytest.mark.parametrize("name", DTYPES)
def test_without_jit(name):
    assert wrong(lambda x: round_to(x, name), name) == 0


@pytest.mark.parametrize(
    "name", ["fp16", *(pytest.param(n, marks=pytest.mark.system) for n in ("bf16", "fp8_e4m3"))]
)
def test_under_vmap_and_scan(name):
    x = hard_values(name)
    x = x[: len(x) // 50 * 50].reshape(-1, 50)

    @jax.jit
    def ways(x):
        each = lambda row: round_to(row, name)  # noqa: E731
        return jax.vmap(each)(x), lax.scan(lambda carry, row: (carry, each(row)), 0, x)[1]

    for got in ways(x):
        assert same(got, cast(x, name)).all()


def values_for(to, seed):
    """Values over the whole range of the format, and their midpoints."""
    rng = np.random.default_rng(seed)
    reach = 2 ** (to.exponent - 1) + 3
    with np.errstate(over="ignore"):
        x = rng.standard_normal(2000) * 2.0 ** rng.uniform(-reach - to.mantissa, reach, 2000)
        ties = rounded(x, FloatFormat.parse(f"e8m{to.mantissa}"))
        ties = ties * (1 + 2.0 ** -(to.mantissa + 1))
        x = np.float32(np.concatenate([x, ties, [0, -0.0, np.inf, -np.inf, np.nan]]))
    return np.where(np.abs(x) < 2.0**-126, np.float32(0), x)


WIDTHS = ("e2m1", "e2m21.flush", "e3m4.saturate", "e5m9.flush.saturate", "e6m16", "e8m1", "e8m21")


def test_other_widths():
    formats = [FloatFormat.parse(text) for text in WIDTHS]
    given = [values_for(to, seed) for seed, to in enumerate(formats)]
    found = jax.jit(lambda given: [round_to(x, to) for x, to in zip(given, formats, strict=True)])
    for x, got, to in zip(given, found(given), formats, strict=True):
        assert same(got, np.float32(rounded(x, to))).all(), str(to)


@pytest.mark.extended
@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 8),
    st.integers(1, 21),
    st.sampled_from(["", ".flush", ".saturate", ".flush.saturate"]),
    st.integers(0, 2**32 - 1),
)
def test_any_width(exponent, mantissa, options, seed):
    to = FloatFormat.parse(f"e{exponent}m{mantissa}{options}")
    x = values_for(to, seed)
    with np.errstate(over="ignore"):
        assert same(round_to(x, to), np.float32(rounded(x, to))).all()


def test_the_reference_for_any_width_agrees_with_numpy():
    for name in ("fp16", "fp8_e5m2", "fp8_e4m3", "e3m4"):
        x = hard_values(name)
        assert same(rounded(x, FloatFormat.parse(name)), cast(x, name)).all()


@pytest.mark.parametrize(
    ("name", "largest", "normal", "subnormal"),
    [
        ("fp16", 65504.0, 2.0**-14, 2.0**-24),
        ("bf16", 3.3895314e38, 2.0**-126, 2.0**-133),
        ("fp8_e4m3", 448.0, 2.0**-6, 2.0**-9),
        ("fp8_e5m2", 57344.0, 2.0**-14, 2.0**-16),
        ("e4m3", 240.0, 2.0**-6, 2.0**-9),
    ],
)
def test_limits(name, largest, normal, subnormal):
    to = FloatFormat.parse(name)
    assert (np.float32(to.max), to.smallest_normal) == (np.float32(largest), normal)
    assert to.smallest_subnormal == subnormal
    info = jnp.finfo(DTYPES[name])
    assert (float(info.max), float(info.tiny)) == (to.max, to.smallest_normal)


def test_overflow_and_underflow_as_each_format_has_it():
    """Flushing takes the results below the smallest normal only."""
    n = np.float32(2.0**-14)
    x = np.float32([65519.99, 65520, -1e9, np.inf, np.nan, 464, 465, n, -n / 2, n * 0.999])
    x = np.append(x, np.nextafter(n, np.float32(0)))
    names = ("fp16", "fp16.saturate", "fp8_e4m3", "fp8_e4m3.saturate", "fp16.flush")
    made = jax.jit(lambda x: {name: round_to(x, name) for name in names})(x)
    assert same(made["fp16"][:5], [65504, np.inf, -np.inf, np.inf, np.nan]).all()
    assert same(made["fp16.saturate"][:5], [65504, 65504, -65504, 65504, np.nan]).all()
    assert same(made["fp8_e4m3"][5:7], [448, np.nan]).all()
    assert same(made["fp8_e4m3.saturate"][5:7], [448, 448]).all()
    assert same(made["fp16.flush"][7:], [n, -0.0, 0, n]).all()
    assert same(made["fp16.flush"][:5], made["fp16"][:5]).all()


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3"])
@pytest.mark.parametrize("x", [1 + 0.3 / 1024, 3.03125, 2.0**-9 * 1.7, -0.77])
def test_stochastic_rounding_is_unbiased_and_hits_only_neighbours(name, x):
    x = np.float32(x)
    got = np.asarray(jitted(np.full(40_000, x), f"{name}.stochastic5"), np.float64)
    low, high = got.min(), got.max()
    assert low <= x <= high
    assert np.isin(got, [low, high]).all()
    if low == high:
        assert x == cast(x, name)
        return
    share = (x - low) / (high - low)
    deviation = (high - low) * np.sqrt(share * (1 - share) / got.size)
    assert abs(got.mean() - x) < 5 * deviation


@pytest.mark.parametrize(
    "mantissa", [2, 10, *(pytest.param(m, marks=pytest.mark.extended) for m in (3, 7, 16))]
)
def test_stochastic_rounding_of_neighbours_is_independent(mantissa):
    """Of neighbouring values, places and seeds: up or not, halfway between, agrees half the time.

    A hash of two products without the first shift fails here, for two mantissa bits.
    """
    step = np.arange(min(1 << 13, 64 << mantissa), dtype=np.uint32) * 2 + 1  # half a last bit
    values = (np.uint32(0x3F000000) + (step << np.uint32(22 - mantissa))).view(np.float32)
    x = np.tile(values[:, None], 64)
    names = [f"e8m{mantissa}.stochastic({seed})" for seed in (0, 1)]
    up = np.stack([jitted(x, name) > x for name in names])  # [seed, value, place]
    for axis in range(3):
        agree = np.equal(*(np.delete(up, end, axis) for end in (0, -1)))
        assert abs(agree.mean() - 0.5) < 5 * 0.5 / np.sqrt(agree.size)


def test_stochastic_rounding_depends_on_seed_and_row_alone():
    x = np.random.default_rng(0).normal(size=(8, 300)).astype(np.float32)
    one = np.asarray(jitted(x, "fp16.stochastic1"))
    each = jax.jit(jax.vmap(lambda row: round_to(row, "fp16.stochastic1")))
    assert same(each(x), one).all()
    assert same(jitted(x[3:4], "fp16.stochastic1"), one[3:4]).all()
    assert not same(jitted(x, "fp16.stochastic2"), one).all()
    kept = all_values("fp16")
    assert same(jitted(kept, "fp16.stochastic1"), kept).all()


def test_the_derivative_is_that_of_the_identity():
    x = np.float32([1.2345, -0.3, 1e-3, 300.0])
    names = ("fp16", "bf16.stochastic0", "fp8_e4m3.saturate")

    @jax.jit
    def made(x):
        slopes = [jax.grad(lambda v, n=n: jnp.sum(v * round_to(v, n)))(x) for n in names]
        return slopes, [round_to(x, name) for name in names]

    for slope, y in zip(*made(x), strict=True):
        np.testing.assert_allclose(slope, x + y, rtol=1e-6)


@pytest.mark.parametrize(
    "text", ["fp32", "fp16.flush", "bf16.saturate", "e5m2.flush.saturate.stochastic9", "fp8_e4m3"]
)
def test_strings_round_trip(text):
    assert str(FloatFormat.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fp17", "Did you mean 'fp16'"),
        ("fp16.flash", "Did you mean 'flush'"),
        ("fp16.stochastic", r"Did you mean 'stochasticSEED'"),
        ("e9m3", "exponent bits = 9: expected 2 to 8"),
        ("e1m3", "exponent bits = 1"),
        ("e5m22", "mantissa bits = 22: expected 1 to 21, or 23"),
        ("e8m24", "mantissa bits = 24"),
        ("e5m0", "mantissa bits = 0"),
        ("fp16.stochasticSEED", "stochastic"),
    ],
)
def test_bad_strings_say_what_was_expected(text, says):
    with pytest.raises(ValueError, match=says):
        FloatFormat.parse(text)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"subnormals": "flsh"}, "subnormal handling 'flsh'. Did you mean 'flush'"),
        ({"overflow": "saturat"}, "overflow handling 'saturat'. Did you mean 'saturate'"),
    ],
)
def test_words_outside_the_lists_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        FloatFormat("fp16", 5, 10, **fields)


def test_trap_reduce_precision_alone_is_caught():
    assert wrong(jax.jit(lambda x: lax.reduce_precision(x, 5, 10))) > 1000


def test_trap_a_dropped_convert_pair_is_caught():
    assert wrong(lambda x: x) > 1000  # what is left once XLA has dropped both casts


def test_trap_the_undone_magic_constant_is_caught():
    """XLA may turn (|x| + c) - c into |x|, so that the old trick rounds no subnormal."""

    def undone(x):
        return jnp.where(jnp.abs(x) < 2.0**-14, x, lax.reduce_precision(x, 5, 10))

    assert wrong(undone) > 1000


EXCESS = "--xla_allow_excess_precision={}"
AVX2 = "--xla_cpu_max_isa=AVX2 --xla_allow_excess_precision=true"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(EXCESS.format("true"), marks=pytest.mark.extended),
        pytest.param(EXCESS.format("false"), marks=pytest.mark.extended),
        pytest.param(
            AVX2,
            marks=[
                pytest.mark.system,
                pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 only"),
            ],
        ),
    ],
)
def test_under_other_xla_flags(flags):
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-W", "error", str(ROOT / "tests/support/numerics_reference.py")]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 1_000_000
