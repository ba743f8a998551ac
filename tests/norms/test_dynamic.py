"""SeeDNorm: an RMSNorm at the start, with a weight that follows the row later."""

import numpy as np
import pytest

from normlab.norms import norms
from tests.support.norm_walk import call, make, randomized, row


def test_seednorm_starts_as_rmsnorm_and_its_gain_is_bounded():
    x = row()
    assert np.array_equal(call(make("seednorm", eps=1e-5), x), call(make("rmsnorm"), x))
    norm = randomized(make("seednorm", eps=0.0))
    rms = np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True))
    factors = np.float64(call(norm, x)) / (x / rms)
    assert (np.abs(factors) <= np.asarray(norm.gamma()) * (1 + 1e-5)).all()
    assert np.ptp(factors, axis=0).max() > 0.1  # another row, another weight
    back = np.float64(call(norm, -x)) / (-x / rms)
    np.testing.assert_allclose(factors + back, np.tile(2 * norm.weight[...], (5, 1)), atol=1e-4)


def test_each_head_of_a_seednorm_has_a_gain_of_its_own():
    x, one = row(), randomized(make("seednorm", eps=0.0))
    assert np.array_equal(call(randomized(make("seednorm", heads=1, eps=0.0)), x), call(one, x))
    four = randomized(make("seednorm", heads=4, eps=0.0))
    rms = lambda x: np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True))  # noqa: E731
    moved = x.copy()
    moved[:, 12:24] = -moved[:, 12:24]  # the RMS stays, one head's dot product turns round
    before, after = (np.float64(call(four, v)) * rms(v) / v for v in (x, moved))
    outside = np.r_[0:12, 24:48]
    np.testing.assert_allclose(after[:, outside], before[:, outside], rtol=1e-5)
    assert np.abs(after - before)[:, 12:24].max() > 0.1
    weight = np.asarray(four.weight[...])[12:24]
    np.testing.assert_allclose((after + before)[:, 12:24], np.tile(2 * weight, (5, 1)), atol=1e-4)
    assert np.array_equal(call(make("seednorm", heads=16, eps=1e-5), x), call(make("rmsnorm"), x))


@pytest.mark.parametrize(
    ("heads", "message"),
    [(0, "norm.heads = 0: expected a number ≥ 1"), (5, "norm.heads = 5 doesn't divide the width")],
)
def test_heads_that_cut_no_row_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        make("seednorm", heads=heads)


def test_an_alpha_of_zero_is_refused():
    with pytest.raises(ValueError, match="norm.alpha = 0: neither α nor β would ever learn"):
        norms["seednorm"].Config(alpha=0.0)
