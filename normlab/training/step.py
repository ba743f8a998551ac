"""The two functions that XLA compiles for a run: one step, one validation batch.

They are compiled once for all runs of a process that differ in numbers only. What such runs share
is the key of a program: the model's structure, how it computes, the parts of a batch, the devices.
(Initial values are no part of the structure, see `normlab.config.field`.) All else is an argument:
weights, the optimizer with its rates, the seed of dropout, the number of steps.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from normlab.parallel.sharding import Layout, layout, put, shard_batch, shard_params
from normlab.training.optimizers import Optimizer

Params = Any
Metrics = dict[str, jax.Array]
Texts = tuple[jax.Array, ...]
Run = tuple[Optimizer, jax.Array, jax.Array]
"""A run's numbers: its optimizer, dropout key and steps."""
Arrays = list[jax.Array]
Program = Callable[..., Any]


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
    parts: int = 1,
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
            as part i − 1 left it: a BatchNorm sees k small batches.
        parts: the same for speed, see `normlab.training.parts`: of an even number one thread takes
            the even ones, one the odd ones. In place of `accumulate`, of norms that keep nothing.
    """
    key = np.asarray(jax.random.key_data(keys.key(seed)))
    run = jax.tree.map(partial(put, ""), (optimizer, key, np.asarray(steps, np.int32)))
    if parts % 2 == 0:
        return _TwoThreads(partial(_halves, graphdef, compute, parts, layout()), run)
    return partial(_step(graphdef, compute, accumulate * parts, layout()), run)


@lru_cache(PROGRAMS)
def _step(
    graphdef: nnx.GraphDef[Transformer],
    compute: ComputeConfig | None,
    accumulate: int,
    where: Layout,
) -> Callable[..., tuple[Params, Any, Metrics]]:
    """`make_step`, to which a run's numbers are an argument too."""
    differentiated, k = _differentiated(graphdef, compute), accumulate

    def averaged(weights: Params, kept: Params, told: Told, key: jax.Array, texts: Texts):
        if k == 1:
            return differentiated(weights, kept, told, key, texts)
        # Every k-th sequence: a batch that is spread over devices stays where it is.
        parts: Any = tuple(t.reshape(-1, k, t.shape[-1]).swapaxes(0, 1) for t in texts)
        split = jax.random.split(key, k)
        (value, kept), gradients = _summed(differentiated, weights, kept, told, split, parts)
        value, gradients = jax.tree.map(lambda t: t / k, (value, gradients))
        return (value, kept), gradients

    @keys.pinned
    def step_once(run: Run, params: Params, state: Any, step: jax.Array, *texts: jax.Array):
        weights, kept = nnx.split_state(params, nnx.Param, NormState)
        (value, kept), gradients = averaged(weights, kept, *_told(run, step), texts)
        return _updated(run, weights, kept, state, value, gradients)

    return jax.jit(step_once, donate_argnums=(1, 2), compiler_options=_options(compute))


class _TwoThreads:
    """A step of which each of two threads differentiates every second part.

    XLA runs what one thread hands over in turn, and the most of a small part on one core. Programs
    take flat lists: flax's states cost a millisecond each time that one is handed over.

    Args:
        programs: `_halves`, but for its last argument.
        run: the run's numbers.
    """

    def __init__(self, programs: Callable[..., tuple[Program, Program]], run: Run):
        self.programs, (self.numbers, self.run) = programs, jax.tree.flatten(run)
        self.made: tuple[Program, Program] | None = None

    def __call__(
        self, params: Params, state: Any, step: Any, *texts: Any
    ) -> tuple[Params, Any, Metrics]:
        (weights, of_params), (moments, of_state) = map(jax.tree.flatten, (params, state))
        self.made = self.made or self.programs((self.run, of_params, of_state))
        half, finish = self.made

        def taken(odd: int) -> Any:
            with _handing_over:  # by the first one it is compiled
                sums = half(self.numbers, weights, step, np.int32(odd), *texts)
            return jax.block_until_ready(sums)

        both = _threads().map(taken, (0, 1))
        weights, moments, metrics = finish(self.numbers, weights, moments, *both)
        unflatten = jax.tree.unflatten
        return unflatten(of_params, weights), unflatten(of_state, moments), metrics


