"""A step of training: gradient accumulation, and what runs that differ in numbers share."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context, ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormState, norms, penalties
from normlab.training import diagnostics as watch
from normlab.training import step as steps
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.step import (
    _step,
    learned,
    make_step,
    make_validate,
)
from normlab.training.trainer import train
from tests.conftest import VOCAB, forward, same_trees, tiny_model
from tests.support.norm_walk import started
from tests.support.runs import tiny_config
from tests.support.steps import STEPS, small, texts, trained


@pytest.mark.system
def test_parts_of_a_batch_add_up_to_the_batch():
    whole, losses = trained(small())
    parts, parted = trained(small(), accumulate=4)
    np.testing.assert_allclose(parted, losses, rtol=1e-6)
    pairs = zip(*map(jax.tree.leaves, (whole, parts)), strict=True)
    assert max(np.abs(p - q).max() for p, q in pairs) < 5e-6
    half = [t[::2] for t in texts(0)]
    lone = token_nll(forward(small(), half[0]), half[1]).mean()
    assert abs(lone - losses[0]) > 1e-3, "a part is not the batch: one that is lost would be seen"


@pytest.mark.system
@pytest.mark.parametrize(
    "ambient", [{"default_prng_impl": "rbg"}, {"threefry_partitionable": False}]
)
def test_weights_and_dropout_are_the_same_whatever_jax_is_set_to(ambient):
    def drawn():
        model = started("rmsnorm", dropout=0.5)
        graphdef, params = nnx.split(model)
        optimizer = make_optimizer(AdamWConfig(warmup=0), 2, learned(params))
        _step.cache_clear()  # which knows nothing of such settings
        step = make_step(graphdef, optimizer, 3, 2)
        state = optimizer.init(learned(params))
        texts = np.arange(64, dtype=np.int32).reshape(2, 2, 16) % VOCAB
        weights = jax.device_get(params)  # the step gives up what it is given
        return weights, step(params, state, np.int32(0), *texts)[2]["loss"]

    wanted = drawn()
    ((name, value),) = ambient.items()
    with getattr(jax, name)(value):
        found = drawn()
    assert same_trees(wanted, found)


@pytest.mark.system
def test_parts_have_dropout_keys_of_their_own_and_hand_on_what_norms_keep():
    """A step of two parts, by hand: the batch's even rows, then its odd ones."""
    model = small("batchnorm", dropout=0.5)
    rest = AdamWConfig(lr=1e-30, warmup=0, weight_decay=0.0)
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


@pytest.mark.system
def test_a_z_loss_is_added_to_the_loss_and_its_weight_is_data():
    model, compiled = small(), set()
    logits = np.float64(forward(model, texts(0)[0]))
    top = logits.max(-1)
    squared = (top + np.log(np.exp(logits - top[..., None]).sum(-1))) ** 2
    for z in (0.5, 0.01):
        graphdef, params = nnx.split(model)
        params = jax.tree.map(jnp.copy, params)
        optimizer = make_optimizer(AdamWConfig(warmup=0, z_loss=z), STEPS, learned(params))
        step = make_step(graphdef, optimizer, 0, STEPS)
        loss = step(params, optimizer.init(learned(params)), np.int32(0), *texts(0))[2]["loss"]
        plain = float(token_nll(jnp.float32(logits), texts(0)[1]).mean())
        assert float(loss) == pytest.approx(plain + z * squared.mean(), rel=1e-5)
        compiled |= {step.func, step.func._cache_size()}
    assert len(compiled) == 2


def test_unequal_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate = 3 parts of batch = 4 .* such as 1"):
        tiny_config(tmp_path, accumulate=3)
    with pytest.raises(ValueError, match="accumulate = 0"):
        tiny_config(tmp_path, accumulate=0)
    for fields in ({"parts": 3}, {"parts": 2, "accumulate": 2}):
        with pytest.raises(ValueError, match=r"parts = . of batch = 4 .* expected a divisor"):
            tiny_config(tmp_path, **fields)


ALL = {"lr": 0.02, "final_lr": 0.5, "warmup": 1, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9,
       "eps": 1e-5, "clip": 0.5}  # fmt: skip


def two_steps(alpha, seed, count, **fields):
    """A run of a sweep: (its program, that of its validation, what comes out)."""
    shape = {"layers": 1, "gated": False, "dropout": 0.5, "norm_fields": {"alpha": alpha}}
    model = tiny_model("dyt", seed=seed, **shape)
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)
    optimizer = make_optimizer(AdamWConfig(**fields), count, learned(params))
    step, validate = make_step(graphdef, optimizer, seed, count), make_validate(graphdef)
    state, metrics = optimizer.init(learned(params)), []
    for i in range(2):
        params, state, found = step(params, state, np.int32(i), *texts(i))
        metrics.append(found)
    return step.func, validate, (params, state, metrics, validate(params, *texts(2)))


