"""Rows whose sum lies where 1/rms makes a step: there orders show behind a coarse mean or root."""

from collections.abc import Callable

import numpy as np

from normlab.probe.observe import rounded
from normlab.probe.stages import Front, scalars

FILL, HALVINGS = 6, 26
"""Elements that bring a sum to its step, and halvings that find the step to the last bit."""


def stepped(
    x: np.ndarray,
    square: str | None,
    front: Front,
    eps: float,
    cast: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Rows [n, d], the last elements of which bring Σx² to a step of what the front makes of it."""

    def squared(x: np.ndarray) -> np.ndarray:
        exact = np.square(x, dtype=float)
        return exact if square is None else rounded(exact, square).astype(float)

    made, d = cast(x), x.shape[-1]
    made[:, -FILL:] = 0
    exact = squared(made).sum(-1, keepdims=True)
    target = step(exact * 1.005, exact * 1.03, front, eps, d)
    for place in range(d - FILL, d):
        short = np.maximum(target - squared(made).sum(-1), 0)
        size = cast(np.sqrt(short))
        made[:, place] = np.where(squared(size) > short, cast(size * (1 - 2.0**-7)), size)
    return made


def step(low: np.ndarray, high: np.ndarray, front: Front, eps: float, d: int) -> np.ndarray:
    """The sums between two at which the number changes, [n]; the upper one where none does."""
    low, high = low.astype(np.float32), high.astype(np.float32)
    all_eps = np.full(low.shape, eps, np.float32)
    below = scalars(low, front, all_eps, d)
    for _ in range(HALVINGS):
        middle = ((low.astype(float) + high) / 2).astype(np.float32)
        changed = scalars(middle, front, all_eps, d) != below
        low, high = np.where(changed, low, middle), np.where(changed, middle, high)
    return high.astype(float)[:, 0]
