"""Tokenizers: text to ids and back, each with the hash of what defines it."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8, UInt32

from normlab.config import require
from normlab.registry import choice

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

CARD = "tokenizer_card.json"


class Encoding(NamedTuple):
    """Tokens of a text, and where they end in it.

    `ends[i]` is the offset, in characters, after token i. The tokens a … b−1 stand for
    `text[ends[a-1]:ends[b-1]]` (from 0 for a = 0), white space between words included. So bytes and
    words of any span of tokens can be counted. Of tokens that share a character (a byte-level token
    may be part of one) each ends after it.
    """

    ids: Int32[np.ndarray, " tokens"]
    ends: Int64[np.ndarray, " tokens"]


@contextmanager
def library_errors(what: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """What the tokenizers package raises, as a `kind` that says of what.

    The package raises no narrower type than `Exception`, and its panics are not even that.
    """
    try:
        yield
    except BaseException as error:
        known = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if type(error) is kind or not known:
            raise
        raise kind(f"{what}: {error}") from error


class TokenizerDamagedError(ValueError):
    """A stored tokenizer that isn't the one that was saved."""


class Tokenizer(ABC):
    """What models, batches and perplexities need of a tokenizer.

    Attributes:
        name: what a table says ("bpe-4096").
        vocab_size: ids are 0 … vocab_size − 1.
        bos: the id that begins a text, for tokenizers that have one.
        prefix: BOS, or what takes its place where a protocol needs some token before a text.
        hash: SHA-256 of all that defines it. Two tokenizers of one hash encode alike.
        definition: what `file` holds in the folder of a saved one.
        note: what was changed of its definition as it was read, for a record; empty: nothing.
        has_unknown: one token stands for all that its vocabulary lacks.
    """

    kind: ClassVar[str]
    file: ClassVar[str]
    has_unknown: ClassVar[bool] = False
    definition: str
    name: str
    vocab_size: int
    bos: int | None
    prefix: int | None = None
    hash: str
    note: str = ""

    @abstractmethod
    def encode(self, text: str) -> Encoding:
        """The whole text; nothing is added to it, BOS included."""

    def encode_each(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """The ids of each text by itself, in the order of the texts."""
        return [self.encode(text).ids for text in texts]

    @abstractmethod
    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " tokens"]) -> str:
        """The text of `ids`."""

    @classmethod
    @abstractmethod
    def restore(cls, definition: str, name: str, bos: int | None) -> "Tokenizer":
        """The tokenizer that had this definition, name and BOS."""

    def save(self, folder: Path) -> None:
        """Write it into `folder`, for `load_tokenizer`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(self.definition.encode())
        card = {"kind": self.kind, "name": self.name, "bos": self.bos, "hash": self.hash}
        card["prefix"] = self.prefix
        (folder / CARD).write_text(json.dumps(card, indent=1))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into `folder`; needs no training text.

    Raises:
        FileNotFoundError: there is none.
        TokenizerDamagedError: the files have changed since.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        kind, name, bos, saved = (card[key] for key in ("kind", "name", "bos", "hash"))
    except (ValueError, LookupError, TypeError) as error:
        raise TokenizerDamagedError(f"{folder / CARD} can't be read: {error}") from error
    cls = _KINDS[choice("kind of tokenizer", kind, _KINDS)]
    definition = (folder / cls.file).read_bytes().decode(errors="replace")
    got = _hash(definition, bos)
    if got != saved:
        raise TokenizerDamagedError(
            f"the tokenizer in {folder} has changed since it was saved: hash {got}, "
            f"expected {saved}"
        )
    made = cls.restore(definition, name, bos)
    made.prefix = card.get("prefix", made.bos)
    return made


def _hash(definition: str, bos: int | None) -> str:
    return hashlib.sha256(f"{bos}\n{definition}".encode()).hexdigest()


# --- words


UNK, EOS = "<unk>", "<eos>"
_WORD = re.compile(r"\n|\S+")


class WordTokenizer(Tokenizer):
    """WikiText's own words: what stands between white space, and `<eos>` at each line's end.

    Words that aren't in the vocabulary become `<unk>`.

    Args:
        words: the vocabulary; the place is the id. Begins with `<unk>`, `<eos>`.
    """

    has_unknown = True
    kind = "word"
    file = "words.txt"
    bos = None

    def __init__(self, words: Sequence[str]):
        first, (twice, times) = list(words[:2]), Counter(words).most_common(1)[0]
        require(first == [UNK, EOS], f"words begin with {first!r}: expected {[UNK, EOS]!r}")
        require(times == 1, f"words hold {twice!r} {times} times: expected each word once")
        self.words = tuple(words)
        self.vocab_size = len(words)
        self.name = f"word-{self.vocab_size}"
        self.definition = "\n".join(words)
        self.hash = _hash(self.definition, None)
        self._ids = {word: i for i, word in enumerate(words)}
        self._ids["\n"] = 1

    @classmethod
    def train(cls, text: str | Iterable[str]) -> "WordTokenizer":
        """All words of a text, or of documents: the most frequent first, ties by the alphabet."""
        counts = Counter[str]()
        for document in _documents(text):
            counts.update(document.split())
        counts.pop(UNK, None)
        counts.pop(EOS, None)
        return cls([UNK, EOS, *sorted(counts, key=lambda word: (-counts[word], word))])

    def encode(self, text: str) -> Encoding:
        """Each word and each newline is a token; white space belongs to the token after it."""
        size = text.count("\n") + len(text.split())
        ids, ends = np.empty(size, np.int32), np.empty(size, np.int64)
        for i, match in enumerate(_WORD.finditer(text)):
            ids[i] = self._ids.get(match[0], 0)
            ends[i] = match.end()
        return Encoding(ids, ends)

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " tokens"]) -> str:
        """In WikiText's layout, a space before each word and each newline.

        Exact for WikiText's own known words; other texts come back with their white space changed.
        """
        return "".join(" \n" if i == 1 else f" {self.words[i]}" for i in ids)

    @classmethod
    def restore(cls, definition: str, name: str, bos: int | None) -> "WordTokenizer":
        return cls(definition.split("\n"))


# --- bytes and characters


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token: any text, back again exactly."""

    kind = "byte"
    file = "bytes.txt"
    bos = None

    def __init__(self) -> None:
        self.vocab_size = 256
        self.name, self.definition = "bytes", "UTF-8"
        self.hash = _hash(self.definition, None)

    def encode(self, text: str) -> Encoding:
        """Of a character's bytes each ends after it."""
        raw = np.frombuffer(text.encode(), np.uint8)
        return Encoding(raw.astype(np.int32), _characters_begun(raw))

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " tokens"]) -> str:
        """The text of `ids`; what is no UTF-8 comes back as �."""
        return bytes(int(i) for i in ids).decode(errors="replace")

    @classmethod
    def restore(cls, definition: str, name: str, bos: int | None) -> "ByteTokenizer":
        return cls()


