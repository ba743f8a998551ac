"""Verdicts: an interval beside the differences that count."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.evaluation.claims import verdict
from normlab.evaluation.claims.verdict import (
    FAILS,
    HOLDS,
    NOT_RUN,
    UNCLEAR,
    interval,
    judged,
)
from tests.support.claims import claim, outcome

NUMBERS = st.floats(-10, 10, allow_subnormal=False)


@given(st.sampled_from("<>="), NUMBERS, st.floats(0, 5), st.floats(1e-3, 5))
def test_it_holds_where_all_of_the_interval_counts_and_fails_where_none_does(sign, low, width, m):
    counts = (lambda d: abs(d) <= m) if sign == "=" else (lambda d: d >= m)
    parts = np.unique(np.clip([low, -m, m, low + width], low, low + width))
    inside = (parts[:-1] + parts[1:]) / 2 if len(parts) > 1 else parts
    seen = {bool(counts(d)) for d in inside}
    word = judged(sign, low, low + width, m)
    assert word == {(True,): HOLDS, (False,): FAILS}.get(tuple(seen), UNCLEAR)


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=6),
    st.floats(0.01, 3),
    st.sampled_from(["a < b", "a > b", "a = b"]),
)
def test_swapped_arms_have_the_opposite_verdict(pairs, margin, expects):
    """What holds fails for the claim of the contrary; equal arms are equal in either order."""
    own = {"expects": expects, "margin": margin, "seeds": list(range(len(pairs)))}
    there, back = claim(**own), claim(**own | {"expects": f"b {expects[2]} a"})
    values = dict(zip([("a", 1e-3), ("b", 1e-3)], zip(*pairs, strict=True), strict=True))
    first, second = (verdict(c, outcome(c, values)) for c in (there, back))
    assert first.mean == pytest.approx(-second.mean)
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low))
    if expects == "a = b":
        assert first.word == second.word
    elif first.word == HOLDS:
        assert second.word == FAILS


@given(st.lists(NUMBERS, min_size=2, max_size=20))
def test_the_interval_is_scipys(values):
    middle, low, high = interval(values)
    differ = np.ptp(values) > 1e-9 * np.abs(values).max()  # else SciPy warns that it can't tell
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95) if differ else None
    assert middle == pytest.approx(np.mean(values))
    if known is not None and math.isfinite(known.low):
        assert (low, high) == pytest.approx((known.low, known.high), abs=1e-9)


def test_each_arm_counts_at_its_own_best_rate():
    own = claim(rates=[1e-3, 2e-3])
    made = {
        ("a", 1e-3): [3.0, 3.1, 3.2], ("a", 2e-3): [2.0, 2.1, 2.2],
        ("b", 1e-3): [2.5, 2.61, 2.7], ("b", 2e-3): [2.4, 2.4, None],
    }  # fmt: skip
    found = verdict(own, outcome(own, made))
    assert {arm: tried.best for arm, tried in found.tuned.items()} == {"a": 2e-3, "b": 1e-3}
    assert found.mean == pytest.approx(np.mean([0.5, 0.51, 0.5]))
    assert (found.word, found.pairs) == (HOLDS, 3)


def test_seeds_are_paired():
    """What all arms of a seed share does not widen the interval."""
    own = claim()
    made = {("a", 1e-3): [1.0, 5.0, 9.0], ("b", 1e-3): [1.2, 5.21, 9.2]}
    assert verdict(own, outcome(own, made)).word == HOLDS


def test_an_arm_that_ended_well_at_no_rate_leaves_it_open():
    own = claim()
    made = {("a", 1e-3): [1.0, 1.0, 1.0], ("b", 1e-3): [9.0, None, 9.0]}
    found = verdict(own, outcome(own, made))
    assert (found.word, found.why) == (UNCLEAR, "not all runs of b ended well")
    assert verdict(own, None).word == NOT_RUN


@pytest.mark.parametrize(
    ("stable", "word"), [(1, FAILS), (2, UNCLEAR), (3, HOLDS)], ids=["same", "a step", "two steps"]
)
def test_a_rate_of_a_grid_is_known_to_a_step_of_it(stable, word):
    """By two steps of a factor 2 a largest stable rate differs by more than one doubling."""
    own = claim(metric="largest_stable_rate", rates=[1e-2, 2e-2], expects="b > a", margin=1.0)
    grid = [1e-2, 2e-2, 4e-2, 8e-2]
    made = {("a", rate): [float(i < 1)] * 3 for i, rate in enumerate(grid)}
    made |= {("b", rate): [float(i < stable)] * 3 for i, rate in enumerate(grid)}
    found = verdict(own, outcome(own, made))
    assert found.mean == pytest.approx(stable - 1)
    assert (found.low, found.high) == pytest.approx((stable - 2, stable))
    assert found.word == word
