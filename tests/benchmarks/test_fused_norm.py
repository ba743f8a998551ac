"""The fused kernels, interpreted: forward, statistic bit for bit, backward against float64."""

import functools

import jax
import jax.numpy as jnp
import kernel_speed
import numpy as np
import pytest
from fused_norm import fused_norm

from normlab.numerics import Accumulator

CASES = [(False, 8), (True, 8), (False, 6), (True, 6)]  # widths with and without padding


def rows(d, count=5, size=2.0, seed=0):
    return np.float32(np.random.default_rng(seed).normal(0.5, size, (count, d)))


def parameters(d, seed=1):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(1, 0.3, d)), np.float32(rng.normal(0, 0.3, d))


def reference(x, gain, bias, eps, center):
    x, gain, bias = (np.float64(part) for part in (x, gain, bias))
    z = x - x.mean(-1, keepdims=True) if center else x
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + eps) * gain + bias


def ours(center, precision="fp32", eps=1e-5, block=2):
    return jax.jit(
        functools.partial(fused_norm, eps=eps, center=center, precision=precision, block=block)
    )


@pytest.mark.parametrize(("center", "d"), CASES)
def test_forward_against_float64(center, d):
    x, (gain, bias) = rows(d), parameters(d)
    y = ours(center)(x, gain, bias)
    np.testing.assert_allclose(y, reference(x, gain, bias, 1e-5, center), rtol=3e-6, atol=1e-6)


def test_any_leading_axes_and_any_dtype():
    x, (gain, bias) = rows(16, 6).reshape(2, 3, 16), parameters(16)
    y = ours(True)(x, gain, bias)
    flat = ours(True)(x.reshape(6, 16), gain, bias)
    assert np.array_equal(y.reshape(6, 16), flat)
    half = ours(True)(x.astype(jnp.bfloat16), gain, bias)
    assert half.dtype == jnp.bfloat16
    assert half.shape == x.shape


@pytest.mark.parametrize(("center", "d"), CASES)
def test_half_accumulation_is_the_simulators_bit_for_bit(center, d):
    x = rows(d, 40)
    x[0], x[1], x[2] = 300.0 * x[0], 1e-4 * x[1], 0.0  # overflow, subnormal squares, nothing
    x[3] = 40.0 * x[3]
    one, zero = np.ones(d, np.float32), np.zeros(d, np.float32)
    acc = Accumulator("fp16:pairwise")
    wanted = jax.jit(lambda x: acc.normalize(x, 1e-5, center=center))(x)
    got = ours(center, "fp16:pairwise")(x, one, zero)
    assert np.array_equal(got, wanted)
    assert (np.asarray(got[0]) == 0).all()  # the sum overflowed
    assert not np.array_equal(got, ours(center)(x, one, zero))


def gradients(center, d, precision="fp32", eps=1e-5):
    x, (gain, bias), weight = rows(d), parameters(d), rows(d, seed=7)
    norm = ours(center, precision, eps)
    loss = jax.jit(jax.grad(lambda *given: jnp.sum(norm(*given) * weight), argnums=(0, 1, 2)))
    return x, gain, bias, weight, [np.float64(g) for g in loss(x, gain, bias)]


@pytest.mark.parametrize(("center", "d"), CASES)
def test_backward_against_float64(center, d):
    x, gain, bias, weight, (dx, dgain, dbias) = gradients(center, d)
    z = np.float64(x) - (np.float64(x).mean(-1, keepdims=True) if center else 0.0)
    inverse = 1 / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(dbias, np.float64(weight).sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dgain, (weight * z * inverse).sum(0), rtol=1e-5, atol=1e-5)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-6
        up, down = (reference(x + s, gain, bias, 1e-5, center) for s in (step, -step))
        slope = ((up - down) * weight).sum() / 2e-6
        assert abs(dx[index] - slope) < 1e-5 * max(1, abs(slope))


@pytest.mark.parametrize(("center", "d"), CASES)
def test_gradient_is_orthogonal_to_the_row_without_eps(center, d):
    x, *_, (dx, _, _) = gradients(center, d, eps=0.0)
    z = np.float64(x) - (np.float64(x).mean(-1, keepdims=True) if center else 0.0)
    size = np.linalg.norm(dx, axis=-1) * np.linalg.norm(z, axis=-1)
    assert (np.abs((dx * z).sum(-1)) < 1e-6 * size).all()
    if center:
        assert np.abs(dx.sum(-1)).max() < 1e-6 * np.abs(dx).sum(-1).min()


@pytest.mark.parametrize("center", [False, True])
def test_half_backward_is_the_simulators(center):
    x, gain, bias, weight, (dx, dgain, _) = gradients(center, 6, "fp16:pairwise")
    acc = Accumulator("fp16:pairwise")

    def loss(x, gain):
        return jnp.sum((acc.normalize(x, 1e-5, center=center) * gain + bias) * weight)

    wanted = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, gain)
    np.testing.assert_allclose(dgain, wanted[1], rtol=1e-5, atol=1e-5)
    # Where it centres, the simulator's rounded mean is off a little, and not cancelled there.
    np.testing.assert_allclose(dx, wanted[0], rtol=1e-5, atol=2e-4 if center else 1e-6)


def test_refuses():
    one = jnp.ones(16)
    with pytest.raises(ValueError, match="precision of the fused norm 'fp16'"):
        fused_norm(one, one, one, precision="fp16")
    with pytest.raises(ValueError, match="block = 3: expected a power of two"):
        fused_norm(one, one, one, block=3)


def test_what_is_timed_of_a_norm_gives_its_rows_and_every_gradient():
    """A program that gives gradients alone needn't write the rows, as the kernels must."""
    x, (gain, bias), weight = rows(8), parameters(8), rows(8, seed=7)
    timed = kernel_speed.passes(ours(True), (x, gain, bias, weight))
    forward, both = (timed[name][0]() for name in ("forward", "forward and backward"))
    assert np.array_equal(both[0], forward)
    slopes = gradients(True, 8)[-1]
    assert len(both[1]) == len(slopes)
    for got, wanted in zip(both[1], slopes, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
