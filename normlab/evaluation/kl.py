"""How far one next-token distribution is from another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NEAR = 0.1
"""Below this divergence, in nats, it is taken from the differences of logits."""


def kl_divergence(
    reference: Float[Array, "*batch v"], other: Float[Array, "*batch v"]
) -> Float[Array, "*batch"]:
    """KL(p ‖ q) = Σ p log(p/q) in nats, p and q the softmax of `reference` and `other`.

    Close distributions have a KL of 1e-6, where float32 log-probabilities are wrong by as much.
    With δ the logits' differences less their mean under p, it is also log(1 + Σ p (e^−δ − 1 + δ)).
    Its terms are as small as the result and not negative.
    """
    top = jnp.max(reference, axis=-1, keepdims=True)
    weight = jnp.exp(reference - top)  # p but for a factor: each exponential is a pass over v
    total = jnp.sum(weight, axis=-1, keepdims=True)
    delta = reference - other
    possible = weight > 0
    mean = jnp.sum(jnp.where(possible, weight * delta, 0.0), axis=-1, keepdims=True) / total
    far = mean - (jnp.log(total) + top - jax.nn.logsumexp(other, axis=-1, keepdims=True))
    delta = delta - mean
    terms = jnp.where(possible, weight * (jnp.expm1(-delta) + delta), 0.0)
    near = jnp.log1p(jnp.sum(terms, axis=-1, keepdims=True) / total)
    return jnp.where(far < NEAR, near, far)[..., 0]
