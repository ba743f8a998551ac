"""The learning rate of a method by a stated rule: a grid that grows at the best rate's edge."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normlab.config import require
from normlab.results.record import GOOD

MOST = 4
"""Rates that a grid grows by."""


@dataclass(frozen=True)
class Tuned:
    """What was tried for one method.

    Args:
        method: its overrides: "norm=dyt placement=pre".
        losses: by learning rate the mean best validation loss over seeds, in nats; inf where a
            seed diverged or failed.
    """

    method: str
    losses: dict[float, float]

    @property
    def best(self) -> float | None:
        """The rate with the lowest loss; None where no rate has one."""
        rate = min(self.losses, key=self.losses.__getitem__)
        return rate if math.isfinite(self.losses[rate]) else None

    @property
    def inside(self) -> bool:
        """Whether the best rate is at no edge of what was tried, so that the rule has ended."""
        order = sorted(self.losses)
        return self.best is not None and self.best not in (order[0], order[-1])


def final_loss(record: Mapping[str, Any]) -> float:
    """A run's best validation loss in nats; inf where it did not end well."""
    found = record.get("best_valid_loss") if record.get("state") in GOOD else None
    return math.inf if found is None else float(found)


def check(rates: Sequence[float]) -> None:
    """Raise `ValueError` for a grid that has no direction to grow in."""
    require(
        len(set(rates)) > 1 and all(rate > 0 for rate in rates),
        f"optimizer.lr={','.join(f'{rate:g}' for rate in rates)}: expected two rates or more, all "
        "> 0, such as optimizer.lr=1e-3,2e-3,4e-3",
    )


def grown(loss: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    """Losses of a grid, and of the rates by which it grew.

    While the best rate is the highest or the lowest of those tried, one more is tried beyond it, at
    the ratio of the two that are outermost there, `MOST` times at most. Nothing grows where no rate
    has a finite loss.

    Args:
        loss: of a rate; inf where training with it did not end well.
        rates: of the grid.
    """
    check(rates)
    found = {rate: loss(rate) for rate in sorted(set(rates))}
    for _ in range(MOST):
        order = sorted(found)
        best = min(order, key=found.__getitem__)
        if not math.isfinite(found[best]) or best not in (order[0], order[-1]):
            break
        beside = order[-2] if best == order[-1] else order[1]
        beyond = float(f"{best * best / beside:.3g}")
        found[beyond] = loss(beyond)
    return found
