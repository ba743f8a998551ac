"""Corpora, tokenizers, token files, batches."""

from normlab.data.batches import Batch, Batches
from normlab.data.config import DataConfig
from normlab.data.corpus import (
    SPLITS,
    Corpus,
    CorpusDamagedError,
    CorpusUnavailableError,
    load_corpus,
)
from normlab.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Encoding,
    PretrainedTokenizer,
    Tokenizer,
    TokenizerDamagedError,
    WordTokenizer,
    load_tokenizer,
)
from normlab.data.tokens import Tokenized, load_tokens

__all__ = [
    "SPLITS",
    "BPETokenizer",
    "Batch",
    "Batches",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "CorpusDamagedError",
    "CorpusUnavailableError",
    "DataConfig",
    "Encoding",
    "PretrainedTokenizer",
    "Tokenized",
    "Tokenizer",
    "TokenizerDamagedError",
    "WordTokenizer",
    "load_corpus",
    "load_tokenizer",
    "load_tokens",
]
