"""Histograms on a logarithmic axis: bins, medians, and what is written down of them."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.numerics.histogram import (
    BINS,
    HIGH,
    LOW,
    STEPS,
    edges,
    histogram,
    median,
    packed,
    unpacked,
)

counted = jax.jit(histogram)


def reference(values) -> np.ndarray:
    """By logarithms in float64, the edges as the nearest float32."""
    exact = np.float32(2.0 ** (LOW + np.arange(BINS - 1) / STEPS))
    place = np.searchsorted(exact, np.float32(values), side="right")
    return np.bincount(place, minlength=BINS)


def test_bins_are_those_of_an_independent_computation():
    values = np.float32(2.0 ** np.random.default_rng(0).uniform(-64, 64, 5000))
    got = np.asarray(counted(values))
    np.testing.assert_array_equal(got, reference(values))
    assert got[0] > 0
    assert got[-1] > 0


def test_a_power_of_two_is_the_lower_edge_of_its_bin():
    for exponent in (-60, -24, -14, 0, 16, 59):
        on, below = (np.float32(2.0**exponent), np.nextafter(np.float32(2.0**exponent), 0))
        place = (exponent - LOW) * STEPS + 1
        assert counted(np.array([on]))[place] == 1
        assert counted(np.array([below], np.float32))[place - 1] == 1
        assert edges()[place] == exponent


def test_zeros_and_nan_are_nowhere_and_infinity_is_at_the_end():
    got = np.asarray(counted(np.float32([0.0, -0.0, np.inf, np.nan, -np.nan, 1e-40, 3e38])))
    assert (got[0], got[-1], got.sum()) == (1, 2, 3)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=50))
def test_the_median_is_right_within_a_bin(logs):
    values = np.float32(2.0 ** np.array(logs))
    low, high = np.percentile(values, [50, 50], method="inverted_cdf")
    upper = np.sort(values)[len(values) // 2]
    got = median(reference(values))
    assert low / 2 ** (1 / STEPS) < got < max(high, upper) * 2 ** (1 / STEPS)


def test_the_median_of_nothing_and_at_the_ends():
    assert median(np.zeros(BINS, int)) is None
    assert median(reference([1e-30])) == 2.0**LOW
    assert median(reference([1e30])) == 2.0**HIGH


@pytest.mark.parametrize("values", [[], [1e-30], [1e30], [3.0, 3.0, 900.0], [1e-30, 1e30]])
def test_packed_counts_come_back(values):
    counts = reference(values) if values else np.zeros(BINS, int)
    made = packed(counts)
    assert len(made["counts"]) == 0 or (made["counts"][0] > 0 and made["counts"][-1] > 0)
    np.testing.assert_array_equal(unpacked(made), counts)
