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
    With δ the logits' differences less their mean under p, it is also log(1 + Σ p (e^−δ − 1 + δ)),
    whose terms are as small as the result and not negative.
    """
    logp = jax.nn.log_softmax(reference)
    p = jnp.exp(logp)
    far = jnp.sum(jnp.where(p > 0, p * (logp - jax.nn.log_softmax(other)), 0.0), axis=-1)
    delta = reference - other
    delta = delta - jnp.sum(p * delta, axis=-1, keepdims=True)
    near = jnp.log1p(jnp.sum(p * (jnp.expm1(-delta) + delta), axis=-1))
    return jnp.where(far < NEAR, near, far)
