"""Derf, BHyT, and the ways to do without a norm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import norms
from normlab.numerics import Accumulator
from normlab.transforms import DoesNotApply, apply
from tests.conftest import tiny_model
from tests.norms.test_walk import FINAL, make, parameters, randomized, row

FP32 = Accumulator()


def test_derf_is_bounded_and_elementwise():
    norm, x = make("derf", alpha=0.7, shift=0.2, bias=True), row()
    norm.gain[...] = jnp.full(48, 1.3)
    norm.bias[...] = jnp.full(48, 0.1)
    assert (np.abs(norm(100 * x, FP32)) <= 1.3 + 0.1).all()
    jacobian = jax.jacobian(lambda v: norm(v, FP32))(jnp.full(48, -0.2 / 0.7))
    assert np.count_nonzero(jacobian - np.diag(np.diag(jacobian))) == 0
    np.testing.assert_allclose(np.diag(jacobian), 1.3 * 2 * 0.7 / math.sqrt(math.pi), rtol=1e-5)
    plain = make("derf")
    assert np.array_equal(plain(-x, FP32), -plain(x, FP32))


def test_bhyt_ignores_size_and_obeys_chebyshev():
    norm, x = randomized(make("bhyt", eps=0.0)), row()
    y = norm(x, FP32)
    np.testing.assert_allclose(norm(np.float32(-50 * x), FP32), -y, rtol=1e-5, atol=1e-7)
    assert (np.abs(y) <= np.abs(norm.gain[...])).all()
    # The worst row for Chebyshev: a share κ⁻² of it holds all of its energy.
    kappa = 4.0
    norm, spike = make("bhyt", kappa=kappa, eps=0.0), np.zeros((1, 48), np.float32)
    spike[0, :3] = 5.0  # 3/48 = κ⁻²: just at, not beyond
    beyond = np.arctanh(np.float64(norm(spike, FP32))) > 1.0 + 1e-5
    assert beyond.mean() == 0
    np.testing.assert_allclose(np.arctanh(np.float64(norm(spike, FP32)))[0, :3], 1.0, rtol=1e-5)
    for seed in range(5):
        heavy = np.float32(np.random.default_rng(seed).standard_t(1, (50, 48)))
        y = np.float64(norm(heavy, FP32))
        assert (np.abs(np.arctanh(y)) > 1.0 + 1e-5).mean(axis=1).max() <= kappa**-2


def test_bhyt_is_nearly_a_small_rmsnorm():
    y, rms = make("bhyt")(row(), FP32), make("rmsnorm", eps=1e-6)(row(), FP32)
    np.testing.assert_allclose(y, np.float64(rms) / 10, rtol=0.05)


@pytest.mark.parametrize("name", ["bhyt", "bhyt-estimated"])
def test_before_the_head_bhyt_is_an_rmsnorm_unless_told_otherwise(name):
    kept, x = randomized(make(name, site=FINAL)), row()
    assert parameters(kept).keys() == {"gain"}
    assert np.array_equal(kept(x, FP32), randomized(make("rmsnorm", eps=1e-6))(x, FP32))
    other, inside = randomized(make(name, site=FINAL, keep_final=False)), randomized(make(name))
    assert np.array_equal(other(x, FP32), inside(x, FP32))


@pytest.mark.parametrize("method", ["rezero", "fixup"])
def test_without_norms_blocks_start_as_the_identity(method, tokens):
    model = tiny_model("none", norm_fields={"method": method})
    context = Context()
    x = model.stem(tokens, context)
    for block in model.blocks:
        assert np.array_equal(block(x, context), x)


def test_fixup_starts_as_its_rules_say():
    plain = tiny_model("none", norm_fields={"branch_gain": 1.0}, tied=False, layers=3)
    fixup = tiny_model("none", norm_fields={"method": "fixup"}, tied=False, layers=3)
    for block, other in zip(fixup.blocks, plain.blocks, strict=True):
        for name in ("query", "key", "value"):
            ours, theirs = (getattr(b.attention.branch, name).kernel[...] for b in (block, other))
            np.testing.assert_allclose(ours, theirs * 6 ** (-1 / 6), rtol=1e-6)  # m = 4
        for name in ("gate", "up"):
            ours, theirs = (getattr(b.mlp.branch, name).kernel[...] for b in (block, other))
            np.testing.assert_allclose(ours, theirs / math.sqrt(6), rtol=1e-6)
        for last in (block.attention.branch.out, block.mlp.branch.down):
            assert not np.any(last.kernel[...])
        assert float(block.mlp.branch_gain[...]) == 1.0
        assert block.mlp.norm_in.shift[...].shape == ()
    assert not np.any(fixup.head.kernel[...])
    assert np.array_equal(fixup.embed.embedding[...], plain.embed.embedding[...])


def test_tfixup_starts_as_its_factors_say():
    """Huang et al. 2020; 0.67·12^(−1/4) = 0.36 for twelve blocks."""
    kind, config = norms["none"], norms["none"].Config(method="tfixup")
    assert kind.init_scale(config, "value", 24) == pytest.approx(0.36, abs=5e-4)
    plain = tiny_model("none", norm_fields={"branch_gain": 1.0}, tied=False, layers=3)
    tfixup = tiny_model("none", norm_fields={"method": "tfixup"}, tied=False, layers=3)
    factors = {"query": 1, "key": 1, "value": 0.67 * 3**-0.25}
    for name, factor in factors.items():
        ours, theirs = (getattr(m.blocks[1].attention.branch, name) for m in (tfixup, plain))
        np.testing.assert_allclose(ours.kernel[...], factor * theirs.kernel[...], rtol=1e-6)
    std = plain.config.std * 0.67 * 3**-0.25  # without GPT-2's division of output maps
    for linear in (tfixup.blocks[1].attention.branch.out, tfixup.blocks[2].mlp.branch.down):
        assert np.std(linear.kernel[...]) == pytest.approx(std, rel=0.1)
    np.testing.assert_allclose(
        tfixup.embed.embedding[...], 27**-0.25 * plain.embed.embedding[...], rtol=1e-6
    )
    assert float(tfixup.embed_scale[...]) == pytest.approx(math.sqrt(32))
    assert np.array_equal(tfixup.head.kernel[...], plain.head.kernel[...])
    assert tfixup.blocks[0].mlp.branch_gain is None


def test_tfixup_takes_back_only_what_was_done():
    """Under a placement with a gain of its own no output map starts smaller by √(2L)."""
    std = tiny_model("none").config.std * 0.67 * 3**-0.25
    for placement, gain in (("lns", 1.0), ("sub-ln", math.sqrt(math.log(6)))):
        model = tiny_model("none", placement, norm_fields={"method": "tfixup"}, layers=3)
        for linear in (model.blocks[1].attention.branch.out, model.blocks[2].mlp.branch.down):
            assert np.std(linear.kernel[...]) == pytest.approx(gain * std, rel=0.1)


def estimated():
    """One block of `bhyt-estimated` whose attention gives every token the mean of all values."""
    fields = {"layers": 1, "heads": 4, "kv_heads": 2, "causal": False, "positions": "none"}
    model = tiny_model("bhyt-estimated", **fields)
    attention = model.blocks[0].attention
    attention.branch.query.kernel[...] *= 0.0
    attention.branch.out.kernel[...] *= 700.0  # so that it adds about as much as is there
    return model


def told(block, x, precision="fp32", scale=1.0):
    """An accumulator as a block that x entered hands it to its MLP's norm."""
    acc = Accumulator(precision, scale)
    acc.entered = x, block.attention
    return acc


