"""Derf, BHyT, and the ways to do without a norm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context
from normlab.norms import norms
from normlab.norms.around import around
from normlab.transforms import DoesNotApply, apply
from tests.conftest import forward, recorded, tiny_model
from tests.support.norm_references import parameters
from tests.support.norm_walk import FINAL, call, jacobian, make, randomized, row, started, told


def test_derf_is_bounded_and_elementwise():
    norm, x = make("derf", alpha=0.7, shift=0.2, bias=True), row()
    norm.weight[...] = np.full(48, 1.3, np.float32)
    norm.bias[...] = np.full(48, 0.1, np.float32)
    assert (np.abs(call(norm, 100 * x)) <= 1.3 + 0.1).all()
    slopes = jacobian(norm, np.full(48, -0.2 / 0.7, np.float32))
    assert np.count_nonzero(slopes - np.diag(np.diag(slopes))) == 0
    np.testing.assert_allclose(np.diag(slopes), 1.3 * 2 * 0.7 / math.sqrt(math.pi), rtol=1e-5)
    plain = make("derf")
    assert np.array_equal(call(plain, -x), -call(plain, x))


def test_bhyt_ignores_size_and_obeys_chebyshev():
    norm, x = randomized(make("bhyt", eps=0.0)), row()
    y = call(norm, x)
    np.testing.assert_allclose(call(norm, np.float32(-50 * x)), -y, rtol=1e-5, atol=1e-7)
    assert (np.abs(y) <= np.abs(norm.weight[...])).all()
    # The worst row for Chebyshev: a share κ⁻² of it holds all of its energy.
    kappa = 4.0
    norm, rows = make("bhyt", kappa=kappa, eps=0.0), np.zeros((251, 48), np.float32)
    rows[0, :3] = 5.0  # 3/48 = κ⁻²: just at, not beyond
    rows[1:] = np.random.default_rng(0).standard_t(1, (250, 48))
    y = np.arctanh(np.float64(call(norm, rows)))
    np.testing.assert_allclose(y[0, :3], 1.0, rtol=1e-5)
    beyond = (np.abs(y) > 1.0 + 1e-5).mean(axis=1)
    assert beyond[0] == 0
    assert beyond.max() <= kappa**-2


def test_bhyt_is_nearly_a_small_rmsnorm():
    y, rms = call(make("bhyt"), row()), call(make("rmsnorm", eps=1e-6), row())
    np.testing.assert_allclose(y, np.float64(rms) / 10, rtol=0.05)


@pytest.mark.parametrize("name", ["bhyt", "bhyt-estimated"])
def test_before_the_head_bhyt_is_an_rmsnorm_unless_told_otherwise(name):
    kept, x = randomized(make(name, site=FINAL)), row()
    assert parameters(kept).keys() == {"weight"}
    assert np.array_equal(call(kept, x), call(randomized(make("rmsnorm", eps=1e-6)), x))
    other, inside = randomized(make(name, site=FINAL, keep_final=False)), randomized(make(name))
    assert np.array_equal(call(other, x), call(inside, x))


def without(placement="pre", **fields):
    """A model without norms, whose weights are as it starts with them."""
    return started("none", placement, fields, layers=3, tied=False)


def test_without_norms_blocks_start_as_the_identity():
    """And in ReZero the weight is the first to learn."""
    x = np.float32(np.random.default_rng(0).normal(size=(2, 16, 32)))
    rezero, fixup = (without(method=method).blocks[1] for method in ("rezero", "fixup"))
    assert np.array_equal(jax.jit(lambda x: fixup(x, Context()))(x), x)
    graphdef, params = nnx.split(rezero)

    def total(params):
        y = nnx.merge(graphdef, params)(x, Context())
        return jnp.sum(y**2), y

    gradients, y = jax.jit(jax.grad(total, has_aux=True))(params)
    assert np.array_equal(y, x)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.any(gradient[...]) == (path[-1] == "branch_gain"), path


def test_fixup_starts_as_its_rules_say():
    plain, fixup = without(branch_gain=1.0), without(method="fixup")
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
    config = norms["none"].Config(method="tfixup")
    assert around(config, 32, 24).factor("value") == pytest.approx(0.36, abs=5e-4)
    plain, tfixup = without(branch_gain=1.0), without(method="tfixup")
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


def test_skipinit_starts_once_smaller_and_not_twice():
    """By g = 1/√L, and not by GPT-2's division of output maps by √L as well."""
    plain, skipinit = without(branch_gain=1.0), without(method="skipinit")
    for block, other in zip(skipinit.blocks, plain.blocks, strict=True):
        for part, last in (("attention", "out"), ("mlp", "down")):
            ours, theirs = (getattr(b, part) for b in (block, other))
            gain = float(ours.branch_gain[...])
            assert gain == pytest.approx(6**-0.5)
            ours, theirs = (getattr(p.branch, last).kernel[...] for p in (ours, theirs))
            np.testing.assert_allclose(gain * ours, theirs, rtol=1e-6)
    query, other = (m.blocks[0].attention.branch.query.kernel[...] for m in (skipinit, plain))
    assert np.array_equal(query, other)
    lns = (without("lns", **fields) for fields in ({"branch_gain": 1.0}, {"method": "skipinit"}))
    ours, theirs = (m.blocks[1].attention.branch.out.kernel[...] for m in lns)
    assert np.array_equal(ours, theirs)  # whose output maps weren't divided