@lru_cache(PROGRAMS)
def _halves(
    graphdef: nnx.GraphDef[Transformer],
    compute: ComputeConfig | None,
    parts: int,
    where: Layout,
    trees: tuple[Any, Any, Any],
) -> tuple[Program, Program]:
    """What sums the losses and gradients of every second part, and what makes a step of both.

    Both take and give lists of arrays; `trees` are the structures of a run's numbers, of params and
    of the optimizer's state.
    """
    differentiated, k = _differentiated(graphdef, compute), parts
    of_run, of_params, of_state = trees

    @keys.pinned
    def half(numbers: Arrays, params: Arrays, step: jax.Array, odd: jax.Array, *texts: jax.Array):
        told, key = _told(of_run.unflatten(numbers), step)
        mine = tuple(t.reshape(-1, k // 2, 2, t.shape[-1])[:, :, odd].swapaxes(0, 1) for t in texts)
        split = jax.random.split(key, k).reshape(-1, 2)[:, odd]
        weights, kept = nnx.split_state(of_params.unflatten(params), nnx.Param, NormState)
        (value, _), gradients = _summed(differentiated, weights, kept, told, split, mine)
        return value, jax.tree.leaves(gradients)

    def finish(numbers: Arrays, params: Arrays, state: Arrays, even: Any, odd: Any):
        value, gradients = jax.tree.map(lambda a, b: (a + b) / k, even, odd)
        weights, kept = nnx.split_state(of_params.unflatten(params), nnx.Param, NormState)
        gradients = jax.tree.unflatten(jax.tree.structure(weights), gradients)
        run, moments = of_run.unflatten(numbers), of_state.unflatten(state)
        *trees, metrics = _updated(run, weights, kept, moments, value, gradients)
        return *map(jax.tree.leaves, trees), metrics

    options = _options(compute)
    finish = jax.jit(finish, donate_argnums=(1, 2), compiler_options=options)
    return jax.jit(half, compiler_options=options), finish


_handing_over = threading.Lock()


@lru_cache(1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "half of the work")


def _differentiated(graphdef: nnx.GraphDef[Transformer], compute: ComputeConfig | None):
    """(weights, what norms keep, told, dropout key, texts) → (loss, what they keep), gradients."""

    def loss(
        weights: Params, kept: Params, told: Told, key: jax.Array, texts: Texts
    ) -> tuple[jax.Array, Params]:
        model = nnx.merge(graphdef, weights, kept, copy=True)  # its norms may change `kept`
        logits = model(texts[0], Context(dropout_key=key, progress=told.progress, compute=compute))
        nll = token_nll(logits, texts[1]).mean()
        if told.z is not None:
            nll += told.z * jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
        return sum(penalties(model), nll), nnx.state(model, NormState)

    return jax.value_and_grad(loss, has_aux=True)


def _summed(
    differentiated: Callable[..., Any],
    weights: Params,
    kept: Params,
    told: Told,
    split: jax.Array,
    parts: Texts,
) -> tuple[tuple[jax.Array, Params], Params]:
    """What is differentiated of each part, by its dropout key, one after another, added up."""
    if len(split) == 1:
        return differentiated(weights, kept, told, split[0], tuple(t[0] for t in parts))

    def add(carry: tuple[Any, Params], part: Any):
        total, kept = carry
        (value, kept), gradients = differentiated(weights, kept, told, *part)
        return (jax.tree.map(jnp.add, total, (value, gradients)), kept), None

    none: Any = (jnp.float32(0), jax.tree.map(jnp.zeros_like, weights))
    ((value, gradients), kept), _ = jax.lax.scan(add, (none, kept), (split, parts))
    return (value, kept), gradients


def _told(run: Run, step: jax.Array) -> tuple[Told, jax.Array]:
    """What the loss is told at this step, and the step's dropout key."""
    optimizer, key, steps = run
    key = jax.random.fold_in(jax.random.wrap_key_data(key, impl=keys.IMPL), step)
    return Told(jnp.float32(step) / steps, optimizer.z_loss), key


def _updated(
    run: Run, weights: Params, kept: Params, state: Any, value: jax.Array, gradients: Params
) -> tuple[Params, Any, Metrics]:
    updates, state = run[0].update(gradients, state, weights)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
    params = nnx.merge_state(optax.apply_updates(weights, updates), kept)
    return shard_params(params), shard_params(state), metrics


def _options(compute: ComputeConfig | None) -> dict[str, Any] | None:
    return (compute.compiler_options() if compute else {}) or None


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


def validation_loss(
    validate: Callable[..., jax.Array],
    params: Params,
    windows: tuple[np.ndarray, np.ndarray],
    batch: int,
) -> float:
    """The mean loss over windows, in nats per token: two batches at once on a CPU by itself.

    Args:
        validate: `make_validate`'s.
        params: the model's whole state.
        windows: inputs and targets, each [windows, window].
        batch: so many windows at a time.
    """
    inputs, targets = windows

    def summed(start: int) -> float:
        rows = slice(start, start + batch)
        return float(validate(params, *shard_batch(inputs[rows], targets[rows])))

    alone = jax.default_backend() == "cpu" and layout()[0].empty
    first, starts = summed(0), range(batch, len(inputs), batch)  # by the first one it is compiled
    return sum((_threads().map if alone else map)(summed, starts), first) / targets.size
