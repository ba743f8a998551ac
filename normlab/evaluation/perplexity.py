"""Perplexity of one model over prepared windows, in a precision: the hot loop of evaluation."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Float64, Int, Int64

from normlab.evaluation.kl import kl_divergence
from normlab.evaluation.partial_results import PartialResults
from normlab.evaluation.protocols import Windows
from normlab.evaluation.range_stats import RangeStats
from normlab.loss import token_nll
from normlab.model import Context, TokenModel, Transformer
from normlab.model.attention import Attention, normed_maps
from normlab.model.by_layer import ByLayer
from normlab.model.half import half_weights
from normlab.norms import Norm, all_norms, nothing_summed
from normlab.norms.sites import with_statistic
from normlab.numerics import Arithmetic, FloatFormat, RangeCounts, arithmetic
from normlab.parallel.sharding import layout, padded_rows, replicate, shard_batch
from normlab.progress import announced

LOGITS_BYTES = {"cpu": 64 * 2**20}
"""What a batch's float32 logits may take where no batch size is asked for; 1 GiB elsewhere."""

BATCH_TOKENS = 8192
"""How many positions it may have then."""


Passed = tuple[Float[Array, "b l v"], dict[str, RangeCounts]]
"""What a pass over a batch gives: logits, and what the norms saw."""

Tensor = Any
"""A NumPy array, or a JAX array while it is on the device."""


class Scaled(NamedTuple):
    """A precision, static scales by site (1 where one is missing), what activations are held in.

    And the model, where it is not the one that is scored beside it; and by site whether its norm
    stays in float32, where that is asked of any column that shares the program.
    """

    precision: Arithmetic
    scales: Mapping[str, Any] | None = None
    activations: FloatFormat | None = None
    model: TokenModel | None = None
    keep_fp32: Mapping[str, bool] | None = None


