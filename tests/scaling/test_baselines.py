"""Scales that know nothing of the weights."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normlab.numerics import Accumulator
from normlab.scaling import scales
from normlab.scaling.baselines import largest
from tests.conftest import tiny_model


def test_sqrt_d_is_the_root_of_each_sites_width():
    found = scales(tiny_model(placement_fields={"norm_qk": True}), "sqrt_d")
    assert found["norm_final"] == np.float32(np.sqrt(32))
    assert found["blocks.0.attention.query.norm_qk"] == 4


measured = jax.jit(largest)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, (3, 17), elements=st.floats(-1, 1, width=32)),
    st.integers(-90, 90),
)
def test_the_largest_element_brings_each_sum_between_1_and_d(x, exponent):
    x = np.ldexp(x, exponent)
    s = np.asarray(measured(x))
    top = np.max(np.abs(x), axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny  # below it, the device sees 0
    assert np.array_equal(s[top >= tiny], top[top >= tiny])
    sums = np.sum(np.square(x / s), axis=1)[top[:, 0] >= tiny]
    assert np.all((sums >= 0.999) & (sums <= 17.001))


def test_rows_of_zeros_stay_so_and_rows_far_outside_of_fp16_are_normalized():
    x = np.random.default_rng(0).normal(size=(5, 32)) * [[1e-6], [1.0], [1e6], [1e12], [0.0]]
    scale = scales(tiny_model(), "row_max")["norm_final"]

    @jax.jit
    def normalized(x):
        s = scale(x)
        ways = ((slice(4), 0.0), (slice(4, 5), 1e-5))
        return s, *(Accumulator("fp16", s[rows]).normalize(x[rows], eps) for rows, eps in ways)

    s, y, zeros = normalized(np.float32(x))
    assert s[4] == 1
    assert not np.any(zeros)
    np.testing.assert_allclose(np.mean(np.square(y), -1), 1.0, rtol=5e-3)
