"""Windows: the sequences that a model reads in an evaluation, and which tokens they score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64


class Span(NamedTuple):
    """One window over a stream of tokens.

    It holds the tokens from `start` to before `end`, after a BOS of its own where `bos` is given,
    and scores those from `scored` on.
    """

    start: int
    end: int
    scored: int
    bos: int | None = None


class Stream(NamedTuple):
    """Tokens in a row, and the words and bytes of text that each stands for."""

    ids: Int32[np.ndarray, " tokens"]
    words: Int64[np.ndarray, " tokens"]
    bytes: Int64[np.ndarray, " tokens"]

    def after(self, bos: int | None) -> "Stream":
        """The stream after a BOS, which stands for no text; itself where there is no BOS."""
        if bos is None:
            return self
        return Stream(*(np.insert(a, 0, first) for a, first in zip(self, (bos, 0, 0), strict=True)))


@dataclass(frozen=True)
class Windows:
    """Prepared windows, padded to one length.

    Position j of window i is told `inputs[i, j]` and asked for `targets[i, j]`. Padding follows a
    window's `lengths[i]` real positions and is never scored.
    """

    inputs: Int32[np.ndarray, "n l"]
    targets: Int32[np.ndarray, "n l"]
    scored: Bool[np.ndarray, "n l"]
    lengths: Int64[np.ndarray, " n"]
    words: Int64[np.ndarray, " n"]
    bytes: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def counts(self) -> Int64[np.ndarray, " n"]:
        """Scored tokens of each window."""
        return self.scored.sum(axis=1)

    @classmethod
    def join(cls, parts: Sequence["Windows"]) -> "Windows":
        """All windows of `parts`, which are padded to one length already."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def assemble(stream: Stream, spans: Sequence[Span], length: int) -> Windows:
    """The windows of `spans`, padded to `length` positions."""
    shape = (len(spans), length)
    inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    scored, lengths = np.zeros(shape, bool), np.zeros(len(spans), np.int64)
    words, sizes = (np.concatenate([[0], np.cumsum(a)]) for a in (stream.words, stream.bytes))
    for i, span in enumerate(spans):
        ids = stream.ids[span.start : span.end]
        if span.bos is not None:
            ids = np.insert(ids, 0, span.bos)
        n = len(ids) - 1
        inputs[i, :n], targets[i, :n], lengths[i] = ids[:-1], ids[1:], n
        scored[i, n - (span.end - span.scored) : n] = True
    first = np.array([span.scored for span in spans], np.int64)
    end = np.array([span.end for span in spans], np.int64)
    return Windows(
        inputs, targets, scored, lengths, words[end] - words[first], sizes[end] - sizes[first]
    )


def disjoint(tokens: int, length: int, bos: int | None) -> Iterator[Span]:
    """Windows of `length` tokens side by side, the shorter last one included.

    With a BOS each window begins with it, `length` counts it, and every token of the stream is
    scored. Without one, the first token of each window is context only.
    """
    step = length if bos is None else length - 1
    for start in range(0, tokens, step):
        end = min(start + step, tokens)
        scored = start + 1 if bos is None else start
        if scored < end:
            yield Span(start, end, scored, bos)


def overlapping(tokens: int, length: int) -> Iterator[Span]:
    """Windows of `length` tokens, each beginning half a window after the one before.

    The first scores all its tokens but the first, each other one those that none before it held.
    """
    done = 1
    for start in range(0, tokens, max(length // 2, 1)):
        if done < tokens:
            end = min(start + length, tokens)
            yield Span(start, end, done)
            done = end


def rolling(tokens: int, length: int) -> Iterator[Span]:
    """Windows of `length` inputs whose targets lie side by side; all tokens scored but the first.

    The last window reaches back to be as long as the others, as in lm-evaluation-harness.
    """
    for done in range(1, tokens, length):
        end = min(done + length, tokens)
        yield Span(max(end - length - 1, 0), end, done)
