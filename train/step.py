"""The two functions that XLA compiles for a run: one step, one validation batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from normlab.loss import token_nll
from normlab.model import ComputeConfig, Context, Transformer
from normlab.norms import NormState, penalties
from normlab.numerics import Precision
from normlab.sharding import placed

Params = Any
Metrics = dict[str, jax.Array]
Texts = tuple[jax.Array, jax.Array]


def learned(params: Params) -> Params:
    """The part of a model's state that the optimizer changes; the rest, norms change themselves."""
    return nnx.filter_state(params, nnx.Param)


def make_step(
    graphdef: nnx.GraphDef[Transformer],
    optimizer: optax.GradientTransformation,
    seed: int,
    steps: int,
    compute: ComputeConfig | None = None,
    accumulate: int = 1,
) -> Callable[..., tuple[Params, Any, Metrics]]:
    """(params, optimizer state, step, inputs, targets) → the first two after it, and metrics.

    `params` is a model's whole state. The optimizer sees what is `learned`; what norms keep beside
    it (`NormState`) comes back as they leave it.

    The dropout key is a function of (seed, step), so no random state has to be saved. Norms are
    told step / steps as the training's progress. The arrays of `params` and of the optimizer's
    state are donated.

    Args:
        graphdef: the model's structure.
        optimizer: what turns gradients into updates.
        seed: of dropout.
        steps: of the whole training.
        compute: how the model computes; by default in float32, keeping all activations.
        accumulate: k, in how many parts a batch is differentiated, one after another. Gradients
            are averaged in float32, so that the step is that of the whole batch. Part i has every
            k-th sequence from the i-th on, a dropout key of its own, and the norms' state as part
            i − 1 left it: a BatchNorm sees k small batches, and running means move k times a step.
    """

    def loss(weights: Params, kept: Params, step: jax.Array, key: jax.Array, texts: Texts):
        model = nnx.merge(graphdef, weights, kept, copy=True)  # its norms may change `kept`
        progress = jnp.float32(step) / steps
        logits = model(texts[0], Context(dropout_key=key, progress=progress, compute=compute))
        nll = token_nll(logits, texts[1]).mean()
        return sum(penalties(model), nll), nnx.state(model, NormState)

    differentiated = jax.value_and_grad(loss, has_aux=True)

    def in_parts(weights: Params, kept: Params, step: jax.Array, key: jax.Array, texts: Texts):
        def add(carry: tuple[Any, Params], part: Any):
            total, kept = carry
            (value, kept), gradients = differentiated(weights, kept, step, part[0], part[1])
            return (jax.tree.map(jnp.add, total, (value, gradients)), kept), None

        # Every k-th sequence: a batch that is spread over devices stays where it is.
        parts: Any = tuple(t.reshape(-1, accumulate, t.shape[-1]).swapaxes(0, 1) for t in texts)
        none: Any = (jnp.float32(0), jax.tree.map(jnp.zeros_like, weights))
        keys = jax.random.split(key, accumulate)
        (total, kept), _ = jax.lax.scan(add, (none, kept), (keys, parts))
        value, gradients = jax.tree.map(lambda t: t / accumulate, total)
        return (value, kept), gradients

    def step_once(params: Params, state: Any, step: jax.Array, inputs: jax.Array, targets: Any):
        weights, kept = nnx.split_state(params, nnx.Param, NormState)
        key = jax.random.fold_in(jax.random.key(seed), step)
        call = differentiated if accumulate == 1 else in_parts
        (value, kept), gradients = call(weights, kept, step, key, (inputs, targets))
        updates, state = optimizer.update(gradients, state, weights)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        params = nnx.merge_state(optax.apply_updates(weights, updates), kept)
        return placed(params), placed(state), metrics

    options = compute.compiler_options() if compute else {}
    return jax.jit(step_once, donate_argnums=(0, 1), compiler_options=options or None)


def make_validate(
    graphdef: nnx.GraphDef[Transformer], precision: Precision | None = None
) -> Callable[..., jax.Array]:
    """(params, inputs, targets) → the summed loss of a batch, in nats, without dropout.

    In float32, but for the norms' statistics, which are of `precision`, as in training.
    """

    def validate(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params)(inputs, Context(precision))
        return jnp.sum(token_nll(logits, targets))

    return jax.jit(validate)
