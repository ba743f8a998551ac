"""The benchmark of the one-pass variance measures what cancels."""

import numpy as np
from numerics_onepass import measure


def test_one_pass_cancels_where_two_passes_do_not():
    rows = np.random.default_rng(0).standard_normal((32, 128)) + 10
    two, one = (measure(rows, "fp16", "rounded", form) for form in ("twopass", "onepass"))
    assert two["worst"] < 1e-3
    assert two["lost"] == 0
    assert one["lost"] + (one["worst"] > 1e-2) > 0
    near = measure(rows - 10, "fp16", "rounded", "onepass")
    assert near["worst"] < 1e-3