class TokenComparison(NamedTuple):
    """Each token in one precision beside the same token in another; 0 where it isn't scored."""

    delta_nll: Float32[Tensor, "n l"]
    """NLL less that of the reference, in nats."""
    kl: Float32[Tensor, "n l"]
    """KL(reference ‖ this) of the distributions over the next token, in nats."""
    agrees: Bool[Tensor, "n l"]
    """Whether both hold the same token to be the likeliest."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Sums and counts; nothing is divided yet.

    Args:
        window_nll: sum of −log p over each window's scored tokens, in nats, float64.
        token_nll: that of each token, float32; 0 where it isn't scored.
        sites: what each norm saw, padding left out.
        beside: each token beside the reference; None where there is none.
    """

    window_nll: Float64[np.ndarray, " n"]
    token_nll: Float32[np.ndarray, "n l"]
    counts: Int64[np.ndarray, " n"]
    sites: dict[str, RangeStats]
    beside: TokenComparison | None = None

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
    """As many windows as fit into `LOGITS_BYTES` and `BATCH_TOKENS`, but at least one.

    All batches are about equally large, so that little of the last one is padding.
    """
    n, length = windows.inputs.shape
    return -(-n // -(-n // most_windows(length, vocab_size)))


def most_windows(length: int, vocab_size: int) -> int:
    """As many windows of a length as fit into `LOGITS_BYTES` and `BATCH_TOKENS`, or one."""
    room = LOGITS_BYTES.get(jax.default_backend(), 2**30)
    return max(1, min(BATCH_TOKENS, room // (4 * vocab_size)) // length)


def unit_scales(model: TokenModel) -> dict[str, Float[Array, "#heads #one"]]:
    """Scale 1 at every site with a statistic, of the shape that a rule's scale has there."""
    by_head = {
        norm.site.name: (n, 1)
        for _, node in nnx.iter_graph(model)
        if isinstance(node, Attention)
        for norm, linear in normed_maps(node)
        if (n := linear.kernel.shape[1] // norm.width) > 1
    }
    sites = with_statistic(model)
    return {site: jnp.ones(by_head.get(site, ()), jnp.float32) for site in sites}


def score(
    model: TokenModel,
    windows: Windows,
    precision: str | Arithmetic,
    scales: Mapping[str, Any] | None = None,
    *,
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """One forward pass over `windows`.

    The weights are the model's own; only the norms' statistics follow `precision`. Its rule is not
    applied here: pass the rule's `scales`, without which it is refused. All batches have one shape,
    so that one program is compiled: the last one is filled up with windows that count for nothing.

    Args:
        model: read, not changed.
        windows: from a protocol.
        precision: of every norm's statistic, or its string.
        scales: static scale by site; a site that is missing has 1.
        batch: windows in a batch; None takes `default_batch`.
        on_batch: told, after each batch, how many windows are done.
    """
    scaled = Scaled(arithmetic(precision), scales)
    return score_columns(model, windows, [scaled], batch=batch, on_batch=on_batch)[0]


def score_columns(
    model: TokenModel,
    windows: Windows,
    columns: Sequence[Scaled],
    *,
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    unfinished: PartialResults | None = None,
) -> list[Scores]:
    """One forward pass for each column, batch by batch, all but the first beside the first.

    So two distributions can be compared without keeping the logits of a text. Those of the first
    column live for one batch, and are computed once for all others.

    Args:
        model: as in `score`, like all that is not said here.
        windows: from a protocol.
        columns: the first is the reference.
        batch: windows in a batch.
        on_batch: told how many windows are done.
        unfinished: where an evaluation of the same that was cut off has left its first batches, and
            where this one leaves its own.
    """
    size = padded_rows(batch or default_batch(windows, model.vocab_size))
    models = [column.model or model for column in columns]
    passes = list(map(_pass, models, columns))
    run = announced(partial(_side_by_side, passes))
    told = on_batch or (lambda done: None)
    batches = _all_batches(run, windows, size, _two_at_once(models), told, unfinished)
    found = [_scores([outs[i] for outs in batches], windows, size) for i in range(len(columns))]
    norms = {norm.site.name: norm for norm in all_norms(model)}
    for scores in found:
        for site, rows in scores.sites.items():
            if rows.rows <= 0:
                raise nothing_summed(norms[site])
    return found


def _two_at_once(models: Sequence[TokenModel]) -> bool:
    """Whether two threads take the batches. XLA runs the most of a small one on one core.

    PyTorch's hooks take one at a time, several devices each in the same order, and a model whose
    layers are read from disk would be read twice.
    """
    here = all(isinstance(m, Transformer) and m.read_block is None for m in models)
    return here and layout()[0].empty and jax.process_count() == 1


def _pass(model: TokenModel, column: Scaled) -> Callable[..., Passed]:
    """A column's pass over a batch: compiled, or for a model that is not JAX's as it is."""
    precision, scales, activations, _, kept = column
    keep = {site: jnp.bool_(stays) for site, stays in (kept or {}).items()}
    # Dividing by 1 is exact, and lets scaled and unscaled passes share a compiled program.
    given = {} if precision.plain and not scales else _shaped(scales or {}, unit_scales(model))
    if not isinstance(model, Transformer):
        return partial(_called, model, precision, given, keep)
    model.check_sites(given)
    weights = nnx.state if activations is None else partial(half_weights, to=activations)
    by_layer = ByLayer(model, weights)

    def run(inputs: Int[Array, "b l"], real: Bool[Array, "b l"]) -> Passed:
        program = partial(_layer, precision, activations, real)
        return by_layer(program, [inputs], given, keep)[0]

    return run


def _shaped(scales: Mapping[str, Any], unit: Mapping[str, Array]) -> dict[str, Any]:
    """The scales, 1 where one is missing: of one shape and type at a site, whatever the rule."""
    shaped = {
        site: jnp.broadcast_to(scale, unit[site].shape)
        for site, scale in scales.items()
        if site in unit and not callable(scale)
    }
    return {**unit, **scales, **shaped}


class Out(NamedTuple):
    """What one pass over a batch leaves: each position's NLL, 0 where it isn't scored."""

    nll: Float[Array, "b l"]
    observed: dict[str, RangeCounts]
    beside: TokenComparison | None = None


def _side_by_side(
    passes: Sequence[Callable[..., Passed]], inputs: Any, targets: Any, scored: Any, real: Any
) -> list[Out]:
    first, *others = passes
    logits, observed = first(inputs, real)
    nll = _nll(logits, targets, scored)
    outs = [Out(nll, observed)]
    for other in others:
        other_logits, observed = other(inputs, real)
        other_nll = _nll(other_logits, targets, scored)
        kl, agrees = _compared(logits, other_logits, scored)
        outs.append(Out(other_nll, observed, TokenComparison(other_nll - nll, kl, agrees)))
    return outs


def _all_batches(
    run: Callable[..., list[Out]],
    windows: Windows,
    size: int,
    two: bool,
    on_batch: Callable[[int], None],
    unfinished: PartialResults | None,
) -> list[list[Out]]:
    """Each batch's results: those that were kept, then those made now, among them the last one."""
    kept = [] if unfinished is None else list(unfinished.done)
    made: list[list[Out]] = []
    for outs in _batches(run, windows, size, two, on_batch, len(kept) * size):
        if made and unfinished is not None:
            unfinished.add(made[-1])
        made.append(outs)
    structure = jax.tree.structure(made[-1])
    return [jax.tree.unflatten(structure, leaves) for leaves in kept] + made


def _batches(
    run: Callable[..., list[Out]],
    windows: Windows,
    size: int,
    two: bool,
    on_batch: Callable[[int], None],
    first: int,
) -> Iterator[list[Out]]:
    """Each batch's results on the host."""

    def made(start: int) -> list[Out]:
        return run(*shard_batch(*_padded(windows[start : start + size], size)))

    starts = range(first, len(windows), size)
    fetched = (_in_threads if two else _one_ahead)(made, starts)
    for start, outs in zip(starts, fetched, strict=True):
        yield outs
        on_batch(min(start + size, len(windows)))


def _in_threads(made: Callable[[int], list[Out]], starts: Sequence[int]) -> Iterator[list[Out]]:
    """Two batches at once; the first one is handed over, and compiled, before the others."""
    under_way, pool = made(starts[0]), ThreadPoolExecutor(2, "batches")
    try:
        others = pool.map(lambda start: jax.device_get(made(start)), starts[1:])
        yield jax.device_get(under_way)
        yield from others
    finally:
        pool.shutdown(cancel_futures=True)


def _one_ahead(made: Callable[[int], list[Out]], starts: Sequence[int]) -> Iterator[list[Out]]:
    """One after another, all in this thread, whose mesh no other one knows."""
    under_way = made(starts[0])
    for start in starts[1:]:
        done, under_way = under_way, made(start)
        yield jax.device_get(done)
    yield jax.device_get(under_way)


def _padded(windows: Windows, size: int) -> tuple[np.ndarray, ...]:
    """Inputs, targets, what is scored and what is real, each [size, l]."""
    missing = size - len(windows)
    real = np.arange(windows.inputs.shape[1]) < windows.lengths[:, None]
    arrays = (windows.inputs, windows.targets, windows.scored, real)
    return tuple(np.pad(a, ((0, missing), (0, 0))) for a in arrays)


@partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _layer(
    precision: Arithmetic,
    activations: FloatFormat | None,
    real: Bool[Array, "b l"],
    call: Callable[..., Array],
    graphdef: nnx.GraphDef[Any],
    state: Any,
    scales: dict[str, Any],
    keep_fp32: dict[str, Bool[Array, ""]],
    x: Array,
) -> tuple[Array, dict[str, RangeCounts]]:
    """One layer of a pass, as `ByLayer` asks for it."""
    context = RealRows(precision, scales, real, activations, keep_fp32=keep_fp32)
    with jax.default_matmul_precision("highest"):  # on GPUs float32 products are TF32 otherwise
        x = call(nnx.merge(graphdef, state), x, context)
    return x, replicate(context.observed)


def _called(
    model: TokenModel,
    precision: Arithmetic,
    scales: dict[str, Any],
    keep_fp32: dict[str, Bool[Array, ""]],
    inputs: Int[Array, "b l"],
    real: Bool[Array, "b l"],
) -> Passed:
    """The same by a call for all whole windows, and one for a shorter last one: no padding."""
    tokens, lengths = np.asarray(inputs), np.asarray(real).sum(axis=1)
    logits = np.zeros((*tokens.shape, model.vocab_size), np.float32)
    observed = dict[str, RangeCounts]()
    for length in np.unique(lengths[lengths > 0])[::-1]:
        rows = np.flatnonzero(lengths == length)
        context = Context(precision, scales, observe=True, keep_fp32=keep_fp32)
        logits[rows, :length] = model(jnp.asarray(tokens[rows, :length]), context)
        for site, seen in context.observed.items():
            placed = seen.moved(rows[0], length, tokens.shape[1])
            observed[site] = observed[site] + placed if site in observed else placed
    return jnp.asarray(logits), observed


@jax.jit
def _nll(
    logits: Float[Array, "b l v"], targets: Int[Array, "b l"], scored: Bool[Array, "b l"]
) -> Float[Array, "b l"]:
    found = _by_position(token_nll, logits, targets, together=4)
    return replicate(jnp.where(scored, found, 0.0))


@jax.jit
def _compared(
    logits: Float[Array, "b l v"], other: Float[Array, "b l v"], scored: Bool[Array, "b l"]
) -> tuple[Float[Array, "b l"], Bool[Array, "b l"]]:
    kl, agrees = _by_position(_distances, logits, other, together=1)
    return replicate((jnp.where(scored, kl, 0.0), agrees & scored))


def _by_position(f: Callable[..., Any], *of: Array, together: int) -> Any:
    """`f` of arrays [b, l, …]; on a CPU a few positions at a time, whose logits stay in the cache.

    That takes a third of the time, and gives the same bits.
    """
    if jax.default_backend() != "cpu":
        return f(*of)
    positions = jnp.arange(of[0].shape[1])
    found = jax.lax.map(lambda p: f(*(a[:, p] for a in of)), positions, batch_size=together)
    return jax.tree.map(jnp.transpose, found)


def _distances(
    logits: Float[Array, "*batch v"], other: Float[Array, "*batch v"]
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    return kl_divergence(logits, other), _likeliest(logits) == _likeliest(other)


def _likeliest(logits: Float[Array, "*batch v"]) -> Int[Array, "*batch"]:
    """The first token of the largest logit, found in two passes that XLA's CPU backend fuses."""
    return jnp.argmax(logits == jnp.max(logits, axis=-1, keepdims=True), axis=-1)


class RealRows(Context):
    """A pass whose norms see padding as rows of zeros, so that it leaves no trace in `observed`.

    Padding stands after all real tokens and the model is causal, so no score depends on it. Zero
    rows neither overflow nor count as underflowed; they are taken off the number of rows.
    """

    def __init__(
        self,
        precision: Arithmetic,
        scales: dict[str, Any],
        real: Bool[Array, "b l"],
        activations: FloatFormat | None,
        edge: float | None = None,
        keep_fp32: Mapping[str, Bool[Array, ""]] | None = None,
    ):
        super().__init__(
            precision,
            scales,
            observe=True,
            edge=edge,
            activations=activations,
            keep_fp32=keep_fp32,
        )
        self._real = real

    def norm(self, norm: Norm | None, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        if norm is None or not norm.has_statistic:
            return super().norm(norm, x)
        y = super().norm(norm, self._without_padding(x))
        seen = self.observed[norm.site.name]
        rows = seen.rows // self._real.size * jnp.sum(self._real, dtype=jnp.int32)
        self.observed[norm.site.name] = dataclasses.replace(seen, rows=rows)
        return self._without_padding(y)  # with ε = 0, a row of zeros becomes NaN

    def enters(self, x: Float[Array, "b l d"], attention: Any) -> None:
        super().enters(self._without_padding(x), attention)

    def _without_padding(self, x: Float[Array, "b l *heads d"]) -> Float[Array, "b l *heads d"]:
        return jnp.where(self._real.reshape(self._real.shape + (1,) * (x.ndim - 2)), x, 0.0)


def _scores(outs: Sequence[Out], windows: Windows, size: int) -> Scores:
    """One column's batches together, the fill of the last one cut off."""
    n, length = windows.inputs.shape

    def joined(parts: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *batches: np.concatenate(batches)[:n], *parts)

    sites = {
        site: RangeStats.of([out.observed[site] for out in outs], size, length)
        for site in outs[0].observed
    }
    nll, beside = joined([out.nll for out in outs]), joined([out.beside for out in outs])
    return Scores(nll.sum(axis=1, dtype=np.float64), nll, windows.counts, sites, beside)
