"""Random numbers that are the same whatever JAX's own defaults are set to."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax import Array

P = ParamSpec("P")
T = TypeVar("T")
IMPL = "threefry2x32"


def key(seed: int) -> Array:
    """JAX's key of a seed, below 2³²: a larger one would be cut to it."""
    return jax.random.key(seed, impl=IMPL)


def pinned(draws: Callable[P, T]) -> Callable[P, T]:
    """Decorator: what a function draws, or a program that it traces, is as with JAX's defaults."""

    @functools.wraps(draws)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.threefry_partitionable(True):
            return draws(*args, **kwargs)

    return inside
