"""In how many parts a CPU takes a batch, for speed.

The activations of a part stay in the processor's cache, and two threads take every second part
each, for XLA runs the most of a small one on one core. How many parts there are is a matter of the
shape alone, so that a run has the same bits on each machine of a kind, however many cores it has.
"""

import jax
from flax import nnx

from normlab.model import Transformer
from normlab.norms import NormState
from normlab.parallel.sharding import layout

PARTS, PART = (8, 6, 4, 2), 128
"""So many parts a batch may have, each of so many tokens at least."""


def parts_of(model: Transformer, batch: int, window: int, kept: int | None = None) -> int:
    """In how many parts a step takes a batch for speed, as far as that changes nothing but bits.

    A CPU by itself takes as many as it is told (`kept`), or else `parts_in_cache`. Several devices,
    and norms that keep something of what they see, take the batch whole.
    """
    alone = jax.default_backend() == "cpu" and layout()[0].empty
    if not alone or jax.tree.leaves(nnx.state(model, NormState)):
        return 1
    return kept or parts_in_cache(batch, window, model.config.width)


def parts_in_cache(batch: int, window: int, width: int) -> int:
    """In how many parts a batch is fastest on a CPU.

    In a wide model a part of few tokens costs more, for all gradients are added up after each one.
    """
    least = max(PART, width)
    fit = (k for k in PARTS if batch % k == 0 and batch // k * window >= least)
    return next(fit, 1)
