"""Parts of a batch: how many there are, and that two threads take them as one would."""

import jax
import numpy as np
import pytest

from normlab.training.parts import parts_in_cache, parts_of
from tests.conftest import same_trees
from tests.support.steps import small, trained

SHAPES = [(16, 128, 128, 8), (8, 64, 64, 4), (4, 256, 384, 2), (6, 100, 9, 2), (7, 64, 9, 1)]


@pytest.mark.parametrize(("batch", "window", "width", "parts"), SHAPES)
def test_parts_of_a_batch_are_equal_and_neither_many_nor_short(batch, window, width, parts):
    assert parts_in_cache(batch, window, width) == parts


def test_a_cpu_takes_parts_unless_norms_keep_something_of_a_batch():
    plain, keeps = small(), small("batchnorm")
    assert parts_of(plain, 16, 128) == parts_in_cache(16, 128, plain.config.width) == 8
    assert parts_of(plain, 16, 128, kept=2) == 2
    assert parts_of(keeps, 16, 128) == parts_of(keeps, 16, 128, kept=2) == 1


@pytest.mark.system
def test_two_threads_take_the_parts_that_one_takes_in_turn():
    """Each with its rows and its dropout key; and the same bits whichever thread is first."""
    model = small(dropout=0.5)
    (turn, losses), (both, found) = trained(model, accumulate=4), trained(model, parts=4)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    pairs = zip(*map(jax.tree.leaves, (turn, both)), strict=True)
    assert max(np.abs(p - q).max() for p, q in pairs) < 5e-6
    assert same_trees(both, trained(model, parts=4)[0])
    assert not same_trees(both, trained(small(), parts=4)[0])
