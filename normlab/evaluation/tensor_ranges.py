"""Where a model leaves FP16: the size of every tensor of a float32 pass, and the smallest cure."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.evaluation.perplexity import RealRows, exp
from normlab.evaluation.protocols import Windows
from normlab.loss import token_nll
from normlab.model import Context, TokenModel, Transformer
from normlab.model.by_layer import ByLayer
from normlab.model.context import Stored
from normlab.model.half import half_weights
from normlab.model.language_model import LanguageModel
from normlab.norms import all_norms
from normlab.numerics import FloatFormat, arithmetic
from normlab.progress import Progress
from normlab.results.range_report import STORED, RangeReport, TensorRange
from normlab.scaling import RuleDoesNotApply, scales
from normlab.transforms import AUTO, NOTHING, DoesNotApply, apply, parse
from normlab.transforms.rescale import Rescale

RULE = "random_tokens"
WINDOWS = 8
"""So many tell how large a model's tensors are, where nothing else is asked for."""
ROOM = 4.0
"""What `AUTO` leaves between the stream and the format's largest value: other texts go further."""
OF_MODULES = (
    "the inputs of norms (….in) and what PyTorch's modules give; what is made inside of a module, "
    "such as attention's products and scores, is not seen"
)


class Cure(NamedTuple):
    """What brings a model into range, if all is well: the factor of its stream, a rule for sums.

    Args:
        model: with the factor.
        scales: by site, of the rule.
        rescale: the factor; None without one.
        rule: its name; None without one.
        left: names of tensors that these two don't reach.
    """

    model: TokenModel
    scales: Mapping[str, Any]
    rescale: float | None
    rule: str | None
    left: list[str]


class Pass(NamedTuple):
    """What a pass over the windows leaves: every tensor, sums that overflowed, the perplexity."""

    tensors: list[TensorRange]
    overflowed: list[str]
    perplexity: float


class Seen(NamedTuple):
    """Of a tensor: its place in its layer, its sizes, rows whose sum overflowed; None: not told."""

    order: Any
    stored: Stored | None
    lost: Any


def tensor_ranges(lm: LanguageModel, windows: Windows, format: str = "fp16") -> RangeReport:
    """One float32 pass over the windows; where there is need of a cure, one more to prove it.

    That one is in the format: weights, stored tensors, and norms' sums with the rule's scales. Of a
    model that is not JAX's only the sums are.
    """
    to = FloatFormat.parse(format)
    found = _pass(lm, lm.model, windows, to)
    cure = _cure(lm.model, [t for t in found.tensors if not t.fits], to)
    left, proved = cure.left, None
    if not left and (cure.rescale or cure.rule):
        proved = _pass(lm, cure.model, windows, to, cure)
        out = [t.name for t in proved.tensors if not t.fits and not t.is_sum]
        left = out + [f"{site}.sum" for site in proved.overflowed]
    return RangeReport(
        lm.name,
        format,
        int(windows.lengths.sum()),
        found.tensors,
        cure.rescale,
        cure.rule,
        left,
        found.perplexity,
        proved.perplexity if proved and isinstance(lm.model, Transformer) else None,
        STORED if isinstance(lm.model, Transformer) else OF_MODULES,
    )


def rewritten(
    lm: LanguageModel, windows: Windows, chain: str, format: str = "fp16"
) -> tuple[str, Transformer]:
    """The chain with a number for each `rescale:auto` in it, and the model after it.

    The number is the largest power of two with which what the stream holds keeps `ROOM` from the
    format's largest value, over these windows. Where that is so already, the step is left out.
    """
    to, done, model = FloatFormat.parse(format), list[str](), lm.model
    for step in chain.split("+"):
        if step.strip() == AUTO:
            found = _factor(model, _pass(lm, model, windows, to).tensors, to.max / ROOM)
            if found is None:
                continue
            step = f"rescale:{found!r}"
        done.append(str(parse(step)))
        model = apply(model, step)
    return "+".join(done) or NOTHING, model


def _cure(model: TokenModel, out: list[TensorRange], to: FloatFormat) -> Cure:
    """The smallest one for the tensors that are out of range."""
    of_stream = _of_stream(model)
    stored = [t for t in out if not t.is_sum]
    factor, rescaled = _rescaled(model, _factor(model, stored, to.max))
    cured = of_stream if factor else ()
    left = [t.name for t in stored if not cured or not t.name.endswith(cured)]
    sums = [t.name for t in out if t.is_sum and t.largest * (factor or 1.0) ** 2 > to.max]
    if not sums:
        return Cure(rescaled, {}, factor, None, left)
    try:
        return Cure(rescaled, scales(rescaled, RULE), factor, RULE, left)
    except RuleDoesNotApply:
        return Cure(rescaled, {}, factor, None, left + sums)


def _of_stream(model: TokenModel) -> tuple[str, ...]:
    """Ends of names of the tensors that a rescaling makes smaller: what writes to the stream."""
    normed = any(norm.site.kind == "norm_out" for norm in all_norms(model))
    return (".stream", "embed", ".norm_out" if normed else ".out")


def _factor(model: TokenModel, tensors: Sequence[TensorRange], limit: float) -> float | None:
    """The largest power of two, below 1, that brings the stream to the limit; None: no need."""
    of_stream = _of_stream(model)
    largest = max((t.largest for t in tensors if t.name.endswith(of_stream)), default=0.0)
    if largest <= limit or not math.isfinite(largest):
        return None
    return 2.0 ** -math.ceil(math.log2(largest / limit))