@pytest.mark.system
def test_runs_that_differ_in_numbers_share_their_programs_and_have_the_bits_of_one_alone():
    program, validate, first = two_steps(0.5, 0, 20)
    same, too, second = two_steps(2.0, 7, 9, **ALL)
    assert same is program
    assert too is validate
    assert program._cache_size() == validate._cache_size() == 1
    for part, other in zip(first, second, strict=True):
        assert not same_trees(part, other)
    for made in (steps._step, steps._validate):
        made.cache_clear()
    alone, _, result = two_steps(2.0, 7, 9, **ALL)
    assert alone is not program
    assert same_trees(result, second)


@pytest.mark.system
def test_a_second_run_of_a_sweep_compiles_nothing_and_ends_as_it_does_alone(tmp_path, caplog):
    """What begins, validates, looks inside, saves and ends a run, too."""
    sweep = {"steps": 4, "eval_every": 2, "diagnostics_every": 2}

    def run(name, alpha, seed, lr):
        norm, optimizer = {"type": "dyt", "alpha": alpha}, {"lr": lr, "warmup": 1}
        fields = {"norm": norm, "optimizer": optimizer, "seed": seed, **sweep}
        return train(tiny_config(tmp_path / name, **fields))

    def seen(run):
        timing = ("seconds", "tokens_per_second")
        rows = [{k: v for k, v in row.items() if k not in timing} for row in run.metrics]
        return rows, run.diagnostics

    run("first", 0.5, 0, 1e-2)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        second = run("second", 2.0, 1, 3e-3)
    assert [r.message for r in caplog.records if "Compiling" in r.message] == []
    for made in (steps._step, steps._validate, watch._look):
        made.cache_clear()
    jax.clear_caches()
    assert seen(run("alone", 2.0, 1, 3e-3)) == seen(second)


def changed(value):
    """Another value of a field, still allowed."""
    if isinstance(value, str):
        return {"rezero": "skipinit"}.get(value, value)
    return 0.7 if value is None else value * 0.9 or 0.3


def numbers(config, **more):
    """The fields of a config that hold a number, each with another one."""
    for f in dataclasses.fields(config):
        if f.name == "method" or f.type in (float, float | None):
            value = changed(getattr(config, f.name))
            yield f.name, dataclasses.replace(config, **{f.name: value})


def structure(norm, model=None):
    """A model's structure and the shapes of its state; nothing is initialized."""
    model = model or ModelConfig(layers=1, width=32, heads=2, max_length=16)
    return nnx.split(nnx.eval_shape(lambda: Transformer(model, norm, PlacementConfig(), 97)))


def written(graphdef, state):
    """The program of a pass in training, before XLA sees it, and its constants."""

    def loss(state, progress, key, tokens):
        model = nnx.merge(graphdef, state, copy=True)
        logits = model(tokens, Context(progress=progress, dropout_key=key))
        return logits, penalties(model), nnx.state(model, NormState)

    key = jax.eval_shape(lambda: jax.random.key(0))
    found = jax.make_jaxpr(loss)(state, np.float32(0), key, texts(0)[0])
    return str(found), [np.asarray(c).tobytes() for c in found.consts]


@pytest.mark.parametrize("norm", [*norms, "model"])
def test_a_number_of_a_config_is_an_initial_value_or_in_the_program(norm):
    """Never both, or two runs would share a program that is right for one of them; nor neither."""
    if norm == "model":
        base = norms["rmsnorm"].Config()
        local = ModelConfig(layers=1, width=32, heads=2, max_length=16, window=4)
        cases = [(name, (base, config)) for name, config in numbers(local)]
        plain = structure(base, local)
    else:
        base = norms[norm].Config()
        cases = [(name, (config,)) for name, config in numbers(base)]
        plain = structure(base)
    initial = {
        f.name for c in (base, ModelConfig()) for f in dataclasses.fields(c) if not f.compare
    }
    program = written(*plain)
    for name, given in cases:
        graphdef, state = structure(*given)
        same_structure = jax.tree.structure(state) == jax.tree.structure(plain[1])
        if name in initial:
            assert (graphdef == plain[0]) == same_structure, name
            assert not same_structure or written(graphdef, state) == program, name
        else:
            assert graphdef != plain[0], name
            assert written(graphdef, state) != program, f"{name}: field(..., initial=True)?"
