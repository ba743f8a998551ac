"""The traps of low precision, planted: each in real jitted code where a CPU walks into it."""

import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from normlab.numerics import Accumulator, Precision, round_to, sum_of_squares
from normlab.numerics.exact import no_contract, once
from tests.support.numerics_reference import cast, hard_values, same, squares, summed

EPS = 1e-5
rows = np.float32(np.float16(np.random.default_rng(0).normal(1, 1, (128, 600))))


def wrong_sums(got, x=rows, text="fp16:sequential") -> int:
    """In how many rows a sum of squares differs from the reference's."""
    precision = Precision.parse(text)
    want = summed(squares(x, precision.format), precision)
    return int((~same(got, want)).sum())


def halves(x):
    return jnp.float16(x * x)


def left_to_right(add, start):
    """A jitted loop that adds the squares one by one."""
    return lambda x: lax.fori_loop(
        0, x.shape[1], lambda i, c: add(c, x[:, i]), jnp.full(len(x), start)
    )


SUMS = {
    "jnp.sum": lambda x: jnp.sum(halves(x), axis=-1),
    "jnp.sum, dtype": lambda x: jnp.sum(halves(x), axis=-1, dtype=jnp.float16),
    "lax.reduce": lambda x: lax.reduce(halves(x), np.float16(0), lax.add, (1,)),
    "jnp.dot": lambda x: jnp.einsum("nd,nd->n", jnp.float16(x), jnp.float16(x)),
    "cumsum": lambda x: jnp.cumsum(halves(x), axis=-1)[:, -1],
    "no rounding of the square": left_to_right(lambda c, v: round_to(c + v * v, "fp16"), 0.0),
    "no rounding of the sum": left_to_right(lambda c, v: c + round_to(v * v, "fp16"), 0.0),
}


def fused(x):
    """A native half fma: the square is not rounded before it is added."""
    carry = np.zeros(x.shape[0])
    for column in np.moveaxis(np.float16(x).astype(np.float64), -1, 0):
        carry = np.float16(carry + column * column).astype(np.float64)
    return np.float32(carry)


total = jax.jit(sum_of_squares, static_argnums=1)


@pytest.mark.parametrize("trap", SUMS)
def test_a_planted_sum_is_caught(trap):
    assert wrong_sums(total(rows, "fp16:sequential")) == 0
    assert wrong_sums(jax.jit(SUMS[trap])(rows)) > 16


def test_a_fused_multiply_add_and_dropped_casts_are_caught():
    assert wrong_sums(fused(rows)) > 16
    assert wrong_sums(functools.reduce(np.add, np.moveaxis(rows * rows, -1, 0))) > 16


def test_reduce_precision_alone_is_caught():
    """It flushes what is subnormal in halves."""

    def reduced(x):
        q = lax.reduce_precision(x * x, 5, 10)
        return left_to_right(lambda c, v: lax.reduce_precision(c + v, 5, 10), 0.0)(q)

    x = np.float32(np.random.default_rng(0).normal(size=rows.shape) * 2.0**-9)
    assert wrong_sums(total(x, "fp16:sequential"), x) == 0
    assert wrong_sums(jax.jit(reduced)(x), x) > 16


def test_two_roundings_are_not_one():
    @jax.jit
    def twice(x):
        return left_to_right(
            lambda c, v: round_to(c + round_to(v * v, "e8m13"), "e8m13"), jnp.float32(0)
        )(x)

    x = np.float32(np.random.default_rng(1).normal(size=(256, 600)))
    text = "e8m13:sequential"
    assert wrong_sums(total(x, text), x, text) == 0
    assert wrong_sums(twice(x), x, text) > 0


def test_the_magic_constant_rounds_no_subnormal_under_jit():
    x = np.abs(hard_values("fp16"))
    x = x[x < 2.0**-14]
    added = lambda x: (x + 0.75) - 0.75  # noqa: E731
    assert same(added(x), cast(x, "fp16")).all()
    kept = same(jax.jit(added)(x), cast(x, "fp16")).all()  # by XLA from jax 0.12 on
    assert not kept or jax.__version_info__ >= (0, 12)
    assert same(jax.jit(round_to, static_argnums=1)(x, "fp16"), cast(x, "fp16")).all()


