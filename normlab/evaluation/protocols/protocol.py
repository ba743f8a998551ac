"""Perplexity protocols: which text, which windows, which tokens are scored, by name and version."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from normlab.config import require
from normlab.data.encodings import encoded
from normlab.data.tokenizer import Tokenizer, WordTokenizer
from normlab.evaluation.protocols.texts import (
    bytes_by_token,
    detokenized,
    joined_rows,
    pages,
    spread,
    words_by_token,
)
from normlab.evaluation.protocols.windows import (
    Span,
    Stream,
    Windows,
    assemble,
    disjoint,
    overlapping,
    rolling,
)
from normlab.registry import Registry

Cuts = Iterator[tuple[Stream, list[Span], int]]
"""Streams, their windows, and how many positions a window is padded to."""

Cut = Callable[[str, Tokenizer, int], Cuts]
"""What a protocol does with a text, a tokenizer and L."""


@dataclass(frozen=True)
class Protocol:
    """One way to put a number on a model and a text. Numbers of two protocols don't compare.

    Args:
        name: as it stands in a table.
        version: raised whenever the same model and text would give another number.
        window: L, tokens of a window, where none is asked for.
        fixed: L is part of the definition; otherwise a model trained here is read in windows as
            long as those it was trained on.
        reported: the number to be shown: "perplexity" (of tokens) or "word_perplexity".
        words_only: needs a tokenizer whose tokens are words.
        prefixed: reads `Tokenizer.prefix`, of which the tokenizer's hash knows nothing.
        cut: does it.
    """

    name: str
    version: int
    window: int
    fixed: bool
    reported: str
    words_only: bool
    prefixed: bool
    cut: Cut

    def default_window(self, max_length: int, trained: int | None = None) -> int:
        """L where none is asked for."""
        if self.fixed:
            return self.window
        return min(trained or self.window, max_length)

    def check_window(self, window: int, max_length: int) -> None:
        """Refuse a window that is no window, or that the model can't read.

        Raises:
            ValueError: with the longest window that fits.
        """
        require(window >= 2, f"window = {window} tokens: expected at least 2 (one told, one asked)")
        require(
            window <= max_length,
            f"window = {window} tokens (protocol={self.name}) is longer than model.max_length = "
            f"{max_length}; the longest window that fits is window={max_length}",
        )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse subwords where words are needed.

        Raises:
            ValueError: with the protocol to take instead.
        """
        require(
            not self.words_only or isinstance(tokenizer, WordTokenizer),
            f"protocol={self.name} scores words, and {tokenizer.name} makes subwords: expected a "
            "model of data.tokenizer=word, or protocol=window",
        )

    def windows(
        self, text: str, tokenizer: Tokenizer, window: int, max_windows: int | None = None
    ) -> Windows:
        """The text cut and padded; the first `max_windows` windows only, where that is given.

        Raises:
            ValueError: nothing to score, or what `check_tokenizer` refuses.
        """
        self.check_tokenizer(tokenizer)
        parts, room = [], max_windows
        for stream, spans, length in self.cut(text, tokenizer, window):
            chosen = list(islice(spans, room))
            parts.append(assemble(stream, chosen, length))
            if room is not None and (room := room - len(chosen)) == 0:
                break
        windows = Windows.join(parts) if parts else None
        if windows is None or not len(windows):
            raise ValueError(
                f"protocol={self.name} with window={window} finds nothing to score in a text of "
                f"{len(text)} characters; expected a longer text or a shorter window"
            )
        return windows


protocols: Registry[Protocol] = Registry("protocol")
"""Every protocol by name."""


def _protocol(
    name: str,
    window: int,
    *,
    version: int = 1,
    fixed: bool = False,
    reported: str = "perplexity",
    words_only: bool = False,
    prefixed: bool = False,
) -> Callable[[Cut], Cut]:
    def put(cut: Cut) -> Cut:
        made = Protocol(name, version, window, fixed, reported, words_only, prefixed, cut)
        protocols.register(name)(made)
        return cut

    return put


def _stream(text: str, tokenizer: Tokenizer) -> Stream:
    encoding = encoded(text, tokenizer)
    sizes = bytes_by_token(text, encoding)
    if tokenizer.has_unknown and tokenizer.decode(encoding.ids).split() != text.split():
        sizes = np.zeros_like(sizes)  # bits of what was not told are not known
    return Stream(encoding.ids, words_by_token(text, encoding), sizes)


