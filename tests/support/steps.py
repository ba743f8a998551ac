"""Batches of random tokens, and the gradients of a model on the first one."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context
from normlab.norms import NormState

STEPS = 20
"""Of a training that these batches are for."""


def texts(step, rows=4):
    ids = np.random.default_rng(step).integers(0, 97, (rows, 17)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


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