def test_a_native_half_sum_of_wide_rows_never_overflows_in_jnp_sum():
    """Where fp16 gives infinity, a half `jnp.sum` is a float32 sum and gives its mean."""
    big = np.full(rows.shape, 16.0, np.float32)
    assert np.isinf(total(big, "fp16:sequential")).all()
    mean = jax.jit(lambda x: jnp.mean(halves(x), axis=-1))(big)
    assert (np.asarray(mean) == 256).all()


@pytest.mark.parametrize(
    "norm", [nnx.RMSNorm, pytest.param(nnx.LayerNorm, marks=pytest.mark.system)]
)
def test_flax_norms_compute_in_float32_whatever_their_dtype(norm):
    """Rows whose FP16 sum of squares overflows: Flax's half norm normalizes them, a unit gives 0.

    Its result is the float32 norm's, rounded at the end.
    """
    made = norm(600, dtype=jnp.float16, epsilon=EPS, rngs=nnx.Rngs(0))
    center = norm is nnx.LayerNorm
    x = rows * 32

    @jax.jit
    def ways(x):
        ours = (Accumulator(p).normalize(x, EPS, center=center) for p in ("fp32", "fp16"))
        return made(jnp.float16(x)), *ours

    flax, wide, half = (np.float32(y) for y in ways(x))
    assert np.abs(flax - wide).max() < 2e-3
    assert (half == 0).all()


def test_an_epsilon_that_is_not_scaled_is_a_change_of_epsilon():
    """Rows of 1/128, so that ε = 1e-5 counts, and a scale of 1/64 that moves their squares up."""
    small, s = rows * np.float32(2.0**-7), np.float32(2.0**-6)
    exact = small / np.sqrt(np.mean(np.float64(small) ** 2, -1, keepdims=True) + EPS)

    @jax.jit
    def both(x, s):
        acc = Accumulator("fp16", s)
        z, mean_square = acc.moments(x)
        return z * acc.inverse_rms(mean_square, EPS), z * lax.rsqrt(mean_square + EPS)

    scaled, unscaled = (np.abs(y - exact).max() / exact.max() for y in both(small, s))
    assert scaled < 1e-3
    assert unscaled > 0.02


def test_what_is_not_kept_apart_is_contracted():
    """What is x·(1/s) − μ in one fused operation under jit, on most machines, is two here."""
    third, mean = np.float32(1 / 3), rows[:, :1] / 7
    want = rows * third - mean
    bare = jax.jit(lambda x, m: x * third - m)(rows, mean)
    apart = jax.jit(lambda x, m: no_contract(x * third) - m)(rows, mean)
    assert same(apart, want).all()
    if platform.machine() == "x86_64":
        assert not same(bare, want).all()


@pytest.mark.parametrize("step", [once, no_contract])
def test_a_step_of_its_own_changes_no_value(step):
    x = np.float32(hard_values("fp16"))
    assert same(jax.jit(step)(x), x).all()


def test_a_division_by_a_constant_is_a_product_under_jit():
    """So the multiplier is written out: x/s would differ by the compiler."""
    divided = lambda x: x / 3.0  # noqa: E731
    multiplied = lambda x: x * (1.0 / jnp.float32(3.0))  # noqa: E731
    assert not same(jax.jit(divided)(rows), divided(rows)).all()
    assert same(jax.jit(multiplied)(rows), multiplied(rows)).all()


def test_a_left_to_right_sum_stalls_at_every_scale():
    """Powers of two move nothing: what a static scale cannot cure."""
    x = np.float32(np.random.default_rng(3).normal(size=(16, 4096)))
    exact = (np.float64(x) ** 2).sum(-1)
    for s in (4.0, 64.0):
        assert (np.asarray(total(x / s, "fp16:sequential")) * s**2 / exact).mean() < 0.95
        assert (
            abs((np.asarray(total(x / s, "fp16:exact_then_round")) * s**2 / exact).mean() - 1)
            < 1e-4
        )
