"""Where a model leaves FP16: the size of every tensor of a float32 pass, and the smallest cure."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from normlab.evaluation.protocols import Windows
from normlab.model import Context, Transformer
from normlab.model.language_model import LanguageModel
from normlab.numerics import FloatFormat
from normlab.progress import Progress
from normlab.results.range_report import RangeReport, TensorRange
from normlab.scaling import RuleDoesNotApply, scales
from normlab.transforms import DoesNotApply
from normlab.transforms.rescale import Rescale

RULE = "random_tokens"
OF_THE_STREAM = (".stream", ".out", "embed")
"""Ends of names of tensors that a rescaling of the stream divides, beside norms' own outputs."""


def tensor_ranges(lm: LanguageModel, windows: Windows, format: str = "fp16") -> RangeReport:
    """One float32 pass over the windows, and one more for a cure, if there is need of one."""
    to = FloatFormat.parse(format)
    found = _pass(lm, windows, to)
    out = [t for t in found if not t.fits]
    rescale, rule, left = None, None, [t.name for t in out]
    if out:
        rescale, model, after = _rescaled(lm, windows, to, out)
        rule, left = _ruled(model, after, to)
    tokens = int(windows.lengths.sum())
    return RangeReport(lm.name, format, tokens, found, rescale, rule, left)


def _rescaled(
    lm: LanguageModel, windows: Windows, to: FloatFormat, out: list[TensorRange]
) -> tuple[float | None, Transformer, list[TensorRange]]:
    """The factor, the model with it, and its tensors that stay out of range."""
    stream = [t.largest for t in out if t.name.endswith(OF_THE_STREAM)]
    if not stream or not math.isfinite(max(stream)):
        return None, lm.model, out
    factor = 2.0 ** -math.ceil(math.log2(max(stream) / to.max))
    try:
        model = Rescale(factor)(lm.model)
    except DoesNotApply:
        return None, lm.model, out
    after = _pass(dataclasses.replace(lm, model=model), windows, to)
    return factor, model, [t for t in after if not t.fits]


def _ruled(
    model: Transformer, out: list[TensorRange], to: FloatFormat
) -> tuple[str | None, list[str]]:
    """The rule, if its scales bring every norm's sum into range; and what is left."""
    sums = [t for t in out if t.is_sum]
    others = [t.name for t in out if not t.is_sum]
    if not sums:
        return None, others
    try:
        given = scales(model, RULE)
    except RuleDoesNotApply:
        return None, [*others, *(t.name for t in sums)]
    left = [t.name for t in sums if not _fits(t, given, to)]
    return RULE, others + left


def _fits(total: TensorRange, given: Mapping[str, Any], to: FloatFormat) -> bool:
    least = float(np.min(given.get(total.name.removesuffix(".sum"), 1.0)))
    return total.largest / least**2 <= to.max


def _pass(lm: LanguageModel, windows: Windows, to: FloatFormat) -> list[TensorRange]:
    graphdef, params = nnx.split(lm.model)
    run = jax.jit(partial(_stored, graphdef, to.max))
    kept: dict[str, list[Any]] = {}
    with Progress(f"{lm.name} ranges", len(windows)) as progress:
        for i, tokens in enumerate(windows.inputs):
            length, found = windows.lengths[i], jax.device_get(run(params, tokens[None]))
            for name, (size, over, width) in found.items():
                kept.setdefault(name, []).append((size[0, :length], over[0, :length], int(width)))
            progress.update(i + 1, "")
    return [_range(name, kept[name], windows, lm, to) for name in _order(graphdef, params, windows)]


def _stored(graphdef: Any, edge: float, params: Any, tokens: Any) -> dict[str, Any]:
    context = Context(edge=edge)
    nnx.merge(graphdef, params)(tokens, context)
    return context.stored


def _order(graphdef: Any, params: Any, windows: Windows) -> list[str]:
    """Names in forward order, which a compiled function's dictionary forgets."""
    context = Context(edge=1.0)
    jax.eval_shape(lambda p, t: nnx.merge(graphdef, p)(t, context), params, windows.inputs[:1])
    return list(context.stored)


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
