"""Which text a run reads, how it is cut into tokens, and where both are kept."""

import os
from dataclasses import dataclass
from pathlib import Path

from normlab.config import field, require
from normlab.registry import choice

AUTO = {"auto": "wikitext2", "auto-raw": "wikitext2-raw"}
"""The names that settle for the embedded text, and what they try first."""

CORPORA = (*AUTO, "wikitext2", "wikitext2-raw", "embedded")
TOKENIZERS = ("bpe", "word")


@dataclass(frozen=True)
class DataConfig:
    """The text and its tokens. Unset folders come from the environment, so that a config that
    is stored with a run names no machine.
    """

    corpus: str = field(
        "auto", "wikitext2, wikitext2-raw, embedded; auto, auto-raw: WikiText-2, else embedded"
    )
    root: str | None = field(None, "folder that holds WikiText-2; else the variable NORMLAB_DATA")
    tokenizer: str = field("bpe", "bpe (byte-level, trained on the training split) or word")
    vocab_size: int = field(4096, "entries of the bpe vocabulary, the 256 bytes included")
    cache: str | None = field(
        None, "folder for tokens; else the variable NORMLAB_CACHE, else ~/.cache/normlab"
    )

    def __post_init__(self) -> None:
        choice("data.corpus", self.corpus, CORPORA)
        choice("data.tokenizer", self.tokenizer, TOKENIZERS)
        require(
            self.vocab_size >= 257,
            f"data.vocab_size = {self.vocab_size}: a byte-level vocabulary holds the 256 bytes and "
            "at least one merge, so 257 is the smallest",
        )
        require(
            self.tokenizer == "bpe" or self.vocab_size == DataConfig.vocab_size,
            f"data.vocab_size = {self.vocab_size} means nothing to data.tokenizer=word, whose "
            "vocabulary is every word of the training split",
        )

    def root_folder(self) -> Path | None:
        """Where WikiText-2 lies on this machine, if anyone said so. It may not exist."""
        root = self.root or os.environ.get("NORMLAB_DATA")
        return _expanded(root) if root else None

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
