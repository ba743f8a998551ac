"""The two functions that XLA compiles for a run: one step, one validation batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context, Transformer

Params = Any
Metrics = dict[str, jax.Array]


def make_step(
    graphdef: nnx.GraphDef[Transformer], optimizer: optax.GradientTransformation, seed: int
) -> Callable[..., tuple[Params, Any, Metrics]]:
    """(params, optimizer state, step, inputs, targets) → the first two after it, and metrics.

    The dropout key is a function of (seed, step), so no random state has to be saved. The arrays of
    parameters and optimizer state are donated.
    """

    def loss(params: Params, step: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        logits = nnx.merge(graphdef, params)(inputs, Context(dropout_key=key))
        return token_nll(logits, targets).mean()

    def step_once(params: Params, state: Any, step: jax.Array, inputs: jax.Array, targets: Any):
        value, gradients = jax.value_and_grad(loss)(params, step, inputs, targets)
        updates, state = optimizer.update(gradients, state, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        return optax.apply_updates(params, updates), state, metrics

    return jax.jit(step_once, donate_argnums=(0, 1))


def make_validate(graphdef: nnx.GraphDef[Transformer]) -> Callable[..., jax.Array]:
    """(params, inputs, targets) → the summed loss of a batch, in nats, without dropout."""

    def validate(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(token_nll(nnx.merge(graphdef, params)(inputs), targets))

    return jax.jit(validate)
