"""The verdict on a claim: the interval of a paired difference beside the differences that count.

With `expects: a > b` a difference of the margin or more counts, with `a = b` one of at most it. A
claim holds where all of the interval counts, fails where none of it does; between the two the runs
are too few or too small to tell.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normlab.evaluation.claims.claim import Claim
from normlab.evaluation.claims.metrics import largest, metrics
from normlab.evaluation.claims.outcome import Outcome, Trial
from normlab.results.versus import LEVEL
from normlab.training.tuning import Tuned

HOLDS, FAILS, UNCLEAR, NOT_RUN = "holds", "fails", "too small to tell", "defined, not run"

Values = Mapping[int, float | None]
"""Of one arm, by seed or window."""


@dataclass(frozen=True)
class Verdict:
    """What is said of a claim, and the figures that it is said from.

    Args:
        word: one of the four.
        mean: of the difference, in the metric's unit; positive in the direction of the claim.
        low, high: its 95 % interval, with the grid's step where the metric is a rate of a grid.
        pairs: so many differences.
        arms: by arm the mean.
        tuned: by arm the rates that were tried.
        why: why there is no interval.
    """

    word: str
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: int = 0
    arms: Mapping[str, float] | None = None
    tuned: Mapping[str, Tuned] | None = None
    why: str = ""


def verdict(claim: Claim, outcome: Outcome | None) -> Verdict:
    """That on a claim of which there is an outcome, or none."""
    if outcome is None:
        return Verdict(NOT_RUN)
    tried = {arm: tuned(claim, outcome.trials, arm) for arm in claim.arms if claim.trains}
    values = {arm: of_arm(claim, outcome.trials, arm, tried.get(arm)) for arm in claim.arms}
    means = {arm: mean(found) for arm, found in values.items()}
    bad = [arm for arm, value in means.items() if not math.isfinite(value)]
    if bad:
        return Verdict(UNCLEAR, arms=means, tuned=tried, why=f"not all runs of {bad[0]} ended well")
    shared = sorted(set.intersection(*(set(found) for found in values.values())))
    weights = claim.contrast
    apart = [sum(w * (values[arm][p] or 0.0) for arm, w in weights.items()) for p in shared]
    middle, low, high = interval(apart)
    step = resolution(tried.values()) if metrics[claim.metric].over_rates else 0.0
    slack = step * sum(map(abs, weights.values())) / 2
    word = judged(claim.relation, low - slack, high + slack, claim.margin)
    return Verdict(word, middle, low - slack, high + slack, len(apart), means, tried)


def judged(relation: str, low: float, high: float, margin: float) -> str:
    """The word for an interval; NaN, of fewer than two pairs, tells nothing."""
    least, most = (-margin, margin) if relation == "=" else (margin, math.inf)
    if least <= low and high <= most:
        return HOLDS
    return FAILS if high <= least or most <= low else UNCLEAR


def interval(apart: Sequence[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval by Student's t; NaN of a single one."""
    from scipy import stats  # more than a second to import

    found = np.array(apart, float)
    if len(found) < 2:
        return float(found.mean()), math.nan, math.nan
    error = found.std(ddof=1) / math.sqrt(len(found))
    half = float(stats.t.ppf(1 - LEVEL / 2, len(found) - 1) * error)
    middle = float(found.mean())
    return middle, middle - half, middle + half


def tuned(claim: Claim, trials: Sequence[Trial], arm: str) -> Tuned:
    """An arm's rates with what the search for the best one has minimized."""
    by_rate: dict[float, list[Trial]] = {}
    for trial in trials:
        if trial.arm == arm and trial.rate is not None:
            by_rate.setdefault(trial.rate, []).append(trial)
    score = metrics[claim.metric].score
    return Tuned(arm, {rate: score(rate, *numbers(found)) for rate, found in by_rate.items()})


def numbers(trials: Sequence[Trial]) -> tuple[list[float], list[float | None]]:
    """(losses, values) of the runs at one rate, as `Metric.score` takes them."""
    losses = [math.inf if trial.loss is None else trial.loss for trial in trials]
    return losses, [trial.value for trial in trials]


def of_arm(claim: Claim, trials: Sequence[Trial], arm: str, tried: Tuned | None) -> Values:
    """An arm's numbers: of its best rate, over all of its rates, or of each window."""
    own = [trial for trial in trials if trial.arm == arm]
    if metrics[claim.metric].over_rates:
        pairs = dict.fromkeys(trial.pair for trial in own)
        return {p: largest({t.rate or 0.0: t.value for t in own if t.pair == p}) for p in pairs}
    best = None if tried is None else tried.best
    return {trial.pair: trial.value for trial in own if tried is None or trial.rate == best}


def mean(found: Values) -> float:
    """Over seeds or windows; NaN where one has none, or there are none."""
    known = [value for value in found.values() if value is not None]
    return float(np.mean(known)) if known and len(known) == len(found) else math.nan


def resolution(tried: Iterable[Tuned]) -> float:
    """The widest step of the arms' grids, in doublings: what a rate of a grid may be off by."""
    return max(
        math.log2(b / a)
        for found in tried
        for a, b in zip(sorted(found.losses)[:-1], sorted(found.losses)[1:], strict=True)
    )
