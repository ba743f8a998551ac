"""BatchNorm: causal in training, a linear map outside it, and its state carried along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normlab.run
from normlab.checkpoint import Checkpoints
from normlab.data import load_tokens
from normlab.model import Context
from normlab.norms import NormState, norms
from normlab.numerics import Accumulator
from tests.conftest import same_trees, tiny_model
from tests.norms.test_walk import make, randomized, row
from tests.support.runs import tiny_config
from train.loop import Trainer, train

FP32, HALF_WAY = Accumulator(), np.float32(0.5)


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
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_position_is_normalized_by_what_came_before(shape, shift):
    norm, x = make("batchnorm", width=8), sequences(shape=shape) + np.float32(shift)
    norm.mean[...] = jnp.full(8, shift)  # as it is after some steps
    y = norm.during_training(x, FP32, HALF_WAY)
    np.testing.assert_allclose(y, so_far(x, 1e-5), rtol=2e-3 if shift else 1e-4, atol=1e-3)
    m, everything = 0.1, np.float64(x).reshape(-1, 8)
    np.testing.assert_allclose(norm.mean[...], 0.9 * shift + m * everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], 0.9 + m * everything.var(0), rtol=1e-4)


def test_no_position_sees_a_later_one(tokens):
    model = tiny_model("batchnorm", placement="peri", layers=1, width=16)
    graphdef, state = nnx.split(model)
    context = Context(progress=HALF_WAY, capture=True)
    x = model.stem(tokens, context)
    weight = np.random.default_rng(0).normal(size=(2, x.shape[-1])).astype(np.float32)

    def at(x, t):  # a number that only position t of the last block's output has a say in
        copy, context = nnx.merge(graphdef, state, copy=True), Context(progress=HALF_WAY)
        for block in copy.blocks:
            x = block(x, context)
        return jnp.sum(context.norm(copy.norm_final, x)[:, t] * weight)

    gradient = jax.jit(jax.grad(at))
    for t in (0, 7):
        slopes = np.abs(np.asarray(gradient(x, t))).max(axis=(0, 2))
        assert not slopes[t + 1 :].any()
        assert (slopes[: t + 1] > 0).all()


def test_training_ignores_each_channels_shift_and_scale():
    x, y = sequences(), None
    for a, b in ((1.0, 0.0), (np.exp2(np.arange(8) - 3), np.arange(8) - 4.0)):
        norm = make("batchnorm", width=8, eps=1e-12)
        before, y = y, norm.during_training(np.float32(a * x + b), FP32, HALF_WAY)
    np.testing.assert_allclose(y, before, rtol=1e-3, atol=1e-4)


def test_a_first_position_alone_is_its_bias():
    norm = randomized(make("batchnorm", width=8))
    y = norm.during_training(sequences(shape=(1, 1, 8)), FP32, HALF_WAY)
    np.testing.assert_allclose(y[0, 0], norm.bias[...], atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"scale": False}, {"bias": False}])
def test_outside_training_it_is_the_linear_map_that_it_folds_to(fields):
    norm = randomized(make("batchnorm", **fields))
    a, b = norm.fold()
    np.testing.assert_allclose(norm(row(), FP32), a * row() + b, rtol=1e-5, atol=1e-5)


def test_gradients_in_training_against_float64_differences():
    """1e-4 of the largest slope, as for the other norms: cumulative sums of 18 rows."""
    norm, x = make("batchnorm", width=8, eps=0.1), sequences()
    graphdef, state = nnx.split(norm)
    weight = np.random.default_rng(2).normal(size=x.shape)

    def total(x):
        copy = nnx.merge(graphdef, state, copy=True)
        return jnp.sum(copy.during_training(x, FP32, HALF_WAY) * jnp.float32(weight))

    gradient, slopes = jax.grad(total)(x), np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-5
        up, down = so_far(x + step, 0.1), so_far(x - step, 0.1)
        slopes[index] = ((up - down) * weight).sum() / 2e-5
    assert np.abs(gradient - slopes).max() < 1e-4 * np.abs(slopes).max()


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
    loaded = normlab.run.load(alone.directory).model
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
