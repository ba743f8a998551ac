"""A rewritten model as a directory that `transformers` reads, and what the rewriting cost."""

import ctypes
import importlib.metadata
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from normlab.config import field, require
from normlab.data import Tokenizer
from normlab.evaluation import metadata
from normlab.evaluation.config import EvaluateConfig, TextConfig, check_rule
from normlab.evaluation.perplexity import Scores, score
from normlab.evaluation.protocols import Windows
from normlab.evaluation.targets import EvalTarget, targets
from normlab.evaluation.tensor_ranges import WINDOWS, rewritten
from normlab.evaluation.texts import Texts, calibration_tokens
from normlab.model import Transformer
from normlab.norms.sites import matching, with_statistic
from normlab.pretrained import PACKAGES, describe, load
from normlab.pretrained.export.card import Card, Measured
from normlab.pretrained.export.directory import gguf_metadata, write_gguf, write_hf
from normlab.pretrained.export.fit import Fit, eps_choices, fitted
from normlab.pretrained.export.gguf import DTYPES as GGUF_DTYPES
from normlab.pretrained.export.gguf import Metadata
from normlab.pretrained.export.huggingface import DTYPES
from normlab.pretrained.export.scales_file import ScalesFile, scales_file, stages, weights_hash
from normlab.pretrained.export.tensors import tensors
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.load import Checkpoint
from normlab.pretrained.packages import sha256
from normlab.progress import Progress
from normlab.registry import choice
from normlab.results.column import Column
from normlab.scaling import needs_calibration
from normlab.transforms import apply, check, parse
from normlab.transforms.surgery import in_place

SAMPLE = 20_000
"""Characters of the text with which the tokenizer that was written is compared."""
README = "README.md"
WEIGHTS = (".safetensors", ".gguf")
FORMATS = {"hf": tuple(DTYPES), "gguf": tuple(GGUF_DTYPES)}
"""Types of weights of each format."""
CALIBRATION_WINDOWS = EvaluateConfig.calibration_windows


@dataclass(frozen=True)
class ExportConfig:
    """Which model, rewritten how, and where it goes."""

    pretrained: str | None = field(None, "a pretrained model, by name, hf:DIR or gguf:FILE")
    run: str | None = field(None, "or a run directory that `python -m train` wrote")
    transform: str = field(
        "none",
        "a chain of rewrites, such as rescale:auto+fold; auto is the largest power of two with "
        "which the stream keeps a factor of 4 from FP16's largest value on the text",
    )
    format: str = field(
        "hf", "hf: a directory that transformers reads; gguf: a file that llama.cpp reads"
    )
    dtype: str = field("float32", f"of the weights: {', '.join(DTYPES)}")
    shard_gb: float = field(2.0, "a file of weights is at most so many gigabytes (10⁹ bytes)")
    rule: str | None = field(
        None,
        "a rule's static scales beside it, as scales.json, and what applies them in PyTorch: "
        "random_tokens.pow2; null: none",
    )
    datapath: str = field(
        "fp16:pairwise.input", "how a norm computes with its scale: a precision, or a datapath"
    )
    keep_fp32: tuple[str, ...] = field(
        (), "norms that compute in float32 there, by name or pattern: [norm_final,blocks.2.*]"
    )
    data: TextConfig = field(TextConfig, "the text on which it is measured")
    split: str = field("test", "which part of it")
    window: int | None = field(None, "tokens of a window; null: the protocol's")
    max_windows: int = field(WINDOWS, "so many windows are read, the first")
    imports: tuple[str, ...] = field((), "your own files, [my_norms.py]: what they register")
    allow_changed_source: bool = field(
        False, "go on where the norm's source or an imported file is another than it was"
    )
    out: str | None = field(None, "directory for the model, which isn't there yet")

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, FORMATS[choice("format", self.format, FORMATS)])
        require(self.shard_gb > 0, f"shard_gb = {self.shard_gb}: expected a number > 0, such as 2")
        check(self.transform)
        self.evaluation()  # which has checks of its own
        if self.column is not None:
            check_rule(self.column)
            stages(self.column.precision)
        for name in ("datapath", "keep_fp32"):
            said = getattr(self, name)
            require(
                self.rule is not None or said == getattr(ExportConfig, name),
                f"{name} = {said}: expected rule= beside it, such as rule=random_tokens.pow2",
            )

    @property
    def column(self) -> Column | None:
        """How the scaled norms compute, and by which rule."""
        return None if self.rule is None else Column.parse(f"{self.datapath}+{self.rule}")

    def evaluation(self) -> EvaluateConfig:
        """The model and the text, as an evaluation is asked for them."""
        return EvaluateConfig(
            run=self.run,
            pretrained=self.pretrained,
            data=self.data,
            split=self.split,
            window=self.window,
            max_windows=self.max_windows,
            imports=self.imports,
            allow_changed_source=self.allow_changed_source,
        )


