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
    text = "fp16:lanes8"
    one, other = jax.jit(lambda v: [sum_of_squares(v, t) for t in (text, Precision.parse(text))])(x)
    assert same(one, other).all()


def test_other_dtypes_are_taken_to_float32():
    for given in (jnp.bfloat16, jnp.int32, jnp.float16):
        rows = jax.ShapeDtypeStruct((6, 2), given)
        for add in (accumulate, sum_of_squares):
            made = jax.eval_shape(lambda v, add=add: add(v, "fp16"), rows)
            assert (made.shape, made.dtype) == ((6,), jnp.float32)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
@pytest.mark.parametrize("text", ["fp32", "fp16", "fp16:blocks4"])
def test_what_has_no_row_is_refused(shape, text):
    for total in (accumulate, sum_of_squares):
        with pytest.raises(ValueError, match=r"expected rows \[\*batch, d\], d ≥ 1"):
            total(np.zeros(shape, np.float32), text)


both = jax.jit(lambda v, text: (accumulate(v, text), sum_of_squares(v, text)), static_argnums=1)


@pytest.mark.parametrize(
    "text",
    [
        "fp16.mean",
        "fp16:sequential.mean",
        pytest.param("bf16:lanes8.mean", marks=pytest.mark.system),
    ],
)
def test_a_mean_divides_before_it_adds(text):
    precision = Precision.parse(text)
    to, (added, squared) = precision.format, both(x, text)
    terms = rounded(np.float32(squares(x, to)) * np.float32(1 / 100), to)
    assert same(squared, summed(terms, precision)).all()
    terms = rounded(cast(x, to.name) * np.float32(1 / 100), to)
    assert same(added, summed(terms, precision)).all()


def test_a_mean_stays_in_range_where_the_sum_does_not():
    big = np.full((6, 100), 40.0, np.float32)
    assert np.isinf(both(big, "fp16")[1]).all()
    assert same(both(big, "fp16.mean")[1], np.full(6, 1600.0)).all()


@pytest.mark.parametrize(
    "text",
    [
        "fp16",
        *(
            pytest.param(text, marks=pytest.mark.system)
            for text in ("bf16:sequential", "fp8_e4m3:lanes8", "fp16.stochastic1", "e5m9.mean")
        ),
    ],
)
def test_what_is_held_already_is_not_rounded_again(text):
    rows = extreme_rows(0, 64, 4)

    @jax.jit
    def ways(rows):
        held = round_to(rows, Precision.parse(text).format)
        return [accumulate(r, text, held=h) for r, h in ((held, True), (held, False), (rows, True))]

    once, again, unrounded = ways(rows)
    assert same(once, again).all()
    if text == "fp16":
        assert not same(unrounded, again).all()


def test_addends_are_rounded_before_they_are_added():
    fine = np.zeros((6, 100), np.float32)
    fine[:, :2] = 1 + 2.0**-12, 2.0**-12
    assert same(both(fine, "fp16")[0], np.ones(6)).all()
    assert same(cast(fine.sum(-1), "fp16"), np.ones(6)).all()


@pytest.mark.parametrize(
    "text", ["fp16", "fp16:sequential", "bf16:blocks4", "fp16:exact_then_round.mean"]
)
def test_the_derivative_is_that_of_the_float32_sum(text):
    share = 1 / x.shape[-1] if Precision.parse(text).mean else 1.0

    @jax.jit
    def slopes(x):
        return [
            jax.grad(lambda v, a=a: jnp.sum(a(v, text)))(x) for a in (sum_of_squares, accumulate)
        ]

    of_square, of_sum = slopes(x)
    np.testing.assert_allclose(of_square, 2 * x * share, rtol=1e-6)
    np.testing.assert_allclose(of_sum, np.full_like(x, share), rtol=1e-6)


def test_a_precision_is_a_static_argument():
    before = both._cache_size()
    both(x, Precision.parse("fp16"))
    both(x, Precision.parse("fp16"))
    assert both._cache_size() == before + 1


@pytest.mark.extended
@pytest.mark.parametrize("d", [5, 576, 4096])
def test_rounded_is_what_a_half_reduction_in_pytorch_does(d):
    """A CPU sum in PyTorch is wide and rounded once; its wide order moves a tie now and then."""
    torch = pytest.importorskip("torch")
    rows = extreme_rows(11, d, 1.0, 256)
    halves = torch.from_numpy(np.float16(rows))
    theirs = torch.sum(halves, dim=-1).float().numpy()
    ours = np.asarray(accumulate(rows, "fp16:exact_then_round"))
    finite = np.isfinite(theirs)
    assert same(ours, theirs)[finite].mean() > 0.99
    assert (np.isinf(ours) == np.isinf(theirs)).mean() > 0.99
    q = (halves * halves).sum(-1).float().numpy()
    held = np.float32(np.float16(rows))
    assert same(sum_of_squares(held, "fp16:exact_then_round"), q).mean() > 0.99
    left_to_right = np.asarray(sum_of_squares(held, "fp16:sequential"))
    assert d == 5 or same(left_to_right, q).mean() < 0.9


def test_bf16_keeps_nothing_below_float32s_smallest_normal():
    """It rounds such values exactly, and adds none of them: XLA's CPU would take them for zero."""
    tiny = np.float32([2.0**-130, 2.0**-130])
    kept, added = jax.jit(lambda v: (round_to(v, "bf16"), accumulate(v, "bf16")))(tiny)
    assert same(kept, tiny).all()
    assert float(added) == 0.0
    assert FloatFormat.parse("bf16").subnormals == "ieee"


def test_an_exact_sum_overflows_to_infinity():
    rows = np.float32([[2e38, 2e38], [-2e38, -2e38], [np.inf, 1], [1, -np.inf]])
    texts = ("fp32:exact_then_round", "fp32:blocks2", "e5m23:exact_then_round")
    texts += tuple(text.replace(":", ".saturate:") for text in texts)
    made = jax.jit(lambda v: {text: accumulate(v, text) for text in texts})(rows)
    with np.errstate(over="ignore"):
        expected = rows.sum(axis=-1)
    for text, found in made.items():
        if "saturate" not in text:
            np.testing.assert_array_equal(found, expected)
        else:
            bound = np.finfo(np.float32).max if text.startswith("fp32") else 65536 - 2.0**-8
            np.testing.assert_array_equal(found[:2], [bound, -bound])
