"""BatchNorm: causal in training, a linear map outside it, and its state carried along."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normlab.runs.run
from normlab.data import load_tokens
from normlab.model import Context
from normlab.norms import NormContext, NormState, norms
from normlab.runs.checkpoint import Checkpoints
from normlab.training.trainer import Trainer, train
from tests.conftest import same_trees, tiny_model
from tests.support.norm_walk import call, in_training, make, randomized, row
from tests.support.runs import tiny_config


def sequences(seed=0, shape=(3, 6, 8)):
    return np.float32(np.random.default_rng(seed).normal(0.7, 3.0, shape))


def so_far(x, eps):
    """Each position by the statistics of all rows up to it, in float64 and by loops."""
    x, y = np.float64(x), np.zeros(x.shape)
    for t in range(x.shape[1]):
        seen = x[:, : t + 1].reshape(-1, x.shape[-1])
        y[:, t] = (x[:, t] - seen.mean(0)) / np.sqrt(seen.var(0) + eps)
    return y


@pytest.mark.parametrize("shape", [(3, 6, 8), (2, 5, 2, 8)])
def test_a_position_is_normalized_by_what_came_before(shape):
    for shift, known in ((0.0, 0.0), (1000.0, 1000.0), (5000.0, 0.0)):  # the last: a first step
        norm, x = make("batchnorm", 8), sequences(shape=shape) + np.float32(shift)
        norm.mean[...] = np.full(8, known, np.float32)
        y = in_training(norm, x)
        np.testing.assert_allclose(y, so_far(x, 1e-5), rtol=2e-3 if shift else 1e-4, atol=1e-3)
        m, everything = 0.1, np.float64(x).reshape(-1, 8)
        np.testing.assert_allclose(norm.mean[...], 0.9 * known + m * everything.mean(0), rtol=1e-5)
        np.testing.assert_allclose(norm.variance[...], 0.9 + m * everything.var(0), rtol=1e-4)


@partial(jax.jit, static_argnames="graphdef")
def slopes(graphdef, state, x, weight):
    """Of the output in training, weighted, by the rows."""

    def total(x):
        copy = nnx.merge(graphdef, state, copy=True)
        return jnp.sum(copy(x, NormContext(progress=jnp.float32(0.5))) * weight)

    return jax.grad(total)(x)


def test_gradients_in_training_against_float64_differences():
    """1e-4 of the largest slope, as for the other norms: cumulative sums of 18 rows."""
    norm, x = make("batchnorm", 8, eps=0.1), sequences()
    weight = np.float32(np.random.default_rng(2).normal(size=x.shape))
    gradient, wanted = slopes(*nnx.split(norm), x, weight), np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        up, down = so_far(x + step, 0.1), so_far(x - step, 0.1)
        wanted[index] = ((up - down) * weight).sum() / 2e-5
    assert np.abs(gradient - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_no_position_sees_a_later_one():
    norm, x = make("batchnorm", 8, eps=0.1), sequences()
    for t in range(6):
        weight = np.zeros(x.shape, np.float32)
        weight[:, t] = np.random.default_rng(t).normal(size=(3, 8))
        found = np.abs(slopes(*nnx.split(norm), x, weight)).max(axis=(0, 2))
        assert not found[t + 1 :].any()
        assert (found[: t + 1] > 0).all() or t == 0


@pytest.mark.system
def test_no_position_of_a_model_sees_a_later_one(tokens):
    model = tiny_model("batchnorm", placement="peri")
    graphdef, state = nnx.split(model)
    x = np.float32(np.random.default_rng(1).normal(size=(2, 16, 32)))
    weight = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)

    def at(x, t):  # a number that only position t of the last block's output has a say in
        copy = nnx.merge(graphdef, state, copy=True)
        context = Context(progress=np.float32(0.5))
        for block in copy.blocks:
            x = block(x, context)
        return jnp.sum(context.norm(copy.norm_final, x)[:, t] * weight)

    gradient = jax.jit(jax.grad(at))
    for t in (0, 7):
        found = np.abs(np.asarray(gradient(x, t))).max(axis=(0, 2))
        assert not found[t + 1 :].any()
        assert (found[: t + 1] > 0).all()


def test_training_ignores_each_channels_shift_and_scale():
    x, y = sequences(), None
    for a, b in ((1.0, 0.0), (np.exp2(np.arange(8) - 3), np.arange(8) - 4.0)):
        norm = make("batchnorm", 8, eps=1e-12)
        before, y = y, in_training(norm, np.float32(a * x + b))
    np.testing.assert_allclose(y, before, rtol=1e-3, atol=1e-4)


def test_a_first_position_alone_is_its_bias():
    norm = randomized(make("batchnorm", 8))
    y = in_training(norm, sequences(shape=(1, 1, 8)))
    np.testing.assert_allclose(y[0, 0], norm.bias[...], atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"use_weight": False}, {"bias": False}])
def test_outside_training_it_is_the_linear_map_that_it_folds_to(fields):
    norm = randomized(make("batchnorm", **fields))
    a, b = (np.asarray(part) for part in norm.fold())
    np.testing.assert_allclose(call(norm, row()), a * row() + b, rtol=1e-5, atol=1e-5)


@pytest.mark.system
def test_a_run_carries_its_state_and_goes_on_with_the_same_bits(tmp_path):
    model = {"layers": 1, "width": 16, "heads": 1, "max_length": 64}

    def config(name):
        return tiny_config(tmp_path / name, norm={"type": "batchnorm"}, model=model, steps=6)

    alone = train(config("a"))
    train(config("b"), stop_after=5)
    resumed = train(config("b"))
    trees = []
    for run in (alone, resumed):
        like = Trainer(config("x"), load_tokens(config("x").data), run)
        with Checkpoints(run["checkpoints"]) as checkpoints:
            trees.append(checkpoints.load(6, params=like.params, optimizer=like.state))
    assert same_trees(*trees)
    assert jax.tree.structure(trees[0]["params"]) == jax.tree.structure(like.params)
    loaded = normlab.runs.run.load(alone.directory).model
    final = loaded.norm_final
    assert np.abs(final.mean[...]).max() > 0
    assert np.abs(final.variance[...] - 1).max() > 1e-3
    state = nnx.state(loaded, NormState)
    assert len(jax.tree.leaves(state)) == 2 * 3  # two statistics at three sites
    record, learned = alone.record, nnx.state(loaded, nnx.Param)
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(learned))
    assert sum(g["elements"] for g in record["groups"].values()) == record["parameters"]


@pytest.mark.parametrize(("field", "value"), [("momentum", 0.0), ("momentum", 1.5), ("eps", 0.0)])
def test_bad_values_are_refused(field, value):
    with pytest.raises(ValueError, match=f"norm.{field} = {value}"):
        norms["batchnorm"].Config(**{field: value})
