"""A corpus in tokens, cached on disk."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from normlab.config import require
from normlab.data import shards
from normlab.data.cache import cached
from normlab.data.config import DataConfig
from normlab.data.corpus import Corpus, load_corpus
from normlab.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Encoding,
    PretrainedTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from normlab.data.wikitext import FACTS

FORMAT = 1
"""Of the cached files and of what this package does with text; raised when either changes."""
LEARNED_FROM = 100_000_000
"""Characters of the training split that merges are learned from, the first."""


class Tokenized:
    """The splits of a corpus as tokens of a tokenizer.

    A split is encoded when it is first asked for. It is cached under the hash of its text and of
    the tokenizer, and read from there (memory-mapped) afterwards. A corpus of documents is encoded
    document by document (`normlab.data.shards`), and an interruption is made good.

    Args:
        corpus: the text.
        tokenizer: any; with one from a run directory no training text is needed.
        cache: the folder of the cache.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, cache: Path):
        self.corpus, self.tokenizer, self.cache = corpus, tokenizer, cache

    def split(self, name: str) -> Integer[np.ndarray, " tokens"]:
        """The ids of a split ("train", "valid", "test"), read-only.

        Raises:
            ValueError: the text has changed since an interrupted call began to encode it.
        """
        parts = self.corpus.parts
        if parts is None:
            return self.encoding(name).ids

        def make(folder: Path) -> None:
            documents, said = self.corpus.documents(name), f"{self.corpus.title} {name}"
            shards.write(left, documents, self.tokenizer, facts, said)
            for file in left.iterdir():
                file.rename(folder / file.name)
            left.rmdir()

        made_from = self._made_from(name) | {"documents": True}
        facts, asked = parts.facts[name], f"{parts.source.place} {name} {made_from['tokenizer']}"
        left = self.cache / "unfinished" / hashlib.sha256(asked.encode()).hexdigest()[:32]
        return shards.read(cached(self.cache, "tokens", made_from, make))

    def encoding(self, name: str) -> Encoding:
        """The ids of a split and where each token ends in `corpus.text(name)`, read-only."""

        def make(folder: Path) -> None:
            ids, ends = self.tokenizer.encode(self.corpus.text(name))
            _check_count(self.corpus.name, name, self.tokenizer, len(ids))
            np.save(folder / "ids.npy", ids)
            np.save(folder / "ends.npy", ends)

        folder = cached(self.cache, "tokens", self._made_from(name), make)
        return Encoding(
            np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "ends.npy", mmap_mode="r")
        )

    def _made_from(self, name: str) -> dict[str, Any]:
        made_from = {"text": self.corpus.sha256(name), "tokenizer": self.tokenizer.hash}
        return made_from | _versions()


Opener = Callable[[str], PretrainedTokenizer]
"""What reads a tokenizer that was made elsewhere: `normlab.pretrained.tokenizer.open_tokenizer`."""


def load_tokens(config: DataConfig, opener: Opener | None = None) -> Tokenized:
    """The corpus and the tokenizer of `config`, the latter trained on the training split.

    Args:
        config: text and tokenizer.
        opener: reads the tokenizer where that was made elsewhere.

    Raises:
        CorpusUnavailableError, CorpusDamagedError: see `load_corpus` and `Corpus.text`.
    """
    if not config.tokenizer_is_file:
        corpus = load_corpus(config)
        return Tokenized(corpus, _tokenizer(corpus, config), config.cache_folder())
    if opener is None:
        raise ValueError(f"data.tokenizer = {config.tokenizer}: no opener was given for it")
    tokenizer = opener(config.tokenizer)
    return Tokenized(load_corpus(config), tokenizer, config.cache_folder())


def _tokenizer(corpus: Corpus, config: DataConfig) -> Tokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    settings: dict[str, Any] = {"kind": config.tokenizer}
    if config.tokenizer == "bpe":
        settings["vocab_size"] = config.vocab_size

    def make(folder: Path) -> None:
        documents = corpus.documents("train")
        if config.tokenizer == "word":
            WordTokenizer.train(documents).save(folder)
        elif config.tokenizer == "char":
            CharTokenizer.train(documents).save(folder)
        else:
            first = _first(documents, LEARNED_FROM) if corpus.parts else documents
            BPETokenizer.train(first, config.vocab_size).save(folder)

    made_from = {"text": corpus.sha256("train"), **settings, **_versions()}
    return load_tokenizer(cached(config.cache_folder(), "tokenizers", made_from, make))


def _first(documents: Iterable[str], characters: int) -> Iterator[str]:
    """The first documents, until there are so many characters."""
    size = 0
    for document in documents:
        yield document
        if (size := size + len(document)) >= characters:
            return


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
