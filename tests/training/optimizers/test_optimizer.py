"""Optimizers: each against its formula in float64, schedules, and which parameters decay."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import placements
from normlab.norms import norms
from normlab.runs.names import to_names
from normlab.training.optimizers import groups, make_optimizer, optimizers
from normlab.training.optimizers.schedule import SCHEDULES
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
    optimizer = make_optimizer(optimizers["adamw"](warmup=0, weight_decay=0.5), 10, params)
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


@pytest.mark.parametrize("name", ["weight", "bias", "alpha"])
def test_weights_of_norms_decay_where_that_is_asked(name):
    params = {"norm_final": {name: jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
    found = groups(params, norms=True)
    assert found["norm_final." + name] == ("decay" if name == "weight" else "no_decay")
    assert found["head.kernel"] == "decay"


CHANGES = {"lr": 0.5, "schedule": "linear", "final_lr": 0.9, "cooldown": 0.5, "warmup": 3,
           "lr_width": 16, "weight_decay": 0.9, "decay_norms": True, "z_loss": 0.1, "clip": 100.0,
           "beta1": 0.1,
           "beta2": 0.1, "eps": 1.0, "momentum": 0.3, "decay": 0.3}  # fmt: skip
STATIC = ("schedule", "decay_norms", "z_loss")
"""Fields that choose another program."""
SHAPES = {"blocks": {"0": {"kernel": (2, 2)}}, "head": {"kernel": (3, 2)}, "norm": {"weight": (4,)}}


def tree(rng, size=1.0):
    """Parameters, or gradients of a size, of a small model."""
    made = partial(jax.tree.map, lambda shape: rng.normal(0, size, shape).astype(np.float32))
    return made(SHAPES, is_leaf=lambda x: isinstance(x, tuple))


RNG = np.random.default_rng(0)
START, GRADIENTS = tree(RNG), [tree(RNG, size) for size in (9.0, 0.3, 3.0, 0.1)]


@jax.jit
def after(optimizer):
    """Parameters after four steps: one program, whatever the optimizer's numbers are."""
    params, state = START, optimizer.init(START)
    for gradients in GRADIENTS:
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def made(name, **fields):
    told = {"lr": 0.1, "warmup": 1, "cooldown": 0.9} | fields
    return make_optimizer(optimizers[name](**told), 10, START, width=64)


@pytest.mark.parametrize("name", optimizers)
def test_every_field_changes_the_steps_and_not_the_program(name):
    schedule = "wsd"  # which has every field of a schedule
    more = {"eps": 1e-3} if "eps" in optimizers[name].__dataclass_fields__ else {}
    before, compiled = jax.tree.leaves(after(made(name, schedule=schedule, **more))), None
    for field in optimizers[name].__dataclass_fields__.keys() - {"type", *STATIC}:
        fields = {"schedule": schedule, **more, field: CHANGES[field]}
        now = jax.tree.leaves(after(made(name, **fields)))
        assert any((a != b).any() for a, b in zip(before, now, strict=True)), field
        compiled = compiled or after._cache_size()
        assert after._cache_size() == compiled, field
    for field in STATIC:
        one, other = made(name), made(name, **{field: CHANGES[field]})
        assert jax.tree.structure(one) != jax.tree.structure(other)


# --- each against its formula in float64


