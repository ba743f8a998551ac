"""What norms make of an accumulator, and what it sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from normlab.numerics import Accumulator, Observed, Precision, accumulate, sum_of_squares
from tests.support import numerics_reference as reference
from tests.support.numerics_reference import cast, same, squares, summed

EPS = 1e-5
rows = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
PRECISIONS = ["fp32", "fp16", "fp16:sequential", "bf16:lanes(8)", "fp16:blocks(16).mean"]


def normalized(x, precision, scale=1.0, **more):
    return Accumulator(precision, scale).normalize(x, EPS, **more)


@functools.partial(jax.jit, static_argnames=("precision", "center", "first"))
def rms(x, precision, scale=1.0, **more):
    return normalized(x, precision, scale, **more)


@functools.partial(jax.jit, static_argnames=("precision", "center", "first"))
def seen(x, precision, scale=1.0, **more) -> Observed:
    acc = Accumulator(precision, scale, observe=True)
    acc.normalize(jnp.asarray(x), EPS, **more)
    return acc.observed


def test_fp32_is_the_plain_norm():
    def plain(x):
        return x * lax.rsqrt(jnp.sum(x * x, axis=-1)[..., None] / 64 + EPS)

    assert same(jax.jit(lambda x: normalized(x, "fp32"))(rows), jax.jit(plain)(rows)).all()
    text = str(jax.make_jaxpr(lambda x: normalized(x, "fp32"))(rows))
    assert "custom" not in text
    assert "reduce_max" not in text  # nothing is observed unless asked for


@pytest.mark.parametrize("text", PRECISIONS)
def test_rms_norm_is_the_arithmetic_of_the_design(text):
    precision = Precision.parse(text)
    s = np.float32(3.0)
    z = rows * (1 / s)
    total = np.asarray(sum_of_squares(z, precision))[:, None]
    mean_square = total / np.float32(1 if precision.mean else 64)
    want = z / np.sqrt(mean_square + EPS / s**2)
    np.testing.assert_allclose(rms(rows, text, s), want, rtol=3e-7)


@pytest.mark.parametrize("text", PRECISIONS)
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
    variance = np.asarray(sum_of_squares(centred, precision))[:, None] / np.float32(d)
    want = centred / np.sqrt(variance + EPS)
    tolerance = 3e-6 if to == "fp32" else 3e-7  # XLA's own order of the plain sum
    np.testing.assert_allclose(rms(x, text, center=True), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("text", ["fp32", "fp16", "fp16:sequential", "bf16:lanes(8)"])
@pytest.mark.parametrize("center", [False, True])
def test_scaling_by_a_power_of_two_changes_nothing_in_range(text, center):
    """The reason why ε is divided by s²: the same bits, whatever the scale."""
    alone = rms(rows, text, center=center)
    for s in (0.25, 2.0, 8.0):
        assert same(rms(rows, text, s, center=center), alone).all()


def test_an_overflow_gives_zero_and_a_scale_cures_it():
    x = rows * 300
    assert (np.asarray(rms(x, "fp16")) == 0).all()
    assert np.abs(rms(x, "fp16", 300.0) - rms(x, "fp32")).max() < 5e-3
    assert int(seen(x, "fp16").overflowed) == 6
    assert int(seen(x, "fp16", 300.0).overflowed) == 0
    assert int(seen(x, "fp32").overflowed) == 0


def test_an_underflow_explodes_and_is_counted():
    x = rows * 0.1
    y = np.asarray(rms(x, "fp16", 1e5))
    assert np.abs(y).max() > 5 * np.abs(np.asarray(rms(x, "fp32"))).max()
    assert int(seen(x, "fp16", 1e5).zero) == 6
    middling = seen(rows, "fp16", 2.0**9)
    assert (int(middling.subnormal), int(middling.zero)) == (0, 0)
    low = seen(rows, "fp16", 2.0**11)
    assert (int(low.subnormal), int(low.zero), int(low.rows)) == (6, 0, 6)


def test_rows_of_zeros_and_constant_rows_are_no_underflow():
    assert int(seen(np.zeros((3, 8)), "fp16").zero) == 0
    assert int(seen(np.ones((3, 8)), "fp16", center=True).zero) == 0
    assert int(seen(np.full((3, 8), 1e-6), "fp16").zero) == 3


def test_a_row_that_the_input_loses_is_an_underflow():
    x = np.full((1, 8192), 2.0**-11, np.float32)
    assert not np.any(rms(x, "fp8_e4m3.input"))
    assert int(seen(x, "fp8_e4m3.input").zero) == 1
    even = np.full((1, 512), 0.1, np.float32)
    assert int(seen(even, "fp16", center=True).zero) == 0  # the mean rounds, the row is one


def test_an_unknown_form_of_epsilon_is_refused():
    with pytest.raises(ValueError, match="form of ε 'add'. Did you mean 'added'"):
        Accumulator().normalize(jnp.ones((1, 4)), 1e-5, form="add")


def test_a_lost_mean_counts_as_an_overflow():
    x = np.full((2, 64), 3000.0, np.float32)
    assert int(seen(x, "fp16", center=True).overflowed) == 2


def test_saturated_and_nan_sums_count_as_overflows():
    x = rows * 300
    assert int(seen(x, "fp16.saturate").overflowed) == 6
    assert int(seen(x, "fp8_e4m3").overflowed) == 6
    assert np.isnan(rms(x, "fp8_e4m3")).all()
    assert np.isfinite(rms(x, "fp8_e4m3.saturate")).all()


@pytest.mark.parametrize(
    ("text", "level"),
    [("fp16.saturate", 9.0), ("fp16.saturate:lanes(8).onepass", 4.0)],
    ids=["the sum", "the sum of squares"],
)
def test_what_a_saturated_sum_became_does_not_hide_it(text, level):
    """Of 8192 elements near 9 the sum stands at 65504, of those near 4 that of squares does."""
    x = level + np.random.default_rng(1).normal(size=(3, 8192)).astype(np.float32)
    assert int(seen(x, text, center=True).overflowed) == 3
    assert int(seen(x - level, text, center=True).overflowed) == 0
    assert int(seen(x, text, 100.0, center=True).overflowed) == 0


def test_a_saturated_sum_counts_for_sizes_too():
    x = 9 + np.random.default_rng(1).normal(size=(3, 8192)).astype(np.float32)

    @jax.jit
    def overflowed(x):
        acc = Accumulator("fp16.saturate", observe=True)
        acc.deviations(x, center=True)
        return acc.observed.overflowed

    assert int(overflowed(x)) == 3


def test_the_largest_values_are_of_the_unscaled_row():
    got = seen(rows, "fp16", 100.0)
    np.testing.assert_allclose(got.max_abs, np.abs(rows).max())
    np.testing.assert_allclose(got.max_square, (rows.astype(float) ** 2).sum(-1).max(), rtol=1e-6)


def test_one_pass_cancels_and_two_passes_do_not():
    x = rows + 30
    exact = np.asarray(rms(x, "fp32", center=True))
    two, one = (np.asarray(rms(x, f"bf16{way}", center=True)) for way in ("", ".onepass"))
    assert np.abs(two - exact).max() < 0.2
    assert not np.abs(one - exact).max() < 0.5
    near = np.asarray(rms(rows, "fp32.onepass", center=True))
    np.testing.assert_allclose(near, rms(rows, "fp32", center=True), atol=1e-5)


def test_one_pass_is_its_formula():
    x, text = rows + 0.5, "fp16:lanes(8).onepass"
    precision = Precision.parse(text)
    mean = np.float32(summed(cast(x, "fp16"), precision))[:, None] / 64
    total = np.float32(summed(squares(x, precision.format), precision))[:, None]
    variance = (total - 64 * (mean * mean)) / 64
    np.testing.assert_allclose(
        rms(x, text, center=True), (x - mean) / np.sqrt(variance + EPS), rtol=2e-6
    )


def test_a_variance_that_cancels_to_nothing_is_counted():
    x = rows * np.float32(1e-3) + 30
    assert int(seen(x, "bf16.onepass", center=True).zero) == 6


def test_input_rounds_the_row_and_what_becomes_of_it():
    x = rows * 1.001
    assert same(rms(x, "fp16.input"), rms(cast(x, "fp16"), "fp16")).all()
    assert not same(rms(x, "fp16.input"), rms(x, "fp16")).all()
    z, _ = Accumulator("fp16.input", 3.0).moments(x, center=True)
    assert same(z, cast(z, "fp16")).all()


def test_first_takes_the_statistic_of_the_first_coordinates():
    want = rows * lax.rsqrt(jnp.mean(rows[:, :16] ** 2, axis=-1, keepdims=True) + EPS)
    np.testing.assert_allclose(rms(rows, "fp32", first=16), want, rtol=1e-6)
    assert float(seen(rows, "fp32", first=16).max_abs) == np.abs(rows[:, :16]).max()


def test_a_scale_for_each_row_and_for_each_head():
    own = np.abs(rows).max(-1, keepdims=True)
    got = rms(rows, "fp16:lanes(8)", own)
    for i in range(6):
        assert same(got[i], rms(rows[i], "fp16:lanes(8)", own[i, 0])).all()
    heads = rows.reshape(6, 4, 16) * np.float32([1, 10, 100, 1000])[:, None]
    scales = np.float32([1, 10, 100, 1000])[:, None]
    observed = seen(heads, "fp16", scales)
    assert (int(observed.rows), int(observed.overflowed)) == (24, 0)
    assert int(seen(heads, "fp16").overflowed) == 12
    for h in range(4):
        want = rms(heads[:, h], "fp16", scales[h, 0])
        assert same(rms(heads, "fp16", scales)[:, h], want).all()


def test_a_scale_is_an_argument_and_a_precision_is_static():
    norm = jax.jit(normalized, static_argnums=1)
    for s in (1.0, 2.0, 3.0):
        norm(rows, Precision.parse("fp16"), jnp.float32(s))
    assert norm._cache_size() == 1
    alone = normalized(rows, "fp16", 3.0)  # the scale a Python number, and no jit
    np.testing.assert_allclose(norm(rows, Precision.parse("fp16"), 3.0), alone, rtol=3e-7)


def test_observed_leaves_a_scan_and_adds_up():
    x = np.stack([rows, rows * 300, rows * 1e-6])

    def step(total, part):
        return total + seen(part, "fp16"), None

    total = lax.scan(step, Observed.nothing(), jnp.asarray(x))[0]
    alone = seen(rows, "fp16") + seen(rows * 300, "fp16") + seen(rows * 1e-6, "fp16")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), total, alone))
    assert [int(n) for n in (total.rows, total.overflowed, total.zero)] == [18, 6, 6]


def test_two_norms_on_one_accumulator_are_both_seen():
    acc = Accumulator("fp16", observe=True)
    acc.normalize(rows, EPS)
    acc.normalize(rows * 300, EPS)
    assert (int(acc.observed.rows), int(acc.observed.overflowed)) == (12, 6)
    assert Accumulator("fp16").observed is None


@pytest.mark.parametrize("text", ["fp16", "fp16.mean", "fp32"])
def test_sums_keep_the_last_axis(text):
    acc = Accumulator(text)
    assert acc.sum(rows).shape == acc.mean(rows).shape == (6, 1)
    np.testing.assert_allclose(acc.sum_of_squares(rows)[:, 0], (rows**2).sum(-1), rtol=3e-3)
    np.testing.assert_allclose(acc.sum(rows), acc.mean(rows) * 64, rtol=1e-6)


@pytest.mark.parametrize("text", ["fp32", "fp16:lanes(8)"])
def test_it_trains(text):
    gradient = jax.grad(lambda x: jnp.sum(rms(x, text, center=True) ** 3))(rows)
    exact = jax.grad(lambda x: jnp.sum(rms(x, "fp32", center=True) ** 3))(rows)
    assert np.abs(gradient - exact).max() < 2e-2 * np.abs(exact).max()
    assert np.abs(gradient).max() > 0


# --- bit for bit: jit, no jit, vmap, scan

EACH_ORDER = ("sequential", "pairwise", "lanes(8)", "blocks(16)", "rounded")
EACH_OPTION = ("", ".onepass", ".input", ".mean", ".stochastic(3)", ".flush.saturate")


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


@pytest.mark.parametrize(
    ("text", "center"),
    [
        pytest.param("fp16.onepass:lanes(8)", True, marks=pytest.mark.system),
        ("fp16.stochastic(3):sequential", True),
        ("fp32.onepass.mean:sequential", True),
    ],
)
def test_the_same_bits_with_and_without_jit(text, center):
    assert differing(text, center) == 0


@pytest.mark.system
@pytest.mark.parametrize("option", EACH_OPTION)
@pytest.mark.parametrize("order", EACH_ORDER)
def test_the_same_bits_in_every_order_and_option(order, option):
    name = "fp32" if option == ".onepass" else "fp16"
    assert differing(f"{name}{option}:{order}", True) == 0


@pytest.mark.parametrize("order", EACH_ORDER)
@pytest.mark.parametrize("options", [".saturate.input", ".flush.mean"])
def test_options_in_every_order_are_the_arithmetic(order, options):
    """Against the reference's loops: saturation, flushing, rounded rows and means."""
    precision = Precision.parse(f"fp16{options}:{order}")
    x = rows * np.float32(2.0) ** np.random.default_rng(4).integers(-12, 7, (6, 1))
    to = precision.format
    want = reference.squares(reference.rounded(x, to) if precision.input else x, to)
    if precision.mean:
        want = reference.rounded(np.float32(want) * np.float32(1 / 64), to)
    total = np.float32(summed(want, precision))[:, None]
    mean_square = total * np.float32(1 if precision.mean else 1 / 64)
    assert same(jax.jit(lambda x: Accumulator(precision).moments(x)[1])(x), mean_square).all()


# --- Σz, whose underflow is not counted


def test_an_underflow_of_the_mean_costs_no_row_whose_squares_are_in_range():
    """What it moves a row by is below one rounding of FP16, and where it is more, it is counted."""
    d, n = 64, 4000
    rng = np.random.default_rng(2)
    spread = rng.normal(size=(n, d))
    spread -= spread.mean(-1, keepdims=True) + rng.normal(size=(n, 1)) / 4096
    x = np.float32(spread * 2.0 ** rng.uniform(-22, -6, (n, 1)))
    added = np.asarray(jax.jit(lambda x: accumulate(x, "fp16:rounded"))(x))
    centred, ms = jax.jit(lambda x: Accumulator("fp16:rounded").moments(x, True))(x)
    z = np.float64(x)
    shift = np.abs(np.float64(centred) - (z - z.mean(-1, keepdims=True))).max(-1)
    low = np.abs(added) < 2.0**-14
    counted = np.asarray(ms)[:, 0] * d < 2.0**-14
    assert (low & ~counted).sum() > 100
    root = np.sqrt(z.var(-1))
    assert (shift / root)[low & ~counted].max() < 2.0**-11
    assert (shift / root)[low & counted].max() > 2.0**-11
