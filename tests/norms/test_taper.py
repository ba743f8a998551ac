"""TaperNorm: an RMSNorm that fades into a linear map over the training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normlab.runs.run
from normlab.loss import token_nll
from normlab.model import Context
from normlab.norms import NormContext, norms
from normlab.numerics import datapaths
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.step import learned, make_step
from normlab.training.trainer import train
from tests.conftest import tiny_model
from tests.support.norm_walk import FINAL, call, in_training, make, observed, randomized, row
from tests.support.runs import tiny_config


def at(norm, progress, x=None):
    return in_training(norm, row()[None] if x is None else x, progress)


def test_it_goes_from_rmsnorm_to_a_linear_map():
    norm, x = make("tapernorm", start=0.25, end=0.75), row()
    exact = call(make("rmsnorm"), x)
    assert norm.fold() is None
    for progress in (0.0, 0.1, 0.2):
        assert np.array_equal(at(norm, progress)[0], exact)
    assert np.array_equal(call(norm, x), exact)
    gates = []
    for progress in np.linspace(0.25, 0.75, 9):
        at(norm, progress)
        gates.append(float(norm.gate[...]))
    expected = 0.5 * (1 + np.cos(np.pi * np.linspace(0, 1, 9)))
    np.testing.assert_allclose(gates, expected, atol=1e-6)
    assert gates[-1] == 0.0  # exactly, or it could not be folded
    a, b = (np.asarray(part) for part in norm.fold())
    assert np.array_equal(call(norm, x), a * x + b)
    assert np.array_equal(call(norm, np.float32(8 * x)), 8 * call(norm, x))


def test_with_an_open_gate_it_is_rmsnorm_in_a_datapath_too():
    both = make("tapernorm"), make("rmsnorm")
    for norm in both:
        norm.weight[...] = jnp.asarray(row()[0])
    one, other = (call(norm, row(), datapaths["hf-llama-fp16"]) for norm in both)
    assert np.array_equal(one, other)


def test_the_factor_is_the_least_squares_one():
    norm, x = randomized(make("tapernorm", ema=1.0)), row()
    at(norm, 0.0)
    scaled = np.float64(x) * np.float64(norm.weight[...])
    target = scaled / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    best = (scaled * target).sum() / (scaled**2).sum()
    assert float(norm.factor()) == pytest.approx(best, rel=1e-5)
    gaps = [((target - c * scaled) ** 2).sum() for c in (best, 0.99 * best, 1.01 * best)]
    assert min(gaps) == gaps[0]


def test_the_factor_follows_a_running_mean_and_stands_still_after_the_start():
    norm = make("tapernorm", start=0.5, ema=0.25)
    batches = [row(seed)[None] for seed in range(3)]
    for x in batches:
        at(norm, 0.1, x)
    shares = np.array([0.25 * 0.75**2, 0.25 * 0.75, 0.25])
    squares = [(np.float64(x) ** 2).sum(-1).mean() for x in batches]
    assert float(norm.square[...]) == pytest.approx(shares @ squares, rel=1e-5)
    before = float(norm.factor())
    at(norm, 0.6, 100 * batches[0])
    assert float(norm.factor()) == before


def test_the_linear_weight_learns_only_once_the_gate_opens():
    norm = make("tapernorm", 8)
    norm.scaled_square[...], norm.square[...] = jnp.float32(1.0), jnp.float32(3.0)
    graphdef, params, state = nnx.split(norm, nnx.Param, ...)
    total = lambda p, s: nnx.merge(graphdef, p, s)(row(width=8)).sum()  # noqa: E731
    slopes = jax.jit(jax.grad(total))
    for gate, moves in ((1.0, False), (0.5, True)):
        state["gate"][...] = jnp.float32(gate)
        found = slopes(params, state)
        assert bool(np.any(found["delta"][...])) == moves
        assert np.any(found["weight"][...])


def test_a_sum_that_reaches_no_output_is_not_out_of_range():
    norm, fields = make("tapernorm"), ("rows", "overflowed", "above", "max_abs")
    for gate, lost in ((1.0, 5), (0.25, 5), (0.0, 0)):
        norm.gate[...] = jnp.float32(gate)
        seen = observed(norm, 1000 * row(), "fp16", *fields)[1]
        assert (int(seen.rows), int(seen.overflowed), int(seen.above)) == (5, lost, lost)
        assert float(seen.max_abs) > 1000


def test_a_closed_gate_lets_nothing_through_that_is_no_number():
    norm = make("tapernorm")
    norm.gate[...], norm.scaled_square[...] = jnp.float32(0), jnp.float32(2)
    norm.square[...] = jnp.float32(4)
    x = 1000 * row()
    assert np.isnan(call(make("rmsnorm"), x, "fp8_e4m3")).any()
    np.testing.assert_allclose(call(norm, x, "fp8_e4m3"), 0.5 * x, rtol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_the_final_norm_stays_unless_told_otherwise(keep):
    norm = make("tapernorm", site=FINAL, keep_final=keep)
    for progress in (0.0, 0.9):
        y = at(norm, progress)
    assert float(norm.gate[...]) == (1.0 if keep else 0.0)
    assert np.array_equal(y[0], call(make("rmsnorm"), row())) == keep


@pytest.mark.parametrize("keep", [True, False])
def test_the_anchor_pulls_rows_to_the_size_that_they_had(keep):
    fields = {"anchor": 0.5, "start": 0.5, "ema": 0.25, "keep_final": keep}
    norm, x = make("tapernorm", site=FINAL, **fields), row()[None]
    size = np.sqrt((np.float64(x) ** 2).mean(-1) + 1e-5)
    assert float(norm.penalty()) == 0
    at(norm, 0.1, x)
    assert float(norm.penalty()) == 0
    np.testing.assert_allclose(norm.size[...] / norm.seen[...], size.mean(), rtol=1e-6)

    graphdef, state = nnx.split(norm)

    def penalty(x):
        inside = nnx.merge(graphdef, state, copy=True)
        inside(x, NormContext(progress=jnp.float32(0.6)))
        return inside.penalty()

    found, slope = jax.jit(jax.value_and_grad(penalty))(2 * x)
    far = 2 * size - size.mean()
    np.testing.assert_allclose(found, 0.5 * (far**2).mean(), rtol=1e-4)
    wanted = far[..., None] * np.float64(2 * x) / (2 * size[..., None]) / 48 / 5
    np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-7)
    assert make("tapernorm", **fields).penalty() is None  # inside the blocks


@pytest.mark.system
def test_the_anchor_is_part_of_the_loss(tokens):
    """One step, halfway: the loss is the cross-entropy and λ·E[(r − r₀)²], and is descended."""
    model = tiny_model("tapernorm", norm_fields={"anchor": 3.0, "keep_final": False})
    model.norm_final.size[...], model.norm_final.seen[...] = jnp.float32(0.5), jnp.float32(0.5)
    graphdef, params = nnx.split(model)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    context = Context(capture=True, progress=jnp.float32(0.5))
    apart = nnx.merge(graphdef, params, copy=True)
    nll = float(token_nll(apart(inputs, context), targets).mean())
    size = np.sqrt((np.float64(context.inputs["norm_final"]) ** 2).mean(-1) + 1e-5)
    copy = jax.tree.map(jnp.copy, params)
    optimizer = make_optimizer(AdamWConfig(), 10, learned(params))
    step = make_step(graphdef, optimizer, 0, 10)
    after, _, metrics = step(copy, optimizer.init(learned(params)), 5, inputs, targets)
    pull = 3.0 * np.square(size - 1).mean()
    assert float(metrics["loss"]) == pytest.approx(nll + pull, rel=1e-4)
    assert pull > 0.05 * nll
    moved = after["norm_final"]["pull"][...]
    assert float(moved) == pytest.approx(pull, rel=1e-4)


def test_a_training_too_short_for_the_gate_to_reach_zero_is_refused(tmp_path):
    norm = {"type": "tapernorm", "end": 0.95}
    with pytest.raises(ValueError, match="norm.end = 0.95: no step of 12 begins there.* 0.9167"):
        tiny_config(tmp_path, norm=norm, steps=12)
    tiny_config(tmp_path, norm=norm, steps=20)


@pytest.mark.system
def test_a_run_ends_with_norms_that_fold(tmp_path):
    model = {"layers": 1, "width": 16, "heads": 1, "max_length": 64}
    norm = {"type": "tapernorm", "start": 0.2, "end": 0.7}
    run = train(tiny_config(tmp_path, norm=norm, model=model, steps=20, eval_every=10))
    loaded = normlab.runs.run.load(run.directory).model
    for site in (loaded.blocks[0].attention.norm_in, loaded.blocks[0].mlp.norm_in):
        assert (site.fold() is None) == (run.record["best_step"] < 14)
        assert float(site.factor()) > 0
    assert loaded.norm_final.fold() is None


@pytest.mark.parametrize(
    "fields",
    [{"start": 0.0}, {"start": 0.9, "end": 0.8}, {"end": 1.0}, {"ema": 0.0}, {"anchor": 0.0}],
)
def test_bad_values_are_refused(fields):
    with pytest.raises(ValueError, match=r"norm\.(start|ema|anchor) = "):
        norms["tapernorm"].Config(**fields)


def test_an_anchor_needs_a_norm_before_the_head():
    with pytest.raises(ValueError, match="norm.anchor = 0.5 means nothing to placement=post"):
        tiny_model("tapernorm", "post", norm_fields={"anchor": 0.5})