class Source(NamedTuple):
    """What is exported: the model before it is loaded, and the text that it is measured on.

    Args:
        target: the model.
        checkpoint: that it is loaded from; None: a run.
        tokenizer: its own.
        windows: on which it is measured.
        text: which these are.
        sample: with which tokenizers are compared.
        metadata: of a GGUF file, where one is asked for.
        calibration: tokens [w, l] for a scale rule that looks at text; else None.
    """

    target: EvalTarget
    checkpoint: Checkpoint | None
    tokenizer: Tokenizer
    windows: Windows
    text: str
    sample: str
    metadata: Metadata
    calibration: Any


def write(config: ExportConfig, command: str) -> tuple[Path, Card]:
    """The directory that was written, whole or not at all, and its card.

    Args:
        config: what was asked.
        command: the command line, for the card.

    Raises:
        ValueError: no directory asked for or one that is there, a model that no family can express,
            a weight that the type can't hold.
        DoesNotApply: a transform that can't rewrite this model.
    """
    require(config.out is not None, "out: expected a directory for the model, such as out=exported")
    out = Path(str(config.out))
    require(not out.exists(), f"out = {out} is there already: expected a directory that is not")
    source = _source(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.partial-{os.getpid()}")
    part.mkdir()
    try:
        card = _written(part, source, config, command)
        (part / README).write_text(str(card), encoding="utf-8")
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out, card


def _source(config: ExportConfig) -> Source:
    asked, texts = config.evaluation(), Texts()
    target = targets(asked)[0]
    if target.tokenizer is None:
        raise FileNotFoundError(f"{target.name} has no tokenizer: expected a run that has trained")
    checkpoint = None if config.pretrained is None else describe(config.pretrained)
    tokenizer, corpus = target.tokenizer(), texts.corpus(target, asked)
    windows = texts.windows(target, asked, tokenizer)
    length = target.window(target.protocol(None), config.window)
    text = f"{corpus.title}, {config.split}, the first {len(windows)} windows of {length} tokens"
    metadata = gguf_metadata(tokenizer, checkpoint) if config.format == "gguf" else {}
    calibration = None
    if config.column is not None and needs_calibration(str(config.column.rule)):
        calibration, _ = calibration_tokens(corpus, tokenizer, length, CALIBRATION_WINDOWS)
    sample = corpus.text(config.split)[:SAMPLE]
    return Source(target, checkpoint, tokenizer, windows, text, sample, metadata, calibration)


def _written(part: Path, source: Source, config: ExportConfig, command: str) -> Card:
    """All files but the README, which is returned. Beside one model a few tensors are held."""
    lm = source.target.load()
    with in_place():
        chain, model = rewritten(lm, source.windows, config.transform)
    lm = replace(lm, model=model)  # a chain of norm types makes another
    _let_go()
    fit = _fit(model, source)
    _let_go()
    scaled = _scales(model, fit, source, config)
    if config.format == "gguf":
        spec = write_gguf(part, source.target.name, fit, source.metadata, config.dtype)
    else:
        size = config.shard_gb * 1e9
        spec = write_hf(part, fit, lm.tokenizer, source.checkpoint, config.dtype, size)
    if scaled is not None:
        scaled.write(part)
    bits = _sha256(fit.model) if config.dtype == "float32" else None
    family, notes, facts = fit.family, fit.notes, lm.facts
    del lm, model, fit
    _let_go()
    _refuse_other(spec, source, bits)
    return Card(
        name=source.target.name,
        chain=chain,
        family=family,
        format=config.format,
        notes=notes,
        dtype=config.dtype,
        scaled=scaled,
        text=source.text,
        measured=list(_measured(spec, source, chain)),
        sources=_sources(facts),
        files={p.name: sha256(p) for p in sorted(part.iterdir()) if p.suffix in WEIGHTS},
        command=command,
        version=importlib.metadata.version("normlab"),
    )


def _fit(model: Transformer, source: Source) -> Fit:
    """The model in its family's layout, with the ε that moves the first window least."""
    fit = partial(fitted, model)
    if (checkpoint := source.checkpoint) is not None:
        words = None if isinstance(checkpoint.source, GGUF) else checkpoint.made_with
        fit = partial(fitted, model, checkpoint.family, words)
    first, choices = fit(), eps_choices(model)
    if len(choices) == 1 or not any("ε" in note for note in first.notes):
        return first
    del first

    def nll(model: Transformer) -> Any:
        return score(model, source.windows[:1], "fp32").token_nll

    exact = nll(model)
    moved = {eps: float(np.abs(nll(fit(eps=eps).model) - exact).max()) for eps in choices}
    return fit(eps=min(choices, key=lambda eps: moved[eps]))


def _scales(
    model: Transformer, fit: Fit, source: Source, config: ExportConfig
) -> ScalesFile | None:
    """The scales of the rewritten model, each norm with the ε that it wants."""
    if config.column is None:
        return None
    kind, found = DTYPES[config.dtype][1], tensors(fit.model, fit.names)
    with np.errstate(over="ignore"):  # which is refused where it is written
        weights = weights_hash(tensor.values().astype(kind, copy=False) for tensor in found)
    names, sites = fit.names, matching(config.keep_fp32, with_statistic(model))
    keep = [site for site, kept in sites.items() if kept]
    return scales_file(model, fit.family, names, config.column, weights, keep, source.calibration)


def _refuse_other(spec: str, source: Source, bits: str | None) -> None:
    """Read what was written again: the same weights bit for bit, and the same ids of a text.

    Raises:
        RuntimeError: it is another model, which is an error of this program.
    """
    read = load(spec)
    if bits is not None and _sha256(read.model) != bits:
        raise RuntimeError(f"{spec} reads as other weights than were written")
    own = source.tokenizer.encode(source.sample).ids
    if not np.array_equal(read.tokenizer.encode(source.sample).ids, own):
        raise RuntimeError(f"{spec} holds a tokenizer that encodes the text otherwise")


def _sha256(model: Transformer) -> str:
    return metadata.sha256(jax.tree.leaves(nnx.state(model)))


def _measured(spec: str, source: Source, chain: str) -> Iterator[Measured]:
    """The model as loaded, after its transform, and as exported, each loaded when it is scored."""

    def after() -> Transformer:
        with in_place():
            return apply(source.target.load().model, chain)

    makers: dict[str, Callable[[], Transformer]] = {
        "as loaded": lambda: source.target.load().model,
        f"after {chain}": after,
        "as exported": lambda: load(spec).model,
    }
    if not parse(chain).steps:
        del makers[f"after {chain}"]
    scores: list[Scores] = []
    for name, make in makers.items():
        with Progress(f"{source.target.name} {name}", len(source.windows)) as progress:
            said = lambda done: progress.update(done, "")  # noqa: E731 (called inside)
            scores.append(score(make(), source.windows, "fp32", on_batch=said))
        _let_go()
        yield Measured(name, scores[-1].perplexity, _moved(scores))


def _let_go() -> None:
    """Give freed memory back: glibc keeps arrays of up to 32 MiB for later."""
    with suppress(OSError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _moved(scores: Sequence[Scores]) -> tuple[float, float]:
    """Largest difference of a token's log-probability: of the last to the first, to the one before.

    NaN counts as infinite.
    """
    last = scores[-1].token_nll
    far = [np.abs(last - other.token_nll) for other in (scores[0], scores[-2:][0])]
    first, before = (float(np.max(np.where(np.isnan(d), math.inf, d))) for d in far)
    return first, before


def _sources(facts: dict[str, Any]) -> dict[str, str]:
    """What it was made from: files, their hashes and licence, or a run and its step."""
    if "sha256" not in facts:
        return {Path(facts["source"]).name: f"a run of normlab, step {facts['step']}"}
    licences = {p.file: f", licence: {p.license}" for p in PACKAGES.values()}
    hashes = facts["sha256"].items()
    return {name: f"SHA-256 {digest}{licences.get(name, '')}" for name, digest in hashes}