def test_the_estimate_is_the_sums_mean_square():
    block, x = estimated().blocks[0], np.random.default_rng(0).normal(size=(256, 16, 32))
    x = np.float32(x * 3 / np.sqrt((x**2).mean(-1, keepdims=True)))
    summed = np.float64(block.attention(x, Context()))
    y = np.float64(block.mlp.norm_in(np.float32(summed), told(block, x)))
    estimate = np.square(0.1 * summed / np.arctanh(y)).mean()  # y = tanh(x / (κ·root))
    assert estimate == pytest.approx(np.square(summed).mean(), rel=0.05)
    assert np.square(summed).mean() > 1.3 * np.square(x).mean()


def test_an_estimated_statistic_is_not_of_the_row_that_it_divides():
    block = estimated().blocks[0]
    norm, x = block.mlp.norm_in, np.float32(np.random.default_rng(0).normal(size=(4, 32)))
    jacobian = jax.jacobian(lambda v: norm(jnp.tile(v, (4, 1)), told(block, x))[3])(x[0])
    assert np.count_nonzero(jacobian - np.diag(np.diag(jacobian))) == 0
    with pytest.raises(ValueError, match="can't be estimated outside its block"):
        norm(x, Accumulator())
    with pytest.raises(DoesNotApply):
        apply(estimated(), "fold")


