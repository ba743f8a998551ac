"""Windows of random tokens for the tests' tiny model, all read in batches of one shape."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.evaluation.perplexity import Scaled, score_columns
from normlab.evaluation.protocols.windows import Span, Stream, assemble
from normlab.numerics import Precision
from tests.conftest import VOCAB
from tests.support.reference_forward import log_softmax
from tests.support.transformer_reference import Reference

LENGTH, BATCH = 11, 3
RNG = np.random.default_rng(0)
TEXT = Stream(*(RNG.integers(1, VOCAB, 100).astype(np.int32) for _ in range(3)))  # 0 is padding
SPANS = [*(Span(i, i + 12, i + 1 + i % 5) for i in range(0, 84, 12)), Span(84, 90, 85)]


def windows(spans=SPANS):
    """Seven whole windows and a short one, some of which score a part of their tokens."""
    return assemble(TEXT, spans, LENGTH)


def columns(*asked):
    """Columns of precisions, or of (precision, scales)."""
    pairs = [(one, None) if isinstance(one, str) else one for one in asked]
    return [Scaled(Precision.parse(text), scales) for text, scales in pairs]


def scored(model, read, *asked, **more):
    """The scores of two columns or more, by programs that all tests share."""
    return score_columns(model, read, columns(*asked), batch=BATCH, **more)


def times(model, factor, names=None):
    """The model with weights `factor` times as large: all, or those of modules of some names."""
    graphdef, params = nnx.split(model)

    def change(path, x):
        where = jax.tree_util.keystr(path)
        chosen = names is None or any(f"'{name}'" in where for name in names)
        return jnp.asarray(np.asarray(x) * np.float32(factor)) if chosen else x

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(change, params))


def loud(model, factor):
    """The same with a residual stream `factor` times as large, which fp32 norms don't see.

    The last norm takes it back, for the embedding is the head too.
    """
    return times(times(model, factor, ("embed", "out", "down")), 1 / factor, ("norm_final",))


class HalfReference(Reference):
    """RMSNorms as hardware with a half-precision accumulator has them; all else in float64.

    Args:
        model: as in `Reference`.
        order: of summation, sequential or pairwise.
        scales: by site; a site that is missing has 1.
        kept: sites that are exact all the same.

    Attributes:
        overflowed: rows whose sum was infinite; they become zeros.
    """

    def __init__(self, model, order, scales=None, kept=()):
        super().__init__(model)
        self.order, self.scales, self.kept, self.overflowed = order, scales or {}, kept, 0

    def norm(self, name, x, site=None):
        """In place of the exact one."""
        if name in self.kept:
            return super().norm(name, x, site)
        self.inputs[name], s = x, self.scales.get(name, 1.0)
        with np.errstate(over="ignore"):
            total = np.float64(half_sum(np.float16((x / s) ** 2), self.order))
        self.overflowed += int(np.isinf(total).sum())
        y = x / s / np.sqrt(total / x.shape[-1] + self.norms.eps / s**2)
        return y * self.w[f"{name}.weight"]


def half_sum(squares, order):
    """Halves added one by one, or pair by pair."""
    if order == "sequential":
        return np.add.accumulate(squares, axis=-1, dtype=np.float16)[..., -1:]
    while squares.shape[-1] > 1:  # a power of two of them
        squares = squares[..., ::2] + squares[..., 1::2]
    return squares


def expected(reference, read):
    """Each token's NLL by a reference, 0 where it is not scored, and all log-probabilities."""
    logp = log_softmax(reference.logits(read.inputs))
    nll = -np.take_along_axis(logp, read.targets[..., None], -1)[..., 0]
    return np.where(read.scored, nll, 0.0), logp
