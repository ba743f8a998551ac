"""A corpus in tokens, cached on disk."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from normlab.config import require
from normlab.data.cache import cached
from normlab.data.config import DataConfig
from normlab.data.corpus import Corpus, load_corpus
from normlab.data.tokenizer import (
    BPETokenizer,
    Encoding,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from normlab.data.wikitext import FACTS

FORMAT = 1
"""Of the cached files and of what this package does with text; raised when either changes."""


class Tokenized:
    """The splits of a corpus as tokens of a tokenizer.

    A split is encoded when it is first asked for. It is cached under the hash of its text and of
    the tokenizer, and read from there (memory-mapped) afterwards.

    Args:
        corpus: the text.
        tokenizer: any; with one from a run directory no training text is needed.
        cache: the folder of the cache.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, cache: Path):
        self.corpus, self.tokenizer, self.cache = corpus, tokenizer, cache

    def split(self, name: str) -> Int32[np.ndarray, " tokens"]:
        """The ids of a split ("train", "valid", "test"), read-only."""
        return self.encoding(name).ids

    def encoding(self, name: str) -> Encoding:
        """The ids of a split and where each token ends in `corpus.text(name)`, read-only."""

        def make(folder: Path) -> None:
            ids, ends = self.tokenizer.encode(self.corpus.text(name))
            _check_count(self.corpus.name, name, self.tokenizer, len(ids))
            np.save(folder / "ids.npy", ids)
            np.save(folder / "ends.npy", ends)

        made_from = {"text": self.corpus.sha256(name), "tokenizer": self.tokenizer.hash}
        folder = cached(self.cache, "tokens", made_from | _versions(), make)
        return Encoding(
            np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "ends.npy", mmap_mode="r")
        )


def load_tokens(config: DataConfig) -> Tokenized:
    """The corpus and the tokenizer of `config`, the latter trained on the training split.

    Raises:
        CorpusUnavailableError, CorpusDamagedError: see `load_corpus` and `Corpus.text`.
    """
    corpus = load_corpus(config)
    return Tokenized(corpus, _tokenizer(corpus, config), config.cache_folder())


def _tokenizer(corpus: Corpus, config: DataConfig) -> Tokenizer:
    settings: dict[str, Any] = {"kind": config.tokenizer}
    if config.tokenizer == "bpe":
        settings["vocab_size"] = config.vocab_size

    def make(folder: Path) -> None:
        text = corpus.text("train")
        if config.tokenizer == "bpe":
            BPETokenizer.train(text, config.vocab_size).save(folder)
        else:
            WordTokenizer.train(text).save(folder)

    made_from = {"text": corpus.sha256("train"), **settings, **_versions()}
    return load_tokenizer(cached(config.cache_folder(), "tokenizers", made_from, make))


def _check_count(corpus: str, split: str, tokenizer: Tokenizer, count: int) -> None:
    """WikiText-2 has as many words as is published, or numbers on it can't be compared."""
    facts = FACTS.get((corpus, split))
    if tokenizer.kind == WordTokenizer.kind and facts is not None:
        require(
            count == facts.tokens,
            f"the {split} split of {corpus} has {count:,} words, expected {facts.tokens:,}",
        )


def _versions() -> dict[str, Any]:
    return {"format": FORMAT, "tokenizers": version("tokenizers")}
