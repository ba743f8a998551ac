"""A grid of rates that grows at the edge of the best one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.training.tuning import MOST, Tuned, grown


@given(st.floats(-3.5, -0.5), st.floats(-3.5, -0.5), st.integers(2, 4))
def test_of_a_valley_the_best_rate_lies_inside_or_the_grid_has_grown_to_its_end(lowest, start, n):
    tried = []

    def loss(rate):
        tried.append(rate)
        return (math.log10(rate) - lowest) ** 2

    grid = [10**start * 2**i for i in range(n)]
    found = Tuned("m", grown(loss, grid))
    assert sorted(tried) == sorted(found.losses)
    assert len(tried) == len(set(tried))
    assert set(grid) <= set(tried)
    assert found.inside or len(tried) == n + MOST
    if found.inside:  # and then no rate of a grid without an end would be better
        steps = [10**start * 2**i for i in range(-40, 60)]
        assert found.losses[found.best] == pytest.approx(min(map(loss, steps)), rel=0.2, abs=2e-3)


def test_it_grows_past_the_edge_by_the_ratio_there():
    found = grown(lambda rate: -rate, [1e-3, 3e-3])
    assert list(found) == [1e-3, 3e-3, 9e-3, 0.027, 0.081, 0.243]
    assert list(grown(lambda rate: rate, [1e-3, 3e-3]))[2:4] == [pytest.approx(3.33e-4), 1.11e-4]


def test_a_rate_that_diverges_is_never_the_best_and_nothing_grows_where_all_do():
    found = Tuned(
        "m", grown(lambda rate: math.inf if rate > 2e-3 else 1 / rate, [1e-3, 2e-3, 4e-3])
    )
    assert (found.best, found.inside) == (2e-3, True)
    lost = Tuned("m", grown(lambda rate: math.inf, [1e-3, 2e-3]))
    assert (lost.best, lost.inside, len(lost.losses)) == (None, False, 2)


@pytest.mark.parametrize("rates", [[], [1e-3], [1e-3, 1e-3], [0.0, 1e-3]])
def test_a_grid_without_a_direction_is_refused(rates):
    with pytest.raises(ValueError, match=r"expected two rates or more, all > 0"):
        grown(float, rates)
