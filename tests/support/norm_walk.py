"""One compiled program per norm type, whose outputs are all that the walk over the registry asks.

And the calls that the other tests of norms share: a norm's parameters are arguments of the program,
so that norms of one config share it, whatever was made of their parameters.
"""

from functools import cache, partial
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormContext, NormState, Site, norms, observe
from normlab.numerics import Accumulator, accumulator
from tests.conftest import TINY, VOCAB

WIDTH = 48
SITE = Site("norm_in", "blocks.0.attention.norm_in")
FINAL = Site("norm_final", "norm_final")
STATES = {
    "mean": 0.4, "variance": 1.7, "gate": 0.3, "scaled_square": 0.6, "square": 2.0, "size": 0.9,
    "seen": 0.3, "pull": 0.0,
}  # fmt: skip


def make(name, width=WIDTH, site=SITE, **fields):
    """A norm as it starts."""
    return norms[name](width, site, norms[name].Config(**fields))


def randomized(norm, seed=0):
    """The norm with everything that training changes moved away from its initial value."""
    graphdef, params, state = nnx.split(norm, nnx.Param, NormState)
    rng = np.random.default_rng(seed)
    move = lambda p: jnp.asarray(np.asarray(p) + np.float32(rng.normal(0, 0.3, p.shape)))  # noqa: E731
    for path, variable in nnx.to_flat_state(state):
        variable[...] = jnp.asarray(np.full(variable.shape, STATES[path[-1]], np.float32))
    return nnx.merge(graphdef, jax.tree.map(move, params), state)


def row(seed=0, width=WIDTH, shift=0.7, size=3.0, count=5):
    """Five rows, or more."""
    return np.float32(np.random.default_rng(seed).normal(shift, size, (count, width)))


def told(precision, scale=1.0, **more):
    """What a norm is told: a precision and a static scale."""
    return NormContext(Accumulator(precision, scale), **more)


@partial(jax.jit, static_argnames=("graphdef", "precision"))
def _call(graphdef, state, x, scale, precision):
    return nnx.merge(graphdef, state)(x, told(precision, 1.0 if scale is None else scale))


def call(norm, x, precision="fp32", scale=None):
    """What the norm makes of rows; norms of one config and rows of one shape share the program."""
    return np.asarray(_call(*nnx.split(norm), x, scale, precision))


@partial(jax.jit, static_argnames=("graphdef", "precision", "fields"))
def _observed(graphdef, state, x, precision, fields):
    y, counts = observe(nnx.merge(graphdef, state), x, told(precision))
    return y, {name: getattr(counts, name) for name in fields}


def observed(norm, x, precision, *fields):
    """(the rows, those fields of their range counts), likewise."""
    y, found = jax.device_get(_observed(*nnx.split(norm), x, precision, fields))
    return y, SimpleNamespace(**found)


@partial(jax.jit, static_argnames="graphdef")
def _in_training(graphdef, state, x, progress):
    norm = nnx.merge(graphdef, state)
    return norm(x, NormContext(progress=progress)), nnx.state(norm)


def in_training(norm, x, progress=0.5):
    """What the norm makes of sequences in a step of training, which moves its state."""
    y, state = _in_training(*nnx.split(norm), x, np.float32(progress))
    nnx.update(norm, state)
    return np.asarray(y)


@partial(jax.jit, static_argnames="graphdef")
def _jacobian(graphdef, state, x):
    return jax.jacobian(lambda v: nnx.merge(graphdef, state)(v))(x)


def jacobian(norm, x):
    """∂y/∂x at one row."""
    return np.asarray(_jacobian(*nnx.split(norm), x))


def started(norm, placement="pre", norm_fields=None, **fields):
    """`tests.conftest.tiny_model` with the weights that the library starts it with."""
    given, where = norms[norm].Config(**(norm_fields or {})), PlacementConfig(type=placement)
    return Transformer(ModelConfig(**(TINY | fields)), given, where, VOCAB, 0)


PLAIN = row()
"""The rows of the gradient; `ROWS` has them in other sizes too, each with its static scale."""
ROWS = np.concatenate(
    [
        PLAIN,
        row(size=10.0),
        np.tile(np.float32([999, -999]), (2, WIDTH // 2)),
        row(size=2000.0),
        PLAIN * np.float32([[1], [1], [3], [300], [900]]),
        PLAIN[:3] * np.float32(1e-3),  # where ε counts
    ]
)
LARGE, LOST, HUGE, MIXED = slice(5, 10), slice(10, 12), slice(12, 17), slice(17, 22)
SCALES, UNDOING = np.ones((2, len(ROWS), 1), np.float32)
SCALES[MIXED], UNDOING[HUGE] = 2.0, 2.0**13
WEIGHT = np.zeros(ROWS.shape, np.float32)
WEIGHT[:5] = np.random.default_rng(2).normal(size=PLAIN.shape)


@partial(jax.jit, static_argnames="graphdef")
def _everything(graphdef, params, state, rows, scale, weight):
    def wide(params, rows):
        return nnx.merge(graphdef, params, state)(rows, told("fp32", scale))

    def totalled(*given):
        totals.append(true(*given))
        return totals[-1]

    y, pull = jax.vjp(wide, params, rows)
    of_params, of_x = pull(weight)
    true, totals = accumulator.sum_of_squares, []
    norm = nnx.merge(graphdef, params, state)
    with mock.patch.object(accumulator, "sum_of_squares", totalled):
        half, counts = observe(norm, rows, told("fp16:pairwise", scale))
    return {
        "wide": y,
        "of_params": of_params,
        "of_x": of_x,
        "half": half,
        "totals": totals,
        "rows": counts.rows,  # the rest of the counts is not compiled
        "overflowed": counts.overflowed,
    }


@cache
def walked(name, start=False, undoing=False):
    """The norm, and by name what its program gave of `ROWS`.

    Args:
        name: the type.
        start: its parameters are those that it starts with, not moved.
        undoing: rows that overflow have a static scale under which they don't.
    """
    norm = make(name) if start else randomized(make(name))
    split = nnx.split(norm, nnx.Param, NormState)
    shaped = [each.reshape(5, 5, -1) for each in (ROWS, UNDOING if undoing else SCALES, WEIGHT)]
    found = jax.device_get(_everything(*split, *shaped))
    for which in ("wide", "half", "of_x"):
        found[which] = found[which].reshape(ROWS.shape)
    gradients = {p[-1]: v[...] for p, v in nnx.to_flat_state(found.pop("of_params"))}
    return SimpleNamespace(norm=norm, gradients=gradients | {"x": found.pop("of_x")[:5]}, **found)
