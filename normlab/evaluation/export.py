"""A rewritten model as a directory that `transformers` reads, and what the rewriting cost."""

import importlib.metadata
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from normlab.config import field, require
from normlab.evaluation import metadata
from normlab.evaluation.config import EvaluateConfig, TextConfig
from normlab.evaluation.perplexity import Scores, score
from normlab.evaluation.protocols import Windows
from normlab.evaluation.targets import EvalTarget, targets
from normlab.evaluation.tensor_ranges import AUTO, rewritten
from normlab.evaluation.texts import Texts
from normlab.model import Transformer
from normlab.model.language_model import LanguageModel
from normlab.pretrained import describe, load
from normlab.pretrained.export.card import Card, Measured
from normlab.pretrained.export.fit import Fit, eps_choices, fitted
from normlab.pretrained.export.huggingface import DTYPES, write_config, write_weights
from normlab.pretrained.export.tokenizer import copy_tokenizer, write_tokenizer
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.load import Checkpoint
from normlab.pretrained.tokenizer import special_ids
from normlab.progress import Progress
from normlab.registry import choice
from normlab.transforms import apply, parse

SAMPLE = 20_000
"""Characters of the text with which the tokenizer that was written is compared."""
README = "README.md"


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
    dtype: str = field("float32", f"of the weights: {', '.join(DTYPES)}")
    shard_gb: float = field(2.0, "a file of weights is at most so many gigabytes (10⁹ bytes)")
    data: TextConfig = field(TextConfig, "the text on which it is measured")
    split: str = field("test", "which part of it")
    window: int | None = field(None, "tokens of a window; null: the protocol's")
    max_windows: int = field(8, "so many windows are read, the first")
    imports: tuple[str, ...] = field((), "your own files, [my_norms.py]: what they register")
    allow_changed_source: bool = field(
        False, "go on where the norm's source or an imported file is another than it was"
    )
    out: str | None = field(None, "directory for the model, which isn't there yet")

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        require(self.shard_gb > 0, f"shard_gb = {self.shard_gb}: expected a number > 0, such as 2")
        parse(self.transform.replace(AUTO, "rescale:1"))
        self.evaluation()  # which has checks of its own

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
    """What is exported: the model before it is loaded, and the text that it is measured on."""

    target: EvalTarget
    checkpoint: Checkpoint | None
    windows: Windows
    text: str
    sample: str


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
    assert target.tokenizer is not None  # a single run, or a decoder
    checkpoint = None if config.pretrained is None else describe(config.pretrained)
    tokenizer, corpus = target.tokenizer(), texts.corpus(target, asked)
    windows = texts.windows(target, asked, tokenizer)
    length = target.window(target.protocol(None), config.window)
    text = f"{corpus.title}, {config.split}, the first {len(windows)} windows of {length} tokens"
    return Source(target, checkpoint, windows, text, corpus.text(config.split)[:SAMPLE])


def _written(part: Path, source: Source, config: ExportConfig, command: str) -> Card:
    """All files but the README, which is returned. One model at a time is held."""
    lm = source.target.load()
    chain, model = rewritten(lm, source.windows, config.transform)
    lm = replace(lm, model=model)  # the one as loaded goes
    fit = _fit(model, source)
    write_weights(part, fit, config.dtype, config.shard_gb * 1e9)
    _write_words(part, fit, lm, source.checkpoint, config.dtype)
    bits = _sha256(fit.model) if config.dtype == "float32" else None
    family, notes, facts = fit.family, fit.notes, lm.facts
    del lm, model, fit
    _refuse_other(part, source, bits)
    return Card(
        name=source.target.name,
        chain=chain,
        family=family,
        notes=notes,
        dtype=config.dtype,
        text=source.text,
        measured=list(_measured(part, source, chain)),
        sources=_sources(facts),
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


def _write_words(
    part: Path, fit: Fit, lm: LanguageModel, checkpoint: Checkpoint | None, dtype: str
) -> None:
    """config.json and the tokenizer: the source's own, or made of ours."""
    ids: dict[str, int | None] = {"bos_token_id": lm.tokenizer.bos, "eos_token_id": None}
    if checkpoint is not None:
        if not isinstance(checkpoint.source, GGUF):
            copy_tokenizer(checkpoint.source.files[0].parent, part)
            write_config(part, fit, dtype, {})
            return
        ids = special_ids(checkpoint.source.metadata)
    ids["pad_token_id"] = None
    write_tokenizer(lm.tokenizer, part, fit.model.config.max_length, ids)
    write_config(part, fit, dtype, ids)


def _refuse_other(part: Path, source: Source, bits: str | None) -> None:
    """Read the directory again: the same weights bit for bit, and the same ids of a text.

    Raises:
        RuntimeError: it is another model, which is an error of this program.
    """
    read = load(f"hf:{part}")
    if bits is not None and _sha256(read.model) != bits:
        raise RuntimeError(f"{part} reads as other weights than were written")
    assert source.target.tokenizer is not None
    own = source.target.tokenizer().encode(source.sample).ids
    if not np.array_equal(read.tokenizer.encode(source.sample).ids, own):
        raise RuntimeError(f"{part} holds a tokenizer that encodes the text otherwise")


def _sha256(model: Transformer) -> str:
    return metadata.sha256(jax.tree.leaves(nnx.state(model)))


def _measured(part: Path, source: Source, chain: str) -> Iterator[Measured]:
    """The model as loaded, after its transform, and as exported, each loaded when it is scored."""
    makers: dict[str, Callable[[], Transformer]] = {
        "as loaded": lambda: source.target.load().model,
        f"after {chain}": lambda: apply(source.target.load().model, chain),
        "as exported": lambda: load(f"hf:{part}").model,
    }
    if not parse(chain).steps:
        del makers[f"after {chain}"]
    scores: list[Scores] = []
    for name, make in makers.items():
        with Progress(f"{source.target.name} {name}", len(source.windows)) as progress:
            said = lambda done: progress.update(done, "")  # noqa: E731 (called inside)
            scores.append(score(make(), source.windows, "fp32", on_batch=said))
        yield Measured(name, scores[-1].perplexity, _moved(scores))


def _moved(scores: Sequence[Scores]) -> tuple[float, float]:
    """Largest difference of a token's log-probability: of the last to the first, to the one before.

    NaN counts as infinite.
    """
    last = scores[-1].token_nll
    far = [np.abs(last - other.token_nll) for other in (scores[0], scores[-2:][0])]
    first, before = (float(np.max(np.where(np.isnan(d), math.inf, d))) for d in far)
    return first, before


def _sources(facts: dict[str, Any]) -> dict[str, str]:
    """What it was made from: files and their hashes, or a run and its step."""
    if "sha256" in facts:
        return {name: f"SHA-256 {digest}" for name, digest in facts["sha256"].items()}
    return {Path(facts["source"]).name: f"a run of normlab, step {facts['step']}"}
