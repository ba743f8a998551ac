"""Derf, BHyT, and the ways to do without a norm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx
from test_norms import make, randomized, row

from normlab.model import Context
from normlab.norms import norms
from normlab.numerics import Accumulator

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
            np.testing.assert_allclose(ours, theirs / math.sqrt(6), rtol=1e-6)
        for name in ("gate", "up"):
            ours, theirs = (getattr(b.mlp.branch, name).kernel[...] for b in (block, other))
            np.testing.assert_allclose(ours, theirs / math.sqrt(6), rtol=1e-6)
        for last in (block.attention.branch.out, block.mlp.branch.down):
            assert not np.any(last.kernel[...])
        assert float(block.mlp.branch_gain[...]) == 1.0
        assert block.mlp.norm_in.shift[...].shape == ()
    assert not np.any(fixup.head.kernel[...])
    assert np.array_equal(fixup.embed.embedding[...], plain.embed.embedding[...])


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
