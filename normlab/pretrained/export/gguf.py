"""GGUF files: metadata that llama.cpp reads, and tensors, written one at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from normlab.config import require
from normlab.model import Transformer
from normlab.pretrained.export.gguf_words import divisors, words
from normlab.pretrained.export.tensors import Tensor, tensors
from normlab.pretrained.export.traits import Difference, differences, of_configs
from normlab.pretrained.families import Configs, architectures, configs, families
from normlab.pretrained.gguf import GGUF, gguf_config

DTYPES: dict[str, tuple[int, np.dtype]] = {
    "float32": (0, np.dtype(np.float32)),
    "float16": (1, np.dtype(np.float16)),
}
"""`general.file_type` and NumPy's type."""
FREQUENCIES = "rope_freqs.weight"
FLOAT32_MATRICES = ("position_embd.weight",)
"""Tensors of two axes that llama.cpp keeps in float32, as it does vectors."""
_NOT_CARRIED = (
    "general.architecture",  # which the writer writes
    "general.file_type",
    "general.alignment",
    "general.quantization_version",
    "quantize.",
    "split.",
)
"""Keys of a source that speak of that file alone, or how they begin."""


@dataclass(frozen=True)
class Value:
    """One value of the metadata.

    Args:
        value: a number, a string, or a list of either.
        kinds: its type in the file, and for a list that of its items; (): by its Python type.
    """

    value: Any
    kinds: tuple[int, ...] = ()


Metadata = dict[str, Value]


def carried(source: GGUF) -> Metadata:
    """What a GGUF file says that holds of the model, in whatever type its weights are."""
    return {
        key: Value(value, source.kinds[key])
        for key, value in source.metadata.items()
        if not key.startswith(_NOT_CARRIED)
    }


def described(model: Transformer, family: str, metadata: Metadata) -> Metadata:
    """`metadata` with all that has to be said of a model in it; as it is where it says so already.

    Args:
        model: in the family's layout.
        family: its `model_type`.
        metadata: of the model that it was made of, or nothing of size and shape.

    Raises:
        ValueError: llama.cpp doesn't know the family, or it has no word for something.
    """
    arch = architecture(family)
    if _otherwise(model, arch, metadata) is None:
        return metadata
    said = {f"{arch}.{key}": value for key, value in words(model, arch).items()}
    kinds = {key: metadata[key].kinds for key in said if key in metadata}
    made = metadata | {key: Value(v, kinds.get(key, ())) for key, v in said.items()}
    other = _otherwise(model, arch, made)
    require(other is None, f"llama.cpp's {arch} can't say all of it: {other}; expected format=hf")
    return made


def architecture(family: str) -> str:
    """`general.architecture` of a family.

    Raises:
        ValueError: there is none.
    """
    known = {name: arch for arch, name in architectures().items()}
    require(
        family in known,
        f"family {family!r}: expected one that llama.cpp has, {', '.join(sorted(known))}; "
        "or format=hf",
    )
    return known[family]


def _otherwise(model: Transformer, arch: str, metadata: Metadata) -> str | None:
    """What such a file says otherwise than the model is; None: nothing."""
    told = {key: value.value for key, value in metadata.items()} | {"general.architecture": arch}
    draft = _Draft(Path(f"a file of {arch}"), told, _tensors(model, arch))
    try:
        _, theirs = configs(gguf_config(draft), str(draft.path))
    except ValueError as error:
        return str(error)
    ours = Configs(model.config, model.norm, model.placement, model.embed.num_embeddings)
    constants = [
        Difference(name, float(a), float(b))
        for name, a, b in (
            ("ε", getattr(ours.norm, "eps", 0.0), getattr(theirs.norm, "eps", 0.0)),
            ("embed_factor", ours.model.embed_factor, theirs.model.embed_factor),
        )
        if np.float32(a) != np.float32(b)
    ]
    found = [*differences(of_configs(ours), of_configs(theirs)), *constants]
    return str(found[0]) if found else None


@dataclass(frozen=True)
class _Draft:
    """A file that isn't written yet, as `gguf_config` looks at one."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def check(self, name: str) -> None:
        """Plain floats, all of them."""

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        return self.tensors[name].values()


@dataclass(frozen=True)
class _Frequencies(Tensor):
    """The divisors of the rotary frequencies."""

    held: tuple[float, ...] = ()

    def values(self) -> Float[np.ndarray, " d"]:
        return np.array(self.held, np.float32)


def _tensors(model: Transformer, arch: str) -> dict[str, Tensor]:
    names = families[architectures()[arch]].gguf
    assert names is not None  # an architecture is of a family that has them
    found = {tensor.name: tensor for tensor in tensors(model, names)}
    if (held := divisors(model.config)) is not None:
        found[FREQUENCIES] = _Frequencies(FREQUENCIES, (len(held),), held=held)
    return found


def write(path: Path, model: Transformer, family: str, metadata: Metadata, dtype: str) -> None:
    """A GGUF file. Matrices are of the type asked for, all else is float32.

    Args:
        path: of the file, whose folder is there.
        model: in the family's layout.
        family: its `model_type`.
        metadata: as `described` gives it, with a tokenizer.
        dtype: one of `DTYPES`.

    Raises:
        ValueError: a weight overflows in float16.
    """
    from gguf import GGUFWriter

    arch, (file_type, kind) = architecture(family), DTYPES[dtype]
    writer = GGUFWriter(path, arch)
    for key, value in (metadata | {"general.file_type": Value(file_type)}).items():
        _add(writer, key, value)
    found = _tensors(model, arch)
    for tensor in found.values():
        held = _held(tensor, kind)
        size = int(np.prod(tensor.shape)) * held.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, held, size)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in found.values():
            writer.write_tensor_data(_narrow(tensor, _held(tensor, kind)))
    finally:
        writer.close()


def _held(tensor: Tensor, kind: np.dtype) -> np.dtype:
    vector = len(tensor.shape) < 2 or tensor.name in FLOAT32_MATRICES
    return np.dtype(np.float32) if vector else kind


def _narrow(tensor: Tensor, kind: np.dtype) -> np.ndarray:
    values = tensor.values()
    if kind == np.float16:
        most = float(np.max(np.abs(values), initial=0.0))
        require(
            most <= float(np.finfo(kind).max),
            f"dtype = float16: {tensor.name} holds {most:.4g}, and float16 ends at 65504; expected "
            "dtype=float32",
        )
    return values.astype(kind, copy=False)


def _add(writer: Any, key: str, value: Value) -> None:
    """One value, in its own type where it came with one."""
    from gguf import GGUFValueType as Type

    if not value.kinds:
        adders = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        getattr(writer, f"add_{adders[type(value.value)]}")(key, value.value)
        return
    kind, *items = map(Type, value.kinds)
    if value.value or kind is not Type.ARRAY:  # the package can't write an empty list
        writer.add_key_value(key, value.value, kind, *items)
