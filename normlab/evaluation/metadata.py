"""What a record says before anything is computed: the model, the text, the code."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from normlab.config import to_dict
from normlab.data import Tokenizer
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.perplexity import default_batch
from normlab.evaluation.protocols import Windows
from normlab.evaluation.targets import EvalTarget
from normlab.evaluation.texts import Texts
from normlab.model import Transformer
from normlab.model.language_model import LanguageModel
from normlab.parallel.sharding import on_host, padded_rows
from normlab.pretrained import PACKAGES
from normlab.results.fields import ModelInfo, Provenance, TextInfo
from normlab.results.record import GOOD
from normlab.runs.provenance import provenance
from normlab.runs.run import parameters


def of_model(lm: LanguageModel, transform: str) -> ModelInfo:
    """Which model it is, down to its weights' hash.

    Args:
        lm: the model as it is evaluated, after its transform.
        transform: the transform's text, "none" for a model as it was loaded.
    """
    if not isinstance(lm.model, Transformer):
        return ModelInfo(name=lm.name, facts=lm.facts, **lm.model.described())
    at = lm.model.norm_at
    return ModelInfo(
        name=lm.name,
        norm=", ".join([lm.model.norm.type, *(f"{a.norm.type} at {a.sites}" for a in at)]),
        placement=lm.model.placement.type,
        transform=transform,
        note=note(lm.facts),
        weights_sha256=sha256(_weights(lm.model)),
        parameters=parameters(lm.model),
        config=to_dict(lm.model.config),
        norm_config=to_dict(lm.model.norm) | ({"norm_at": [to_dict(a) for a in at]} if at else {}),
        placement_config=to_dict(lm.model.placement),
        seed=lm.facts.get("config", {}).get("seed"),
        facts=lm.facts,
    )


def _weights(model: Transformer) -> Iterator[Any]:
    """In the order of the model's state: by name."""
    for part in chain(model.each_block(), [model.ends()]):
        yield from jax.tree.leaves(nnx.state(part))


def note(of: dict[str, Any]) -> str | None:
    """What must be said beside a model's name: its file, what is switched off, how it ended."""
    if "training" not in of:
        file = Path(of.get("source", "")).name
        told = [*(p.title for p in PACKAGES.values() if p.file == file), of.get("tokenizer")]
        return "; ".join(filter(None, told)) or None
    said = [f"{what} has changed since" for what in of.get("changed_source", ())]
    state = of["training"].get("state", "running")
    if state not in GOOD:
        ended = "unfinished" if state == "running" else state
        said.insert(0, f"step {of['step']} of {of['config']['steps']}, {ended}")
    return "; ".join(said) or None


def of_run(target: EvalTarget) -> ModelInfo:
    """The same for a run that has no model to be evaluated."""
    config = target.config
    return ModelInfo(
        name=target.name,
        norm=config.get("norm", {}).get("type"),
        placement=config.get("placement", {}).get("type"),
        transform=str(target.transform),
        config=config.get("model", {}),
        norm_config=config.get("norm", {}),
        placement_config=config.get("placement", {}),
        seed=config.get("seed"),
        facts={"config": config, "training_provenance": target.trained},
    )


def of_text(
    config: EvaluateConfig, target: EvalTarget, texts: Texts, tokenizer: Tokenizer
) -> TextInfo:
    """What is read, and how."""
    protocol, corpus = target.protocol(config.protocol), texts.corpus(target, config)
    windows = texts.windows(target, config, tokenizer)
    return TextInfo(
        protocol=protocol.name,
        protocol_version=protocol.version,
        reported=protocol.reported,
        window=target.window(protocol, config.window),
        max_windows=config.max_windows,
        windows=len(windows),
        tokens_scored=int(windows.counts.sum()),
        words=int(windows.words.sum()),
        bytes=int(windows.bytes.sum()),
        dataset=corpus.name,
        dataset_title=corpus.title,
        dataset_revision=corpus.revision,
        split=config.split,
        sha256=corpus.sha256(config.split),
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
    )


def of_process(config: EvaluateConfig) -> Provenance:
    """Code, packages and devices."""
    return Provenance(environment=provenance() | config.mesh.told())


def batch(config: EvaluateConfig, windows: Windows, tokenizer: Tokenizer) -> int:
    """Windows that run together."""
    return padded_rows(config.batch or default_batch(windows, tokenizer.vocab_size))


def sha256(arrays: Iterable[Any]) -> str:
    """Hash of arrays: their shapes, types and bytes, in order."""
    digest = hashlib.sha256()
    for array in map(on_host, arrays):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
