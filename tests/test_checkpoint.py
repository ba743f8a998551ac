import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import same_trees, tiny_model
from flax import nnx

from normlab.checkpoint import Checkpoints, from_names, to_names


def trees(seed=0):
    params = nnx.split(tiny_model(seed=seed))[1]
    return params, optax.adam(1e-3).init(params)


def test_names_are_paths_and_lead_back():
    params, state = trees()
    names = to_names(params)
    assert "blocks.0.attention.branch.query.kernel" in names
    assert "norm_final.gain" in names
    assert same_trees(from_names(names, params), params)
    assert same_trees(from_names(to_names(state), state), state)
    assert len(to_names(state)) == 2 * len(names) + 1


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    params, state = trees(seed=3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        checkpoints.save(5, params, state, valid_loss=2.0)
    like_params, like_state = trees(seed=0)
    with Checkpoints(tmp_path) as checkpoints:
        loaded = checkpoints.load(5, params=like_params, optimizer=like_state)
        weights = checkpoints.load(5, params=like_params)
    assert same_trees(loaded["params"], params)
    assert same_trees(loaded["optimizer"], state)
    assert same_trees(weights["params"], params)


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    params, state = {"w": jnp.arange(3.0)}, {"m": jnp.zeros(3)}
    with Checkpoints(tmp_path) as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.6]):
            checkpoints.save(step, params, state, valid_loss=loss)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 4
        assert checkpoints.best() == 1
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"1", "3", "4"}


def test_a_half_written_checkpoint_is_none(tmp_path):
    params, state = {"w": np.arange(3.0)}, {"m": np.zeros(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, state, valid_loss=1.0)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, params, state, valid_loss=0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 2


def test_saving_a_step_twice_is_an_error_and_not_a_silence(tmp_path):
    params, state = {"w": np.arange(3.0)}, {"m": np.zeros(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, state, valid_loss=1.0)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(Exception, match="1"):
        checkpoints.save(1, params, state, valid_loss=1.0)
