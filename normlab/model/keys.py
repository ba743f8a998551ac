"""Random numbers that are the same whatever JAX's own defaults are set to."""

import functools
import itertools
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


class Keys:
    """The keys of a seed one after another: those of `nnx.Rngs`, whose counter is a variable.

    Where a model is only traced for its shapes, such a variable is most of the time.
    """

    def __init__(self, seed: int):
        self._key, self._count = key(seed), itertools.count()

    def params(self) -> Array:
        """The next one."""
        return jax.random.fold_in(self._key, next(self._count))


def pinned(draws: Callable[P, T]) -> Callable[P, T]:
    """Decorator: what a function draws, or a program that it traces, is as with JAX's defaults."""

    @functools.wraps(draws)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.threefry_partitionable(True):
            return draws(*args, **kwargs)

    return inside
