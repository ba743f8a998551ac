"""Scales that know nothing of the weights."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normlab.numerics import Accumulator
from normlab.scaling import scales
from normlab.scaling.baselines import largest
from tests.support.scaling_models import uneven


def test_sqrt_d_is_the_root_of_each_sites_width():
    found = scales(uneven(sites={"norm_qk": True}), "sqrt_d")
    assert found["norm_final"] == np.float32(np.sqrt(24))
    assert found["blocks.0.attention.query.norm_qk"] == np.float32(np.sqrt(6))


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, (3, 17), elements=st.floats(-1, 1, width=32)),
    st.integers(-90, 90),
)
def test_the_largest_element_brings_each_sum_between_1_and_d(x, exponent):
    x = np.ldexp(x, exponent)
    s = np.asarray(largest(jnp.asarray(x)))
    top = np.max(np.abs(x), axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny  # below it, the device sees 0
    assert np.array_equal(s[top >= tiny], top[top >= tiny])
    sums = np.sum(np.square(x / s), axis=1)[top[:, 0] >= tiny]
    assert np.all((sums >= 0.999) & (sums <= 17.001))


def test_a_row_of_zeros_stays_one():
    x = jnp.zeros((2, 5))
    assert np.array_equal(largest(x), np.ones((2, 1)))
    assert np.array_equal(Accumulator("fp16", largest(x)).normalize(x, 1e-5), x)


def test_rows_far_outside_of_fp16_are_normalized():
    x = np.random.default_rng(0).normal(size=(4, 64)) * [[1e-6], [1.0], [1e6], [1e12]]
    x = jnp.asarray(x, jnp.float32)
    scale = scales(uneven(), "row_max")["norm_final"](x)
    y = Accumulator("fp16", scale).normalize(x, 0.0)
    np.testing.assert_allclose(np.mean(np.square(y), -1), 1.0, rtol=5e-3)