class CharTokenizer(Tokenizer):
    """Each character is a token; one that the vocabulary lacks becomes token 0.

    Args:
        characters: the vocabulary in the order of code points; the first is token 1.
    """

    has_unknown = True
    kind = "char"
    file = "characters.txt"
    bos = None

    def __init__(self, characters: str):
        self._points = _points(characters)
        require(
            bool((np.diff(self._points.astype(np.int64)) > 0).all()) and len(characters) > 0,
            "characters: expected each once, in the order of code points",
        )
        self.vocab_size = len(characters) + 1
        self.name, self.definition = f"char-{self.vocab_size}", characters
        self.hash = _hash(self.definition, None)

    @classmethod
    def train(cls, text: str | Iterable[str]) -> "CharTokenizer":
        """All characters of a text, or of documents."""
        return cls("".join(sorted(set().union(*map(set, _documents(text))))))

    def encode(self, text: str) -> Encoding:
        """As many tokens as characters."""
        points = _points(text)
        place = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
        ids = np.where(self._points[place] == points, place + 1, 0).astype(np.int32)
        return Encoding(ids, np.arange(1, len(ids) + 1))

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " tokens"]) -> str:
        """The text of `ids`; token 0 comes back as �."""
        return "".join(self.definition[i - 1] if i else "�" for i in ids)

    @classmethod
    def restore(cls, definition: str, name: str, bos: int | None) -> "CharTokenizer":
        return cls(definition)


