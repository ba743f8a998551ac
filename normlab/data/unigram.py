"""What is known of a text without its order: the loss that a model has to get below."""

import numpy as np
from jaxtyping import Int32


def unigram_loss(
    train: Int32[np.ndarray, " tokens"], targets: Int32[np.ndarray, "..."], vocab_size: int
) -> float:
    """Mean loss, in nats, of the training split's frequencies on `targets`.

    Each token counts as seen once more than it was (Laplace), so that none is impossible. A model
    that stays at this loss has learned how often tokens come, and nothing of what is before them.
    """
    counts = np.bincount(np.asarray(train), minlength=vocab_size) + 1.0
    return float(np.log(counts.sum()) - np.log(counts)[np.asarray(targets)].mean())
