"""A byte-level tokenizer in the words of a GGUF file's metadata, as llama.cpp reads them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from normlab.config import require
from normlab.data.tokenizer import PretrainedTokenizer, Tokenizer
from normlab.pretrained.keys import Keys
from normlab.pretrained.tokenizer import CONTROL, CUTS, NORMAL, USER_DEFINED, byte_level

UNUSED = 5
"""Of `tokenizer.ggml.token_type`: a row of the embedding that no token has."""


def tokenizer_words(tokenizer: Tokenizer, rows: int, ids: Mapping[str, Any]) -> dict[str, Any]:
    """Every `tokenizer.ggml.` key, without that before it.

    Args:
        tokenizer: a byte-level one, cut as one of `CUTS` cuts a text.
        rows: of the embedding; each has a token there, or one that says that it is unused.
        ids: `eos_token_id` and `pad_token_id` of a config.json: a number, or a list of which the
            first is taken; −1 for none.

    Raises:
        ValueError: another kind of tokenizer.
    """
    require(
        isinstance(tokenizer, PretrainedTokenizer),
        f"tokenizer {tokenizer.name}: expected byte-level BPE; a GGUF file has no word-level kind",
    )
    assert isinstance(tokenizer, PretrainedTokenizer)
    definition = _whole(tokenizer.definition)
    pre = _cut(definition, tokenizer.name)
    vocabulary, merges = definition["model"]["vocab"], definition["model"]["merges"]
    kinds = dict.fromkeys(vocabulary.values(), NORMAL)
    tokens = {i: token for token, i in vocabulary.items()}
    for added in definition["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        tokens[added["id"]] = added["content"]
    named = {"bos_token_id": tokenizer.prefix, "eos_token_id": ids.get("eos_token_id")}
    named["padding_token_id"] = ids.get("pad_token_id")
    first = {key: i[0] if isinstance(i, list) else i for key, i in named.items()}
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [tokens.get(i, f"[PAD{i}]") for i in range(rows)],
        "token_type": [kinds.get(i, UNUSED) for i in range(rows)],
        "merges": [" ".join(pair) for pair in merges],
        "add_bos_token": tokenizer.bos is not None,
        **{key: i for key, i in first.items() if i is not None and i >= 0},
    }


def _whole(definition: str) -> dict[str, Any]:
    """A definition with nothing left out, as the package writes it."""
    from tokenizers import Tokenizer as HFTokenizer

    return json.loads(HFTokenizer.from_str(definition).to_str())


def _cut(definition: Mapping[str, Any], name: str) -> str:
    """The first of `CUTS` by which the reader makes this tokenizer again.

    Raises:
        ValueError: there is none.
    """
    ours = _rules(definition)
    for pre in CUTS:
        told = Keys({"tokens": ["a"], "merges": [], "pre": pre}, name)
        if _rules(_whole(byte_level(told).to_str())) == ours:
            return pre
    kind = definition["model"].get("type")
    steps = ", ".join(step["type"] for step in _steps(definition["pre_tokenizer"])) or "nothing"
    raise ValueError(
        f"tokenizer {name}: {kind} behind {steps}: expected byte-level BPE that cuts a text as one "
        f"of {', '.join(CUTS)}, which are the names that a GGUF file has for it; export it as "
        "format=hf"
    )


def _rules(definition: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that decides how a text becomes tokens, but for vocabulary and merges."""
    model, flags = definition["model"], ("byte_fallback", "ignore_merges")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    own = [model["type"], *(bool(model.get(key)) for key in (*flags, *affixes))]
    return [*_steps(definition["normalizer"])], [*_steps(definition["pre_tokenizer"])], own


def _steps(told: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """What a pre-tokenizer or a normalizer does, one by one; offsets don't matter here."""
    if told is None:
        return
    parts = told.get("pretokenizers", told.get("normalizers"))
    if parts is None:
        yield {key: value for key, value in told.items() if key != "trim_offsets"}
    for part in parts or ():
        yield from _steps(part)
