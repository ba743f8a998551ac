"""Tokenizers as `transformers` reads them: the source's own files, or tokenizer.json of ours."""

import json
import shutil
from pathlib import Path
from typing import Any

from normlab.data.tokenizer import EOS, UNK, PretrainedTokenizer, Tokenizer, WordTokenizer

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
)
"""What a Hugging Face directory may hold of a tokenizer, and of how text is made with it."""


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """The files of a Hugging Face directory's tokenizer, as they are; their names."""
    there = [name for name in FILES if (source / name).is_file()]
    for name in there:
        shutil.copyfile(source / name, folder / name)
    return there


def write_tokenizer(
    tokenizer: Tokenizer, folder: Path, max_length: int, ids: dict[str, int | None]
) -> None:
    """tokenizer.json and tokenizer_config.json, with which `AutoTokenizer` gives the same ids.

    Args:
        tokenizer: of the model; BOS is put before a text where it has one.
        folder: is there.
        max_length: tokens that the model reads.
        ids: `bos_token_id` and the like.
    """
    made = _words(tokenizer) if isinstance(tokenizer, WordTokenizer) else _subwords(tokenizer)
    (folder / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8")
    named = {k.removesuffix("_id"): made.id_to_token(i) for k, i in ids.items() if i is not None}
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.bos is not None,
        **named,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(told, indent=2) + "\n", encoding="utf-8"
    )


def _subwords(tokenizer: Tokenizer) -> Any:
    """Its definition, and BOS before a text where it has one."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers.processors import TemplateProcessing

    assert isinstance(tokenizer, PretrainedTokenizer)
    made = HFTokenizer.from_str(tokenizer.definition)
    if tokenizer.bos is not None:
        bos = made.id_to_token(tokenizer.bos)
        made.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos)]
        )
    return made


def _words(tokenizer: WordTokenizer) -> Any:
    """Whole words between white space; a newline is the end of a sentence."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as HFTokenizer

    vocabulary = {word: i for i, word in enumerate(tokenizer.words)}
    made = HFTokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    made.normalizer = normalizers.Replace("\n", f" {EOS} ")
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return made
