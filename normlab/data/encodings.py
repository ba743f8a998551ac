"""Long texts as tokens, kept on disk: of an evaluation that starts again nothing is tokenized."""

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from normlab.data.cache import cached, trim
from normlab.data.config import DataConfig
from normlab.data.tokenizer import Encoding, Tokenizer

LEAST, ROOM = 2**16, 2**28
"""Characters of a text that is kept, and bytes that all may fill; the least used goes first."""


def encoded(text: str, tokenizer: Tokenizer) -> Encoding:
    """`tokenizer.encode(text)`, kept since an earlier call or from now on."""
    if len(text) < LEAST:
        return tokenizer.encode(text)

    def make(folder: Path) -> None:
        ids, ends = tokenizer.encode(text)
        np.save(folder / "ids.npy", ids)
        np.save(folder / "ends.npy", ends)

    made_from = {
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "tokenizer": tokenizer.hash,
        "tokenizers": version("tokenizers"),
    }
    with suppress(OSError):  # nothing can be written
        root = DataConfig().cache_folder()
        folder = cached(root, "encodings", made_from, make)
        found = Encoding(*(np.load(folder / f"{name}.npy") for name in Encoding._fields))
        trim(root / "encodings", ROOM)
        return found
    return tokenizer.encode(text)