def _points(text: str) -> UInt32[np.ndarray, " characters"]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _characters_begun(raw: UInt8[np.ndarray, " bytes"]) -> Int64[np.ndarray, " bytes"]:
    """How many characters have begun with each byte of UTF-8: all but 10xxxxxx begin one."""
    return np.cumsum((raw & 0xC0) != 0x80)


def batches(texts: Iterable[str], characters: int = 1 << 20) -> Iterator[list[str]]:
    """Texts in lists of some so many characters: what `encode_each` holds is far larger."""
    held, size = list[str](), 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= characters:
            yield held
            held, size = [], 0
    if held:
        yield held


def _documents(text: str | Iterable[str]) -> Iterable[str]:
    return [text] if isinstance(text, str) else text


# --- subwords


class PretrainedTokenizer(Tokenizer):
    """Any tokenizer that Hugging Face's `tokenizers` can read.

    Args:
        definition: the content of a `tokenizer.json`, or the tokenizer as it was made.
        name: what a table says.
        bos: the id that begins a text; None where the model was trained without one.
        prefix: BOS although it was, else the end of text; None: `bos`.
    """

    kind = "pretrained"
    file = "tokenizer.json"

    def __init__(
        self,
        definition: "str | HFTokenizer",
        name: str,
        bos: int | None = None,
        prefix: int | None = None,
    ):
        from tokenizers import Tokenizer as HFTokenizer

        if isinstance(definition, str):
            self.definition = definition
            self._tokenizer: HFTokenizer = HFTokenizer.from_str(definition)
        else:
            self.definition, self._tokenizer = definition.to_str(), definition
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = name
        self.bos = bos
        self.prefix = bos if prefix is None else prefix
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        self.hash = _hash(self.definition, bos)

    def encode(self, text: str) -> Encoding:
        """The text as one string, as perplexities of pretrained models take it."""
        with library_errors(f"the tokenizer of {self.name} can't read the text"):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        return Encoding(np.array(encoding.ids, np.int32), ends)

    def encode_each(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " tokens"]]:
        """The ids of each text by itself, in parallel."""
        with library_errors(f"the tokenizer of {self.name} can't read the text"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " tokens"]) -> str:
        """The text of `ids`, special tokens included."""
        with library_errors(f"the tokenizer of {self.name} can't write the text"):
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    @classmethod
    def restore(cls, definition: str, name: str, bos: int | None) -> "PretrainedTokenizer":
        return cls(definition, name, bos)


class BPETokenizer(PretrainedTokenizer):
    """Byte-level BPE in the manner of GPT-2: any text, back again exactly, no unknowns.

    R. Sennrich, B. Haddow, A. Birch, *Neural Machine Translation of Rare Words with Subword
    Units*, 2016; A. Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019,
    §2.2. No token reaches beyond a newline, so lines can be encoded one by one.
    """

    kind = "bpe"

    @classmethod
    def train(cls, text: str | Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Merges learned from a text, or documents: the 256 bytes, then up to `vocab_size`."""
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = _untrained_bpe()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        lines = (line for document in _documents(text) for line in _lines(document))
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer.to_str(), f"bpe-{tokenizer.get_vocab_size()}")

    def encode(self, text: str) -> Encoding:
        """The whole text, its lines in parallel."""
        parts = [np.concatenate(self.encode_each(lines)) for lines in batches(_lines(text))]
        ids = np.concatenate([np.empty(0, np.int32), *parts])
        last_byte = np.cumsum(self._bytes[ids])
        begun = _characters_begun(np.frombuffer(text.encode(), np.uint8))
        return Encoding(ids, begun[last_byte - 1])

    @cached_property
    def _bytes(self) -> Int64[np.ndarray, " vocabulary"]:
        # Byte-level vocabularies write each byte as one printable character.
        vocabulary = self._tokenizer.get_vocab()
        lengths = np.zeros(self.vocab_size, np.int64)
        lengths[list(vocabulary.values())] = [len(token) for token in vocabulary]
        return lengths


def _untrained_bpe() -> "HFTokenizer":
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _lines(text: str) -> Iterator[str]:
    """Lines with their newline; unlike `splitlines`, at newlines only."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


_KINDS: dict[str, type[Tokenizer]] = {
    cls.kind: cls
    for cls in (WordTokenizer, ByteTokenizer, CharTokenizer, BPETokenizer, PretrainedTokenizer)
}
