"""Methods against a baseline: the difference, its interval, p after Holm, and what seeds can show.

All of it is of log-perplexity in fp32, told as a share of the baseline's perplexity.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from normlab.config import require
from normlab.registry import choice
from normlab.results.settings import method_name
from normlab.results.spread import Group

FIELD = "compare_to"
LEVEL = 0.05
"""Of a test; its interval covers 95 %."""
POWER = 0.8
"""Share of repetitions in which the smallest visible difference would be found."""
FEW = 3
"""Seeds below which a comparison decides little."""


@dataclass(frozen=True)
class Versus:
    """One method's difference to the baseline. Shares are of the baseline's perplexity.

    Args:
        share: perplexity over the baseline's, less 1 (of geometric means over seeds).
        low, high: its 95 % interval.
        p: of a t test: paired where two seeds or more match, else Welch's.
        corrected: p after Holm's correction for all methods that are compared.
        visible: the smallest share that a test of as many seeds as these, spread like these, finds
            in four of five repetitions.
        seeds: that match; 0 where it is Welch's test.
    """

    share: float
    low: float
    high: float
    p: float
    corrected: float
    visible: float
    seeds: int


def baseline(found: Sequence[Group], asked: str) -> Group:
    """The one method of that name.

    Raises:
        UnknownNameError: none has it.
        ValueError: several have, or the one has not two seeds that ended well.
    """
    named = [group for group in found if method_name(group.config) == asked]
    choice(f"method to compare with: {FIELD}", asked, {method_name(g.config) for g in found})
    require(
        len(named) == 1,
        f"compare_to = {asked}: {len(named)} methods have this norm and placement, and differ in "
        "other fields: expected one; evaluate a folder of runs that holds one of them",
    )
    require(
        named[0].ranked,
        f"compare_to = {asked}: {len(named[0].logs)} of its seeds have a perplexity: expected two "
        "or more, and that all ended well",
    )
    return named[0]


def compared(found: Sequence[Group], base: Group) -> list[Versus | None]:
    """Of each method its difference to the baseline; None of that and where seeds are missing."""
    made = [_versus(g, base) if g is not base and g.ranked else None for g in found]
    tested = [v for v in made if v is not None]
    corrected = iter(holm([v.p for v in tested]))
    return [v and replace(v, corrected=next(corrected)) for v in made]


def holm(ps: Sequence[float]) -> list[float]:
    """P values after Holm's step-down correction (Holm 1979), in their order."""
    order, most, made = np.argsort(ps, kind="stable"), 0.0, [math.nan] * len(ps)
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        made[i] = most
    return made


def _versus(group: Group, base: Group) -> Versus:
    from scipy import stats  # more than a second to import

    mean, error, freedom, seeds = _apart(group, base)
    edge = stats.t.ppf(1 - LEVEL / 2, freedom)
    p = 2 * stats.t.sf(abs(mean) / error, freedom) if error else float(mean == 0)
    return Versus(
        share=math.expm1(mean),
        low=math.expm1(mean - edge * error),
        high=math.expm1(mean + edge * error),
        p=float(p),
        corrected=math.nan,
        visible=math.expm1((edge + stats.t.ppf(POWER, freedom)) * error),
        seeds=seeds,
    )


def _apart(group: Group, base: Group) -> tuple[float, float, float, int]:
    """The mean difference of logs, its standard error, degrees of freedom, seeds that match."""
    ours, theirs = group.log_by_seed, base.log_by_seed
    apart = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    n = len(apart)
    if n > 1:
        return apart.mean(), apart.std(ddof=1) / math.sqrt(n), n - 1, n
    a, b = (np.array(list(logs.values())) for logs in (ours, theirs))
    u, v = (x.var(ddof=1) / len(x) for x in (a, b))
    freedom = len(a) + len(b) - 2.0
    if u + v:  # Welch and Satterthwaite
        freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return a.mean() - b.mean(), math.sqrt(u + v), freedom, 0
