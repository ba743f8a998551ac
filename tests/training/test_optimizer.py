import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from normlab.model import placements
from normlab.norms import norms
from normlab.runs.checkpoint import to_names
from normlab.training.optimizer import OptimizerConfig, groups, make_optimizer
from normlab.training.step import learned
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("norm", "placement"),
    [(norm, "pre" if norm == "bhyt-estimated" else "peri") for norm in norms]
    + [("rmsnorm", row) for row in placements],
)
def test_every_parameter_falls_in_one_group_and_only_matrices_decay(norm, placement):
    model = tiny_model(norm, placement, bias=True, tied=False, positions="learned")
    params = learned(nnx.split(model)[1])
    shapes = to_names(params)
    found = groups(params)
    assert found.keys() == shapes.keys()
    for path, name in found.items():
        assert name == ("decay" if shapes[path].ndim == 2 else "no_decay"), path


def test_gains_biases_alphas_and_scales_stand_still_without_a_gradient():
    params = nnx.split(tiny_model("dyt", bias=True))[1]
    params = jax.tree.map(lambda p: p + 1.0, params)
    optimizer = make_optimizer(OptimizerConfig(warmup=0, weight_decay=0.5), 10, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda zeros: optimizer.update(zeros, optimizer.init(params), params)[0])
    updates = update(zeros)
    for path, update in to_names(updates).items():
        moved = bool(np.abs(update).max() > 0)
        assert moved == path.endswith((".kernel", ".embedding")), path
    assert {p.rsplit(".", 1)[-1] for p in to_names(params)} == {
        "kernel", "embedding", "weight", "bias", "alpha", "embed_scale"
    }  # fmt: skip


def test_a_matrix_of_another_name_falls_in_no_group():
    with pytest.raises(ValueError, match=r"norm.mixing of shape \(2, 2\) falls in no optimizer gr"):
        groups({"norm": {"mixing": jnp.ones((2, 2))}})


def rates(config, steps):
    """Learning rate at each step, read off AdamW's step for a constant gradient."""
    params = {"weight": jnp.zeros(1)}
    optimizer = make_optimizer(config, steps, params)
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for _ in range(steps + 1):
        updates, state = update({"weight": jnp.full(1, 1e-3)}, state, params)
        found.append(-float(updates["weight"][0]))
    return found


def test_the_rate_warms_up_and_falls_to_its_share():
    found = rates(OptimizerConfig(lr=0.1, warmup=4, final_lr=0.2, eps=1e-30), 20)
    np.testing.assert_allclose(found[:5], [0, 0.025, 0.05, 0.075, 0.1], rtol=1e-3)
    assert found[20] == pytest.approx(0.02, rel=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(found[4:]))


CHANGES = {"lr": 0.5, "final_lr": 0.9, "warmup": 3, "weight_decay": 0.9, "beta1": 0.1,
           "beta2": 0.1, "eps": 1.0, "clip": 1e-3}  # fmt: skip


@jax.jit
def after(optimizer):
    """A weight after four steps: one program, whatever the optimizer's numbers are."""
    params = {"kernel": jnp.ones((2, 2))}
    state = optimizer.init(params)
    for gradient in (1.0, -0.5, 2.0, 0.1):
        updates, state = optimizer.update({"kernel": jnp.full((2, 2), gradient)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params["kernel"][0, 0]


@pytest.mark.parametrize("field", OptimizerConfig.__dataclass_fields__)
def test_every_field_changes_the_steps_and_not_the_program(field):
    def made(**fields):
        config = OptimizerConfig(**({"lr": 0.1, "warmup": 1, "eps": 1e-3} | fields))
        return make_optimizer(config, 10, {"kernel": np.ones((2, 2))})

    assert after(made()) != after(made(**{field: CHANGES[field]}))
    assert after._cache_size() == 1


def test_it_is_optaxs_adamw():
    """Step by step, with clipping and decay; its numbers are rounded to float32 first."""
    config = OptimizerConfig(lr=0.1, warmup=2, eps=1e-3, beta2=0.999, clip=0.5)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "weight": (4,)}
    params = theirs = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
    ours, schedule = (
        make_optimizer(config, 10, params),
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10, 0.01),
    )
    mask = {"kernel": True, "weight": False}
    wanted = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-3, weight_decay=0.1, mask=mask),
    )
    state, other = ours.init(params), wanted.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(other), "old checkpoints go on"
    update, as_wanted = jax.jit(ours.update), jax.jit(wanted.update)
    for _ in range(8):
        gradients = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
        moved, state = update(gradients, state, params)
        params = jax.tree.map(np.add, params, moved)
        moved, other = as_wanted(gradients, other, theirs)
        theirs = jax.tree.map(np.add, theirs, moved)
        for name in shapes:
            np.testing.assert_allclose(
                params[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lr": 0.0}, "optimizer.lr = 0.0"), ({"lr": math.inf}, "optimizer.lr = inf: expected a fin"),
     ({"beta2": 1.0}, "optimizer.beta2 = 1.0: expected 0 ≤ β"),
     ({"clip": -1.0}, "optimizer.clip"), ({"eps": 0.0}, "optimizer.eps = 0.0"),
     ({"final_lr": 2.0}, "optimizer.final_lr = 2.0")],
)  # fmt: skip
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)
