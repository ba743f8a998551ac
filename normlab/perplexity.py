"""Perplexity of one model in one precision over prepared windows: the hot loop of evaluation."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Float64, Int, Int64

from normlab.loss import token_nll
from normlab.model import Context, Transformer
from normlab.norms import Norm
from normlab.numerics import Observed, Precision
from normlab.protocols import Windows

LOGITS_BYTES = 64 * 2**20
"""What a batch's float32 logits may take where no batch size is asked for."""


@dataclasses.dataclass(frozen=True)
class SiteRows:
    """What a norm site saw of the real tokens; see `normlab.numerics.Observed`."""

    rows: int
    overflowed: int
    subnormal: int
    zero: int
    max_abs: float
    max_norm: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """Sums and counts; nothing is divided yet.

    Args:
        window_nll: sum of −log p over each window's scored tokens, in nats, float64.
        token_nll: that of each token, float32; 0 where it isn't scored.
        sites: what each norm saw, padding left out.
    """

    window_nll: Float64[np.ndarray, " n"]
    token_nll: Float32[np.ndarray, "n l"]
    counts: Int64[np.ndarray, " n"]
    sites: dict[str, SiteRows]

    @property
    def sum_nll(self) -> float:
        """−log p of all scored tokens, in nats."""
        return float(self.window_nll.sum())

    @property
    def perplexity(self) -> float:
        """exp(sum of NLL / tokens scored); infinite or NaN where a window is."""
        return exp(self.sum_nll / int(self.counts.sum()))

    @property
    def nonfinite_windows(self) -> int:
        """Windows whose sum is infinite or NaN."""
        return int((~np.isfinite(self.window_nll)).sum())


def exp(x: float) -> float:
    """e^x, infinite where it is too large for a float."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def default_batch(windows: Windows, vocab_size: int) -> int:
    """As many windows as keep the logits under `LOGITS_BYTES`, but at least one."""
    return max(1, min(len(windows), LOGITS_BYTES // (4 * vocab_size * windows.inputs.shape[1])))


def score(
    model: Transformer,
    windows: Windows,
    precision: Precision,
    scales: Mapping[str, Any] | None = None,
    *,
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """One forward pass over `windows`.

    The weights are the model's own; only the norms' statistics follow `precision`. Its rule is not
    applied here: pass the rule's `scales`. All batches have one shape, so that one program is
    compiled: the last one is filled up with windows that count for nothing.

    Args:
        model: read, not changed.
        windows: from a protocol.
        precision: of every norm's statistic.
        scales: static scale by site; a site that is missing has 1.
        batch: windows in a batch; None takes `default_batch`.
        on_batch: told, after each batch, how many windows are done.
    """
    graphdef, params = nnx.split(model)
    size = batch or default_batch(windows, model.embed.num_embeddings)
    arithmetic = dataclasses.replace(precision, rule=None, pow2=False)
    run = partial(_batch_nll, graphdef, arithmetic, params, dict(scales or {}))
    nll, seen, waiting = [], [], []
    for start in range(0, len(windows), size):
        waiting.append(run(*_padded(windows[start : start + size], size)))
        if start:  # fetch a batch only when the next one is under way
            _fetch(waiting.pop(0), nll, seen)
            if on_batch:
                on_batch(start)
    _fetch(waiting.pop(), nll, seen)
    if on_batch:
        on_batch(len(windows))
    tokens = np.concatenate(nll)[: len(windows)]
    real = int(windows.lengths.sum()), len(nll) * size * windows.inputs.shape[1]
    sites = {site: _merged([s[site] for s in seen], *real) for site in seen[0]}
    return Scores(tokens.sum(axis=1, dtype=np.float64), tokens, windows.counts, sites)


def _padded(windows: Windows, size: int) -> tuple[np.ndarray, ...]:
    """Inputs, targets, what is scored and what is real, each [size, l]."""
    missing = size - len(windows)
    real = np.arange(windows.inputs.shape[1]) < windows.lengths[:, None]
    arrays = (windows.inputs, windows.targets, windows.scored, real)
    return tuple(np.pad(a, ((0, missing), (0, 0))) for a in arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _batch_nll(
    graphdef: nnx.GraphDef,
    precision: Precision,
    params: Any,
    scales: dict[str, Any],
    inputs: Int[Array, "b l"],
    targets: Int[Array, "b l"],
    scored: Bool[Array, "b l"],
    real: Bool[Array, "b l"],
) -> tuple[Float[Array, "b l"], dict[str, Observed]]:
    context = _RealRows(precision, scales, real)
    logits = nnx.merge(graphdef, params)(inputs, context)
    return jnp.where(scored, token_nll(logits, targets), 0.0), context.observed


class _RealRows(Context):
    """A pass whose norms see padding as rows of zeros, so that it leaves no trace in `observed`.

    Padding stands behind all real tokens and the model is causal, so no score depends on it. Zero
    rows neither overflow nor count as underflowed; `_merged` takes them off the number of rows.
    """

    def __init__(self, precision: Precision, scales: dict[str, Any], real: Bool[Array, "b l"]):
        super().__init__(precision, scales, observe=True)
        self._real = real

    def norm(self, norm: Norm | None, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        if norm is None or not norm.has_statistic:
            return super().norm(norm, x)
        real = self._real.reshape(self._real.shape + (1,) * (x.ndim - 2))
        y = super().norm(norm, jnp.where(real, x, 0.0))
        return jnp.where(real, y, 0.0)  # with ε = 0, a row of zeros becomes NaN


def _fetch(out: tuple[Array, dict[str, Observed]], nll: list, seen: list) -> None:
    tokens, observed = jax.device_get(out)
    nll.append(tokens)
    seen.append(observed)


def _merged(parts: list[Observed], real: int, total: int) -> SiteRows:
    """Batches together, in whole numbers of any size; of `total` positions `real` are no padding."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(part, name) for part in parts])

    counts = (int(column(n).sum(dtype=np.int64)) for n in ("overflowed", "subnormal", "zero"))
    rows = int(column("rows").sum(dtype=np.int64)) * real // total
    largest = math.sqrt(column("max_square").max())
    return SiteRows(rows, *counts, float(column("max_abs").max()), largest)
