"""All that is written of a model: a Hugging Face directory, or a GGUF file."""

from pathlib import Path

from normlab.data.tokenizer import Tokenizer
from normlab.pretrained.export import gguf
from normlab.pretrained.export.fit import Fit
from normlab.pretrained.export.gguf_tokenizer import tokenizer_words
from normlab.pretrained.export.huggingface import write_config, write_weights
from normlab.pretrained.export.tokenizer import copy_tokenizer, write_tokenizer
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.huggingface import read_json
from normlab.pretrained.load import Checkpoint
from normlab.pretrained.tokenizer import special_ids


def write_hf(
    folder: Path,
    fit: Fit,
    tokenizer: Tokenizer,
    checkpoint: Checkpoint | None,
    dtype: str,
    shard_bytes: float,
) -> str:
    """Safetensors, config.json and the tokenizer: the source's own, or made of ours.

    Args:
        folder: is there.
        fit: the model.
        tokenizer: its tokenizer.
        checkpoint: what it was loaded from; None: it was trained here.
        dtype: of the weights.
        shard_bytes: the most that a file of weights holds.

    Returns:
        By which it is loaded again.
    """
    write_weights(folder, fit, dtype, shard_bytes)
    if checkpoint is not None and not isinstance(checkpoint.source, GGUF):
        copy_tokenizer(checkpoint.source.files[0].parent, folder)
        write_config(folder, fit, dtype, {})
        return f"hf:{folder}"
    ids: dict[str, int | None] = {"bos_token_id": tokenizer.bos, "eos_token_id": None}
    if checkpoint is not None and isinstance(checkpoint.source, GGUF):
        ids = special_ids(checkpoint.source.metadata)
    ids["pad_token_id"] = None
    write_tokenizer(tokenizer, folder, fit.model.config.max_length, ids)
    write_config(folder, fit, dtype, ids)
    return f"hf:{folder}"


def gguf_metadata(tokenizer: Tokenizer, checkpoint: Checkpoint | None) -> gguf.Metadata:
    """What a GGUF file says beside size and shape: the source's own keys, or name and tokenizer.

    Raises:
        ValueError: a family or a tokenizer that llama.cpp doesn't have.
    """
    if checkpoint is not None:
        gguf.architecture(checkpoint.family)
        if isinstance(checkpoint.source, GGUF):
            return gguf.carried(checkpoint.source)
    rows = tokenizer.vocab_size if checkpoint is None else checkpoint.configs.vocab_size
    ids = {} if checkpoint is None else checkpoint.made_with
    words = tokenizer_words(tokenizer, rows, ids)
    said = {"general.name": tokenizer.name} | {f"tokenizer.ggml.{k}": v for k, v in words.items()}
    if checkpoint is not None and (template := _chat_template(checkpoint.source.files[0].parent)):
        said["tokenizer.chat_template"] = template
    return {key: gguf.Value(value) for key, value in said.items()}


def write_gguf(folder: Path, name: str, fit: Fit, metadata: gguf.Metadata, dtype: str) -> str:
    """NAME-DTYPE.gguf; by which it is loaded again."""
    path = folder / f"{name}-{dtype}.gguf"
    said = gguf.described(fit.model, fit.family, metadata)
    gguf.write(path, fit.model, fit.family, said, dtype)
    return f"gguf:{path}"


def _chat_template(folder: Path) -> str | None:
    """How a Hugging Face directory writes a conversation: a file of its own, or a setting."""
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found = read_json(settings).get("chat_template") if settings.is_file() else None
    return found if isinstance(found, str) else None
