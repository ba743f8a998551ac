"""Methods against a baseline: the difference, its interval, p after Holm, and what seeds can show.

All of it is of log-perplexity in fp32, told as a share of the baseline's perplexity.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normlab.config import require
from normlab.registry import choice
from normlab.results.settings import method_name
from normlab.results.spread import Group

FIELD, NORM = "compare_to", "norm.type"
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


def baselines(found: Sequence[Group], asked: str) -> list[Group]:
    """Of each method what it is compared with: the one named, or that norm at its placement.

    Args:
        found: the methods.
        asked: NORM-PLACEMENT, or a NORM that is there at every placement.

    Raises:
        UnknownNameError: none has the name.
        ValueError: several have, or one has not two seeds that ended well.
    """
    choice(f"method to compare with: {FIELD}", asked, baseline_names(g.config for g in found))
    if asked in {method_name(group.config) for group in found}:
        return [_named(found, asked, asked)] * len(found)
    return [_named(found, method_name(g.config | {NORM: asked}), asked) for g in found]


def baseline_names(configs: Iterable[Mapping[str, Any]]) -> set[str]:
    """What `compare_to` may say: the methods, and their norms."""
    return {name for config in configs for name in (method_name(config), str(config.get(NORM)))}


def _named(found: Sequence[Group], name: str, asked: str) -> Group:
    named = [group for group in found if method_name(group.config) == name]
    require(
        len(named) == 1,
        f"compare_to = {asked}: {len(named)} methods are {name}: expected one. Of several, "
        "evaluate a folder of runs that holds one; of none, name another baseline",
    )
    require(
        named[0].ranked,
        f"compare_to = {asked}: {len(named[0].logs)} of the seeds of {name} have a perplexity: "
        "expected two or more, and that all ended well",
    )
    return named[0]


def compared(found: Sequence[Group], bases: Sequence[Group]) -> list[Versus | None]:
    """Of each method its difference to its baseline; None of that and where seeds are missing."""
    pairs = zip(found, bases, strict=True)
    made = [_versus(g, base) if g is not base and g.ranked else None for g, base in pairs]
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
