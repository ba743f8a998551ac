"""Diagnostics of a run at chosen steps: sizes, gradients, norm weights (diagnostics.jsonl)."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normlab.loss import token_nll
from normlab.model import Context, Transformer
from normlab.norms import NormState
from normlab.numerics import Precision
from normlab.parallel.sharding import Layout, layout, put
from normlab.progress import announced
from normlab.runs.names import to_names
from normlab.runs.run import Run
from normlab.training.metrics import StepLines
from normlab.training.step import PROGRAMS, Params, learned
from normlab.training.tracking import Tracker, scalars

ROWS = 8
"""Sequences that are looked at: the first ones of the validation split, the same each time."""

Values = dict[str, Any]


class Diagnostics:
    """A run's diagnostics.jsonl: a line every `every` steps, at the start and after the last step.

    The step of training is the one that runs without it: what is asked here is asked of a copy, by
    functions that are compiled apart. A line holds

    - `sites`: of each norm's input, mean x² and largest |x| and ‖x‖² of a row;
    - `stream`: the same of the residual stream before the first block and after each one;
    - `blocks`: largest |q·k|·scale of each block's attention, causal pairs only;
    - `parts`: of each block, and of what lies outside them, the gradient's norm and the last
      update's size against the weights', ‖w′ − w‖ / ‖w‖ (none at step 0);
    - `vectors`: mean, least, largest and standard deviation of each weight, bias and α, as stored.

    Six digits; null is what is no finite number. `trackers` are told the same, where it is finite,
    under names such as "sites/norm_final/max_abs".

    Args:
        run: whose directory the file is in.
        graphdef: of the model.
        steps: of the whole training.
        every: steps between two lines; None for none at all.
        windows: (inputs, targets), [rows, l] each, of which the first `ROWS` are looked at.
        precision: of the norms' statistics.
    """

    def __init__(
        self,
        run: Run,
        graphdef: nnx.GraphDef[Transformer],
        steps: int,
        every: int | None,
        windows: tuple[np.ndarray, np.ndarray],
        precision: Precision | None = None,
    ):
        self.trackers: Sequence[Tracker] = ()
        self.lines = StepLines(run["diagnostics.jsonl"])
        self.steps, self.every = steps, every
        self._inputs, self._targets = (w[:ROWS] for w in windows)
        self._look = announced(make_look(graphdef, steps, precision))
        self._before: Params | None = None

    def due(self, step: int) -> bool:
        """Whether there is a line for the model after `step` steps."""
        return self.every is not None and (step % self.every == 0 or step == self.steps)

    def before(self, step: int, params: Params) -> None:
        """Told before the `step`-th step, which takes the arrays away: they are copied if due."""
        self._before = _copied(learned(params)) if self.due(step) else None

    def after(self, step: int, params: Params) -> None:
        """Write the line of the model after `step` steps."""
        before = learned(params) if self._before is None else self._before
        seen = self._look(params, before, np.int32(step), self._inputs, self._targets)
        values = plain(jax.device_get(seen))
        if self._before is None:  # no update lies between them
            for found in values["parts"].values():
                del found["update_ratio"]
        self._before = None
        self.lines.append({"step": step, **values})
        for tracker in self.trackers:
            tracker.log(step, scalars(values))


@jax.jit
def _copied(tree: Params) -> Params:
    return jax.tree.map(jnp.copy, tree)


def make_look(
    graphdef: nnx.GraphDef[Transformer], steps: int, precision: Precision | None = None
) -> Callable[..., Values]:
    """(params, weights before the last step, step, inputs, targets) → a line's values.

    As in a step of training: norms are told step / steps, their statistics are of `precision`. But
    it is in float32 whatever the run computes in, and without dropout and norms' penalties. What
    norms would keep is thrown away.
    """
    return partial(_look(graphdef, precision, layout()), put("", np.asarray(steps, np.int32)))


@lru_cache(PROGRAMS)
def _look(
    graphdef: nnx.GraphDef[Transformer], precision: Precision | None, where: Layout
) -> Callable[..., Values]:
    """`make_look`, to which the number of steps is an argument too."""

    def loss(
        weights: Params, kept: Params, progress: jax.Array, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, Values]:
        model = nnx.merge(graphdef, weights, kept, copy=True)
        context = Context(precision, capture=True, progress=progress)
        value = token_nll(model(inputs, context), targets).mean()
        seen = {
            "sites": {name: sizes(x) for name, x in context.inputs.items()},
            "stream": [sizes(x) for x in context.streams],
            "blocks": [{"attention_score": score} for score in context.scores],
        }
        return value, seen

    def look(
        steps: jax.Array,
        params: Params,
        before: Params,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> Values:
        weights, kept = nnx.split_state(params, nnx.Param, NormState)
        progress = jnp.float32(step) / steps
        gradients, seen = jax.grad(loss, has_aux=True)(weights, kept, progress, inputs, targets)
        return seen | {"parts": parts(gradients, weights, before), "vectors": vectors(weights)}

    return jax.jit(look)


def sizes(x: Float[Array, "*batch d"]) -> Values:
    """How large an activation is: mean x², largest |x|, largest sum of squares of a row."""
    squares = jnp.sum(x * x, axis=-1)
    width = x.shape[-1]
    return {
        "mean_square": squares.mean() / width,
        "max_abs": jnp.abs(x).max(),
        "max_square": squares.max(),
    }


def parts(gradients: Params, weights: Params, before: Params) -> Values:
    """By part of the model: the gradient's norm, and the update against the weights before it."""
    moved, sizes = _norms(jax.tree.map(jnp.subtract, weights, before)), _norms(before)
    return {
        name: {"grad_norm": norm, "update_ratio": moved[name] / sizes[name]}
        for name, norm in _norms(gradients).items()
    }


def _norms(tree: Params) -> dict[str, jax.Array]:
    squares: dict[str, list[jax.Array]] = {}
    for path, leaf in to_names(tree).items():
        squares.setdefault(part(path), []).append(jnp.sum(leaf * leaf))
    return {name: jnp.sqrt(sum(found)) for name, found in squares.items()}


def part(path: str) -> str:
    """The part of the model that a parameter belongs to: "blocks.3", or its first name."""
    first, *rest = path.split(".")
    return f"{first}.{rest[0]}" if first == "blocks" else first


def vectors(weights: Params) -> Values:
    """Of each parameter that is no matrix: where its values lie."""
    found = {path: leaf for path, leaf in to_names(weights).items() if leaf.ndim < 2}
    return {
        path: {"mean": leaf.mean(), "min": leaf.min(), "max": leaf.max(), "std": leaf.std()}
        for path, leaf in found.items()
    }


def plain(values: Any) -> Any:
    """Arrays of one number as JSON has them: six digits, null where they aren't finite."""
    if isinstance(values, dict):
        return {str(k): plain(v) for k, v in values.items()}
    if isinstance(values, list):
        return [plain(v) for v in values]
    return float(f"{float(values):.6g}") if math.isfinite(values) else None
