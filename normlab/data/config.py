"""Which text a run reads, how it is cut into tokens, and where both are kept."""

import os
from dataclasses import dataclass
from pathlib import Path

from normlab.config import field, require
from normlab.registry import choice

AUTO = {"auto": "wikitext2", "auto-raw": "wikitext2-raw"}
"""The names that settle for the embedded text, and what they try first."""

CORPORA = (*AUTO, "wikitext2", "wikitext2-raw", "embedded", "text", "hf")
ROWS = ("documents", "lines")
TOKENIZERS = ("bpe", "word", "char", "byte")
TOKENIZER_FILES = ("FILE.json", "hf:DIR", "gguf:FILE")
"""How a tokenizer is named that was made elsewhere; the first is a tokenizer.json."""
FIXED = "is its own"
VOCABULARIES = {
    "word": "is every word of the training split",
    "char": "is every character of the training split",
    "byte": "is the 256 bytes",
}
WHICH = {"path": "FILE|DIR|GLOB", "name": "NAME|DIR"}
OWNERS = {
    "path": ("text",),
    **dict.fromkeys(("name", "config", "revision", "rows", "streaming"), ("hf",)),
    **dict.fromkeys(("column", "split"), ("text", "hf")),
}
"""By field the corpora that have it."""


@dataclass(frozen=True)
class TextConfig:
    """Which text is read. Unset folders come from the environment, so that a config that is stored
    with a run names no machine.
    """

    corpus: str | None = field(
        None,
        f"one of {', '.join(CORPORA)}; null: a run's own, auto-raw for a pretrained model",
    )
    root: str | None = field(None, "folder that holds WikiText-2; else the variable NORMLAB_DATA")
    path: str | None = field(
        None, "data=text: a file, folder or pattern of txt, jsonl, csv, parquet; .gz .bz2 .xz .zst"
    )
    name: str | None = field(
        None, "data=hf: a data set of the hub, or a folder (save_to_disk, or of files)"
    )
    config: str | None = field(None, "data=hf: which of its configurations")
    revision: str | None = field(None, "data=hf: which version of it")
    column: str | None = field(
        None, "of records the one that holds the text; null: text, or the only one of strings"
    )
    rows: str = field(
        "documents", "data=hf: a row is one of documents, or of lines (a blank one ends a document)"
    )
    streaming: bool = field(False, "data=hf: read it row by row, and keep no copy")
    split: str = field(
        "90/5/5", "shares of train/valid/test: splits that a text lacks are cut by document hash"
    )

    def __post_init__(self) -> None:
        if self.corpus is not None:
            choice("data.corpus", self.corpus, CORPORA)
        choice("data.rows", self.rows, ROWS)
        _ = self.shares
        self._refuse_of_others()
        for corpus, name in (("text", "path"), ("hf", "name")):
            require(
                self.corpus != corpus or bool(getattr(self, name)),
                f"data.{name} = {getattr(self, name)}: expected a place to read from, "
                f"data={corpus} data.{name}={WHICH[name]}",
            )

    def _refuse_of_others(self) -> None:
        for name, owners in OWNERS.items():
            value = getattr(self, name)
            require(
                value == getattr(TextConfig, name) or self.corpus in owners,
                f"data.{name} = {value}: expected data={' or data='.join(owners)} beside it"
                + f", and not data={self.corpus}" * bool(self.corpus),
            )

    @property
    def shares(self) -> dict[str, float]:
        """By split its share of what is cut, from 0 to 1.

        Raises:
            ValueError: no three numbers that add up to 100.
        """
        words = self.split.split("/")
        try:
            train, valid, test = (float(word) / 100 for word in words)
        except ValueError:
            train, valid, test = 0.0, 0.0, 0.0
        require(
            min(train, valid, test) >= 0 and abs(train + valid + test - 1) < 1e-9,
            f"data.split = {self.split}: expected train/valid/test in per cent, such as "
            f"{TextConfig.split}",
        )
        return {"train": train, "valid": valid, "test": test}

    def root_folder(self) -> Path | None:
        """Where WikiText-2 lies on this machine, if anyone said so. It may not exist."""
        root = self.root or os.environ.get("NORMLAB_DATA")
        return _expanded(root) if root else None


@dataclass(frozen=True)
class DataConfig(TextConfig):
    """The text and its tokens."""

    corpus: str = field(
        "auto",
        "wikitext2, wikitext2-raw, embedded; auto, auto-raw: WikiText-2, else embedded; text: your "
        "own files; hf: a data set of the hub, or a folder of one",
    )
    tokenizer: str = field(
        "bpe",
        "bpe (byte-level, trained on the training split), word, char, byte; or one that there is: "
        f"{', '.join(TOKENIZER_FILES)}",
    )
    vocab_size: int = field(4096, "entries of the bpe vocabulary, the 256 bytes included")
    cache: str | None = field(
        None, "folder for tokens; else the variable NORMLAB_CACHE, else ~/.cache/normlab"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tokenizer_is_file:
            choice("data.tokenizer", self.tokenizer, (*TOKENIZERS, *TOKENIZER_FILES))
        require(
            self.vocab_size >= 257,
            f"data.vocab_size = {self.vocab_size}: a byte-level vocabulary holds the 256 bytes and "
            "at least one merge, so 257 is the smallest",
        )
        require(
            self.tokenizer == "bpe" or self.vocab_size == DataConfig.vocab_size,
            f"data.vocab_size = {self.vocab_size} means nothing to data.tokenizer="
            f"{self.tokenizer}, whose vocabulary {VOCABULARIES.get(self.tokenizer, FIXED)}: leave "
            "it out",
        )

    @property
    def tokenizer_is_file(self) -> bool:
        """Whether the tokenizer was made elsewhere, and isn't trained here."""
        return self.tokenizer.startswith(("hf:", "gguf:")) or self.tokenizer.endswith(".json")

    def cache_folder(self) -> Path:
        """Where tokens are kept between runs. It may not exist yet.

        Raises:
            FileNotFoundError: it is below the home directory, and there is none.
        """
        cache = self.cache or os.environ.get("NORMLAB_CACHE") or "~/.cache/normlab"
        return _expanded(cache)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(
            f"{path}: nothing here knows a home directory; say HOME=DIR, or NORMLAB_CACHE=DIR for "
            "what is kept between runs"
        ) from None
