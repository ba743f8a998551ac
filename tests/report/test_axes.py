"""Axes of the report's charts."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.report.axes import Axis, brief, decades, linear, names, octaves, power

numbers = st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-9)
positive = st.floats(1e-30, 1e30)


@given(st.lists(numbers, min_size=1, max_size=5))
def test_a_linear_axis_holds_all_values_and_has_few_round_ticks(values):
    axis = linear(values, "x")
    assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v in values)
    places = [axis.at(v) for v, _ in axis.ticks]
    assert places == sorted(places)
    assert all(-1e-6 <= p <= 1 + 1e-6 for p in places)
    assert 1 <= len(places) <= 7


@pytest.mark.parametrize("make", [decades, octaves])
@given(values=st.lists(positive, min_size=1, max_size=5))
def test_a_logarithmic_axis_holds_all_values_and_has_few_ticks(make, values):
    axis = make(values, "x")
    assert all(0 <= axis.at(v) <= 1 for v in values)
    assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v, _ in axis.ticks)
    assert 1 <= len(axis.ticks) <= 11
    base = {decades: 10, octaves: 2}[make]
    steps = {round(math.log(b / a, base)) for (a, _), (b, _) in pairwise(axis.ticks)}
    assert len(steps) <= 1
    assert base == 10 or steps <= {1, 2, 4, 8, 16, 32, 64}


def test_equal_factors_are_equal_lengths():
    axis = Axis(1.0, 16.0, "x", log=True)
    assert [axis.at(v) for v in (1, 2, 4, 16)] == pytest.approx([0, 0.25, 0.5, 1])


def test_what_is_no_number_or_not_positive_has_a_place_still():
    axis = Axis(1.0, 16.0, "x", log=True)
    assert axis.at(math.inf) == axis.at(math.nan) == 1
    assert axis.at(0.0) < 0


def test_ticks_are_written_briefly():
    assert [text for _, text in linear([0, 1], "x").ticks] == [
        "0.0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1.0",
    ]
    assert [text for _, text in linear([0, 4000], "x").ticks][:2] == ["0", "1,000"]
    assert [text for _, text in decades([1e-3, 1.0], "x").ticks] == ["1e-3", "1e-2", "0.1", "1"]
    assert [brief(v) for v in (0.5, 50, 2e5, 1e-10)] == ["0.5", "50", "2e5", "1e-10"]
    assert power(-14) == "2⁻¹⁴"
    assert names(["a", "b"], "x").ticks == [(0, "a"), (1, "b")]