def test_tfixup_takes_back_only_what_was_done():
    """Under a placement with a gain of its own no output map starts smaller by √(2L)."""
    for placement, weight in (("lns", 1.0), ("sub-ln", math.sqrt(math.log(6)))):
        model = without(placement, method="tfixup")
        std = model.config.std * 0.67 * 3**-0.25
        for linear in (model.blocks[1].attention.branch.out, model.blocks[2].mlp.branch.down):
            assert np.std(linear.kernel[...]) == pytest.approx(weight * std, rel=0.1)


def estimated():
    """One block of `bhyt-estimated` whose attention gives every token the mean of all values."""
    fields = {"layers": 1, "heads": 4, "kv_heads": 2, "causal": False, "positions": "none"}
    model = tiny_model("bhyt-estimated", spread=0.0, **fields)
    attention = model.blocks[0].attention
    attention.branch.query.kernel[...] *= 0.0
    attention.branch.out.kernel[...] *= 700.0  # so that it adds about as much as is there
    return model


def inside(block, x, precision="fp32", scale=1.0):
    """What a block that x entered tells its MLP's norm."""
    return told(precision, scale, entered=(x, block.attention))


def test_the_estimate_is_the_sums_mean_square():
    block, x = estimated().blocks[0], np.random.default_rng(0).normal(size=(256, 16, 32))
    x = np.float32(x * 3 / np.sqrt((x**2).mean(-1, keepdims=True)))

    @jax.jit
    def both(x):
        summed = block.attention(x, x, Context())
        return summed, block.mlp.norm_in(summed, inside(block, x))

    summed, y = (np.float64(part) for part in both(x))
    estimate = np.square(0.1 * summed / np.arctanh(y)).mean()  # y = tanh(x / (κ·root))
    assert estimate == pytest.approx(np.square(summed).mean(), rel=0.05)
    assert np.square(summed).mean() > 1.3 * np.square(x).mean()


def test_an_estimated_statistic_is_not_of_the_row_that_it_divides():
    model = estimated()
    block = model.blocks[0]
    norm, x = block.mlp.norm_in, np.float32(np.random.default_rng(0).normal(size=(4, 32)))
    slopes = jax.jit(jax.jacobian(lambda v: norm(jnp.tile(v, (4, 1)), inside(block, x))[3]))(x[0])
    assert np.count_nonzero(slopes - np.diag(np.diag(slopes))) == 0
    with pytest.raises(ValueError, match="can't be estimated outside its block"):
        norm(x)
    with pytest.raises(DoesNotApply):
        apply(model, "fold")


@pytest.mark.system
def test_the_estimate_reaches_the_model(tokens):
    """Float64 of the formula at a model's MLP, whose first norm is an ordinary BHyT."""
    model = tiny_model("bhyt-estimated", spread=0.0, heads=4, kv_heads=2)
    block = model.blocks[1]
    block.attention.norm_in.lam[...] = jnp.float32(30.0)
    logits, context = recorded(model, tokens)
    branch, out = block.attention.branch, model.blocks[1].attention.branch.out
    value = np.float64(branch.value.kernel[...]).reshape(32, 2, 8).repeat(2, axis=1)
    added = np.square(value.reshape(32, 32) @ np.float64(out.kernel[...])).sum() * 9 / (16 * 32)
    x, summed = (context.inputs[f"blocks.1.{s}.norm_in"] for s in ("attention", "mlp"))
    root = np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + added + 1e-6)
    wanted = np.tanh(0.1 * np.float64(summed) / root)
    for precision, scale, error in (("fp32", 1.0, 1e-5), ("fp16:pairwise", 0.5, 2e-3)):
        y = block.mlp.norm_in(summed, inside(block, x, precision, scale))
        np.testing.assert_allclose(y, wanted, rtol=error, atol=1e-7)
    exact = tiny_model("bhyt", spread=0.0, heads=4, kv_heads=2)
    exact.blocks[1].attention.norm_in.lam[...] = jnp.float32(30.0)
    assert not np.allclose(forward(exact, tokens), logits)


def gain(config):
    """The start of the scalar on each of 16 branches."""
    return around(config, 32, 16).branch_gain


def test_each_method_has_its_branch_gain_and_the_config_may_overrule_it():
    config = norms["none"].Config
    factors = {m: gain(config(method=m)) for m in ("rezero", "skipinit")}
    assert factors == {"rezero": 0.0, "skipinit": 0.25}
    assert gain(config(method="skipinit", branch_gain=0.5)) == 0.5


def test_fixup_folds_to_a_shift():
    norm = randomized(make("none", method="fixup"))
    a, b = norm.fold()
    assert np.array_equal(a * row() + b, call(norm, row()))
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
