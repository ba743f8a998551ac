"""The paired standard error against the bootstrap."""

import math

import numpy as np
import pytest

from normlab.results import paired_difference


def sample(windows, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(100, 512, windows)
    per_token = 3.0 + 0.3 * rng.standard_normal(windows)
    nll = per_token * counts
    worse = nll * (1.01 + 0.01 * rng.standard_normal(windows))
    return worse, nll, counts


def test_the_difference_is_that_of_the_perplexities():
    worse, nll, counts = sample(50)
    found = paired_difference(worse, nll, counts)
    n = counts.sum()
    assert found.delta == pytest.approx(math.exp(worse.sum() / n) - math.exp(nll.sum() / n))


def test_the_standard_error_is_that_of_the_bootstrap():
    worse, nll, counts = sample(300)
    rng = np.random.default_rng(1)
    picks = rng.integers(0, 300, (4000, 300))
    n = counts[picks].sum(1)
    deltas = np.exp(worse[picks].sum(1) / n) - np.exp(nll[picks].sum(1) / n)
    assert paired_difference(worse, nll, counts).stderr == pytest.approx(deltas.std(), rel=0.06)


def test_of_few_windows_it_is_that_of_a_sample():
    """Beside a reference without spread: p times the standard error of the mean."""
    means, counts = np.array([3.0, 3.5, 2.75, 3.25]), np.full(4, 8)
    found = paired_difference(means * counts, np.full(4, 3.0) * counts, counts)
    wanted = math.exp(means.mean()) * means.std(ddof=1) / 2
    assert found.stderr == pytest.approx(wanted, rel=1e-12)


def test_it_is_much_smaller_than_the_unpaired_one():
    worse, nll, counts = sample(300)
    paired = paired_difference(worse, nll, counts).stderr
    rng = np.random.default_rng(2)
    unpaired = []
    for _ in range(500):
        i, j = rng.integers(0, 300, (2, 300))
        p = np.exp(worse[i].sum() / counts[i].sum())
        unpaired.append(p - np.exp(nll[j].sum() / counts[j].sum()))
    assert np.std(unpaired) > 10 * paired


def test_equal_sums_differ_by_nothing_and_one_window_has_no_error():
    _, nll, counts = sample(20)
    assert paired_difference(nll, nll, counts) == (0.0, 0.0)
    found = paired_difference(nll[:1] + 1, nll[:1], counts[:1])
    assert found.delta > 0
    assert math.isnan(found.stderr)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_sums_stay_non_finite(bad):
    worse, nll, counts = sample(20)
    worse[3] = bad
    found = paired_difference(worse, nll, counts)
    assert not math.isfinite(found.delta)
    assert not math.isfinite(found.stderr)
