"""What an accumulator saw of rows, against float64 and ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from normlab.numerics import RangeCounts
from normlab.numerics.eps import EpsForm
from normlab.numerics.histogram import histogram
from tests.support.accumulators import EPS, EVERYTHING, D, normalize, normed

RNG = np.random.default_rng(0)
FORMATS = {
    "fp16": (np.float16, 65504.0, 2.0**-14, 2.0**-24),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0, 2.0**-14, 2.0**-16),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0, 2.0**-6, 2.0**-9),
}


def seen(x, precision, scale=1.0, eps=EPS, **more):
    """Everything that was observed."""
    return normalize(x, precision, scale, eps, names=EVERYTHING, **more)


def spread(n=400, low=-14.0, high=12.0):
    """Rows whose norms are spread over many octaves."""
    sizes = 2.0 ** RNG.uniform(low, high, (n, 1))
    return (RNG.normal(size=(n, D)) / np.sqrt(D) * sizes).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "center"),
    [
        *(("fp16", False), ("fp16", True), ("fp8_e4m3", False)),
        *(pytest.param(name, True, marks=pytest.mark.system) for name in ("fp8_e4m3", "fp8_e5m2")),
        pytest.param("fp8_e5m2", False, marks=pytest.mark.system),
    ],
)
def test_rows_outside_each_edge_are_counted(name, center):
    _, top, normal, subnormal = FORMATS[name]
    x = spread()
    rows = x - x.mean(-1, keepdims=True) if center else x
    for scale in (1.0, 3.0):
        exact = (np.float64(rows) ** 2).sum(-1) / scale**2
        got = seen(x, name, scale, center=center)
        found = [int(n) for n in (got.above, got.below_normal, got.below_subnormal)]
        want = [(exact > top).sum(), (exact < normal).sum(), (exact < subnormal).sum()]
        assert found == want
        assert min(want[:2]) > 0
        np.testing.assert_allclose(float(got.max_square), exact.max() * scale**2, rtol=1e-5)
        np.testing.assert_array_equal(got.sums, histogram(jnp.float32(exact)))
        np.testing.assert_array_equal(got.squares, histogram(jnp.float32(exact * scale**2)))


def test_rows_of_zeros_are_in_range_and_in_no_bin():
    got = vars(seen(np.zeros((5, D)), "fp16"))
    assert not got.pop("y").any()
    counts = {k: int(np.sum(v)) for k, v in got.items()}
    assert counts.pop("rows") == 5
    assert set(counts.values()) == {0}


@pytest.mark.system
def test_of_no_rows_there_is_nothing_to_see():
    got = normed(np.zeros((0, D), np.float32), "fp16", 1.0, EPS, names=EVERYTHING)[1]
    nothing = RangeCounts.nothing()
    assert all(np.array_equal(got[name], getattr(nothing, name)) for name in EVERYTHING)


def test_a_stalled_sum_has_a_negative_error_and_a_rounded_one_hardly_any():
    x = np.abs(spread(100, 0, 2))
    stalled = normalize(x, "fp8_e5m2:sequential", names=("error",))
    total = (np.float64(x) ** 2).sum(-1)
    assert float(stalled.error) / 100 < -0.2
    assert abs(float(seen(x, "fp16").error)) / 100 < 1e-3
    eighths = np.zeros(())  # the reference adds one by one
    for row, want in zip(x, total, strict=True):
        carry = ml_dtypes.float8_e5m2(0)
        for v in row:
            square = ml_dtypes.float8_e5m2(np.float32(v) * np.float32(v))
            carry = ml_dtypes.float8_e5m2(np.float32(carry) + np.float32(square))
        eighths = eighths + float(carry) / want - 1
    np.testing.assert_allclose(float(stalled.error), eighths, rtol=1e-4)


# --- ε and underflow: docs/scales.md


def change(x, scale, eps, dtype, form):
    """Relative change of the norm's factor where only the squares are rounded, in float64."""
    z = np.float64(x) / scale
    whole, left = (z * z).sum(-1), np.float64(np.float32(z * z).astype(dtype)).sum(-1)
    root = {
        "under": lambda s: np.sqrt(s / D + eps / scale**2),
        "added": lambda s: np.sqrt(s / D) + eps / scale,
        "floor": lambda s: np.maximum(np.sqrt(s / D), eps / scale),
    }[form]
    with np.errstate(divide="ignore"):
        return np.abs(root(whole) / root(left) - 1)


@pytest.mark.parametrize("form", list(EpsForm))
@pytest.mark.parametrize("name", ["fp16", pytest.param("fp8_e5m2", marks=pytest.mark.system)])
def test_where_a_row_keeps_its_precision_underflow_costs_no_more_than_a_rounding(name, form):
    """Each row alone, at scales on both sides of the cap 128 √ε, with an ε that rules and not."""
    dtype, unit = FORMATS[name][0], 2.0**-11 if name == "fp16" else 2.0**-3
    x, told = spread(60, -12, 2), []

    @jax.jit
    @jax.vmap
    def each(row, scale, eps):
        names = ("precision_loss", "underflow_errors", "below_normal")
        return normed(row[None], name, scale, eps, form=form, names=names)[1]

    for scale in (0.05, 0.4, 4.0):
        for eps in (1e-5, 1e-9):
            e = eps if form == "under" else np.sqrt(eps)
            alone = each(x, np.full(60, scale, np.float32), np.full(60, e, np.float32))
            harm = change(x, scale, e, dtype, form)
            fine = np.asarray(alone["precision_loss"]) == 0
            # Half a unit for the squares that keep their precision, half for those that don't.
            assert (harm[fine] <= unit * (1 + unit)).all()
            told.append((fine.sum(), harm[~fine].max(initial=0.0)))
            below = np.asarray(alone["below_normal"])
            assert (
                np.asarray(alone["underflow_errors"]) == np.asarray(alone["precision_loss"]) * below
            ).all()
    assert {n for n, _ in told} != {60}
    assert max(h for _, h in told) > 0.5  # and what is called precision_loss can be ruined


def test_at_the_cap_no_row_is_an_underflow_error_and_above_it_some_are():
    x = spread(300, -30, -2)
    cap = 128 * np.sqrt(EPS)
    assert int(seen(x, "fp16", 0.999 * cap).precision_loss) == 0
    over = seen(x, "fp16", 8 * cap)
    assert 0 < int(over.underflow_errors) <= int(over.precision_loss)
    assert int(over.underflow_errors) < int(over.below_normal)  # the smallest rows are ruled by ε
    assert int(seen(x, "fp16", 8 * cap, 0.0).underflow_errors) == int(over.below_normal)


def test_flushed_subnormals_harm_earlier():
    x = spread(300, -12, -2)
    flushed, at_the_cap = (
        normalize(x, "fp16.flush", scale, names=("precision_loss",))
        for scale in (0.3, 2.7 * np.sqrt(EPS))
    )
    assert int(flushed.precision_loss) > int(seen(x, "fp16", 0.3).precision_loss) == 0
    assert int(at_the_cap.precision_loss) == 0
