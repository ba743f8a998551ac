"""A claim: what is compared, by which number, and which difference counts."""

import re
import shlex
from dataclasses import dataclass
from typing import Any

from normlab.config import field, require
from normlab.evaluation.claims.metrics import metrics
from normlab.registry import choice

CHOSEN = ("optimizer.lr", "seed")
"""Fields of a run that a claim has lists of."""
DECIDES = ("metric", "common", "arms", "rates", "seeds", "expects", "margin")
"""Fields on which a verdict depends; the others are words."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, as an experiment. In a file of its own, whose name it has."""

    name: str = field("", "that of its file")
    source: str = field("", "the paper, and where in it")
    says: str = field("", "the claim in one sentence")
    metric: str = field("valid_loss", "what is compared: python -m evaluate list metrics")
    common: str = field("", "overrides that all arms share, as on a command line")
    arms: dict = field(dict, "by name the overrides that set an arm apart")
    rates: tuple[float, ...] = field(
        (), "learning rates; of several each arm has its best, and the grid grows at its edge"
    )
    seeds: tuple[int, ...] = field((), "each arm's runs, compared seed by seed")
    expects: str = field("", "what the claim says of the arms: peri < pre, or a - b > c - d, a = b")
    margin: float = field(0.0, "the smallest difference that counts, in the metric's unit")
    limits: str = field("", "what a verdict can't say")

    def __post_init__(self) -> None:
        for name in ("source", "says", "expects", "limits"):
            require(bool(getattr(self, name).strip()), f"{name} is empty: expected a sentence")
        choice("metric", self.metric, metrics)
        require(
            self.margin > 0,
            f"margin = {self.margin:g}: expected the smallest difference that counts, > 0",
        )
        for arm, overrides in self.arms.items():
            require(isinstance(overrides, str), f"arms.{arm} = {overrides!r}: expected overrides")
        self._check_expects()
        self._check_runs()

    @property
    def trains(self) -> bool:
        """Whether its overrides are of `python -m train`, not of `python -m evaluate`."""
        return metrics[self.metric].app == "train"

    @property
    def decides(self) -> dict[str, Any]:
        """All that a verdict depends on."""
        return {name: getattr(self, name) for name in DECIDES}

    @property
    def relation(self) -> str:
        """Of `expects`: <, > or =."""
        return self._sides()[1]

    @property
    def contrast(self) -> dict[str, int]:
        """By arm its weight in the number of which `expects` says that it is large, or 0."""
        left, relation, right = self._sides()
        sign = -1 if relation == "<" else 1
        weights = dict.fromkeys(self.arms, 0)
        for side, own in ((left, sign), (right, -sign)):
            for arm, weight in _terms(side):
                weights[choice("arm", arm, self.arms)] += own * weight
        return weights

    def overrides(self, arm: str) -> list[str]:
        """Those of one arm, the common ones first."""
        return shlex.split(self.common) + shlex.split(self.arms[arm])

    def _sides(self) -> tuple[str, str, str]:
        parts = re.split(r"\s+([<>=])\s+", self.expects.strip())
        require(
            len(parts) == 3,
            f"expects = {self.expects!r}: expected ARM < ARM, ARM > ARM, ARM = ARM, or differences "
            "of arms on both sides: A - B > C - D",
        )
        return parts[0], parts[1], parts[2]

    def _check_expects(self) -> None:
        weights = self.contrast
        idle = [arm for arm, weight in weights.items() if weight == 0]
        require(not idle, f"expects = {self.expects!r} says nothing of the arm {idle[:1]}")
        require(
            len(weights) > 1 and sum(weights.values()) == 0,
            f"expects = {self.expects!r}: expected as many arms added on one side as on the other",
        )

    def _check_runs(self) -> None:
        if not self.trains:
            require(
                not self.rates and not self.seeds,
                f"metric {self.metric} is of an evaluation, whose windows are compared: expected "
                "no rates and no seeds",
            )
            return
        require(
            len(set(self.seeds)) == len(self.seeds) > 1,
            f"seeds = {list(self.seeds)}: expected two or more, such as [0, 1, 2]",
        )
        fewest = 2 if metrics[self.metric].over_rates else 1
        require(
            len(set(self.rates)) >= fewest and all(rate > 0 for rate in self.rates),
            f"rates = {list(self.rates)}: expected {fewest} or more, all > 0, such as [2e-3, 4e-3]",
        )
        for arm in self.arms:
            for override in self.overrides(arm):
                require(
                    override.partition("=")[0] not in CHOSEN,
                    f"arm {arm}: {override}: expected it in the claim's rates, or seeds",
                )


def _terms(side: str) -> list[tuple[str, int]]:
    """The arms of one side, each with its sign: "a - b" is a and −b."""
    parts = re.split(r"\s+([+-])\s+", side.strip())
    signs = ["+", *parts[1::2]]
    return [(arm, 1 if sign == "+" else -1) for arm, sign in zip(parts[::2], signs, strict=True)]
