"""Precision strings."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.model import Context
from normlab.numerics import (
    Accumulator,
    FloatFormat,
    Order,
    Precision,
    accumulate,
    sum_of_squares,
)

CANONICAL = [
    "fp32",
    "fp16",
    "fp16:sequential",
    "fp16:lanes8",
    "bf16:pairwise",
    "fp8_e5m2",
    "fp16.input",
    "fp32.onepass",
    "fp16.saturate.mean",
    "e5m7.flush.stochastic3:blocks4.onepass.mean",
    "fp16.flush.saturate:lanes8.onepass.input",
]


@pytest.mark.parametrize("text", CANONICAL)
def test_what_is_parsed_is_printed(text):
    assert str(Precision.parse(text)) == text


def test_fields():
    precision = Precision.parse("fp16.flush:lanes8.onepass.input")
    assert precision.format == FloatFormat.parse("fp16.flush")
    assert precision.order == Order("lanes", 8)
    assert (precision.onepass, precision.input, precision.mean) == (True, True, False)
    assert Precision.parse(precision) is precision


def test_an_order_that_is_not_written_is_pairwise_and_not_printed():
    precision = Precision.parse("fp16")
    assert precision.order is None
    assert str(precision.summation) == "pairwise"
    assert Precision.parse("fp16:pairwise").summation == precision.summation


def test_options_may_come_in_any_order_and_place():
    assert str(Precision.parse("fp16.mean.saturate.flush.onepass")) == (
        "fp16.flush.saturate.onepass.mean"
    )
    assert str(Precision.parse("fp16.mean:lanes4.input")) == "fp16:lanes4.input.mean"


def test_only_fp32_with_no_order_is_plain():
    assert Precision().plain
    assert not Precision.parse("fp32:pairwise").plain
    assert not Precision.parse("fp32.flush").plain
    assert not Precision.parse("fp16").plain


def test_it_can_be_a_key_and_a_static_argument():
    assert len({Precision.parse(text) for text in CANONICAL * 2}) == len(CANONICAL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Precision().mean = True


formats = st.builds(
    FloatFormat.parse,
    st.builds(
        ".".join,
        st.tuples(
            st.sampled_from(["fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "e3m9"])
        ).flatmap(
            lambda name: st.lists(
                st.sampled_from(["flush", "saturate", *["stochastic12"] * (name != ("fp32",))]),
                unique=True,
            ).map(lambda options: [*name, *options])
        ),
    ),
)
orders = st.none() | st.sampled_from(
    [Order("sequential"), Order("pairwise"), Order("lanes", 8), Order("blocks", 16)]
)


@given(
    formats,
    orders,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_any_precision_round_trips(to, order, onepass, held, mean):
    precision = Precision(to, order, onepass, held, mean)
    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fp17", "unknown float format 'fp17'. Did you mean 'fp16'"),
        ("", "unknown float format ''"),
        ("fp16:", "unknown order of summation ''"),
        ("fp16:pairwyse", "Did you mean 'pairwise'"),
        ("fp16:lanes", r"expected lanesK"),
        ("fp16:lanes8.flush", "an option of the format: write fp16.flush:"),
        ("fp16:lanes8.flsh", "unknown option of the order 'flsh'"),
        ("fp32.stochastic1:sequential", "expected fewer mantissa bits than float32's 23"),
        ("e5m23.stochastic1", "expected fewer mantissa bits than float32's 23"),
        ("fp16.onepas", "Did you mean 'onepass'"),
        ("fp16:pairwise.onepas", "Did you mean 'onepass'"),
        ("fp16+slanc", r"expected 'fp16', and scales=.*scales\(model, 'slanc'\)"),
    ],
)
def test_a_bad_string_names_itself_its_part_and_the_nearest(text, says):
    with pytest.raises(ValueError, match=says) as caught:
        Precision.parse(text)
    assert str(caught.value).startswith(f"precision {text!r}: ")


def test_a_rule_is_refused_wherever_a_precision_is_given():
    """Dropped without a word, it would make plain FP16 of what is said to be scaled."""
    x, ruled = np.full((2, 8), 256.0, np.float32), "fp16:pairwise+slanc"
    refused = (
        lambda: Context(ruled, {}),
        lambda: Accumulator(ruled, 64.0),
        lambda: sum_of_squares(x, ruled),
        lambda: accumulate(x, ruled),
    )
    for call in refused:
        with pytest.raises(ValueError, match=r"scales\(model, 'slanc'\)"):
            call()
    scaled = jax.jit(lambda x: Accumulator("fp16:pairwise", 64.0).normalize(x, 0.0))(x)
    assert np.array_equal(scaled, np.ones((2, 8)))


def test_what_is_no_string_is_refused():
    with pytest.raises(TypeError, match="precision 16: expected a string, such as 'fp16:"):
        Precision.parse(16)
    with pytest.raises(ValueError, match="precision ''"):
        Context("")
