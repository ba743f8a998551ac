"""`torch:DIR`: a Hugging Face directory, opened by `transformers` and computed by PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from normlab.config import require
from normlab.data.tokenizer import PretrainedTokenizer
from normlab.model.language_model import LanguageModel
from normlab.pretrained import CheckpointError
from normlab.pretrained.huggingface import Safetensors, read_json
from normlab.pretrained.packages import sha256
from normlab.pretrained.tokenizer import from_folder
from normlab.progress import console
from normlab.torch_bridge.find import Found, find
from normlab.torch_bridge.model import TorchModel

SHORT, LONG = 5, 7
"""Lengths of two texts: of a norm's input the axis that goes from one to the other is the text."""
UNBOUNDED = 2**20
"""Tokens that a model reads whose config sets no bound, such as Mamba."""
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class TorchCheckpoint:
    """A causal language model that `transformers` has a class for, its weights in their files.

    Args:
        folder: with config.json, safetensors and tokenizer.json.
        config: as `transformers` reads it.
        source: the files.
    """

    folder: Path
    config: Any = field(repr=False)
    source: Safetensors = field(repr=False)

    @property
    def name(self) -> str:
        """As it stands in a table."""
        return f"{self.folder.resolve().name} (PyTorch)"

    @property
    def max_length(self) -> int:
        """The longest sequence that it reads."""
        return getattr(self._text, "max_position_embeddings", None) or UNBOUNDED

    @property
    def _text(self) -> Any:
        return self.config.get_text_config()

    def tokenizer(self) -> PretrainedTokenizer:
        """Its tokenizer.

        Raises:
            CheckpointError: there is none, or it has ids that the embedding has no row for.
        """
        made = from_folder(self.folder, self._text.to_dict(), self.folder.resolve().name)
        if made.vocab_size > self._text.vocab_size:
            raise CheckpointError(
                f"{self.folder}: the tokenizer has ids up to {made.vocab_size - 1}, the embedding "
                f"{self._text.vocab_size} rows"
            )
        return made

    def load(self) -> LanguageModel[TorchModel]:
        """The model in float32, its norms found and printed.

        Raises:
            CheckpointError: a tensor is missing or of a wrong shape, or the model is not causal.
        """
        tokens = self.tokenizer()
        module = self._module()
        found = find(module)
        norms, positions = self._positions(module, found)
        said = Found(norms, found.left | dict.fromkeys(found.norms.keys() - norms, "never called"))
        console.print(f"{self.name}: {said}")
        if not norms:
            raise CheckpointError(f"{self.folder}: none of its norms can be computed here")
        sizes = self._text.vocab_size, self.max_length
        model = TorchModel(module, partial(_logits, module), said, *sizes, positions)
        facts = {
            "source": str(self.folder),
            "sha256": {path.name: sha256(path) for path in self.source.files},
            "class": type(module).__name__,
            "transformers": transformers.__version__,
            "norms": {name: norm.config.type for name, norm in norms.items()},
            "left": said.left,
        }
        return LanguageModel(self.name, model, tokens, facts)

    def _module(self) -> Any:
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        module, info = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager", use_safetensors=True,
            output_loading_info=True, **LOCAL,
        )  # fmt: skip
        wrong = [*info["missing_keys"], *info["mismatched_keys"]]
        if wrong:
            raise CheckpointError(
                f"{self.folder} lacks the tensor {wrong[0]}, or has it in another shape than its "
                f"config says ({len(wrong)} of them)"
            )
        return module.eval()

    def _positions(self, module: Any, found: Found) -> tuple[dict[str, Any], dict[str, int]]:
        """The norms that are called, and where in their inputs the text is.

        Raises:
            CheckpointError: what follows a token changes its logits.
        """
        tokens = np.random.default_rng(0).integers(0, self._text.vocab_size, (1, LONG))
        read = torch.from_numpy(tokens)
        short, logits = _shapes(module, found, read[:, :SHORT])
        long, longer = _shapes(module, found, read)
        gap = (logits - longer[:, :SHORT]).abs().max()
        if not gap <= 1e-3 * logits.abs().max():
            raise CheckpointError(
                f"{self.folder}: a token changes the logits before it ({type(module).__name__}): "
                "expected a causal model, for an encoder has no perplexity "
                "(normlab.torch_bridge.replaced takes any model)"
            )
        axes = {name: _axis(short[name], long[name]) for name in short}
        return (
            {name: norm for name, norm in found.norms.items() if name in short},
            {name: axis for name, axis in axes.items() if axis is not None},
        )


def describe(folder: Path) -> TorchCheckpoint:
    """The checkpoint of a directory, its weights not read yet.

    Raises:
        CheckpointError: no such directory, a pickle, quantized weights.
        ValueError: no causal model that `transformers` knows.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such directory (torch:DIR)")
    said = read_json(folder / "config.json")
    kind = said.get("model_type")
    if said.get("quantization_config"):
        raise CheckpointError(f"{folder}: it has a quantization_config: expected plain floats")
    require(
        str(kind) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        f"{folder}: model_type = {kind!r} has no causal language model in transformers "
        f"{transformers.__version__}; code from a checkpoint is never run. Of any other model "
        "normlab.torch_bridge.replaced takes the norms",
    )
    config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
    return TorchCheckpoint(folder, config, Safetensors(folder))


def _logits(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    return module(input_ids=tokens, use_cache=False).logits


def _shapes(
    module: Any, found: Found, tokens: torch.Tensor
) -> tuple[Mapping[str, list[tuple[int, ...]]], torch.Tensor]:
    """The shapes of what enters each norm, call by call, and the logits."""
    shapes = dict[str, list[tuple[int, ...]]]()

    def hook(name: str, module: Any, args: Any, kwargs: Any) -> None:
        x = next(iter([*args, *kwargs.values()]))
        shapes.setdefault(name, []).append(tuple(x.shape))

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(partial(hook, name), with_kwargs=True)
        for name in found.norms
    ]
    with torch.no_grad():
        logits = _logits(module, tokens)
    for handle in hooks:
        handle.remove()
    return shapes, logits


def _axis(short: list[tuple[int, ...]], long: list[tuple[int, ...]]) -> int | None:
    """The axis that counts positions in every call; None where there is none before the last."""
    if len({*short}) > 1 or len({*long}) > 1 or len(short[0]) != len(long[0]):
        return None
    pairs = list(enumerate(zip(short[0], long[0], strict=True)))
    moved = [i for i, (a, b) in pairs if a != b and a * LONG == b * SHORT and i < len(pairs) - 1]
    whole = moved in ([0], [1]) or (moved == [2] and len(pairs) == 4)
    return moved[0] if whole else None
