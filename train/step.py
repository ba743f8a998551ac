"""The two functions that XLA compiles for a run: one step, one validation batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context, Transformer
from normlab.norms import NormState

Params = Any
Metrics = dict[str, jax.Array]


def learned(params: Params) -> Params:
    """The part of a model's state that the optimizer changes; the rest, norms change themselves."""
    return nnx.filter_state(params, nnx.Param)


def make_step(
    graphdef: nnx.GraphDef[Transformer],
    optimizer: optax.GradientTransformation,
    seed: int,
    steps: int,
) -> Callable[..., tuple[Params, Any, Metrics]]:
    """(params, optimizer state, step, inputs, targets) → the first two after it, and metrics.

    `params` is a model's whole state. The optimizer sees what is `learned`; what norms keep beside
    it (`NormState`) comes back as they leave it.

    The dropout key is a function of (seed, step), so no random state has to be saved. Norms are
    told step / steps as the training's progress. The arrays of `params` and of the optimizer's
    state are donated.
    """

    def loss(weights: Params, kept: Params, step: jax.Array, inputs: jax.Array, targets: jax.Array):
        model = nnx.merge(graphdef, weights, kept, copy=True)  # its norms may change `kept`
        key = jax.random.fold_in(jax.random.key(seed), step)
        progress = jnp.float32(step) / steps
        logits = model(inputs, Context(dropout_key=key, progress=progress))
        return token_nll(logits, targets).mean(), nnx.state(model, NormState)

    def step_once(params: Params, state: Any, step: jax.Array, inputs: jax.Array, targets: Any):
        weights, kept = nnx.split_state(params, nnx.Param, NormState)
        differentiated = jax.value_and_grad(loss, has_aux=True)
        (value, kept), gradients = differentiated(weights, kept, step, inputs, targets)
        updates, state = optimizer.update(gradients, state, weights)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        return nnx.merge_state(optax.apply_updates(weights, updates), kept), state, metrics

    return jax.jit(step_once, donate_argnums=(0, 1))


def make_validate(graphdef: nnx.GraphDef[Transformer]) -> Callable[..., jax.Array]:
    """(params, inputs, targets) → the summed loss of a batch, in nats, without dropout."""

    def validate(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(token_nll(nnx.merge(graphdef, params)(inputs), targets))

    return jax.jit(validate)
