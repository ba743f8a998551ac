"""Hugging Face directories: safetensors, written a tensor at a time, and config.json."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from normlab.config import require
from normlab.pretrained.export.fit import Fit
from normlab.pretrained.export.tensors import Tensor, tensors
from normlab.pretrained.families import families
from normlab.pretrained.huggingface import INDEX, SINGLE

DTYPES: dict[str, tuple[str, Any]] = {
    "float32": ("F32", np.dtype(np.float32)),
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
"""What config.json calls a type, what safetensors do, and NumPy's."""


def write_weights(folder: Path, fit: Fit, dtype: str, shard_bytes: float) -> None:
    """The safetensors of a model, in one file or in several with their index.

    Beside the model one tensor is held.

    Args:
        folder: is there.
        fit: the model.
        dtype: a name of `DTYPES`.
        shard_bytes: a file is at most so large, but for one that holds a single tensor.

    Raises:
        ValueError: a weight overflows in float16.
    """
    found = tensors(fit.model, fit.names)
    if dtype == "float16":
        _refuse_overflow(found)
    size = DTYPES[dtype][1].itemsize
    shards = list(_shards(found, shard_bytes / size))
    files = [SINGLE]
    if len(shards) > 1:
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        where = {t.name: file for file, shard in zip(files, shards, strict=True) for t in shard}
        total = sum(int(np.prod(t.shape)) for t in found) * size
        _json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    for file, shard in zip(files, shards, strict=True):
        _write(folder / file, shard, dtype)


def _refuse_overflow(found: Sequence[Tensor]) -> None:
    largest = float(np.finfo(np.float16).max)
    for tensor in found:
        most = float(np.max(np.abs(tensor.values()), initial=0.0))
        require(
            most <= largest,
            f"dtype = float16: {tensor.name} holds {most:.4g}, and float16 ends at {largest:g}; "
            "expected dtype=bfloat16 or float32",
        )


def _shards(found: Sequence[Tensor], room: float) -> Iterator[list[Tensor]]:
    """The tensors, in order, in groups of so many numbers at most."""
    shard, filled = list[Tensor](), 0
    for tensor in found:
        size = int(np.prod(tensor.shape))
        if shard and filled + size > room:
            yield shard
            shard, filled = [], 0
        shard.append(tensor)
        filled += size
    yield shard


def _write(path: Path, shard: Sequence[Tensor], dtype: str) -> None:
    """One safetensors file. The package's own writer wants all tensors of a file at once."""
    code, kind = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in shard:
        start, end = end, end + int(np.prod(tensor.shape)) * kind.itemsize
        header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, end]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for tensor in shard:
            file.write(tensor.values().astype(kind, copy=False).view(np.uint8).data)


def write_config(folder: Path, fit: Fit, dtype: str, ids: dict[str, int | None]) -> None:
    """config.json: what the family reads, and what `transformers` wants beside it.

    Args:
        folder: is there.
        fit: the model.
        dtype: of the weights.
        ids: special tokens' ids, of a model that came without a config.json.
    """
    told = {"architectures": [families[fit.family].class_name], "dtype": dtype}
    kept = {k: v for k, v in fit.config.items() if k != "torch_dtype"}
    _json(folder / "config.json", {**ids, **kept, **told})


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
