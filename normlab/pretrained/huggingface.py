"""Hugging Face directories: config.json, safetensors (one file or several), tokenizer.json."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from normlab.pretrained.source import CheckpointError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")
LARGEST_HEADER = 100_000_000  # safetensors' own bound
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is none, or an object in it has a key twice.
        RecursionError: it is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise ValueError(f"it has the key {twice!r} twice")
        return found

    return json.loads(text, object_pairs_hook=once)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        CheckpointError: there is none, it holds no JSON object, or a key of it stands twice.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


class Safetensors:
    """The safetensors files of a directory.

    Args:
        folder: the directory.

    Raises:
        CheckpointError: no safetensors there, a shard missing, damaged, or cut short.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if (folder / SINGLE).is_file():  # before an index, as transformers does
            with self._open(SINGLE) as file:
                self._file_of: dict[str, str] = dict.fromkeys(file.keys(), SINGLE)
            self._refuse_stray()
        elif (folder / INDEX).is_file():
            self._file_of = self._indexed()
        else:
            raise CheckpointError(self._why_none())
        if not self._file_of:
            raise CheckpointError(f"{folder}: its safetensors hold no tensor")

    def _indexed(self) -> dict[str, str]:
        weights = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(weights, dict):
            raise CheckpointError(f"{self.folder / INDEX} has no weight_map")
        for name in weights.values():
            plain = isinstance(name, str) and Path(name).name == name
            if not plain or not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{self.folder / INDEX} names {name!r}: expected a safetensors file beside it"
                )
        return weights

    def _refuse_stray(self) -> None:
        """Of a single file beside an index, one is left from something else."""
        if (self.folder / INDEX).is_file() and self._indexed().keys() != self._file_of.keys():
            raise CheckpointError(
                f"{self.folder} holds {SINGLE} and {INDEX}, and the two have different tensors: "
                "expected one of them; take the stray one out"
            )

    def _why_none(self) -> str:
        pickles = sorted(p.name for pattern in PICKLES for p in self.folder.glob(pattern))
        if not pickles:
            return f"{self.folder} holds no {SINGLE} and no {INDEX}"
        return (
            f"{self.folder} holds its weights as a pickle only ({pickles[0]}), which can run code "
            "when it is read and is never loaded here; save it again as safetensors, in the "
            "environment that you trust it in"
        )

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though {INDEX} names it")
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short: {error}") from error

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every tensor's shape and type, of those too that the index forgets."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        holds: dict[str, str] = {}
        for shard in sorted(set(self._file_of.values())):
            with self._open(shard) as file:
                _refuse_twice(self.folder / shard)
                for name in file.keys():  # noqa: SIM118 (no dictionary)
                    if (other := holds.setdefault(name, shard)) != shard:
                        raise CheckpointError(
                            f"{self.folder}: {other} and {shard} both hold {name}: expected it in "
                            "one of them"
                        )
                    tensor = file.get_slice(name)
                    found[name] = (tuple(tensor.get_shape()), tensor.get_dtype())
        for name, shard in self._file_of.items():
            if holds.get(name) != shard:
                raise CheckpointError(
                    f"{self.folder / shard} lacks {name}, which {INDEX} puts there"
                )
        self._file_of = holds
        return found

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, slowest axis first."""
        return {name: shape for name, (shape, _) in self._headers.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files."""
        return tuple(self.folder / name for name in sorted(set(self._file_of.values())))

    def check(self, name: str) -> None:
        """Refuse, by its header alone, a tensor that holds no plain floats.

        Raises:
            CheckpointError: it holds none.
        """
        if (dtype := self._headers[name][1]) not in FLOATS:
            raise CheckpointError(
                f"{self.folder / self._file_of[name]}: {name} is of type {dtype}: expected plain "
                f"floats ({', '.join(FLOATS)})"
            )

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        """One tensor in float32."""
        import ml_dtypes  # noqa: F401 (makes bfloat16 known to NumPy)

        with self._open(self._file_of[name]) as file:
            return file.get_tensor(name).astype(np.float32, copy=False)


def _refuse_twice(path: Path) -> None:
    """Refuse a safetensors file whose header names a tensor twice, of which the library takes one.

    What else is wrong with a header the library finds itself: no gap, no overlap, no bytes left.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, LARGEST_HEADER))
    try:
        parse_json(header)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from None
