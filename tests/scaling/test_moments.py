"""Moments through the weights: each step against its definition, the whole against real rows."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normlab.model import placements
from normlab.model.mlp import FUNCTIONS
from normlab.norms import Site, norms
from normlab.numerics.eps import EpsForm
from normlab.scaling import scales
from normlab.scaling.moments import (
    Moments,
    Rows,
    harmless,
    headroom,
    hidden,
    root_mean_squares,
    squares,
)
from normlab.scaling.weights import norms_by_site
from tests.conftest import tiny_model
from tests.support.norm_walk import told
from tests.support.scaling_models import (
    GATED,
    KINDS,
    PLAIN,
    UNEVEN,
    kernel,
    placed,
    random_tokens,
    sizes,
)
from tests.support.transformer_reference import ACTIVATIONS, Reference

FIRST = [("gelu", False), ("silu", True)]
D, DRAWS, EPS = 32, 200_000, 1e-5


def rows_of(seed=0, mean=0.5):
    rng = np.random.default_rng(seed)
    return Rows(mean * rng.normal(size=D), np.exp(rng.normal(0, 1, D)), np.ones(D))


def drawn(rows, count=DRAWS, seed=1):
    """Gaussian rows with these moments."""
    z = np.random.default_rng(seed).normal(size=(count, D))
    return rows.mean + np.sqrt(rows.variance) * z


def assert_mean(samples, expected, sigmas=6):
    """Column means within so many of their standard errors."""
    error = samples.std(0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(0) - expected) <= sigmas * error + 1e-9)


@pytest.mark.parametrize(
    ("activation", "gated"),
    [
        pytest.param(name, gated, marks=[] if (name, gated) in FIRST else pytest.mark.system)
        for name in FUNCTIONS
        for gated in (False, True)
    ],
)
def test_hidden_units_have_the_moments_of_a_gaussian_input(activation, gated):
    branch = tiny_model(activation=activation, gated=gated, bias=True, hidden=10, spread=UNEVEN)
    branch = branch.blocks[0].mlp.branch
    rows = rows_of()
    found, x = hidden(rows, branch), drawn(rows)
    h = ACTIVATIONS[activation](x @ kernel(branch.gate) + np.float64(branch.gate.bias[...]))
    if gated:
        h = h * (x @ kernel(branch.up) + np.float64(branch.up.bias[...]))
    linear = np.float64(found.linear)
    mean = rows.mean @ linear + found.constant
    assert_mean(h, mean)
    assert_mean((h - mean) ** 2, rows.variance @ linear**2 + found.noise)
    # The regression's residual is uncorrelated with the gate and, where there is one, the up.
    residual = h - x @ linear - found.constant
    for map_ in (branch.gate, branch.up) if gated else (branch.gate,):
        assert_mean(residual * ((x - rows.mean) @ kernel(map_)), np.zeros(10))


@pytest.mark.parametrize("placement", ["pre", "normformer"])  # with head scales
def test_attention_to_oneself_is_a_linear_map_of_the_moments(placement):
    model = tiny_model(placement=placement, bias=True, spread=UNEVEN, **GATED)
    branch, name = model.blocks[0].attention.branch, "blocks.0.attention"
    rows = rows_of()
    x = drawn(rows, 50_000)
    y = Reference(model).attention(f"{name}.branch", name, x[:, None], 1)[:, 0]
    found = Moments().out(Moments().inner(rows, branch), branch)
    assert_mean(y, found.mean)
    assert_mean((y - found.mean) ** 2, found.variance)
    covariance = (x - rows.mean) * (y - found.mean)
    assert_mean(covariance, found.slope * rows.variance)


def test_a_branch_that_follows_the_stream_adds_its_covariance():
    """Var(x + g·(x ⊙ a)M) = ((I + g·diag(a)M)ᵀ)² Var x, exactly."""
    rng, rows, propagator = np.random.default_rng(0), rows_of(), Moments()
    a, matrix, g = rng.normal(size=D), rng.normal(size=(D, D)), 0.3
    normed = Rows(rows.mean * a, rows.variance * a**2, rows.slope * a)
    branch = propagator.mapped(normed, jnp.asarray(matrix, jnp.float32), np.zeros(D))
    found = propagator.add(propagator.fork(rows), branch, g)
    whole = np.eye(D) + g * a[:, None] * matrix
    np.testing.assert_allclose(found.variance, rows.variance @ whole**2, rtol=1e-4)
    np.testing.assert_allclose(found.mean, rows.mean @ whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_norm_sees_the_embedding(kind):
    model = tiny_model(**KINDS[kind])
    tables = [model.embed, *([model.positions] if model.positions is not None else [])]
    rows = [np.float64(table.embedding[...]) for table in tables]
    sums = rows[0][:, None] + (rows[1] if len(rows) > 1 else np.zeros((1, D)))
    expected = np.sqrt(np.mean(np.sum(sums**2, -1)))
    low, high = root_mean_squares(model)["blocks.0.attention.norm_in"]
    assert high == pytest.approx(expected, rel=1e-5)
    if len(rows) == 1:  # else two means with a common part
        assert low == pytest.approx(expected, rel=1e-5)


def test_centring_takes_the_common_mean_away():
    rows = Rows(np.full(D, 3.0), np.ones(D), np.ones(D))
    plain, centred = (tiny_model(n).norm_final for n in ("rmsnorm", "layernorm"))
    assert squares(rows, plain)[0] == pytest.approx(D * 10)
    assert squares(rows, centred)[0] == pytest.approx(D)
    dropped = tiny_model("dropped-mean").norm_final  # the mean leaves the row but not the statistic
    assert squares(rows, dropped)[0] == pytest.approx(D * 10)
    left = Moments().normed(rows, dropped).mean - np.float64(dropped.bias[...])
    np.testing.assert_allclose(left, 0, atol=1e-6)


@pytest.mark.system
@pytest.mark.parametrize("placement", placements)
def test_rows_of_uneven_models_keep_their_precision(placement):
    """No sum overflows; of 100 rows at most 1 is so small, ε added, that its squares are lost.

    And the median row is between a quarter and 1.5 times √(low · high) at every site.
    """
    model = placed(placement, seed=1, spread=UNEVEN)
    found, predicted, lost = scales(model, "moments"), root_mean_squares(model), []
    widths = {site: norm.width for site, norm in norms_by_site(model).items()}
    for site, seen in sizes(model, random_tokens(8)).items():
        s = np.float64(found[site]).reshape(-1)
        assert np.max((seen / s) ** 2) < 65504 / 4, site
        lost.append(np.ravel((seen**2 + widths[site] * EPS) / s**2 < widths[site] * 2.0**-14))
        share = np.median(seen, axis=0) / np.sqrt(np.prod(predicted[site], axis=0)).reshape(-1)
        assert np.all((share > 0.25) & (share < 1.5)), (site, share)
    assert np.mean(np.concatenate(lost)) <= 0.01


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_behind_an_inner_norm_have_the_moments_of_its_affine_map(kind, norm):
    """With the root mean square in place of each row's own, the norm is an affine map."""
    model = tiny_model(norm, "sub-ln", spread=UNEVEN, **KINDS[kind])
    propagator, rows = Moments(), rows_of()
    for part in (model.blocks[0].attention, model.blocks[0].mlp):
        inside = propagator.inner(rows, part.branch)
        inner, width = part.branch.sub_norm, len(inside.mean)
        middle = inside.mean.mean() if norm == "layernorm" else 0.0
        square = np.sum(inside.variance) + np.sum((inside.mean - middle) ** 2)
        a = np.sqrt(width / square) * np.float64(inner.weight[...])
        normed = propagator.normed(inside, inner)
        shift = 0.0 if inner.bias is None else np.float64(inner.bias[...])
        np.testing.assert_allclose(normed.mean, (inside.mean - middle) * a + shift, atol=1e-4)
        np.testing.assert_allclose(normed.variance, inside.variance * a**2, rtol=1e-4)
        assert propagator.size(inside, inner) == pytest.approx(np.sqrt(square))


