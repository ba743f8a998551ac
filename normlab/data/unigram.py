"""What is known of a text without its order: the loss that a model has to get below."""

import numpy as np
from jaxtyping import Integer

AT_ONCE = 1 << 24
"""Tokens that are counted together: a long split is read from disk, and never all in memory."""


def unigram_loss(
    train: Integer[np.ndarray, " tokens"], targets: Integer[np.ndarray, "..."], vocab_size: int
) -> float:
    """Mean loss, in nats, of the training split's frequencies on `targets`.

    Each token counts as seen once more than it was (Laplace), so that none is impossible. A model
    that stays at this loss has learned how often tokens come, and nothing of what is before them.
    """
    parts = (np.asarray(train[i : i + AT_ONCE]) for i in range(0, len(train), AT_ONCE))
    counts = np.ones(vocab_size)
    for part in parts:
        counts += np.bincount(part, minlength=vocab_size)
    return float(np.log(counts.sum()) - np.log(counts)[np.asarray(targets)].mean())
