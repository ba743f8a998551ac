"""What norms make of an accumulator, and what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from normlab.numerics import Accumulator, Precision, RangeCounts, RangeRecorder, accumulate
from tests.support import numerics_reference as reference
from tests.support.accumulators import EPS, EVERYTHING, normalize, normed
from tests.support.numerics_reference import cast, same, squares, summed

rows = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)


def mean_square(z, precision):
    """Σz²/d by loops, with the mean taken before the adds where the precision says so."""
    to, d = precision.format, z.shape[-1]
    terms, share = squares(z, to), np.float32(1 / d)
    if precision.mean:
        terms, share = reference.rounded(np.float32(terms) * share, to), np.float32(1)
    return np.float32(summed(terms, precision))[:, None] * share


def test_fp32_is_the_plain_norm():
    def plain(x):
        return x * lax.rsqrt(jnp.sum(x * x, axis=-1)[..., None] / 64 + EPS)

    ours = lambda x: Accumulator().normalize(x, EPS)  # noqa: E731
    assert same(jax.jit(ours)(rows), jax.jit(plain)(rows)).all()
    text = str(jax.make_jaxpr(ours)(rows))
    assert "custom" not in text
    assert "reduce_max" not in text  # nothing is observed unless asked for


@pytest.mark.parametrize("text", ["fp32", "fp16", "bf16:lanes8", "fp16:blocks16.mean"])
def test_rms_norm_is_the_arithmetic_of_the_design(text):
    s = np.float32(3.0)
    z = rows * (1 / s)
    want = z / np.sqrt(mean_square(z, Precision.parse(text)) + EPS / s**2)
    np.testing.assert_allclose(normalize(rows, text, s).y, want, rtol=3e-7)


@pytest.mark.parametrize(
    "text",
    [
        *("fp32", "fp16", "bf16:lanes8"),
        *(pytest.param(t, marks=pytest.mark.system) for t in ("fp16:sequential", "fp16.mean")),
    ],
)
def test_layer_norm_two_pass(text):
    precision = Precision.parse(text)
    x = rows + 2
    d = 1 if precision.mean else 64
    to = precision.format.name
    addends = x if to == "fp32" else cast(x, to)
    if precision.mean:
        addends = cast(addends * np.float32(1 / 64), to)
    mean = np.float32(summed(addends, precision))[:, None] / np.float32(d)
    centred = x - mean
    want = centred / np.sqrt(mean_square(centred, precision) + EPS)
    tolerance = 3e-6 if to == "fp32" else 3e-7  # XLA's own order of the plain sum
    got = normalize(x, text, center=True).y
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("text", ["fp32", "fp16", "bf16:lanes8"])
@pytest.mark.parametrize("center", [False, True])
def test_scaling_by_a_power_of_two_changes_nothing_in_range(text, center):
    """The reason why ε is divided by s²: the same bits, whatever the scale."""
    alone = normalize(rows, text, center=center).y
    for s in (0.25, 2.0, 8.0):
        assert same(normalize(rows, text, s, center=center).y, alone).all()


def test_an_overflow_gives_zero_and_a_scale_cures_it():
    lost, cured, wide = (
        normalize(rows * 300, *how) for how in (("fp16",), ("fp16", 300), ("fp32",))
    )
    assert (lost.y == 0).all()
    assert np.abs(cured.y - wide.y).max() < 5e-3
    assert [int(seen.overflowed) for seen in (lost, cured, wide)] == [6, 0, 0]


def test_an_underflow_explodes_and_is_counted():
    x = rows * 0.1
    gone = normalize(x, "fp16", 1e5)
    assert np.abs(gone.y).max() > 5 * np.abs(normalize(x, "fp32").y).max()
    assert int(gone.zero) == 6
    middling = normalize(rows, "fp16", 2.0**9)
    assert (int(middling.subnormal), int(middling.zero)) == (0, 0)
    low = normalize(rows, "fp16", 2.0**11)
    assert (int(low.subnormal), int(low.zero), int(low.rows)) == (6, 0, 6)


def test_rows_of_zeros_and_constant_rows_are_no_underflow():
    ones = np.ones((3, 64))
    assert int(normalize(0 * ones, "fp16").zero) == 0
    assert int(normalize(ones, "fp16", center=True).zero) == 0
    assert int(normalize(1e-6 * ones, "fp16").zero) == 3
    assert int(normalize(0.1 * ones, "fp16", center=True).zero) == 0  # its mean rounds


def test_a_row_that_the_input_loses_is_an_underflow():
    lost = normalize(np.full((1, 64), 2.0**-11), "fp8_e4m3.input")
    assert not np.any(lost.y)
    assert int(lost.zero) == 1


def test_an_unknown_form_of_epsilon_is_refused():
    with pytest.raises(ValueError, match="form of ε 'add'. Did you mean 'added'"):
        normalize(rows, "fp32", form="add")


def test_a_lost_mean_counts_as_an_overflow():
    assert int(normalize(np.full((2, 64), 3000.0), "fp16", center=True).overflowed) == 2


def test_saturated_and_nan_sums_count_as_overflows():
    x = rows * 300
    assert int(normalize(x, "fp16.saturate").overflowed) == 6
    lost = normalize(x, "fp8_e4m3")
    assert int(lost.overflowed) == 6
    assert np.isnan(lost.y).all()
    assert np.isfinite(normalize(x, "fp8_e4m3.saturate").y).all()


@pytest.mark.parametrize(
    ("text", "level"),
    [("fp16.saturate", 1031.0), ("fp16.saturate:lanes8.onepass", 40.0)],
    ids=["the sum", "the sum of squares"],
)
def test_what_a_saturated_sum_became_does_not_hide_it(text, level):
    """Of elements near 1031 the sum stands at 65504, of those near 40 that of squares does."""
    for x, scale, lost in ((rows + level, 1, 6), (rows, 1, 0), (rows + level, 100, 0)):
        assert int(normalize(x, text, scale, center=True).overflowed) == lost


def test_a_saturated_sum_counts_for_sizes_too():
    @jax.jit
    def overflowed(x):
        acc = RangeRecorder("fp16.saturate")
        acc.deviations(x, center=True)
        return acc.counts().overflowed

    assert int(overflowed(rows + np.float32(1031))) == 6
    assert int(overflowed(rows)) == 0


def test_the_largest_values_are_of_the_unscaled_row():
    got = normalize(rows, "fp16", 100.0, names=EVERYTHING)
    np.testing.assert_allclose(got.max_abs, np.abs(rows).max())
    np.testing.assert_allclose(got.max_square, (rows.astype(float) ** 2).sum(-1).max(), rtol=1e-6)


def test_one_pass_cancels_and_two_passes_do_not():
    exact, two, one = (
        normalize(rows + 30, text, center=True).y for text in ("fp32", "bf16", "bf16.onepass")
    )
    assert np.abs(two - exact).max() < 0.2
    assert not np.abs(one - exact).max() < 0.5
    near, exact = (normalize(rows, text, center=True).y for text in ("fp32.onepass", "fp32"))
    np.testing.assert_allclose(near, exact, atol=1e-5)


def test_one_pass_is_its_formula():
    x, text = rows + 0.5, "fp16:lanes8.onepass"
    precision = Precision.parse(text)
    mean = np.float32(summed(cast(x, "fp16"), precision))[:, None] / 64
    total = np.float32(summed(squares(x, precision.format), precision))[:, None]
    variance = (total - 64 * (mean * mean)) / 64
    got = normalize(x, text, center=True).y
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(variance + EPS), rtol=2e-6)


def test_a_variance_that_cancels_to_nothing_is_counted():
    x = rows * np.float32(1e-3) + 30
    assert int(normalize(x, "bf16.onepass", center=True).zero) == 6


def test_input_rounds_the_row_and_what_becomes_of_it():
    x = rows * np.float32(1.001)
    held = normalize(x, "fp16.input").y
    assert same(held, normalize(cast(x, "fp16"), "fp16").y).all()
    assert not same(held, normalize(x, "fp16").y).all()
    z = jax.jit(lambda x: Accumulator("fp16.input", 3.0).moments(x, center=True)[0])(x)
    assert same(z, cast(z, "fp16")).all()


def test_first_takes_the_statistic_of_the_first_coordinates():
    square = np.mean(np.float64(rows[:, :16]) ** 2, axis=-1, keepdims=True)
    got = normalize(rows, "fp32", first=16, names=("max_abs",))
    np.testing.assert_allclose(got.y, rows / np.sqrt(square + EPS), rtol=1e-6)
    assert float(got.max_abs) == np.abs(rows[:, :16]).max()


def test_a_scale_for_each_row_and_for_each_head():
    own = np.abs(rows).max(-1, keepdims=True)
    got = normalize(rows, "bf16:lanes8", own).y
    for i in range(6):
        alone = normalize(rows[i : i + 1], "bf16:lanes8", own[i, 0]).y
        assert same(got[i], alone[0]).all()
    scales = np.float32([1, 10, 100, 1000])[:, None]
    heads = rows.reshape(6, 4, 16) * scales
    y, seen = normed(heads, "fp16", scales, EPS)
    assert (int(seen["rows"]), int(seen["overflowed"])) == (24, 0)
    assert int(normed(heads, "fp16", np.ones((4, 1), np.float32), EPS)[1]["overflowed"]) == 12
    for h in range(4):
        z = heads[:, h] * (1 / scales[h, 0])
        square = mean_square(z, Precision.parse("fp16"))
        want = z / np.sqrt(square + EPS / scales[h, 0] ** 2)
        np.testing.assert_allclose(y[:, h], want, rtol=3e-7)


def test_a_scale_is_an_argument_and_a_precision_is_static():
    before = normed._cache_size()
    for s in (1.0, 2.0, 3.0):
        normalize(rows, Precision.parse("fp16"), s)
    assert normed._cache_size() <= before + 1


def test_observed_leaves_a_scan_and_adds_up():
    x = np.stack([rows, rows * 300, rows * np.float32(1e-6)])

    def step(total, part):
        return total + RangeCounts(**normed(part, "fp16", 1.0, EPS, names=EVERYTHING)[1]), None

    total = jax.device_get(lax.scan(step, RangeCounts.nothing(), x)[0])
    alone = [normalize(part, "fp16", names=EVERYTHING) for part in x]
    for name in EVERYTHING:
        found = [getattr(seen, name) for seen in alone]
        want = np.max(found) if name.startswith("max") else np.sum(found, axis=0)
        assert np.array_equal(getattr(total, name), want) or name == "error", name
    np.testing.assert_allclose(total.error, sum(seen.error for seen in alone), rtol=1e-5)
    assert [int(n) for n in (total.rows, total.overflowed, total.zero)] == [18, 6, 6]


def test_two_norms_on_one_accumulator_are_both_seen():
    @jax.jit
    def seen(x):
        acc = RangeRecorder("fp16")
        acc.normalize(x, EPS)
        acc.normalize(x * 300, EPS)
        counts = acc.counts()
        return counts.rows, counts.overflowed

    assert [int(n) for n in seen(rows)] == [12, 6]


@pytest.mark.parametrize("text", ["fp16", "fp16.mean", "fp32"])
def test_sums_keep_the_last_axis(text):
    def sums(x):
        acc = Accumulator(text)
        return acc.sum_of_squares(x), acc.sum(x), acc.mean(x)

    square, total, mean = jax.jit(sums)(rows)
    assert square.shape == total.shape == mean.shape == (6, 1)
    np.testing.assert_allclose(square[:, 0], (rows**2).sum(-1), rtol=3e-3)
    np.testing.assert_allclose(total, mean * 64, rtol=1e-6)


def test_it_trains():
    def slopes(text):
        total = lambda x: jnp.sum(Accumulator(text).normalize(x, EPS, center=True) ** 3)  # noqa: E731
        return np.asarray(jax.jit(jax.grad(total))(rows))

    found, exact = slopes("fp16:lanes8"), slopes("fp32")
    assert np.abs(found - exact).max() < 2e-2 * np.abs(exact).max()
    assert np.abs(found).max() > 0


# --- bit for bit: jit, no jit, vmap, scan

EACH_ORDER = ("sequential", "pairwise", "lanes8", "blocks16", "exact_then_round")
EACH_OPTION = ("", ".onepass", ".input", ".mean", ".stochastic3", ".flush.saturate")


def differing(text, center, n=64, d=150) -> int:
    """In how many rows z, ms or y under jit, vmap and scan are not those without jit."""
    rng = np.random.default_rng(1)
    x = np.float32(rng.normal(1, 1, (n, d)))
    own = np.float32(2.0 ** rng.uniform(-2, 2, (n, 1)))

    def norm(x, s):
        acc = Accumulator(text, s)
        z, mean_square = acc.moments(x, center)
        return z, mean_square, z * acc.inverse_rms(mean_square, EPS)

    def scanned(x):
        return lax.scan(lambda c, row: (c, norm(row, 3.0)), 0, x)[1]

    third, each = norm(jnp.asarray(x), 3.0), norm(jnp.asarray(x), jnp.asarray(own))
    pairs = [
        (third, jax.jit(lambda x: norm(x, 3.0))(x)),
        (third, jax.jit(scanned)(x)),
        (each, jax.jit(norm)(x, own)),
        (each, jax.jit(jax.vmap(norm))(x, own)),
    ]
    return sum(int((~same(a, b)).sum()) for pair in pairs for a, b in zip(*pair, strict=True))


@pytest.mark.system
@pytest.mark.parametrize(
    "text", ["fp16.stochastic3:sequential", "fp32.onepass.mean:sequential", "fp16:pairwise"]
)
def test_the_same_bits_with_and_without_jit(text):
    assert differing(text, True) == 0


@pytest.mark.extended
@pytest.mark.parametrize("option", EACH_OPTION)
@pytest.mark.parametrize("order", EACH_ORDER)
def test_the_same_bits_in_every_order_and_option(order, option):
    name = "fp32" if option == ".onepass" else "fp16"
    assert differing(f"{name}{option}:{order}", True) == 0


QUICK = [(".saturate.input", "lanes8"), (".flush.mean", "sequential")]


@pytest.mark.parametrize(
    ("options", "order"),
    [
        pytest.param(option, order, marks=[] if (option, order) in QUICK else pytest.mark.system)
        for option in (".saturate.input", ".flush.mean")
        for order in EACH_ORDER
    ],
)
def test_options_in_every_order_are_the_arithmetic(order, options):
    """Against the reference's loops: saturation, flushing, rounded rows and means."""
    precision = Precision.parse(f"fp16{options}:{order}")
    x = rows * np.float32(2.0) ** np.random.default_rng(4).integers(-12, 7, (6, 1))
    want = mean_square(reference.rounded(x, precision.format) if precision.input else x, precision)
    assert same(jax.jit(lambda x: Accumulator(precision).moments(x)[1])(x), want).all()


