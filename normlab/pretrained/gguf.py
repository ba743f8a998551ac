"""GGUF files: their metadata, and their tensors dequantized one at a time.

The header is read here, because the `gguf` package's reader makes an array of every string of a
vocabulary (seconds); tensor types and dequantization are that package's.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from normlab.pretrained.source import CheckpointError

_SCALARS = "BbHhIif?"  # value types 0 … 7
_WIDE = {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class _Header:
    """A cursor over the header's bytes; running off the end is an `IndexError`."""

    def __init__(self, data: memoryview):
        self.data = data
        self.at = 0

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        if self.at + layout.size > len(self.data):
            raise IndexError
        values = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def string(self) -> str:
        (size,) = self.numbers("Q")
        if self.at + size > len(self.data):
            raise IndexError
        self.at += size
        return str(self.data[self.at - size : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind in (_STRING, _ARRAY):
                return [self.value(kind) for _ in range(count)]
            return list(self.numbers(_code(kind), count))
        return self.number(_code(kind))


def _code(kind: int) -> str:
    return _SCALARS[kind] if kind < len(_SCALARS) else _WIDE[kind]


class GGUF:
    """A GGUF file (version 2 or 3).

    Args:
        path: the file.

    Raises:
        CheckpointError: no such file, not a GGUF file, damaged, or cut short.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: there is no such file")
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, _Tensor] = {}
        with self.path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise CheckpointError(f"{self.path} is no GGUF file: it begins with {magic!r}")
        self._data = np.memmap(self.path, np.uint8, mode="r")
        try:
            self._read_header()
        except (IndexError, KeyError, UnicodeDecodeError, struct.error, OverflowError) as error:
            raise CheckpointError(f"{self.path} is damaged or cut short in its header") from error

    def _read_header(self) -> None:
        header = _Header(self._data.data)
        header.at = 4
        version, tensors, values = header.number("I"), header.number("Q"), header.number("Q")
        if version not in (2, 3):
            raise CheckpointError(f"{self.path} is of GGUF version {version}: expected 2 or 3")
        for _ in range(values):
            key, kind = header.string(), header.number("I")
            self.metadata[key] = header.value(kind)
        table = [self._read_entry(header) for _ in range(tensors)]
        align = self.metadata.get("general.alignment", 32)
        begin = -(-header.at // align) * align
        for name, shape, kind, offset in table:
            self.tensors[name] = self._placed(name, shape, kind, begin + offset)

    @staticmethod
    def _read_entry(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
        name = header.string()
        shape = header.numbers("Q", header.number("I"))[::-1]  # stored fastest axis first
        return name, shape, header.number("I"), header.number("Q")

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> _Tensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            per_block, bytes_per_block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.path}: {name} is of tensor type {kind}, which the installed gguf package "
                "doesn't know"
            ) from error
        size = int(np.prod(shape)) // per_block * bytes_per_block
        if start + size > len(self._data):
            raise CheckpointError(
                f"{self.path} is cut short: {name} should end at byte {start + size}, "
                f"the file at {len(self._data)}"
            )
        return _Tensor(shape, kind, start, size)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, slowest axis first."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        """One tensor in float32, dequantized.

        Raises:
            CheckpointError: a quantization that the installed gguf package can't undo.
        """
        from gguf import GGMLQuantizationType, dequantize

        t = self.tensors[name]
        kind = GGMLQuantizationType(t.kind)
        # The package takes plain numbers in their own type, and blocks as bytes, row by row.
        raw = self._data[t.start : t.start + t.size].reshape(*t.shape[:-1], -1)
        plain = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}
        if kind in plain:
            return np.ascontiguousarray(raw).view(plain[kind]).astype(np.float32)
        try:
            return dequantize(raw, kind).reshape(t.shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {name} is quantized as {kind.name}, which the installed gguf "
                "package can't undo"
            ) from error