def test_the_middle_of_the_range():
    """κ² is as far, in the logarithm, from where squares are lost as from overflow."""
    for d in (64, 576, 4096):
        assert headroom(d) ** 2 / (d * 2.0**-14) == pytest.approx(2.0**16 / headroom(d) ** 2)


WIDTH = 64


@cache
def norm_of(form="under"):
    config = norms["rmsnorm"].Config(eps=EPS, eps_form=form)
    return norms["rmsnorm"](WIDTH, Site("norm_final", "norm_final"), config)


@cache
def both(form):
    """A norm in float32 and in FP16, pairwise, there with a scale."""
    norm = norm_of(form)
    return jax.jit(lambda x, s: [norm(x), norm(x, told("fp16:pairwise", s))])


def error(form, x, scale):
    """Largest relative error of the row's scale in FP16 against float32."""
    exact, half = (np.float64(y) for y in both(form)(np.float32(x), np.float32(scale)))
    at = np.argmax(np.abs(x), axis=-1)[..., None]
    exact, half = (np.take_along_axis(y, at, -1) for y in (exact, half))
    return float(np.max(np.abs(half / exact - 1)))


@pytest.mark.parametrize("form", list(EpsForm))
@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float64, WIDTH, elements=st.floats(-1, 1)),
    st.floats(-9, 2.3),
    st.floats(0.01, 1),
)
def test_up_to_the_cap_no_underflow_harms_a_row(form, direction, size, share):
    """The bound of docs/scales.md: half of (log₂ d + 2) roundings, whatever the row."""
    s = share * harmless(norm_of(form))
    direction[0] += 1.5  # not zero
    x = s * 10**size * direction / np.linalg.norm(direction)  # ‖x‖ ≤ 200 s: no overflow
    assert error(form, x, s) <= 1.02 * 0.5 * (np.log2(WIDTH) + 2) * 2.0**-11


def test_above_the_cap_a_row_can_be_lost():
    """The test above can fail: at 64 times the cap, such a row's squares vanish."""
    for form, lost in (("under", 0.5), ("floor", 0.3), ("added", 0.01)):
        s = 64 * harmless(norm_of(form))
        x = np.full(WIDTH, s * 2.0**-12.6)
        assert error(form, x, s) > lost


def scaled(model, block, factor):
    """The model with the output map of this block's MLP multiplied."""
    down = model.blocks[block].mlp.branch.down
    for array in filter(None, (down.kernel, down.bias)):
        array[...] = factor * np.asarray(array[...])
    return model


def test_a_small_site_gets_the_cap():
    model = scaled(tiny_model(placement="peri", **PLAIN), 0, np.float32(1e-5))
    found = scales(model, "moments")["blocks.0.mlp.norm_out"]
    assert found == pytest.approx(128 * np.sqrt(1e-5), rel=1e-6)


def test_scales_follow_an_output_map_linearly():
    model = scaled(tiny_model(placement="peri", **GATED), 1, np.float32(100))  # far from the cap
    before = float(scales(model, "moments")["blocks.1.mlp.norm_out"])
    after = float(scales(scaled(model, 1, np.float32(3)), "moments")["blocks.1.mlp.norm_out"])
    assert after == pytest.approx(3 * before, rel=1e-4)
