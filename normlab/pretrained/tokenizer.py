"""Tokenizers of pretrained checkpoints: from a GGUF file's metadata, or a tokenizer.json."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.data.tokenizer import PretrainedTokenizer, library_errors
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.huggingface import read_json
from normlab.pretrained.keys import Keys
from normlab.pretrained.source import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TYPES = set(range(7))
"""Of `tokenizer.ggml.token_type`."""
UNSIGNED_NONE = 2**32 - 1
"""An id of −1 in a GGUF file's unsigned numbers."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "padding_token_id", "unknown_token_id")
"""Ids that a config.json or a GGUF file names; each must be one, though not each is used."""

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


def open_tokenizer(spec: str) -> PretrainedTokenizer:
    """A tokenizer by itself, to train a model with: nothing is put before a text.

    Args:
        spec: `FILE.json` (a tokenizer.json under any name), `hf:DIR` or `gguf:FILE`.

    Raises:
        CheckpointError: it can't be found or read.
    """
    kind, _, where = spec.partition(":")
    path = Path(where if kind in ("hf", "gguf") else spec).expanduser()
    if kind == "gguf":
        made = from_metadata(GGUF(path).metadata, path.stem)
    elif kind == "hf":
        config = path / "config.json"
        made = from_folder(path, read_json(config) if config.is_file() else {}, path.name)
    else:
        if not path.is_file():
            raise CheckpointError(f"data.tokenizer = {spec}: no such file")
        with library_errors(f"{path} can't be read", CheckpointError):
            definition, note = _without_chance(path)
            made = PretrainedTokenizer(definition, path.stem)
            made.note = note
    bare = PretrainedTokenizer(made.definition, made.name)
    bare.note = made.note
    return bare


def from_metadata(metadata: dict[str, Any], name: str) -> PretrainedTokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        CheckpointError: it describes none, or one of an unknown kind.
    """
    prefix = "tokenizer.ggml."
    m = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    unset = {key: -1 for key in _IDS if m.get(key) == UNSIGNED_NONE}
    said = Keys(m | unset, f"tokenizer.ggml of {name}")
    builders = {"gpt2": byte_level, "llama": _sentencepiece}
    kind = said.word("model", builders, "none")
    tokens = _listed(said, "tokens", str)
    named = {key: _id(said, key, len(tokens)) for key in _IDS}
    with library_errors(f"{name}: no tokenizer can be made of its metadata", CheckpointError):
        tokenizer = builders[kind](said)
        _add_tokens(tokenizer, said)
        adds_bos = said.flag("add_bos_token", kind == "llama" or said["pre"] in _OF_LLAMA3)
        bos = named["bos_token_id"]
        begins = _first(bos, named["eos_token_id"])
        return PretrainedTokenizer(tokenizer, name, bos if adds_bos else None, begins)


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int | None]:
    """BOS and EOS of a GGUF file, in the words of a config.json; None: it names none."""
    found = {key: metadata.get(f"tokenizer.ggml.{key}") for key in _IDS[:2]}
    return {key: None if i in (-1, UNSIGNED_NONE) else i for key, i in found.items()}


def _listed(said: Keys, key: str, kind: type, size: int | None = None) -> list[Any]:
    """A list of so many values of one type."""
    values = said[key]
    if (
        not isinstance(values, list)
        or len(values) != (size or len(values))
        or any(type(value) is not kind or value != value for value in values)
    ):
        raise CheckpointError(
            f"{said.where}: expected {key} to be a list of {kind.__name__}"
            + (f", one for each of {size} tokens" if size else "")
        )
    return values


def byte_level(m: Keys) -> "Tokenizer":
    """GPT-2's byte-level BPE, cut as `tokenizer.ggml.pre` says."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = CUTS[m.word("pre", CUTS, "none")]
    merges = [tuple(merge.split(" ", 1)) for merge in _listed(m, "merges", str)]
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


