"""A step of training: gradient accumulation, and metrics that wait for nobody."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context
from normlab.norms import NormState
from tests.conftest import tiny_model
from tests.support.runs import tiny_config
from train.optimizer import OptimizerConfig, make_optimizer
from train.step import learned, make_step

STEPS = 20


def texts(step, rows=4):
    ids = np.random.default_rng(step).integers(0, 97, (rows, 17)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


def gradients(model, compute=None, **context):
    """(loss, gradients, what the norms keep) of a batch, operation by operation."""
    graphdef, weights, kept = nnx.split(model, nnx.Param, NormState)
    inputs, targets = texts(0)

    def loss(weights):
        model = nnx.merge(graphdef, weights, kept, copy=True)
        logits = model(inputs, Context(compute=compute, progress=jnp.float32(0), **context))
        return token_nll(logits, targets).mean(), nnx.state(model, NormState)

    (value, kept), found = jax.value_and_grad(loss, has_aux=True)(weights)
    return value, found, kept


@functools.cache
def small(norm="rmsnorm", **fields):
    """A model whose step compiles in a second; stepping donates copies of its arrays."""
    return tiny_model(norm, layers=1, gated=False, **fields)


def trained(model, steps=3, compute=None, accumulate=1, batch=texts):
    """(parameters, losses) after a few steps on the batches of their numbers."""
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    weights = learned(params)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), STEPS, weights, model.stacked)
    step = make_step(graphdef, optimizer, 0, STEPS, compute, accumulate)
    state, losses = optimizer.init(weights), []
    for i in range(steps):
        params, state, metrics = step(params, state, np.int32(i), *batch(i))
        losses.append(float(metrics["loss"]))
    return params, losses


def test_parts_of_a_batch_add_up_to_the_batch():
    whole, losses = trained(small())
    parts, parted = trained(small(), accumulate=4)
    np.testing.assert_allclose(parted, losses, rtol=1e-6)
    pairs = zip(*map(jax.tree.leaves, (whole, parts)), strict=True)
    assert max(np.abs(p - q).max() for p, q in pairs) < 5e-6
    half = [t[::2] for t in texts(0)]
    lone = token_nll(small()(half[0]), half[1]).mean()
    assert abs(lone - losses[0]) > 1e-3, "a part is not the batch: one that is lost would be seen"


@pytest.mark.system
def test_parts_have_dropout_keys_of_their_own_and_hand_on_what_norms_keep():
    """A step of two parts, by hand: the batch's even rows, then its odd ones."""
    model = small("batchnorm", dropout=0.5)
    rest = OptimizerConfig(lr=1e-30, warmup=0, weight_decay=0.0)
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    optimizer = make_optimizer(rest, STEPS, learned(params))
    step = make_step(graphdef, optimizer, 0, STEPS, accumulate=2)
    params, _, metrics = step(params, optimizer.init(learned(params)), np.int32(1), *texts(0))
    inputs, targets = texts(0)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 2)
    graphdef, state = nnx.split(model)
    by_hand, losses = nnx.merge(graphdef, jax.tree.map(jnp.copy, state)), []
    for i, key in enumerate(keys):
        logits = by_hand(inputs[i::2], Context(dropout_key=key, progress=jnp.float32(1 / STEPS)))
        losses.append(float(token_nll(logits, targets[i::2]).mean()))
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    kept = (nnx.state(m, NormState) for m in (nnx.merge(graphdef, params), by_hand))
    for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_unequal_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate = 3 parts of batch = 4 .* such as 1"):
        tiny_config(tmp_path, accumulate=3)
    with pytest.raises(ValueError, match="accumulate = 0"):
        tiny_config(tmp_path, accumulate=0)
