"""The two functions that XLA compiles for a run: one step, one validation batch.

They are compiled once for all runs of a process that differ in numbers only. What such runs share
is the key of a program: the model's structure, how it computes, the parts of a batch, the devices.
(Initial values are no part of the structure, see `normlab.config.field`.) All else is an argument:
weights, the optimizer with its rates, the seed of dropout, the number of steps.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from normlab.loss import token_nll
from normlab.model import ComputeConfig, Context, Transformer, keys
from normlab.norms import NormState, penalties
from normlab.numerics import Precision
from normlab.parallel.sharding import Layout, layout, put, shard_params
from normlab.training.optimizers import Optimizer

Params = Any
Metrics = dict[str, jax.Array]
Texts = tuple[jax.Array, jax.Array]


class Told(NamedTuple):
    """What a loss depends on beside weights and text.

    Args:
        progress: the share of the training that is done.
        z: weight of the squared logarithm of the softmax's sum; None: none.
    """

    progress: jax.Array
    z: jax.Array | None


PROGRAMS = 64
"""So many of each kind are kept in a process, the ones used last."""

PARTS, PART = 4, 128
"""A CPU takes a batch by itself in so many parts at most, each of so many tokens at least."""


def learned(params: Params) -> Params:
    """The part of a model's state that the optimizer changes; the rest, norms change themselves."""
    return nnx.filter_state(params, nnx.Param)


def make_step(
    graphdef: nnx.GraphDef[Transformer],
    optimizer: Optimizer,
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
            k-th sequence from the i-th on and a dropout key of its own. It takes the norms' state
            as part i − 1 left it: a BatchNorm sees k small batches. See `parts_of`.
    """
    key = np.asarray(jax.random.key_data(keys.key(seed)))
    run = jax.tree.map(partial(put, ""), (optimizer, key, np.asarray(steps, np.int32)))
    return partial(_step(graphdef, compute, accumulate, layout()), run)


def parts_of(model: Transformer, batch: int, window: int, kept: int | None = None) -> int:
    """In how many parts a step takes a batch for speed, as far as that changes nothing but bits.

    A CPU by itself takes as many as it is told (`kept`), or else `parts_in_cache`. Several devices,
    and norms that keep something of what they see, take the batch whole.
    """
    alone = jax.default_backend() == "cpu" and layout()[0].empty
    if not alone or jax.tree.leaves(nnx.state(model, NormState)):
        return 1
    return kept or parts_in_cache(batch, window, model.config.width)


def parts_in_cache(batch: int, window: int, width: int) -> int:
    """In how many parts a batch is fastest on a CPU: the activations of one stay in its cache.

    In a wide model a part of few tokens costs more, for all gradients are added up after each one.
    The shape alone decides, so that a run has the same bits on each machine of a kind.
    """
    most, least = range(1, PARTS + 1), max(PART, width)
    return max(k for k in most if k == 1 or (batch % k == 0 and batch // k * window >= least))


@lru_cache(PROGRAMS)
def _step(
    graphdef: nnx.GraphDef[Transformer],
    compute: ComputeConfig | None,
    accumulate: int,
    where: Layout,
) -> Callable[..., tuple[Params, Any, Metrics]]:
    """`make_step`, to which a run's numbers (optimizer, dropout key, steps) are an argument too."""

    def loss(
        weights: Params, kept: Params, told: Told, key: jax.Array, texts: Texts
    ) -> tuple[jax.Array, Params]:
        model = nnx.merge(graphdef, weights, kept, copy=True)  # its norms may change `kept`
        logits = model(texts[0], Context(dropout_key=key, progress=told.progress, compute=compute))
        nll = token_nll(logits, texts[1]).mean()
        if told.z is not None:
            nll += told.z * jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
        return sum(penalties(model), nll), nnx.state(model, NormState)

    differentiated = jax.value_and_grad(loss, has_aux=True)

    def in_parts(weights: Params, kept: Params, told: Told, key: jax.Array, texts: Texts):
        if accumulate == 1:
            return differentiated(weights, kept, told, key, texts)

        def add(carry: tuple[Any, Params], part: Any):
            total, kept = carry
            (value, kept), gradients = differentiated(weights, kept, told, part[0], part[1])
            return (jax.tree.map(jnp.add, total, (value, gradients)), kept), None

        k = accumulate
        # Every k-th sequence: a batch that is spread over devices stays where it is.
        split_texts: Any = tuple(t.reshape(-1, k, t.shape[-1]).swapaxes(0, 1) for t in texts)
        none: Any = (jnp.float32(0), jax.tree.map(jnp.zeros_like, weights))
        split_keys = jax.random.split(key, k)
        (total, kept), _ = jax.lax.scan(add, (none, kept), (split_keys, split_texts))
        value, gradients = jax.tree.map(lambda t: t / k, total)
        return (value, kept), gradients

    @keys.pinned
    def step_once(
        run: tuple[Optimizer, jax.Array, jax.Array],
        params: Params,
        state: Any,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
    ):
        optimizer, key, steps = run
        weights, kept = nnx.split_state(params, nnx.Param, NormState)
        key = jax.random.fold_in(jax.random.wrap_key_data(key, impl=keys.IMPL), step)
        told = Told(jnp.float32(step) / steps, optimizer.z_loss)
        (value, kept), gradients = in_parts(weights, kept, told, key, (inputs, targets))
        updates, state = optimizer.update(gradients, state, weights)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        params = nnx.merge_state(optax.apply_updates(weights, updates), kept)
        return shard_params(params), shard_params(state), metrics

    options = compute.compiler_options() if compute else {}
    return jax.jit(step_once, donate_argnums=(1, 2), compiler_options=options or None)


def make_validate(
    graphdef: nnx.GraphDef[Transformer], precision: Precision | None = None
) -> Callable[..., jax.Array]:
    """(params, inputs, targets) → the summed loss of a batch, in nats, without dropout.

    In float32, but for the norms' statistics, which are of `precision`, as in training.
    """
    return _validate(graphdef, precision, layout())


@lru_cache(PROGRAMS)
def _validate(
    graphdef: nnx.GraphDef[Transformer], precision: Precision | None, where: Layout
) -> Callable[..., jax.Array]:
    def validate(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params)(inputs, Context(precision))
        return jnp.sum(token_nll(logits, targets))

    return jax.jit(validate)