@_protocol("window", 512)
def _window(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """The raw file as one string, in disjoint windows of L tokens, the shorter last one kept.

    Each begins with BOS where the tokenizer has one (L counts it); else its first token is context
    only. Every other token is scored.
    """
    stream = _stream(text, tokenizer)
    yield stream, list(disjoint(len(stream.ids), length, tokenizer.bos)), length - 1


@_protocol("word", 512, words_only=True)
def _word(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """The word-level stream: the raw file as one sequence, all words scored but the first.

    Published word-level numbers come from recurrent networks, which carry their state through the
    whole text. A transformer carries its context by overlapping windows instead: windows of L
    tokens begin every L/2 tokens, and each scores the words that no window before it held. So a
    word is predicted from the L/2 … L−1 words before it, those at the very start of the text from
    all there are. No state, cache or adaptation beyond that.
    """
    stream = _stream(text, tokenizer)
    yield stream, list(overlapping(len(stream.ids), length)), length - 1


@_protocol("gptq", 2048, fixed=True)
def _gptq(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """Rows joined by two newlines, in disjoint windows of L = 2048, the tail dropped.

    BOS stands once at the start, where there is one; L−1 tokens of each window are scored (Frantar
    et al. 2023, arXiv:2210.17323, its code).
    """
    stream = _stream(joined_rows(text), tokenizer).after(tokenizer.bos)
    spans = disjoint(len(stream.ids), length, None)
    yield stream, [s for s in spans if s.end - s.start == length], length - 1


@_protocol("llamacpp", 512, fixed=True)
def _llamacpp(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """llama.cpp's `perplexity`: the raw file after a BOS, in disjoint windows of n_ctx = 512.

    The tail is dropped, and each window's first token replaced by BOS, where there is one. The
    tokens after position n_ctx/2 are scored: n_ctx/2 − 1 a window.
    """
    bos = tokenizer.bos
    stream = _stream(text, tokenizer).after(bos)
    starts = range(0, len(stream.ids) - length + 1, length)
    skip = 0 if bos is None else 1
    spans = [Span(i + skip, i + length, i + length // 2 + 1, bos) for i in starts]
    yield stream, spans, length - 1


@_protocol("lm-eval", 2048, version=2, reported="word_perplexity", prefixed=True)
def _lm_eval(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """lm-evaluation-harness's `wikitext` up to its version 0.4.9.1: articles, detokenized by its
    rules, in rolling windows.

    A window has L inputs; each token is scored once. A page begins with BOS, also where the model
    was trained without, else with the end-of-text token (`Tokenizer.prefix`). Without either (a
    tokenizer trained here) its first token is context only. Version 1 began it with BOS only where
    the tokenizer adds one by itself. Words and bytes are those of the page *before* it is
    detokenized. As in the harness, words are split at white space, which counts empty strings at
    the page's ends. A page that `max_windows` cuts short brings its words and bytes in proportion.
    """
    return _rolled(text, tokenizer, length, None)


@_protocol("lm-eval-0.4.9.2", 2048, reported="word_perplexity", prefixed=True)
def _lm_eval_later(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """lm-evaluation-harness's `wikitext` from its version 0.4.9.2 on. It is `lm-eval`, and the BOS
    that a tokenizer adds by itself is a token of the page. It comes after the other one, and is
    scored.
    """
    return _rolled(text, tokenizer, length, tokenizer.bos)


def _rolled(text: str, tokenizer: Tokenizer, length: int, added: int | None) -> Cuts:
    for page in pages(text):
        ids = tokenizer.encode(detokenized(page)).ids
        words, size = len(page.split()) + _blank_ends(page), len(page.encode())
        stream = Stream(ids, spread(words, len(ids)), spread(size, len(ids)))
        stream = stream.after(added).after(tokenizer.prefix)
        yield stream, list(rolling(len(stream.ids), length)), length


def _blank_ends(page: str) -> int:
    """Empty strings that splitting at white space gives beside the words: 0, 1 or 2."""
    return int(page[:1].isspace()) + int(page[-1:].isspace())


@_protocol("stride", 1024)
def _stride(text: str, tokenizer: Tokenizer, length: int) -> Cuts:
    """Rows joined by two newlines, in windows of L tokens that begin every L/2.

    BOS stands once at the start, where there is one. A window scores the tokens that none before it
    held (Hugging Face's guide to perplexity, with L/2 as its stride).
    """
    stream = _stream(joined_rows(text), tokenizer).after(tokenizer.bos)
    yield stream, list(overlapping(len(stream.ids), length)), length - 1
