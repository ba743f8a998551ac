"""GGUF files: their metadata, and their tensors dequantized one at a time.

The header is read here, because the `gguf` package's reader makes an array of every string of a
vocabulary (seconds); tensor types and dequantization are that package's.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from normlab.pretrained.families import architectures
from normlab.pretrained.keys import Keys
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

    def peek(self) -> int:
        """The next 32-bit number, which is read again."""
        found = self.number("I")
        self.at -= 4
        return found

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
            if kind == _STRING:
                return [self.string() for _ in range(count)]
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
        self.kinds: dict[str, tuple[int, ...]] = {}  # the type of each value, and of a list's items
        self.tensors: dict[str, _Tensor] = {}
        with self.path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise CheckpointError(f"{self.path} is no GGUF file: it begins with {magic!r}")
        try:
            self._read_header(np.memmap(self.path, np.uint8, mode="r"))
        except (IndexError, KeyError, UnicodeDecodeError, struct.error, OverflowError) as error:
            raise CheckpointError(f"{self.path} is damaged or cut short in its header") from error

    def _read_header(self, data: np.memmap) -> None:
        header = _Header(data.data)
        header.at = 4
        version, tensors, values = header.number("I"), header.number("Q"), header.number("Q")
        if version not in (2, 3):
            raise CheckpointError(f"{self.path} is of GGUF version {version}: expected 2 or 3")
        for _ in range(values):
            key, kind = header.string(), header.number("I")
            self._refuse_twice("the key", key, self.metadata)
            self.kinds[key] = (kind, header.peek()) if kind == _ARRAY else (kind,)
            self.metadata[key] = header.value(kind)
        table = [self._read_entry(header) for _ in range(tensors)]
        align = Keys(self.metadata, str(self.path)).count("general.alignment", 32)
        begin = -(-header.at // align) * align
        end = 0  # of the tensors so far, padded: as llama.cpp reads them, without a gap
        for name, shape, kind, offset in table:
            self._refuse_twice("the tensor", name, self.tensors)
            if offset != end:
                raise CheckpointError(
                    f"{self.path}: {name} begins at byte {offset} of the tensors: expected {end}, "
                    "where the one before it ends"
                )
            tensor = self._placed(name, shape, kind, begin + offset)
            if (last := tensor.start + tensor.size) > len(data):
                raise CheckpointError(
                    f"{self.path} is cut short: {name} should end at byte {last}, the file at "
                    f"{len(data)}"
                )
            self.tensors[name] = tensor
            end += -(-tensor.size // align) * align

    def _refuse_twice(self, what: str, name: str, there: Mapping[str, Any]) -> None:
        if name in there:
            raise CheckpointError(f"{self.path} has {what} {name!r} twice: expected it once")

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
        row = shape[-1] if shape else 1
        if row % per_block:
            raise CheckpointError(
                f"{self.path}: {name} has rows of {row}: expected a multiple of {per_block}, the "
                f"block of {GGMLQuantizationType(kind).name}"
            )
        return _Tensor(shape, kind, start, math.prod(shape) // per_block * bytes_per_block)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, slowest axis first."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def quantized(self) -> bool:
        """Whether a tensor is stored in blocks, and not in plain numbers."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kinds = {GGMLQuantizationType(tensor.kind) for tensor in self.tensors.values()}
        return any(GGML_QUANT_SIZES[kind][0] > 1 for kind in kinds)

    def check(self, name: str) -> None:
        """Refuse, by its type alone, a tensor that can't be read.

        Raises:
            CheckpointError: a quantization that the installed gguf package can't undo.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kind = GGMLQuantizationType(self.tensors[name].kind)
        self._floats(name, np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8))

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        """One tensor in float32, dequantized.

        Its bytes are read, not mapped: pages of a map would stay with the process.

        Raises:
            CheckpointError: a quantization that the installed gguf package can't undo.
        """
        t = self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, t.size, offset=t.start)
        return self._floats(name, raw.reshape(*t.shape[:-1], -1)).reshape(t.shape)

    def _floats(self, name: str, raw: Any) -> Float[np.ndarray, "..."]:
        """The values of a tensor's bytes, in rows."""
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.tensors[name].kind)
        # The package takes plain numbers in their own type, and blocks as bytes.
        plain = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}
        if kind in plain:
            return np.ascontiguousarray(raw).view(plain[kind]).astype(np.float32, copy=False)
        try:
            return dequantize(raw, kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: {name} is quantized as {kind.name}, which the installed gguf "
                "package can't undo"
            ) from error


# --- metadata as a config.json

_GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "clip_qkv": "attention.clamp_kqv",
    "use_parallel_residual": "use_parallel_residual",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "rope_local_base_freq": "rope.freq_base_swa",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ACTIVATIONS = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), "gelu_pytorch_tanh"),
    "gptneox": "gelu",
    "phi2": "gelu_new",
}
"""What goes unsaid; the others have silu."""
_PARTIAL = ("gptneox", "phi2", "phi3")
"""A part of each of their heads turns."""
_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
_WINDOW_UNSAID = {"gemma2": {"sliding_window": 4096}, "gemma3": {"sliding_window_pattern": 1}}
"""What llama.cpp takes where a file names no window; a Gemma 3 without one is global throughout."""


class Described(Protocol):
    """What of a GGUF file describes its model: metadata, and the tensors that there are."""

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def check(self, name: str) -> None: ...

    def read(self, name: str) -> Float[np.ndarray, "..."]: ...


def gguf_config(file: Described) -> dict[str, Any]:
    """A GGUF file's metadata in the words of a config.json.

    Raises:
        CheckpointError: an architecture without a family here, or something that isn't supported.
    """
    m = file.metadata
    said = Keys(m, str(file.path))
    arch = said.word("general.architecture", architectures(), "none")
    said.require(f"{arch}.attention.causal", True)
    said.require(f"{arch}.rope.scaling.attn_factor", 1.0)  # llama.cpp multiplies q and k by it
    if (parts := said.get("split.count", 0)) not in (0, 1):
        raise CheckpointError(
            f"{file.path} is one of split.count = {parts!r} parts: expected one file, as "
            "llama-gguf-split --merge makes of them"
        )
    named = {key: f"{arch}.{name}" for key, name in _GGUF_KEYS.items()}
    config = {key: m[name] for key, name in named.items() if name in m}
    config |= {
        "model_type": architectures()[arch],
        "tie_word_embeddings": "output.weight" not in file.shapes,
        "vocab_size": (*file.shapes.get("token_embd.weight", ()), None)[0],
        "hidden_act": _ACTIVATIONS.get(arch, "silu"),
        "attention_bias": "blk.0.attn_output.bias" in file.shapes,
        "mlp_bias": "blk.0.ffn_down.bias" in file.shapes,
        "rope_theta": m.get(f"{arch}.rope.freq_base", 10000.0),
        "rope_scaling": _gguf_scaling(file, arch),
    }
    if "sliding_window" not in config:
        config |= _WINDOW_UNSAID.get(arch, {})
    if arch == "gpt2":
        return {**config, **_gguf_gpt2(config)}
    return {**config, **_gguf_heads(file, arch, config)}


def _gguf_gpt2(config: dict[str, Any]) -> dict[str, Any]:
    words = {
        "n_layer": "num_hidden_layers",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
    }
    return {ours: config.get(theirs) for ours, theirs in words.items()}


def _gguf_heads(file: Described, arch: str, config: dict[str, Any]) -> dict[str, Any]:
    """The head size, which may go unsaid, and Gemma's factor on queries, which always does."""
    said = Keys(file.metadata, str(file.path))
    width = said.count(f"{arch}.embedding_length")
    heads = said.count(f"{arch}.attention.head_count")
    size = said.count(f"{arch}.attention.key_length", width // heads)
    turned = said.count(f"{arch}.rope.dimension_count", size)
    if turned != size and arch not in _PARTIAL:
        raise CheckpointError(f"{file.path}: rotary positions on {turned} of {size} elements")
    # llama.cpp's rule: the head size, but in the 27B models the width shared out over the heads.
    large = config.get("num_hidden_layers") == _27B_LAYERS.get(arch)
    share = {"partial_rotary_factor": turned / size} if turned != size else {}
    return share | {"head_dim": size, "query_pre_attn_scalar": width // heads if large else size}


YARN = {"attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
"""What llama.cpp takes where a file says nothing; another value is refused."""


def _gguf_scaling(file: Described, arch: str) -> dict[str, Any] | None:
    """As llama.cpp reads it: linear where no type is given, by a factor that has two names."""
    said, rope = Keys(file.metadata, str(file.path)), f"{arch}.rope"
    kind = said.get(f"{rope}.scaling.type", "linear")
    older = said.number(f"{rope}.scale_linear", 0.0, zero=True)
    factor = said.number(f"{rope}.scaling.factor", older, zero=True)
    unscaled = kind == "none" or (kind == "linear" and factor in (0.0, 1.0))
    if "rope_freqs.weight" not in file.shapes:
        if kind == "yarn":
            for key, usual in YARN.items():
                said.require(f"{rope}.scaling.{key}", usual)
        length = said.get(f"{rope}.scaling.original_context_length")
        original = {} if length is None else {"original_max_position_embeddings": length}
        return None if unscaled else {"rope_type": kind, "factor": factor, **original}
    if not unscaled:
        raise CheckpointError(
            f"{file.path} has rope_freqs.weight and {kind} rope scaling by {factor}: expected one "
            "of the two"
        )
    file.check("rope_freqs.weight")
    return {"rope_type": "listed", "divisors": file.read("rope_freqs.weight").ravel().tolist()}
