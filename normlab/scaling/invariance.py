"""What every static scale rests on: that a norm's output does not depend on its scale."""

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from normlab.norms import Norm, NormContext, all_norms
from normlab.norms.base import OutsideBlockError
from normlab.numerics import Accumulator
from normlab.parallel.sharding import on_host

SCALE = 8.0
"""A power of two: dividing by it rounds nothing, so that what it moves is the norm's doing."""
TOLERANCE = 1e-3
"""Of the largest element of the output; a norm that divides z, ms and ε alike moves by none."""


class RuleDoesNotApply(ValueError):
    """A rule was asked of a model that it can't serve; the message says why, and what can."""


def check_invariant(model: nnx.Module) -> None:
    """Refuse a model with a norm whose output depends on s in fp32.

    A column with a scale rule would measure that, and not its precision. One norm of each class,
    config and width is called, on a few random rows: of ordinary size, and so small that ε rules.

    Raises:
        RuleDoesNotApply: naming the norm, how much it moves and what is expected of it.
    """
    kinds = {(type(n), n.config, n.width): n for n in reversed(all_norms(model))}
    for norm in kinds.values():
        if norm.has_statistic and not (moved := _moved(norm)) <= TOLERANCE:
            raise RuleDoesNotApply(
                f"norm {norm.config.type!r} ({norm.site.name}): its output depends on the scale "
                f"s that a rule gives it (s = {SCALE:g} moves it by {moved:.2g} of its largest "
                "element, in fp32).\nExpected: by nothing. What context.acc gives is of x/s: use "
                "its z with its mean square (z, ms = acc.moments(x); z * acc.inverse_rms(ms, "
                "eps)), or undo acc.scale; see docs/howto/add-a-norm.md"
            )


def _moved(norm: Norm) -> float:
    rows = np.random.default_rng(0).normal(0.3, 1.0, (4, norm.width)).astype(np.float32)
    parts = nnx.split(norm)
    try:
        pairs = [_outputs(*parts, x) for x in (rows, np.float32(1e-3) * rows)]
        return max(_difference(*map(on_host, pair)) for pair in pairs)
    except OutsideBlockError:  # it says so itself: there is nothing to call it with here
        return 0.0


@partial(jax.jit, static_argnums=0)
def _outputs(graphdef: nnx.GraphDef[Norm], state: Any, x: Float[Array, "n d"]) -> list[Array]:
    norm = nnx.merge(graphdef, state)
    return [norm(x, NormContext(Accumulator("fp32", s))) for s in (1.0, SCALE)]


def _difference(plain: np.ndarray, scaled: np.ndarray) -> float:
    """The largest difference that the scale makes, as a share of the largest element."""
    largest = np.abs(plain).max()
    return float(np.abs(scaled - plain).max() / largest) if largest else float(scaled.any())