@pytest.mark.system
def test_the_estimate_reaches_the_model(tokens):
    """Float64 of the formula at a model's MLP, whose first norm is an ordinary BHyT."""
    model, context = tiny_model("bhyt-estimated", heads=4, kv_heads=2), Context(capture=True)
    block = model.blocks[1]
    block.attention.norm_in.lam[...] = jnp.float32(30.0)
    model(tokens, context)
    branch, out = block.attention.branch, model.blocks[1].attention.branch.out
    value = np.float64(branch.value.kernel[...]).reshape(32, 2, 8).repeat(2, axis=1)
    added = np.square(value.reshape(32, 32) @ np.float64(out.kernel[...])).sum() * 9 / (16 * 32)
    x, summed = (context.inputs[f"blocks.1.{s}.norm_in"] for s in ("attention", "mlp"))
    root = np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + added + 1e-6)
    wanted = np.tanh(0.1 * np.float64(summed) / root)
    for precision, scale, error in (("fp32", 1.0, 1e-5), ("fp16:pairwise", 0.5, 2e-3)):
        y = block.mlp.norm_in(summed, told(block, x, precision, scale))
        np.testing.assert_allclose(y, wanted, rtol=error, atol=1e-7)
    exact = tiny_model("bhyt", heads=4, kv_heads=2)
    assert not np.allclose(exact(tokens), tiny_model("bhyt-estimated", heads=4, kv_heads=2)(tokens))


def test_each_method_has_its_branch_gain_and_the_config_may_overrule_it():
    config = norms["none"].Config
    gains = {m: norms["none"].branch_gain(config(method=m), 16) for m in ("rezero", "skipinit")}
    assert gains == {"rezero": 0.0, "skipinit": 0.25}
    assert norms["none"].branch_gain(config(method="skipinit", branch_gain=0.5), 16) == 0.5


def test_rezero_learns_its_gain_first(tokens):
    model = tiny_model("none")
    graphdef, params = nnx.split(model)
    gradients = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(tokens) ** 2))(params)
    flat = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(gradients)}
    for path, gradient in flat.items():
        if path[-1] == "branch_gain":
            assert gradient != 0, path
        elif "branch" in path:
            assert not gradient.any(), path


def test_fixup_folds_to_a_shift():
    norm = randomized(make("none", method="fixup"))
    a, b = norm.fold()
    assert np.array_equal(a * row() + b, norm(row(), FP32))
    assert make("none").fold() is None


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("derf", {"alpha": 0.0}, "norm.alpha = 0.0: expected a number > 0"),
        ("bhyt", {"kappa": 0.0}, "norm.kappa = 0.0: expected a number > 0"),
        ("none", {"method": "re-zero"}, "Did you mean 'rezero'"),
    ],
)
def test_bad_values_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        norms[name].Config(**fields)
