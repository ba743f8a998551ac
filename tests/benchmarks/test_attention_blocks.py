"""benchmarks/attention_blocks.py compares two ways of computing the same, and truly two."""

import attention_blocks
import jax
import numpy as np
import pytest

from normlab.model import ModelConfig


@pytest.mark.parametrize("window", [None, 3])
def test_both_ways_give_the_same_by_different_programs(window):
    config = ModelConfig(layers=1, width=16, heads=4, kv_heads=2, window=window)
    with attention_blocks.queries(4):
        found = attention_blocks.programs(config, 8)
    for name in ("forward", "gradient"):
        (blocks, *given), (whole, *same) = (
            found[f"{name} {way}"] for way in ("in blocks", "in one piece")
        )
        assert blocks.as_text() != whole.as_text()
        for a, b in zip(*map(jax.tree.leaves, (blocks(*given), whole(*same))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