# --- Σz, whose underflow is not counted


def test_an_underflow_of_the_mean_costs_no_row_whose_squares_are_in_range():
    """What it moves a row by is below one rounding of FP16, and where it is more, it is counted."""
    d, n = 64, 4000
    rng = np.random.default_rng(2)
    spread = rng.normal(size=(n, d))
    spread -= spread.mean(-1, keepdims=True) + rng.normal(size=(n, 1)) / 4096
    x = np.float32(spread * 2.0 ** rng.uniform(-22, -6, (n, 1)))

    @jax.jit
    def sums(x):
        return accumulate(x, "fp16:exact_then_round"), *Accumulator(
            "fp16:exact_then_round"
        ).moments(x, True)

    added, centred, ms = (np.asarray(part) for part in sums(x))
    z = np.float64(x)
    shift = np.abs(np.float64(centred) - (z - z.mean(-1, keepdims=True))).max(-1)
    low = np.abs(added) < 2.0**-14
    counted = ms[:, 0] * d < 2.0**-14
    assert (low & ~counted).sum() > 100
    root = np.sqrt(z.var(-1))
    assert (shift / root)[low & ~counted].max() < 2.0**-11
    assert (shift / root)[low & counted].max() > 2.0**-11


@pytest.mark.parametrize("eps", [0.0, 1e-30])
def test_a_tiny_rows_scale_leaves_no_nan_beside_the_mean(eps):
    """1/s² is beyond float32 where ε/s² is not."""
    x = np.float32(np.random.default_rng(0).normal(size=(4, 64)) * 1e-20)
    scale = np.abs(x).max(-1, keepdims=True)
    y = normalize(x, "fp16:pairwise", scale, eps).y
    z = np.float64(x) / scale
    wanted = z / np.sqrt((z**2).mean(-1, keepdims=True) + eps / np.float64(scale) ** 2)
    np.testing.assert_allclose(y, wanted, rtol=5e-3)