class Formula:
    """An optimizer in NumPy: clipping, the rule's update of each tensor, decay, the rate."""

    def __init__(self, config, steps=10):
        self.c, self.steps, self.state = config, steps, {}

    def rate(self, step):
        c = self.c
        if step < c.warmup:
            return c.lr * step / c.warmup
        done = (step - c.warmup) / (self.steps - c.warmup)
        return c.lr * (c.final_lr + (1 - c.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    def run(self):
        params = {k: np.float64(v) for k, v in to_names(START).items()}
        for step, gradients in enumerate(GRADIENTS):
            g = {k: np.float64(v) for k, v in to_names(gradients).items()}
            whole = math.sqrt(sum((x**2).sum() for x in g.values()))
            for name, p in params.items():
                update = self.rule(name, g[name] * min(1, self.c.clip / whole), step)
                decay = self.c.weight_decay * p * name.endswith("kernel")
                params[name] = p - self.rate(step) * (update + decay)
        return params

    def moment(self, name, new, keep):
        self.state[name] = keep * self.state.get(name, 0.0) + new
        return self.state[name]

    def adamw(self, name, g, t):
        c = self.c
        m = self.moment(name + ".m", (1 - c.beta1) * g, c.beta1) / (1 - c.beta1 ** (t + 1))
        v = self.moment(name + ".v", (1 - c.beta2) * g**2, c.beta2) / (1 - c.beta2 ** (t + 1))
        return m / (np.sqrt(v) + c.eps)

    def muon(self, name, g, t):
        """Newton-Schulz by its polynomial of the singular values; Nesterov as in optax."""
        if not name.startswith("blocks."):
            return self.adamw(name, g, t)
        beta = self.c.momentum
        m = self.moment(name, (1 - beta) * g, beta)
        ahead = beta * m / (1 - beta ** (t + 2)) + (1 - beta) * g / (1 - beta ** (t + 1))
        u, s, v = np.linalg.svd(ahead, full_matrices=False)
        s = s / (np.linalg.norm(s) + 1e-8)
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        return (u * s) @ v * 0.2 * math.sqrt(max(g.shape))

    def lion(self, name, g, t):
        c, m = self.c, self.state.get(name, 0.0)
        self.moment(name, (1 - c.beta2) * g, c.beta2)
        return np.sign(c.beta1 * m + (1 - c.beta1) * g)

    def sgd(self, name, g, t):
        return self.moment(name, g, self.c.momentum)

    def adafactor(self, name, g, t):
        keep = 1 - (t + 1.0) ** -self.c.decay
        update = g / np.sqrt(self.moment(name, (1 - keep) * (g**2 + 1e-30), keep))
        return update / max(1.0, math.sqrt((update**2).mean()))

    def rule(self, name, g, t):
        return getattr(self, self.c.type)(name, g, t)


@pytest.mark.parametrize("name", optimizers)
def test_each_is_its_formula(name):
    config = optimizers[name](lr=0.1, warmup=2, clip=0.5)
    found = to_names(after(make_optimizer(config, 10, START)))
    for path, wanted in Formula(config).run().items():
        np.testing.assert_allclose(found[path], wanted, rtol=2e-5, atol=2e-6, err_msg=path)


def test_the_rate_of_the_blocks_matrices_falls_with_the_width():
    """µP: by lr_width / width there, and nowhere else."""

    def moved(width):
        config = optimizers["adamw"](warmup=0, lr_width=32)
        optimizer = make_optimizer(config, 10, START, width=width)
        step = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[0])
        return to_names(step(START))

    plain, narrow = moved(32), moved(128)
    for path, update in plain.items():
        share = 0.25 if path.startswith("blocks.") else 1.0
        np.testing.assert_allclose(narrow[path], share * update, rtol=1e-6, err_msg=path)


def test_a_stacked_matrix_is_orthogonalized_layer_by_layer():
    """As `compute.scan_layers` keeps them: one axis more, the same steps."""
    rng = np.random.default_rng(1)
    layers = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2)]
    apart = {"blocks": {str(i): {"kernel": w} for i, w in enumerate(layers)}}
    stacked = {"blocks": {"kernel": np.stack(layers)}}

    def step(params, **more):
        optimizer = make_optimizer(optimizers["muon"](warmup=0), 10, params, **more)
        return jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[0])(params)["blocks"]

    one, other = step(apart), step(stacked, stacked=True)
    for i in range(2):
        np.testing.assert_allclose(one[str(i)]["kernel"], other["kernel"][i], rtol=1e-5, atol=1e-8)


def test_a_large_matrix_of_adafactor_keeps_two_rows():
    params = {"head": {"kernel": jnp.ones((256, 128))}}
    state = make_optimizer(optimizers["adafactor"](), 10, params).init(params)
    assert max(x.size for x in jax.tree.leaves(state)) == 256


# --- schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_warms_up_and_falls_as_its_schedule_says(name):
    config = optimizers["adamw"](lr=0.1, schedule=name, warmup=4, final_lr=0.2, cooldown=0.25)
    optimizer = make_optimizer(config, 20, START)
    found = [float(optimizer.rate(np.int32(step))) for step in range(21)]
    np.testing.assert_allclose(found[:5], [0, 0.025, 0.05, 0.075, 0.1], rtol=1e-6)
    done = np.arange(17) / 16
    fall = {
        "cosine": (1 + np.cos(np.pi * done)) / 2,
        "linear": 1 - done,
        "wsd": np.minimum(1, (20 - np.arange(4, 21)) / 5),  # a quarter of 20 steps
        "constant": np.ones(17),
    }[name]
    np.testing.assert_allclose(found[4:], 0.1 * (0.2 + 0.8 * fall), rtol=1e-5)


def test_the_warm_up_is_a_tenth_of_the_run_unless_told():
    assert [optimizers["adamw"]().warmup_of(steps) for steps in (1, 10, 1234)] == [0, 1, 123]
    with pytest.raises(ValueError, match=r"warmup = 8 steps leaves none of steps = 8: .* as 0"):
        optimizers["adamw"](warmup=8).warmup_of(8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lr": 0.0}, "optimizer.lr = 0.0"), ({"lr": math.inf}, "optimizer.lr = inf: expected a fin"),
     ({"beta2": 1.0}, "optimizer.beta2 = 1.0: expected 0 ≤ β"),
     ({"clip": -1.0}, "optimizer.clip"), ({"eps": 0.0}, "optimizer.eps = 0.0"),
     ({"final_lr": 2.0}, "optimizer.final_lr = 2.0"), ({"warmup": -1}, "optimizer.warmup = -1"),
     ({"cooldown": 0.0}, "optimizer.cooldown = 0.0"), ({"z_loss": -1.0}, "optimizer.z_loss = -1"),
     ({"schedule": "cosin"}, "optimizer.schedule 'cosin'. Did you mean 'cosine'")],
)  # fmt: skip
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        optimizers["adamw"](**fields)
