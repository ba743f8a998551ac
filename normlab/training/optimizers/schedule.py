"""Schedules: how the learning rate falls after its warm-up."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Fall = Callable[[Array, Any], Array]
"""The share of the steps after the warm-up that is done, and `cooldown` as a share of them, to what
is left of the fall: 1 at its beginning, 0 at its end."""

SCHEDULES: dict[str, Fall] = {
    "cosine": lambda done, cooldown: 0.5 * (1.0 + jnp.cos(math.pi * done)),
    "linear": lambda done, cooldown: 1.0 - done,
    "wsd": lambda done, cooldown: jnp.clip((1.0 - done) / cooldown, 0.0, 1.0),
    "constant": lambda done, cooldown: jnp.ones_like(done),
}
"""By name; wsd is warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395, section 4)."""


def rate(name: str, n: Mapping[str, Any], step: Int[Array, ""]) -> Float[Array, ""]:
    """Learning rate of a step: linear warm-up from 0, then the fall to its share.

    Args:
        name: of the schedule.
        n: `lr`, `final_lr`, `cooldown`, `warmup`, `steps`, which may be traced.
        step: from 0 on.
    """
    share, after = n["final_lr"], n["steps"] - n["warmup"]
    done = jnp.clip((step - n["warmup"]) / after, 0.0, 1.0)
    cooldown = jnp.minimum(n["cooldown"] * n["steps"] / after, 1.0)
    fallen = share + (1.0 - share) * SCHEDULES[name](done, cooldown)
    warm = step / jnp.maximum(n["warmup"], 1)
    return n["lr"] * jnp.where(step < n["warmup"], warm, fallen)
