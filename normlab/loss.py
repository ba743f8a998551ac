"""The loss of a language model."""

import optax
from jaxtyping import Array, Float, Int


def token_nll(
    logits: Float[Array, "*batch v"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """−log p(target) of each token, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
