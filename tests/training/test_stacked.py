"""Layers in one stack: the same model, the same checkpoints, one block compiled for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.data import load_tokens
from normlab.model import ComputeConfig, Context, PlacementConfig, placements
from normlab.runs.checkpoint import Checkpoints
from normlab.runs.names import from_names, to_names
from normlab.training.optimizers import groups, make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.stacked import check_alike, stack, stacked, unstack, unstacked
from normlab.training.step import learned, make_step
from normlab.training.trainer import Trainer, _sizes, train
from tests.conftest import same_trees, tiny_model
from tests.support.runs import tiny_config
from tests.support.steps import STEPS, gradients, texts

CASES = [
    ("rmsnorm", "pre", {}, False),
    ("layernorm", "peri", {"dropout": 0.3, "bias": True}, True),
    ("batchnorm", "post", {}, True),
    ("rmsnorm", "keel", {"tied": False, "window": 4}, False),
]


@pytest.mark.system
@pytest.mark.parametrize(("norm", "placement", "fields", "remat"), CASES)
def test_a_stack_has_the_gradients_of_its_layers(norm, placement, fields, remat):
    model, key = tiny_model(norm, placement, **fields), jax.random.key(1)
    plain = gradients(model, dropout_key=key)
    whole = gradients(stacked(model), ComputeConfig(remat=remat), dropout_key=key)
    assert whole[0] == pytest.approx(float(plain[0]), rel=1e-6)
    for ours, theirs in zip(whole[1:], plain[1:], strict=True):
        names = unstack(ours, 2)
        assert names.keys() == to_names(theirs).keys()
        for name, array in to_names(theirs).items():
            np.testing.assert_allclose(names[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.system
def test_dropout_differs_from_layer_to_layer(tokens):
    """The sameness above covers it; here is that it can be seen at all."""
    graphdef, params = nnx.split(stacked(tiny_model(dropout=0.5)))

    @jax.jit
    def dropped(params):
        model, context = nnx.merge(graphdef, params), Context(dropout_key=jax.random.key(3))
        return jnp.abs(model(tokens, context) - model(tokens)).max(), context.drops

    difference, drops = dropped(params)
    assert difference > 1e-3
    assert drops == 1 + 2 * 2


def lowered(layers, scan, compute=None):
    """The step of a model before XLA compiles it."""
    model = tiny_model(layers=layers)
    model = stacked(model) if scan else model
    graphdef, params = nnx.split(model)
    weights = learned(params)
    optimizer = make_optimizer(AdamWConfig(warmup=1), STEPS, weights, scan)
    step = make_step(graphdef, optimizer, 0, STEPS, compute)
    like = params, jax.eval_shape(optimizer.init, weights)
    return step.func.lower(*step.args, *like, np.int32(0), *texts(0))


def size(layers, scan):
    """Its letters."""
    return len(lowered(layers, scan).as_text())


@pytest.mark.system
def test_remat_of_a_stack_needs_less_memory():
    """Outside of a loop XLA's CPU backend computes once what is written twice."""
    kept, again = (
        lowered(8, True, ComputeConfig(remat=remat)).compile().memory_analysis()
        for remat in (False, True)
    )
    assert again.temp_size_in_bytes < 0.6 * kept.temp_size_in_bytes


@pytest.mark.system
def test_what_is_compiled_does_not_grow_with_depth():
    assert size(8, scan=True) < 1.01 * size(2, scan=True)
    assert size(8, scan=False) > 2.5 * size(2, scan=False)


@pytest.mark.system
def test_stacking_and_taking_apart_gives_the_same_bits(tokens):
    model = tiny_model(layers=3)
    state = nnx.state(model)
    whole = stacked(model)
    names = unstack(nnx.state(whole), 3)
    assert same_trees(from_names(names, state), state)
    assert same_trees(stack(names, nnx.state(whole)), nnx.state(whole))
    assert same_trees(nnx.state(unstacked(whole)), state)
    assert unstacked(model) is model
    assert np.array_equal(unstacked(whole)(tokens), model(tokens))
    assert not model.stacked
    np.testing.assert_allclose(whole(tokens), model(tokens), atol=1e-5)


def test_the_layers_axis_makes_no_matrix_of_a_weight():
    model = tiny_model(layers=3, bias=True)
    whole = learned(nnx.state(stacked(model)))
    expected = groups(learned(nnx.state(model)))
    found = groups(whole, stacked=True)
    assert found == {k: v for k, v in expected.items() if k in found}
    with pytest.raises(ValueError, match="falls in no optimizer group"):
        groups(whole)


@pytest.mark.system
def test_a_checkpoint_of_a_stack_loads_layer_by_layer_and_the_other_way_round(tmp_path):
    fields = {"steps": 3, "eval_every": 3}
    run = train(tiny_config(tmp_path, **fields, compute={"scan_layers": True}))
    plain = Trainer(tiny_config(tmp_path, **fields), load_tokens(tiny_config(tmp_path).data), run)
    held = Trainer(
        tiny_config(tmp_path, **fields, compute={"scan_layers": True}), plain.tokens, run
    )
    with Checkpoints(run["checkpoints"], writer=True) as checkpoints:
        assert plain._restore(checkpoints) == held._restore(checkpoints) == 3
    assert same_trees(held.layers.apart(held.params), plain.params)
    assert same_trees(unstack(held.state, 2), to_names(plain.state))
    total = sum(
        float(plain.validate_batch(plain.params, *(t[i : i + 4] for t in plain.valid)))
        for i in range(0, len(plain.valid[0]), 4)
    )
    assert total / plain.valid[1].size == pytest.approx(run.metrics[-1]["valid_loss"], rel=1e-5)
    assert run.record["groups"] == _sizes(learned(plain.params))


ODD = ["hybridnorm-star", "lns", "mix-ln"]


@pytest.mark.parametrize("placement", placements)
def test_layers_that_differ_are_refused(placement):
    config = tiny_model(layers=4).config
    if placement not in ODD:
        check_alike(config, PlacementConfig(placement))
        return
    with pytest.raises(ValueError, match=f"placement={placement} .* block 1 is another kind"):
        check_alike(config, PlacementConfig(placement))


def test_local_blocks_beside_global_ones_are_refused(tmp_path):
    model = {"layers": 2, "width": 32, "heads": 2, "window": 4, "global_every": 2}
    with pytest.raises(ValueError, match="model.window=4 block 1 is another kind"):
        tiny_config(tmp_path, model=model, compute={"scan_layers": True})
    tiny_config(tmp_path, model=model)


@pytest.mark.parametrize(
    "asked", [{"observe": True}, {"capture": True}, {"scales": {"norm_final": 1.0}}]
)
def test_what_is_asked_by_site_is_refused(tokens, asked):
    with pytest.raises(ValueError, match=r"take normlab.training.stacked.unstacked\(model\)"):
        stacked(tiny_model())(tokens, Context(**asked))
