"""The loss of a text's frequencies, against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from normlab.data.unigram import unigram_loss


def test_of_a_large_text_it_is_the_entropy():
    tokens = np.random.default_rng(0).zipf(1.5, 1_000_000) % 50
    counts = np.bincount(tokens, minlength=50)
    assert unigram_loss(tokens, tokens.reshape(1000, 1000), 50) == pytest.approx(
        entropy(counts), abs=1e-4
    )


def test_a_token_that_was_never_seen_is_not_impossible():
    """Counts 2, 1, 1 and 1 of 5: each once more than seen."""
    assert unigram_loss(np.array([0]), np.array([0, 3]), 4) == pytest.approx(
        (math.log(5 / 2) + math.log(5)) / 2
    )
