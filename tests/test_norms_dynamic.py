"""SeeDNorm: an RMSNorm at the start, with a gain that follows the row later."""

import numpy as np
import pytest
from test_norms import make, randomized, row

from normlab.norms import norms
from normlab.numerics import Accumulator

FP32 = Accumulator()


def test_seednorm_starts_as_rmsnorm_and_its_gain_is_bounded():
    x = row()
    assert np.array_equal(make("seednorm", eps=1e-5)(x, FP32), make("rmsnorm")(x, FP32))
    norm = randomized(make("seednorm", eps=0.0))
    rms = np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True))
    gains = np.float64(norm(x, FP32)) / (x / rms)
    assert (np.abs(gains) <= np.asarray(norm.gamma()) * (1 + 1e-5)).all()
    assert np.ptp(gains, axis=0).max() > 0.1  # another row, another gain
    back = np.float64(norm(-x, FP32)) / (-x / rms)
    np.testing.assert_allclose(gains + back, np.tile(2 * norm.gain[...], (5, 1)), atol=1e-4)


def test_an_alpha_of_zero_is_refused():
    with pytest.raises(ValueError, match="norm.alpha = 0: neither α nor β would ever learn"):
        norms["seednorm"].Config(alpha=0.0)
