"""Methods against a baseline, beside SciPy's own tests; Holm's correction; what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normlab.results.spread import groups
from normlab.results.versus import baselines, compared, holm
from tests.support.seeds import BASE, OTHER, runs


def against(*rows):
    found = groups([r for part in rows for r in part])
    return compared(found, baselines(found, "rmsnorm-pre"))


def test_matching_seeds_are_paired():
    _, v = against(runs("rmsnorm", BASE, range(4)), runs("dyt", OTHER, [3, 2, 1, 0]))
    x, y = np.log(BASE), np.log(OTHER)[::-1]
    wanted = stats.ttest_rel(y, x)
    low, high = wanted.confidence_interval()
    assert (v.p, v.corrected, v.seeds) == (pytest.approx(wanted.pvalue), v.p, 4)
    means = math.expm1(y.mean() - x.mean()), math.expm1(low), math.expm1(high)
    assert (v.share, v.low, v.high) == pytest.approx(means)


def test_a_norm_is_the_baseline_of_each_placement():
    four = range(4)
    pre = [*runs("rmsnorm", BASE, four), *runs("dyt", OTHER, four)]
    peri = [
        runs("rmsnorm", OTHER, four, placement="peri"),
        runs("dyt", BASE, four, placement="peri"),
    ]
    found = groups([*pre, *peri[0], *peri[1]])
    first, above, second, below = compared(found, baselines(found, "rmsnorm"))
    assert first is second is None
    assert (1 + above.share) * (1 + below.share) == pytest.approx(1)
    assert above.p == below.p == pytest.approx(above.corrected / 2)
    others = compared(found, baselines(found, "rmsnorm-pre"))
    assert [v is None for v in others] == [True, False, False, False]


def test_others_are_compared_by_welch():
    _, v = against(runs("rmsnorm", BASE, range(4)), runs("dyt", OTHER[:3], [7, 8, 9]))
    wanted = stats.ttest_ind(np.log(OTHER[:3]), np.log(BASE), equal_var=False)
    low, high = wanted.confidence_interval()
    assert (v.p, v.seeds) == (pytest.approx(wanted.pvalue), 0)
    assert (v.low, v.high) == pytest.approx((math.expm1(low), math.expm1(high)))


def test_the_visible_difference_is_found_in_four_of_five_repetitions():
    rng, spread, found = np.random.default_rng(0), 0.02, 0
    visible = []
    for _ in range(60):
        noise = rng.normal(0, spread, 6)
        _, v = against(
            runs("rmsnorm", [100.0] * 6, range(6)),
            runs("dyt", 100 * np.exp(noise - noise.mean()), range(6)),
        )
        visible.append(math.log1p(v.visible))
    shift = float(np.mean(visible))
    for _ in range(400):
        found += stats.ttest_1samp(rng.normal(shift, spread, 6), 0).pvalue < 0.05
    assert 0.72 < found / 400 < 0.92


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(ps):
    made = holm(ps)
    for p, q in zip(ps, made, strict=True):
        assert p <= q <= min(1.0, p * len(ps)) or q == pytest.approx(max(made))
    order = np.argsort(ps, kind="stable")
    assert (np.diff(np.array(made)[order]) >= 0).all()


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("rmsnorm-pr", "compare_to 'rmsnorm-pr'. Did you mean 'rmsnorm-pre'"),
        (
            "dyt-pre",
            "compare_to = dyt-pre: 1 of the seeds of dyt-pre have a perplexity: expected two",
        ),
    ],
)
def test_a_baseline_that_is_none_is_refused(asked, says):
    found = groups([*runs("rmsnorm", BASE, range(4)), *runs("dyt", OTHER[:1], [0])])
    with pytest.raises(ValueError, match=says):
        baselines(found, asked)
