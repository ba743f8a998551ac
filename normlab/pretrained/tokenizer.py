"""Tokenizers of pretrained checkpoints: from a GGUF file's metadata, or a tokenizer.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.data.tokenizer import PretrainedTokenizer
from normlab.pretrained.huggingface import read_json
from normlab.pretrained.source import CheckpointError
from normlab.registry import choice

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

# How a text is cut before anything is merged, by the name in tokenizer.ggml.pre.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_GPT2, _DIGITS = "gpt2", "digits"
_OF_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
"""Of these llama.cpp knows more: BOS is added, and a word that is a token is not merged."""
CUTS = {
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    **dict.fromkeys(_OF_LLAMA3, _LLAMA3),
    "dbrx": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def from_metadata(metadata: dict[str, Any], name: str) -> PretrainedTokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        CheckpointError: it describes none, or one of an unknown kind.
    """
    m = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items()}
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    try:
        kind = choice("tokenizer (tokenizer.ggml.model)", m.get("model", "none"), builders)
        tokenizer = builders[kind](m)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise CheckpointError(
            f"{name}: no tokenizer can be made of its metadata: {error}"
        ) from error
    _add_tokens(tokenizer, m)
    adds_bos = m.get("add_bos_token", kind == "llama" or m["pre"] in _OF_LLAMA3)
    bos, eos = m.get("bos_token_id"), m.get("eos_token_id")
    prefix = eos if bos is None else bos
    return PretrainedTokenizer(tokenizer.to_str(), name, bos if adds_bos else None, prefix)


def _byte_level(m: dict[str, Any]) -> "Tokenizer":
    """GPT-2's byte-level BPE, cut as `tokenizer.ggml.pre` says."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = CUTS[choice("cutting rule (tokenizer.ggml.pre)", m.get("pre", "none"), CUTS)]
    merges = [tuple(merge.split(" ", 1)) for merge in m["merges"]]
    model = models.BPE(_vocabulary(m["tokens"]), merges, ignore_merges=m["pre"] in _OF_LLAMA3)
    tokenizer = Tokenizer(model)
    first: list[pre_tokenizers.PreTokenizer] = []
    if cut == _DIGITS:
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif cut != _GPT2:
        first = [pre_tokenizers.Split(Regex(cut), "isolated")]
    if cut == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut in (_GPT2, _DIGITS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(m: dict[str, Any]) -> "Tokenizer":
    """SentencePiece's BPE: blanks written ▁, unknown characters as bytes, merges by the scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = [t.replace(" ", "▁") if not t.strip(" ") else t for t in m["tokens"]]
    vocabulary = _vocabulary(tokens)
    kinds = m.get("token_type", [1] * len(tokens))
    rank = {
        token: (kinds[i] != USER_DEFINED, -m["scores"][i], i) for token, i in vocabulary.items()
    }
    unknown = tokens[m["unknown_token_id"]] if "unknown_token_id" in m else None
    model = models.BPE(
        vocabulary, _merges(rank), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = [normalizers.Prepend("▁")] if m.get("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    return tokenizer


def _merges(rank: dict[str, tuple[bool, float, int]]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the third's best rank first."""

    def ways() -> Iterator[tuple[tuple[bool, float, int], int, int, str, str]]:
        for token, order in rank.items():
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in rank and right in rank:
                    yield order, rank[left][2], rank[right][2], left, right

    return [(left, right) for *_, left, right in sorted(ways())]


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in reversed(list(enumerate(tokens)))}


def _add_tokens(tokenizer: "Tokenizer", m: dict[str, Any]) -> None:
    """Tokens that are found in the text before anything else."""
    from tokenizers import AddedToken

    for token, kind in zip(m["tokens"], m.get("token_type", ()), strict=False):
        if kind in (CONTROL, USER_DEFINED) and tokenizer.token_to_id(token) is not None:
            added = AddedToken(token, normalized=False, special=kind == CONTROL)
            tokenizer.add_tokens([added])


def from_folder(folder: Path, config: Mapping[str, Any], name: str) -> PretrainedTokenizer:
    """The tokenizer of a Hugging Face directory.

    Its BOS is the one that it puts before a text by itself; a model whose tokenizer adds none was
    trained without, unless tokenizer_config.json says `add_bos_token`. A special token without a
    row in the embedding is left out: a text that spells it is ordinary text.

    Raises:
        CheckpointError: no tokenizer.json, or one that can't be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json")
    from tokenizers import Tokenizer

    try:
        definition = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # the package raises no narrower type
        raise CheckpointError(f"{path} can't be read: {error}") from error
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.exists() else {}
    asked, bos = settings.get("add_bos_token"), _put_before(tokenizer)
    named = {kind: _named(kind, tokenizer, settings, file) for kind in ("bos", "eos")}
    listed = {kind: _listed(kind, config) for kind in ("bos", "eos")}
    if asked is True and bos is None:
        bos = _first(named["bos"], listed["bos"])
    prefix = _first(named["bos"], named["eos"], listed["bos"], listed["eos"])
    definition = _without_rowless(definition, tokenizer, config.get("vocab_size"))
    return PretrainedTokenizer(definition, name, None if asked is False else bos, prefix)


def _put_before(tokenizer: "Tokenizer") -> int | None:
    """The special token that the tokenizer puts before a text: no padding, nothing after it."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text = tokenizer.encode("a", add_special_tokens=True)
    return text.ids[0] if any(text.special_tokens_mask[:1]) else None


def _without_rowless(definition: str, tokenizer: "Tokenizer", rows: int | None) -> str:
    """The definition less the special tokens that have no row in the embedding.

    Gemma 3's text models have one, as they share a tokenizer with those that read images.
    """
    added = tokenizer.get_added_tokens_decoder().items()
    rowless = {t.content for i, t in added if t.special and rows is not None and i >= rows}
    if not rowless:
        return definition
    content = json.loads(definition)
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in rowless]
    return json.dumps(content, ensure_ascii=False)


def _named(
    kind: str, tokenizer: "Tokenizer", settings: Mapping[str, Any], file: Path
) -> int | None:
    """The id of BOS or EOS as tokenizer_config.json names it: by its text."""
    token = settings.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(text, str):
        raise CheckpointError(f"{file}: {kind}_token = {token!r}: expected a token's text")
    return None if text is None else tokenizer.token_to_id(text)


def _listed(kind: str, config: Mapping[str, Any]) -> int | None:
    """The id of BOS or EOS in config.json, the first where there are several."""
    given = config.get(f"{kind}_token_id")
    ids = given if isinstance(given, list) else [given]
    return _first(*(i for i in ids if i is not None and i >= 0))  # −1 is written for none


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
