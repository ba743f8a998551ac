"""Sums over the last axis in a precision: options, derivatives, and PyTorch's halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab.numerics import FloatFormat, Precision, accumulate, round_to, sum_of_squares
from tests.support.numerics_reference import cast, extreme_rows, rounded, same, squares, summed

x = np.random.default_rng(0).normal(size=(6, 100)).astype(np.float32)


def test_plain_fp32_is_jnp_sum():
    assert str(jax.make_jaxpr(lambda v: sum_of_squares(v, "fp32"))(x)) == str(
        jax.make_jaxpr(lambda v: jnp.sum(v * v, axis=-1))(x)
    )
    assert same(accumulate(x, "fp32"), jnp.sum(x, axis=-1)).all()


def test_a_string_and_its_precision_are_the_same():
    text = "fp16:lanes(8)"
    assert same(sum_of_squares(x, text), sum_of_squares(x, Precision.parse(text))).all()


def test_other_dtypes_are_taken_to_float32():
    assert sum_of_squares(jnp.asarray(x[:, :2], jnp.bfloat16), "fp16").dtype == jnp.float32
    assert accumulate(np.arange(2), "fp16").dtype == jnp.float32


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
@pytest.mark.parametrize("text", ["fp32", "fp16", "fp16:blocks(4)"])
def test_what_has_no_row_is_refused(shape, text):
    for total in (accumulate, sum_of_squares):
        with pytest.raises(ValueError, match=r"expected rows \[\*batch, d\], d ≥ 1"):
            total(np.zeros(shape, np.float32), text)


@pytest.mark.parametrize("text", ["fp16.mean", "fp16:sequential.mean", "bf16:lanes(8).mean"])
def test_a_mean_divides_before_it_adds(text):
    precision = Precision.parse(text)
    to = precision.format
    terms = rounded(np.float32(squares(x, to)) * np.float32(1 / 100), to)
    assert same(sum_of_squares(x, text), summed(terms, precision)).all()
    terms = rounded(cast(x, to.name) * np.float32(1 / 100), to)
    assert same(accumulate(x, text), summed(terms, precision)).all()


def test_a_mean_stays_in_range_where_the_sum_does_not():
    big = np.full((1, 8), 200.0, np.float32)
    assert np.isinf(sum_of_squares(big, "fp16")).all()
    assert same(sum_of_squares(big, "fp16.mean"), [40000.0]).all()


@pytest.mark.parametrize(
    "text",
    [
        "fp16",
        "bf16:sequential",
        *(
            pytest.param(text, marks=pytest.mark.system)
            for text in ("fp8_e4m3:lanes(8)", "fp16.stochastic(1)", "e5m9.mean")
        ),
    ],
)
def test_what_is_held_already_is_not_rounded_again(text):
    rows = extreme_rows(0, 64, 4)
    held = round_to(rows, Precision.parse(text).format)
    assert same(accumulate(held, text, held=True), accumulate(held, text)).all()
    if text == "fp16":
        assert not same(accumulate(rows, text, held=True), accumulate(rows, text)).all()


def test_addends_are_rounded_before_they_are_added():
    fine = np.float32([1 + 2.0**-12, 2.0**-12])
    assert float(accumulate(fine, "fp16")) == 1.0
    assert float(round_to(fine.sum(), "fp16")) == 1.0


@pytest.mark.parametrize("text", ["fp16", "fp16:sequential", "bf16:blocks(4)", "fp16:rounded.mean"])
def test_the_derivative_is_that_of_the_float32_sum(text):
    share = 1 / x.shape[-1] if Precision.parse(text).mean else 1.0
    gradient = jax.grad(lambda v: jnp.sum(sum_of_squares(v, text)))(x)
    np.testing.assert_allclose(gradient, 2 * x * share, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(accumulate(v, text))))(x)
    np.testing.assert_allclose(gradient, np.full_like(x, share), rtol=1e-6)


def test_a_precision_is_a_static_argument():
    call = jax.jit(lambda x, precision: sum_of_squares(x, precision), static_argnums=1)
    call(x, Precision.parse("fp16:lanes(8)"))
    call(x, Precision.parse("fp16:lanes(8)"))
    assert call._cache_size() == 1


@pytest.mark.parametrize("d", [5, 576, 4096])
def test_rounded_is_what_a_half_reduction_in_pytorch_does(d):
    """A CPU sum in PyTorch is wide and rounded once; its wide order moves a tie now and then."""
    torch = pytest.importorskip("torch")
    rows = extreme_rows(11, d, 1.0, 256)
    halves = torch.from_numpy(np.float16(rows))
    theirs = torch.sum(halves, dim=-1).float().numpy()
    ours = np.asarray(accumulate(rows, "fp16:rounded"))
    finite = np.isfinite(theirs)
    assert same(ours, theirs)[finite].mean() > 0.99
    assert (np.isinf(ours) == np.isinf(theirs)).mean() > 0.99
    q = (halves * halves).sum(-1).float().numpy()
    held = np.float32(np.float16(rows))
    assert same(sum_of_squares(held, "fp16:rounded"), q).mean() > 0.99
    left_to_right = np.asarray(sum_of_squares(held, "fp16:sequential"))
    assert d == 5 or same(left_to_right, q).mean() < 0.9


def test_bf16_keeps_nothing_below_float32s_smallest_normal():
    """It rounds such values exactly, and adds none of them: XLA's CPU would take them for zero."""
    tiny = np.float32([2.0**-130, 2.0**-130])
    assert same(round_to(tiny, "bf16"), tiny).all()
    assert float(accumulate(tiny, "bf16")) == 0.0
    assert FloatFormat.parse("bf16").subnormals == "ieee"


@pytest.mark.parametrize("text", ["fp32:rounded", "fp32:blocks(2)", "e5m23:rounded"])
def test_an_exact_sum_overflows_to_infinity(text):
    rows = np.float32([[2e38, 2e38], [-2e38, -2e38], [np.inf, 1], [1, -np.inf]])
    with np.errstate(over="ignore"):
        expected = rows.sum(axis=-1)
    np.testing.assert_array_equal(accumulate(rows, text), expected)
    top = np.finfo(np.float32).max
    saturated = accumulate(rows[:2], text.replace(":", ".saturate:"))
    bound = top if text.startswith("fp32") else 65536 - 2.0**-8
    np.testing.assert_array_equal(saturated, [bound, -bound])
