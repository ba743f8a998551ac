"""Batches of random tokens, a few steps on them, and the gradients of a model on the first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context
from normlab.norms import NormState
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.step import learned, make_step
from tests.conftest import tiny_model

STEPS = 20
"""Of a training that these batches are for."""


def texts(step, rows=4):
    ids = np.random.default_rng(step).integers(0, 97, (rows, 17)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


@functools.cache
def small(norm="rmsnorm", **fields):
    """A model whose step compiles in a second; stepping donates copies of its arrays."""
    return tiny_model(norm, layers=1, gated=False, **fields)


def trained(model, steps=3, compute=None, accumulate=1, batch=texts, parts=1):
    """(parameters, losses) after a few steps on the batches of their numbers."""
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    weights = learned(params)
    optimizer = make_optimizer(AdamWConfig(warmup=1), STEPS, weights, model.stacked)
    step = make_step(graphdef, optimizer, 0, STEPS, compute, accumulate, parts)
    state, losses = optimizer.init(weights), []
    for i in range(steps):
        params, state, metrics = step(params, state, np.int32(i), *batch(i))
        losses.append(float(metrics["loss"]))
    return params, losses


def gradients(model, compute=None, **context):
    """(loss, gradients, what the norms keep) of a batch."""
    graphdef, weights, kept = nnx.split(model, nnx.Param, NormState)
    inputs, targets = texts(0)

    def loss(weights):
        model = nnx.merge(graphdef, weights, kept, copy=True)
        logits = model(inputs, Context(compute=compute, progress=jnp.float32(0), **context))
        return token_nll(logits, targets).mean(), nnx.state(model, NormState)

    (value, kept), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    return value, found, kept