def _rescaled(model: TokenModel, factor: float | None) -> tuple[float | None, TokenModel]:
    if factor is None or not isinstance(model, Transformer):
        return None, model
    try:
        return factor, Rescale(factor)(model)
    except DoesNotApply:
        return None, model


def _pass(
    lm: LanguageModel,
    model: TokenModel,
    windows: Windows,
    to: FloatFormat,
    cure: Cure | None = None,
) -> Pass:
    """In float32; with a cure in the format."""
    kept, overflowed, nll = dict[str, list[Any]](), dict[str, int](), 0.0
    run: Callable[..., tuple[dict[str, Seen], Any]] = partial(_called, model, to, cure)
    if isinstance(model, Transformer):
        run = _by_layer(model, to, cure)
    with Progress(f"{lm.name} ranges", len(windows)) as progress:
        for i, length in enumerate(windows.lengths):
            seen, total = run(*_read(windows, i))
            for name, (_, stored, lost) in seen.items():
                if stored is not None:
                    size, over = (np.asarray(a)[0, :length] for a in stored[:2])
                    kept.setdefault(name, []).append((size, over, int(stored.width)))
                if lost is not None:
                    overflowed[name] = overflowed.get(name, 0) + int(lost)
            nll += float(total)
            progress.update(i + 1, "")
    return Pass(
        [_range(name, parts, windows, lm, to) for name, parts in kept.items()],
        [site for site, rows in overflowed.items() if rows],
        exp(nll / int(windows.counts.sum())),
    )


def _read(windows: Windows, i: int) -> tuple[np.ndarray, ...]:
    """Of one window its inputs, targets, which are scored and which no padding, each [1, l]."""
    real = np.arange(windows.inputs.shape[1]) < windows.lengths[:, None]
    arrays = (windows.inputs, windows.targets, windows.scored, real)
    return tuple(a[i : i + 1] for a in arrays)


def _by_layer(model: Transformer, to: FloatFormat, cure: Cure | None) -> Callable[..., Any]:
    """A pass over one window: what is seen of each tensor, in forward order, and Σ NLL."""
    weights = nnx.state if cure is None else partial(half_weights, to=to)
    layers, given = ByLayer(model, weights), {} if cure is None else dict(cure.scales)

    def run(tokens: Any, targets: Any, scored: Any, real: Any) -> tuple[dict[str, Seen], Any]:
        def layer(*part: Any) -> tuple[Any, dict[str, Seen]]:
            x, seen = _layer(to, cure is not None, real, *part)
            return x, dict(sorted(seen.items(), key=lambda item: int(item[1].order)))

        logits, seen = layers(layer, [tokens], given)[0]
        return seen, _total(logits, targets, scored)

    return run


@partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _layer(
    to: FloatFormat,
    narrow: bool,
    real: Any,
    call: Callable[..., Any],
    graphdef: nnx.GraphDef[Any],
    state: Any,
    scales: dict[str, Any],
    x: Any,
) -> tuple[Any, dict[str, Seen]]:
    """One layer, as `ByLayer` asks for it."""
    context = _context(to, narrow, scales, real)
    with jax.default_matmul_precision("highest"):
        x = call(nnx.merge(graphdef, state), x, context)
    return x, _seen(context)


def _called(
    model: TokenModel, to: FloatFormat, cure: Cure | None, *read: Any
) -> tuple[dict[str, Seen], Any]:
    """A model that is not JAX's, without padding."""
    given = {} if cure is None else cure.scales
    tokens, targets, scored, real = (a[:, : int(read[-1].sum())] for a in read)
    context = _context(to, cure is not None, given, real)
    logits = model(tokens, context)
    return _seen(context), _total(logits, targets, scored)


def _context(to: FloatFormat, narrow: bool, scales: Mapping[str, Any], real: Any) -> Context:
    if narrow:
        return RealRows(arithmetic(str(to)), dict(scales), real, to, to.max)
    return Context(edge=to.max)


def _seen(context: Context) -> dict[str, Seen]:
    lost = {site: seen.overflowed for site, seen in context.observed.items()}
    names = dict.fromkeys([*context.stored, *lost])
    return {n: Seen(i, context.stored.get(n), lost.get(n)) for i, n in enumerate(names)}


@jax.jit
def _total(logits: Any, targets: Any, scored: Any) -> Any:
    """Σ NLL."""
    return jnp.sum(jnp.where(scored, token_nll(logits, targets), 0.0))


def _range(
    name: str, parts: list[Any], windows: Windows, lm: LanguageModel, to: FloatFormat
) -> TensorRange:
    sizes = [np.where(np.isnan(size), np.inf, size) for size, _, _ in parts]
    window = int(np.argmax([size.max() for size in sizes]))
    position = int(np.argmax(sizes[window]))
    largest, width = float(sizes[window][position]), parts[0][2]
    over = np.concatenate([over for _, over, _ in parts])
    return TensorRange(
        name,
        largest,
        float(np.log2(to.max) - np.log2(largest)) if largest else math.inf,
        window,
        position,
        lm.tokenizer.decode([int(windows.inputs[window, position])]),
        float(over.sum() / (len(over) * width)),
        float(np.mean(over > 0)),
    )