def _sentencepiece(m: Keys) -> "Tokenizer":
    """SentencePiece's BPE: blanks written ▁, unknown characters as bytes, merges by the scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = [t.replace(" ", "▁") if not t.strip(" ") else t for t in m["tokens"]]
    vocabulary = _vocabulary(tokens)
    kinds, scores = _kinds(m), _listed(m, "scores", float, len(tokens))
    rank = {token: (kinds[i] != USER_DEFINED, -scores[i], i) for token, i in vocabulary.items()}
    place = m.get("unknown_token_id", -1)
    unknown = None if place == -1 else tokens[place]
    model = models.BPE(
        vocabulary, _merges(rank), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = [normalizers.Prepend("▁")] if m.flag("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    return tokenizer


def _kinds(m: Keys) -> list[int]:
    """`token_type`, one for each token: all are normal where it is missing."""
    tokens = m["tokens"]
    if m.get("token_type") is None:
        return [NORMAL] * len(tokens)
    kinds = _listed(m, "token_type", int, len(tokens))
    if unknown := set(kinds) - TYPES:
        raise CheckpointError(f"{m.where} has token_type = {min(unknown)}: expected 0 to 6")
    return kinds


def _merges(rank: dict[str, tuple[bool, float, int]]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the third's best rank first."""
    found = list[tuple[str, str]]()
    for token in sorted(rank, key=rank.__getitem__):
        ways = [
            (left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in rank and (right := token[cut:]) in rank
        ]
        if len(ways) > 1:
            ways.sort(key=lambda way: (rank[way[0]][2], rank[way[1]][2]))
        found += ways
    return found


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in reversed(list(enumerate(tokens)))}


def _add_tokens(tokenizer: "Tokenizer", m: Keys) -> None:
    """Tokens that are found in the text before anything else."""
    from tokenizers import AddedToken

    added = [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(m["tokens"], _kinds(m), strict=True)
        if kind in (CONTROL, USER_DEFINED) and tokenizer.token_to_id(token) is not None
    ]
    tokenizer.add_tokens(added)  # at once: each call goes through all that there are


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

    rows, file = config.get("vocab_size"), folder / "tokenizer_config.json"
    settings = Keys(read_json(file) if file.exists() else {}, str(file))
    said = Keys(config, str(folder / "config.json"))
    listed = {key: _id(said, key, rows) for key in _IDS}
    with library_errors(f"{path} can't be read", CheckpointError):
        definition, note = _without_chance(path)
        tokenizer = Tokenizer.from_str(definition)
        bos = _put_before(tokenizer)
        named = {kind: _named(kind, tokenizer, settings) for kind in ("bos", "eos")}
        adds = settings.flag("add_bos_token", bos is not None)
        if adds and bos is None:
            bos = _first(named["bos"], listed["bos_token_id"])
        prefix = _first(named["bos"], named["eos"], listed["bos_token_id"], listed["eos_token_id"])
        definition = _without_rowless(definition, tokenizer, rows)
        made = PretrainedTokenizer(definition, name, bos if adds else None, prefix)
    made.note = note
    return made


def _without_chance(path: Path) -> tuple[str, str]:
    """A definition that encodes a text alike each time, and what was switched off for that.

    BPE's dropout leaves merges out at random, in training; no other part draws random numbers.
    """
    content, definition = read_json(path), path.read_text(encoding="utf-8")
    model = Keys(content, str(path)).part("model").values
    dropout = model.get("dropout") or 0
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 < dropout <= 1:
        return definition, ""  # none, or one that the package refuses
    note = f"BPE dropout = {dropout}, switched off"
    log.warning("%s has %s: it is random, and meant for training.", path, note)
    return json.dumps(content | {"model": {**model, "dropout": None}}, ensure_ascii=False), note


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


def _named(kind: str, tokenizer: "Tokenizer", settings: Keys) -> int | None:
    """The id of BOS or EOS as tokenizer_config.json names it: by its text."""
    token = settings.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(text, str):
        raise CheckpointError(
            f"{settings.where}: {kind}_token = {token!r}: expected a token's text"
        )
    return None if text is None else tokenizer.token_to_id(text)


def _id(said: Keys, key: str, rows: int | None) -> int | None:
    """A special token's id, the first where there are several; −1 is written for none.

    Args:
        said: where it is listed.
        key: as what.
        rows: ids are less than that; None: not known.
    """
    given = said.get(key, [])
    ids = given if isinstance(given, list) else [given]
    if any(type(i) is not int or i < -1 or (rows is not None and i >= rows) for i in ids):
        last = "" if rows is None else f" to {rows - 1}"
        raise CheckpointError(
            f"{said.where} has {key} = {given!r}: expected a token's id, 0{last}, or -1 for none"
        )
    return _first(*(i for i in ids if i >= 0))


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
